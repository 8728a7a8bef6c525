"""Settings that do not go together end in one clear line before anything is written."""

import pytest

from sercli import families
from sercli.engine import pretraining
from sercli.engine.plan import make_plan
from sercli.errors import UserError
from tests.support.command_line import run_in_process

KEYS = {
    "--method": "method.name", "--addon": "addon.name", "--layer": "addon.layer",
    "--views": "views.setting",
}  # fmt: skip
SER = "--addon ser --set addon.fraction=0.25"
ROTATIONS = "--addon essl --views 2+4-rotations"
NO_BLUR = "--set views.view1.blur_p=0 --set views.view2.blur_p=0"


def settings(line):
    """Options of a command line, all as `--set` values; the last one of a key counts."""
    words = line.split()
    pairs = zip(words[::2], words[1::2], strict=True)
    return tuple(
        value if option == "--set" else f"{KEYS[option]}={value}" for option, value in pairs
    )


def resolve(line, recipe="shapes/moco-none"):
    return families.resolve(recipe, settings(line), {}).recipe


def plan(line):
    recipe = resolve(line)
    return make_plan(recipe, pretraining.training_source(recipe))


# Options: what the line says, and what to add so that it works.
BAD = {
    # -- layers and [CLS] --
    f"{SER} --layer 13": ("--layer 13; it must be in 1…12: vit_micro has 12", "--layer 12"),
    f"{SER} --set model.depth=4 --layer 5": ("--layer 5; it must be in 1…4", "--layer 4"),
    f"{SER} --layer 0": ("addon.layer = 0 (from --set)", "--layer 1"),
    "--addon augself --set model.cls_after=3": (
        "model.cls_after 3 with addon.layer 3; the add-on takes [CLS] of that layer, which must "
        "have joined before it; leave model.cls_after out, or use addon.tap=pooled",
        "--set addon.tap=pooled",
    ),
    "--addon stl --layer 2 --set model.cls_after=7": (
        "model.cls_after 7 with addon.layer 2",
        "--set model.cls_after=null",
    ),
    # -- views --
    "--addon equimod": ("views.setting 2 with addon equimod: it works with 3", "--views 3"),
    "--addon equimod --views 2+4-crops": ("views.setting 2+4-crops with addon eq", "--views 3"),
    "--addon essl": ("views.setting 2 with addon essl: it works with 2+4-rot", ROTATIONS),
    "--addon essl --views 3": ("use --views 2+4-rotations", ROTATIONS),
    f"{SER} --views 3": ("views.setting 3 with addon ser: it works with 2 or", "--views 2"),
    f"{SER} --views 2+4-rotations": ("it works with 2 or 2+4-crops", "--views 2+4-crops"),
    "--views 3": ("views.setting 3 with addon none: it works with 2 or", "--views 2"),
    "--views 2+4-rotations": ("with addon none: it works with 2 or", "--views 2+4-crops"),
    "--views 4": ("views.setting = '4' (from --set): input should be '2', '3'", "--views 2"),
    "--method barlow-twins --views 2+4-crops": (
        "views.setting 2+4-crops with method barlow-twins: its loss takes two views; "
        "use --views 2, or a method with multi-crop (moco, dino)",
        "--views 2",
    ),
    f"--method barlow-twins {SER} --views 2+4-crops": ("(moco, dino)", "--method dino"),
    f"--method barlow-twins {ROTATIONS} --set addon.form=predict-and-views": (
        "with method barlow-twins: its loss takes two views; use addon.form=predict",
        "--set addon.form=predict",
    ),
    "--set views.local.size=16": (
        "views.local is of the settings 2+4-crops and 2+4-rotations only; views.setting is '2'",
        "--views 2+4-crops",
    ),
    "--addon equimod --views 3 --set views.local.area=[0.1,0.2]": (
        "views.setting is '3'",
        "--addon none --views 2+4-crops",
    ),
    # -- small views and the grid of patches (of 8 pixels, in images of 48) --
    f"{ROTATIONS} --set views.local.size=8": (
        "views.local.size 8 with patches of 8 and images of 48; it must be a multiple of the "
        "patch, at least two patches (a grid that can be turned) and at most the image; "
        "e.g. views.local.size=16",
        "--set views.local.size=16",
    ),
    f"{ROTATIONS} --set views.local.size=20": (
        "e.g. views.local.size=16",
        "--set views.local.size=16",
    ),
    f"{ROTATIONS} --set views.local.size=56": ("at most the image", "--set views.local.size=48"),
    "--views 2+4-crops --set views.local.size=12": ("size 12 with", "--set views.local.size=24"),
    # -- batches --
    "--set train.batch_size=1": (
        "train.batch_size 1; moco needs at least 2 images a step: batch norm and negatives",
        "--set train.batch_size=2",
    ),
    "--method dino --set train.batch_size=1": ("the centre of", "--set train.batch_size=2"),
    "--method barlow-twins --set train.batch_size=1": ("batch norm", "--set train.batch_size=2"),
    "--addon stl --set train.batch_size=2": (
        "train.batch_size 2; stl needs at least 4 images a step: two pairs of images, as one pair "
        "has no negatives",
        "--set train.batch_size=4",
    ),
    "--addon stl --set train.batch_size=7": (
        "train.batch_size 7; the add-on works on groups of 2 images that share their "
        "augmentation; use train.batch_size=8",
        "--set train.batch_size=8",
    ),
    "--addon ser --set addon.fraction=0.2 --set train.batch_size=6": (
        "addon.fraction 0.2 of train.batch_size 6 gives n₂ = 1; n₂ must be at least 2: an "
        "anchor's negatives are other images of b₂; use addon.fraction=0.34 or a larger batch",
        "--set addon.fraction=0.34",
    ),
    "--set train.batch_size=5000": ("5000 with 4,096 images", "--set train.batch_size=2048"),
    # -- targets of AugSelf that would be the same for every image --
    "--addon augself --set addon.rotation=0.5": (
        "addon.rotation 0.5: its target would be the same for every image; it needs "
        "views.rot90_p above 0, or --set addon.rotation=0",
        "--set views.rot90_p=0.5",
    ),
    f"--addon augself --set addon.blur=0.5 {NO_BLUR}": (
        "it needs views.view1.blur_p or views.view2.blur_p above 0, or --set addon.blur=0",
        "--set addon.blur=0",
    ),
    "--addon augself --set addon.flip=0.5 --set views.hflip_p=1": (
        "addon.flip 0.5: its target would be the same for every image",
        "--set views.hflip_p=0.5",
    ),
    "--addon augself --set views.view1.jitter_p=0 --set views.view2.jitter=[0,0,0,0]": (
        "addon.colour 0.5: its target would be the same for every image; it needs jitter",
        "--set views.view1.jitter_p=0.8",
    ),
    "--addon augself --set addon.crop=0 --set addon.colour=0": (
        "addon.crop, colour, flip, blur and rotation are all 0: nothing to predict",
        "--set addon.flip=0.5",
    ),
}  # fmt: skip


@pytest.mark.parametrize("line", BAD)
def test_what_does_not_go_together_is_one_clear_line(monkeypatch, tmp_path, line):
    message, cure = BAD[line]
    monkeypatch.chdir(tmp_path)
    for out in (tmp_path / "run", None):
        with pytest.raises(UserError) as caught:
            pretraining.prepare(families.resolve("shapes/moco-none", settings(line), {}), out=out)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.iterdir())
    assert plan(f"{line} {cure}").tokens == 36


ALL_ADDONS = [
    "--addon none", "--addon ser --set addon.fraction=1", "--addon augself", "--addon stl",
    "--addon equimod --views 3", ROTATIONS,
]  # fmt: skip


@pytest.mark.parametrize("method", ["moco", "dino", "barlow-twins"])
@pytest.mark.parametrize("addon", ALL_ADDONS)
def test_one_image_is_too_few_for_everything(method, addon):
    line = f"--method {method} {addon}"
    with pytest.raises(UserError, match=rf"train\.batch_size 1; {method} needs at least 2 images"):
        plan(f"{line} --set train.batch_size=1")
    smallest = 4 if "stl" in addon else 2
    assert plan(f"{line} --set train.batch_size={smallest}").tokens == 36


@pytest.mark.parametrize("tap", ["cls", "pooled"])
def test_cls_joins_where_it_may(tap):
    """[CLS] that is tapped must have joined before; a pooled tap lets it join later."""
    found = {}
    for after in ("null", "2", "3", "11"):
        try:
            line = f"--addon stl --layer 3 --set addon.tap={tap} --set model.cls_after={after}"
            found[after] = plan(line).cls_after
        except UserError:
            found[after] = "refused"
    if tap == "cls":
        assert found == {"null": 0, "2": 2, "3": "refused", "11": "refused"}
    else:
        assert found == {"null": 3, "2": 2, "3": 3, "11": 11}


def test_another_view_setting_drops_the_small_views(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "extends: shapes/moco-none\n"
        "views: {setting: 2+4-crops, local: {size: 32, area: [0.1, 0.3], colours: {grey_p: 0.4}}}\n"
    )

    def local(line):
        return resolve(line, str(file)).views.local

    assert local("").size == local("--views 2+4-crops").size == 32
    assert local("--views 2") is None
    assert local("--addon equimod --views 3") is None
    turned = local(ROTATIONS)
    assert (turned.size, turned.area, turned.colours.grey_p) == (None, (0.05, 0.14), 0.0)
    own = local(f"{ROTATIONS} --set views.local.size=16")
    assert (own.size, own.area) == (16, (0.05, 0.14))
    flag = families.resolve(str(file), (), {"views.setting": "2"})
    assert flag.recipe.views.local is None
    assert not [key for key in flag.origins if key.startswith("views.local.")]


@pytest.mark.parametrize(
    ("flags", "setting", "value"),
    [
        ({"addon.name": "stl"}, "addon.tap=pooled", "pooled"),
        ({"method.name": "barlow-twins"}, "method.off_diagonal=0.1", 0.1),
        ({"views.setting": "2+4-crops"}, "views.local.size=32", 32),
    ],
)
def test_named_options_and_set_go_together(flags, setting, value):
    """Nothing that is asked for on a command line is ignored in silence."""
    found = families.resolve("shapes/moco-none", (setting,), flags).recipe
    for part in setting.partition("=")[0].split("."):
        found = getattr(found, part)
    assert found == value


COMMANDS = {
    "--addon equimod --views 2": "use --views 3",
    "--method barlow-twins --addon none --views 2+4-crops": "its loss takes two views",
}


@pytest.mark.parametrize("line", COMMANDS)
def test_on_the_command_line_it_is_2(tmp_path, monkeypatch, capsys, line):
    monkeypatch.chdir(tmp_path)
    words = ["pretrain", "--recipe", "shapes/moco-ser", *line.split()]
    status, errors = run_in_process(words, monkeypatch, capsys)
    assert status == 2
    assert errors.startswith("ser: ")
    assert errors.count("\n") == 1
    assert COMMANDS[line] in errors
    assert not list(tmp_path.iterdir())


def test_a_batch_too_small_for_the_processes_is_refused_before(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--nproc", "3", "--set", "addon.name=stl", "--set", "train.batch_size=4"]
    words = ["pretrain", "--recipe", "shapes/moco-ser", *words]
    status, errors = run_in_process(words, monkeypatch, capsys)
    assert status == 2
    assert "on 3 processes" in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())
