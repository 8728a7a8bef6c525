"""ImageNet in shards that tell classes by bare indices: its wnids, where something says so."""

from sercli.data import open_source
from sercli.data.robustness.imagenet_classes import BARE, imagenet_classes
from tests.support.archives import write_tar


def opened(path, split="train"):
    return open_source(str(path), split, image_size=16)


def shard(path, names):
    """A shard with an image of each name, labelled by its place."""
    files = {}
    for label, name in enumerate(names):
        files |= {f"{name}.jpg": b"", f"{name}.cls": str(label).encode()}
    return write_tar(path, files)


def test_bare_indices_are_imagenet_where_all_names_of_images_say_so(tmp_path):
    wnids = imagenet_classes()
    shard(tmp_path / "x-train-0.tar", [f"{wnid}_7" for wnid in wnids])
    shard(tmp_path / "x-validation-0.tar", [f"ILSVRC2012_val_{i:08}" for i in range(1000)])
    assert opened(tmp_path).classes == wnids
    assert opened(tmp_path, "val").classes == wnids
    (tmp_path / "other").mkdir()
    swapped = [wnids[1], wnids[0], *wnids[2:]]
    shard(tmp_path / "other" / "x-train-0.tar", [f"{wnid}_7" for wnid in swapped])
    assert opened(tmp_path / "other").classes == BARE


def test_human_names_beside_shards_are_wnids(tmp_path):
    from torchvision.models import _meta

    shard(tmp_path / "x-train-0.tar", [f"image_{i}" for i in range(1000)])
    assert opened(tmp_path).classes == BARE
    (tmp_path / "classes.txt").write_text("\n".join(_meta._IMAGENET_CATEGORIES))
    assert opened(tmp_path).classes == imagenet_classes()
