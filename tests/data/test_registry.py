"""What kinds of data there are: each is one file, and nothing else knows it."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sercli import families
from sercli.cli import app
from sercli.commands.images import images_of
from sercli.data import has_split, kinds, open_source, registry
from sercli.data.checking import check_data
from sercli.data.images.check import Reading
from sercli.data.registry import find_kind, open_detection, rendering_kind, require_sizes_used
from sercli.engine import pretraining
from sercli.errors import UserError
from sercli.evals.monitor import training_monitor
from sercli.runs.facts import RunFacts
from sercli.runs.run_dir import RunDir

# A kind of data as somebody would add it: pictures and labels of each split in one NumPy file.
TOY = '''
"""Pictures in one .npz file: arrays `train`, `train_labels`, `val`, `val_labels`."""

from pathlib import Path

import numpy as np
from PIL import Image

from sercli.data.images.check import CheckReport
from sercli.data.registry import DataKind, register
from sercli.data.source import ImageSource


class PackedImages(ImageSource):
    def __init__(self, path, split):
        with np.load(path) as arrays:
            self.pictures, self.labels = arrays[split], arrays[f"{split}_labels"]
        self.name, self.split = path, split
        self.classes = tuple(map(str, range(int(self.labels.max()) + 1)))

    def load(self, index):
        return Image.fromarray(self.pictures[self.position(index)])

    def describe(self, index):
        return f"{self.name}/{self.identifier(index)}"

    def identifier(self, index):
        return f"{self.split}/{index}"


@register
class Packed(DataKind):
    name = "packed"
    title = "a file of packed images"
    given_as = "a .npz file"
    layouts = ("packed",)
    recipes = "shapes"

    def recognises(self, path):
        return path.endswith(".npz") and Path(path).is_file()

    def has_split(self, path, split):
        with np.load(path) as arrays:
            return split in arrays

    def open(self, path, split, **_rendering):
        return PackedImages(path, split)

    def check(self, path, _reading, **_how):
        return CheckReport((), (f"{path} was looked at",), taken_as=self.title)
'''
TINY = (
    "data.image_size=16", "data.workers=0", "model.patch_size=4", "model.width=16",
    "model.depth=4", "model.num_heads=2", "method.hidden_width=16", "method.output_width=8",
    "addon.projector_width=8", "train.batch_size=12", "train.max_steps=2", "train.log_steps=1",
)  # fmt: skip


def run(*arguments):
    """Exit status and all that was printed."""
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    return result.exit_code, result.output + (str(result.exception) if result.exception else "")


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """Images of a toy kind, whose one file was put beside those of the other kinds."""
    folder = tmp_path / "more kinds"
    folder.mkdir()
    (folder / "packed.py").write_text(TOY)
    monkeypatch.setattr(registry, "_KINDS", {kind.name: kind for kind in registry.kinds()})
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "sercli.data.kinds.packed", raising=False)
    registry._import_kinds.cache_clear()
    draws = np.random.default_rng(0)
    arrays = {}
    for split, number in (("train", 24), ("val", 12)):
        arrays[split] = draws.integers(0, 256, (number, 16, 16, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(number) % 3
    np.savez(tmp_path / "set.npz", **arrays)
    yield str(tmp_path / "set.npz")
    sys.modules.pop("sercli.data.kinds.packed", None)


def test_a_new_kind_is_one_file(packed, tmp_path):
    assert find_kind(packed).name == "packed"
    assert has_split(packed, "val")
    assert len(open_source(packed, "train", image_size=16)) == 24

    path = tmp_path / "run"
    made = pretraining.prepare(
        families.resolve("shapes/moco-ser", TINY, {"data.path": packed}), out=path
    ).run
    pretraining.train(made, device=torch.device("cpu"), make_monitor=training_monitor)
    assert made.read_run()["status"] == "done"

    status, printed = run("knn", path, "--no-floor", "--device", "cpu")
    assert status == 0, printed
    (result,) = RunDir.open(path).read_results()
    assert (result.data["path"], result.data["n"], result.data["bank"]) == (packed, 12, 24)
    assert rendering_kind(packed) is None  # its images are the same for every seed


def test_a_new_kind_shows_wherever_kinds_are_listed(packed, tmp_path):
    missing = tmp_path / "missing.npz"
    with pytest.raises(UserError) as error:
        open_source(str(missing), "train", image_size=16)
    told = str(error.value).replace("\n", " ")
    assert "a data set is a directory, " in told
    ways = told.partition("a data set is ")[2].partition("; ")[0]
    assert re.split(", | or ", ways).count("a .npz file") == 1

    line = layout_line(packed)
    assert "it must be folder, " in line
    assert "packed" in line.partition("it must be ")[2].partition(" or one of")[0].split(", ")
    for options in ((), ("--layout", "packed")):
        status, printed = run("data", "check", packed, *options)
        assert status != 0
        assert f"{packed} is taken as a file of packed images" in printed
        assert f"{packed} was looked at" in printed
    with pytest.raises(UserError, match="a file of packed images; a set with boxes"):
        registry.kind_of(packed).open_detection(packed, "val", image_size=16, seed=0)
    with pytest.raises(ValueError, match="'packed' already"):
        registry.register(type(find_kind(packed)))


def layout_line(path):
    with pytest.raises(UserError) as error:
        check_data(Path(path), Reading(lambda *_: None), layout="imagenet-q")
    return str(error.value)


def test_numbers_of_images_are_only_of_the_embedded_world():
    require_sizes_used("shapes", num_train=5, num_val=None)
    require_sizes_used("/pictures", num_train=None, num_val=None)
    line = "data.num_train and data.num_val only size the embedded world; data.path is '/pictures'"
    for key in ("num_train", "num_val"):
        numbers = {"num_train": None, "num_val": None, key: 5}
        with pytest.raises(UserError, match=re.escape(line)):
            require_sizes_used("/pictures", **numbers)
        with pytest.raises(UserError, match=re.escape(line)):
            families.resolve("shapes/moco-ser", (f"data.{key}=5",), {"data.path": "/pictures"})


def test_what_the_seed_renders_is_told_by_its_name_alone(tmp_path, monkeypatch):
    (tmp_path / "shapes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert rendering_kind("shapes").title == "the embedded world"
    for path in ("./shapes", "imagenet", "/gone/since"):
        assert rendering_kind(path) is None


@pytest.mark.parametrize(
    ("recipe", "data", "expected"),
    [
        ({"seed": 3, "data": {"path": "shapes", "num_val": 7}}, None, ("shapes", 3, 7)),
        ({"seed": 3, "data": {"path": "shapes", "num_val": 7}}, "shapes", ("shapes", 3, 7)),
        ({"seed": 3, "data": {"num_val": 7}}, "shapes", ("shapes", 3, 7)),
        ({"seed": 3, "data": {"path": "shapes", "num_val": 7}}, "other", ("other", 0, None)),
        ({"seed": 3, "data": {"path": "other"}}, "shapes", ("shapes", 0, None)),
        ({"seed": 3, "data": {"path": "other"}}, None, ("other", 0, None)),
        ({}, "shapes", ("shapes", 0, None)),
    ],
)
def test_the_embedded_world_is_the_runs_own_where_it_trained_on_it(recipe, data, expected):
    facts = RunFacts(RunDir(Path("run")), recipe)
    images = images_of(facts, "model", data=data, image_size=32)
    assert (images.path, images.seed, images.num_val) == expected


def test_recipes_are_those_of_the_kind(packed, tmp_path):
    assert registry.recipes_for("shapes") == "shapes"
    assert registry.recipes_for(packed) == "shapes"  # as its file says
    for path in (tmp_path, tmp_path / "none"):
        assert registry.recipes_for(str(path)) == "imagenet"


def test_detection_sets_know_what_trains_on_them(tmp_path):
    world = registry.detection_kind("shapes").detector
    assert (world.engine, world.preset) == ("torchvision", "tiny")
    elsewhere = registry.detection_kind(str(tmp_path)).detector
    assert (elsewhere.engine, elsewhere.preset) == ("detectron2", "standard")
    with pytest.raises(UserError, match="a directory in COCO's format is needed"):
        open_detection(str(tmp_path / "nowhere"), "val", image_size=16)


def test_the_folder_of_kinds_is_the_list():
    files = {file.stem for file in Path(kinds.__file__).parent.glob("*.py")} - {"__init__"}
    modules = {type(kind).__module__.rpartition(".")[2] for kind in registry.kinds()}
    assert modules == files
    assert registry.kinds()[-1].name == "folder"


def test_nothing_compares_with_the_name_of_the_embedded_world():
    root = Path(registry.__file__).parents[1]
    named = {
        str(file.relative_to(root))
        for file in root.rglob("*.py")
        if re.search(r"""["']shapes["']""", file.read_text())
    }
    assert named == {
        "commands/data.py",  # a choice of --setting
        "commands/reproduce.py",  # and one of --world
        "data/kinds/shapes.py",
        "data/shapes/settings.py",
        "recipe/schema.py",
    }


def test_asking_what_data_are_does_not_import_torch():
    code = (
        "import sys; from sercli.data import registry; registry.find_kind('shapes'); "
        "registry.require_sizes_used('shapes', num_train=1, num_val=None); "
        "assert len(registry.kinds()) >= 4; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
