"""Others' ViTs on the whole way: read, begun from, trained, resumed, exported, and read again.

Made and saved by timm, and under the names of their authors (`support/families`); small ones here,
of their true sizes with `-m slow`. What the authors' own code gives is in `foreign/test_families`.
"""

import functools
import re
import shutil

import pytest
import timm
import torch

from sercli.encoders.describing import model_of
from sercli.encoders.export.writing import export
from sercli.encoders.loading import load_encoder, read_encoder
from sercli.engine import pretraining
from sercli.engine import weights as begun_from
from sercli.engine.beginning import beginning_of
from sercli.errors import UserError
from sercli.families import resolve
from sercli.objective import Objective
from tests.encoders.foreign import test_families, test_positions
from tests.support.command_line import run_in_process
from tests.support.encoder_files import equal
from tests.support.families import (
    FAMILIES,
    authors_file,
    built,
    hub_folder,
    our_outputs,
    timms_outputs,
)
from tests.support.recipes import METHODS
from tests.support.refusals import refused
from tests.support.training import interrupt_after, losses, train, weights

SIZES = [
    pytest.param(True, id="narrow"),
    pytest.param(False, id="true-size", marks=pytest.mark.slow),
]
OBJECTIVES = ("moco", "dino", "barlow-twins")
FORMS = ("hub", "timm", "authors")
TIMMS_WAY = "bicubic-antialias"
EXPORTS = [
    ("timm", "moco"),
    ("hf", "dino"),
    *(
        pytest.param(form, objective, marks=pytest.mark.slow)
        for form, objective in (
            ("timm", "dino"), ("timm", "barlow-twins"), ("hf", "moco"), ("hf", "barlow-twins")
        )
    ),
]  # fmt: skip
RUN = (
    "data.num_train=16", "data.num_val=8", "data.workers=0", "addon.projector_width=16",
    "addon.fraction=0.5", "train.batch_size=4", "train.epochs=2", "train.warmup_epochs=0",
    "train.lr=0.01", "train.log_steps=1", "train.checkpoint_epochs=1", "train.monitor_epochs=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def saved(place):
    """A family's ViT, and what there is of it: MODEL and what has to be said, by form."""

    @functools.cache
    def made(name, narrow):
        family = FAMILIES[name]
        vit = built(family, narrow=narrow)
        where = place / f"{name}-{narrow}"
        folder = hub_folder(family, vit, where, narrow=narrow)
        said = family.heads(narrow=narrow)
        return vit, {
            "hub": (f"timm:local-dir:{folder}", {}),
            "timm": (str(folder / "model.safetensors"), {}),
            "authors": (
                str(authors_file(name, vit, where / "theirs.pth")), {**said, **family.hints},
            ),
        }  # fmt: skip

    return made


def settings(name, narrow, objective, said, *more):
    """What a run of a family is told."""
    own = {f"method.{key}": value for key, value in METHODS[objective].items()}
    side = FAMILIES[name].patch * (4 if narrow else 8)
    heard = {f"model.weights_as.{key}": value for key, value in said.items()}
    told = {**own, **heard, "data.image_size": side, "addon.layer": 2 if narrow else 3}
    return (*RUN, *(f"{key}={value}" for key, value in told.items()), *more)


def resolved(saved, name, narrow, objective="moco", *more, form="authors"):
    model, said = saved(name, narrow)[1][form]
    told = settings(name, narrow, objective, said, *more)
    return resolve(f"shapes/{objective}-ser", told, {"model.weights": model})


# -- read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("narrow", SIZES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_and_cls_are_timms_at_its_own_size_and_another(saved, name, form, narrow):
    family = FAMILIES[name]
    vit, forms = saved(name, narrow)
    model, said = forms[form]
    loaded = read_encoder(model, **said)
    own, other = family.sides(narrow=narrow)
    assert loaded.encoder.cls_after == 0
    if loaded.encoder.pos_embed is not None:
        assert loaded.encoder.grid == (own // family.patch,) * 2
    # Authors who resample otherwise than timm: see `foreign`.
    timms_way = loaded.encoder.pos_embed is None or loaded.encoder.pos_resize == TIMMS_WAY
    assert timms_way or (form == "authors" and name in ("dinov2", "deit-iii"))
    sizes = [(own, own), other] if timms_way else [(own, own)]
    for size in sizes:
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(5))
        theirs = timms_outputs(vit, images, family.prefix)
        for found, expected in zip(our_outputs(loaded.encoder, images), theirs, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        summary = loaded.encoder(images).cls
        expected = theirs[0] if form == "authors" else vit(images)
        torch.testing.assert_close(summary, expected, rtol=0, atol=1e-5)


class Runs:
    """Code in a pickle, which leaves a file when it runs."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_no_code_in_a_folder_of_timms_runs(saved, place, tmp_path):
    vit, _ = saved("dinov2", True)
    folder = hub_folder(FAMILIES["dinov2"], vit, tmp_path / "folder")
    torch.save({"x": Runs(tmp_path / "ran")}, folder / "theirs.pth")
    whole, theirs = (
        read_encoder(f"timm:local-dir:{one}").encoder for one in (folder, place / "dinov2-True")
    )
    assert equal(whole, theirs)
    (folder / "model.safetensors").unlink()
    (folder / "theirs.pth").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="code of a file is never run"):
        read_encoder(f"timm:local-dir:{folder}")
    assert not (tmp_path / "ran").exists()


# -- begun from, and trained ----------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FAMILIES)
def test_step_zero_is_the_file_to_the_bit(saved, name, form):
    begun = beginning_of(resolved(saved, name, True, "moco", "model.cls_after=0", form=form))
    objective = Objective(begun.recipe)
    begun_from.begin(objective, begun.recipe)
    model, said = saved(name, True)[1][form]
    source = load_encoder(model, **said)
    side = begun.recipe.data.image_size
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(6))
    for encoder in (objective.encoder.eval(), objective.teacher.encoder.eval()):
        assert equal(encoder, source)
        for found, expected in zip(
            our_outputs(encoder, images), our_outputs(source, images), strict=True
        ):
            assert torch.equal(found, expected)
    assert model_of(objective.encoder) == model_of(source)


@pytest.fixture(scope="module")
def trained(saved, place):
    """A run of two steps from a family's file; [CLS] stays where it was with MoCo-v3."""

    @functools.cache
    def made(name, narrow, objective):
        more = ("train.max_steps=2", *(["model.cls_after=0"] if objective == "moco" else []))
        out = place / f"{name}-{narrow}-{objective}"
        run = pretraining.prepare(resolved(saved, name, narrow, objective, *more), out=out).run
        train(run)
        return run

    return made


def vector(encoder):
    return torch.cat([tensor.flatten().double() for tensor in encoder.state_dict().values()])


@pytest.mark.parametrize("narrow", SIZES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", FAMILIES)
def test_two_steps_move_the_student_and_the_teacher_follows(trained, name, objective, narrow):
    run = trained(name, narrow, objective)
    rows = losses(run)
    assert [row["step"] for row in rows] == [1, 2]
    values = torch.tensor([v for row in rows for v in row.values()])
    assert bool(torch.isfinite(values).all())
    recipe = pretraining.read_recipe(run)
    start = Objective(recipe)
    begun_from.begin(start, recipe)
    student = load_encoder(run.path)
    before, after = vector(start.encoder), vector(student)
    assert bool(torch.isfinite(after).all())
    moved = after - before
    assert 0 < float(moved.norm()) < float(before.norm())
    assert student.cls_after == (0 if objective == "moco" else 2 if narrow else 3)
    if start.teacher is not None:
        followed = vector(load_encoder(run.path, teacher=True)) - before
        assert 0 < float(followed.norm()) < float(moved.norm())
        assert float(followed @ moved) > 0


GOLDEN = {
    "weights_dinov2": "dinov2",
    "weights_dinov2_reg": "dinov2_reg",
    **{f"encoders/{name}": name for name in ("dinov3", "clip_openai", "deit_iii")},
}


@pytest.mark.parametrize("golden", GOLDEN)
def test_a_run_begins_where_the_code_of_the_authors_is_and_goes_on(tmp_path, golden):
    """At every size that their code was asked at, then two steps, an export, and back."""
    name = GOLDEN[golden]
    older = golden.startswith("weights")
    path, theirs = (test_positions if older else test_families).authors_file(name, tmp_path)
    said = {"num_heads": 2} if older else {**test_families.options(name), "teacher": False}
    own = {f"model.weights_as.{key}": value for key, value in said.items()}
    own |= {f"method.{key}": value for key, value in METHODS["moco"].items()}
    own |= {"data.image_size": 32, "addon.layer": 1, "train.max_steps": 2, "model.cls_after": 0}
    told = resolve(
        "shapes/moco-ser",
        (*RUN, *(f"{key}={value}" for key, value in own.items())),
        {"model.weights": str(path)},
    )
    run = pretraining.prepare(told, out=tmp_path / "run").run
    recipe = pretraining.read_recipe(run)
    objective = Objective(recipe)
    begun_from.begin(objective, recipe)
    sizes = {key.split("/")[1] for key in theirs.files if re.search(r"\d+x\d+", key)}
    assert len(sizes) > 1
    for size in sizes:
        sides = tuple(map(int, size.split("x")))
        keys = [f"encoder/{size}/cls", f"encoder/{size}/patches"]
        keys = keys if older else [f"cls/{size}", f"tokens/{size}"]
        found = test_positions.outputs(objective.encoder.eval(), sides)
        for tensor, key in zip(found, keys, strict=True):
            expected = torch.from_numpy(theirs[key]).double()
            torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-5)
    train(run)
    loaded = read_encoder(run.path)
    back = read_encoder(export(loaded, tmp_path / "out.safetensors", form="timm").path)
    assert model_of(back.encoder) == model_of(loaded.encoder)
    images = torch.randn(2, 3, 40, 48)
    for tensor, expected in zip(
        our_outputs(back.encoder, images), our_outputs(loaded.encoder, images), strict=True
    ):
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-5)


# -- exported, and read again ---------------------------------------------------------------------


@pytest.mark.parametrize("narrow", SIZES)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("form", "objective"), EXPORTS)
def test_what_was_trained_goes_to_timm_and_comes_back(
    trained, tmp_path, name, objective, form, narrow
):
    loaded = read_encoder(trained(name, narrow, objective).path)
    out = tmp_path / ("out.safetensors" if form == "timm" else "out")
    exported = export(loaded, out, form=form)
    scope = {}
    exec(exported.code, scope)
    vit = scope["model"]
    images = torch.randn(3, 3, *(2 * [loaded.image_size]))
    ours = our_outputs(loaded.encoder, images)
    number = ours[1].shape[1]
    with torch.no_grad():
        tokens = vit.eval().forward_features(images)
        summary = loaded.encoder(images).cls
        torch.testing.assert_close(vit(images), summary, rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens[:, 0], ours[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens[:, -number:], ours[1], rtol=0, atol=1e-5)
    told = timm.data.resolve_model_data_config(vit)
    assert tuple(told["input_size"]) == (3, loaded.image_size, loaded.image_size)
    assert (tuple(told["mean"]), tuple(told["std"])) == (loaded.mean, loaded.std)
    assert ("sercli" in exported.code) == (objective != "moco")  # a delayed [CLS] is ours alone
    # Read back.
    again = read_encoder(out if form == "timm" else f"timm:local-dir:{out}")
    assert model_of(again.encoder) == model_of(loaded.encoder)
    assert (again.mean, again.std, again.image_size) == (
        loaded.mean, loaded.std, loaded.image_size,
    )  # fmt: skip
    assert again.encoder.cls_after == loaded.encoder.cls_after
    for sides in (images.shape[2:], (3 * loaded.encoder.patch_size, 5 * loaded.encoder.patch_size)):
        images = torch.randn(2, 3, *sides)
        for found, expected in zip(
            our_outputs(again.encoder, images), our_outputs(loaded.encoder, images), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_trained_is_an_onnx_graph(trained, tmp_path, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    loaded = read_encoder(trained(name, True, "dino").path)
    export(loaded, tmp_path / "out.onnx", form="onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"))
    for number in (1, 3):
        images = torch.randn(number, 3, *(2 * [loaded.image_size]))
        summary, patches = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
        _, expected = our_outputs(loaded.encoder, images)
        torch.testing.assert_close(patches, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(summary, loaded.encoder(images).cls, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("dinov2", "LayerScale"),
        ("dinov2-reg4", "registers"),
        ("dinov3", "rotary positions"),
        ("clip", "a norm before its blocks"),
        ("deit-iii", "LayerScale"),
    ],
)
def test_what_torchvision_cannot_be_is_refused_in_words(trained, tmp_path, name, what):
    loaded = read_encoder(trained(name, True, "moco").path)
    refused(lambda: export(loaded, tmp_path / "out.pth", form="torchvision"), "torchvision", what)
    assert list(tmp_path.iterdir()) == []


# -- stopped, and gone on with --------------------------------------------------------------------

GOING_ON = {
    "registers, LayerScale": ("dinov2-reg4", "moco", "adamw"),
    "rotary positions": ("dinov3", "dino", "adamw"),
    "LARS": ("dinov3", "barlow-twins", "lars"),
    "SGD": ("dinov2-reg4", "moco", "sgd"),
}


def stopped_run(saved, out, name, objective, optimiser, **more):
    told = resolved(
        saved, name, True, objective, "train.max_steps=4", "train.checkpoint_epochs=0.5",
        f"train.optimiser={optimiser}", "train.layer_decay=0.75", **more,
    )  # fmt: skip
    return pretraining.prepare(told, out=out).run


def state_of(run):
    """All that its last checkpoint holds, as a flat table."""
    state = torch.load(run.checkpoint(run.checkpoint_steps()[-1]), weights_only=True)
    return dict(flat({key: state[key] for key in ("step", "objective", "optimiser")}))


def flat(tree, place=""):
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in pairs:
        if isinstance(value, dict | list | tuple):
            yield from flat(value, f"{place}/{key}")
        else:
            yield f"{place}/{key}", value


def same(a, b):
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("what", GOING_ON)
def test_a_run_from_weights_goes_on_to_the_bit(saved, tmp_path, what):
    name, objective, optimiser = GOING_ON[what]
    whole = stopped_run(saved, tmp_path / "whole", name, objective, optimiser)
    train(whole)
    run = stopped_run(saved, tmp_path / "run", name, objective, optimiser)
    interrupt_after(run, 3)
    assert run.checkpoint_steps()[-1] < 4
    train(run)
    assert losses(run) == losses(whole)
    assert len(losses(run)) == 4
    assert torch.equal(weights(run), weights(whole))
    found, expected = state_of(run), state_of(whole)
    assert found.keys() == expected.keys()
    assert [key for key in expected if not same(found[key], expected[key])] == []
    assert any("/optimiser/state/" in key for key in expected)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_file_that_was_replaced_is_refused_and_nothing_changes(
    saved, tmp_path, monkeypatch, capsys
):
    model, said = saved("dinov2-reg4", True)[1]["authors"]
    shutil.copy(model, tmp_path / "theirs.pth")
    told = settings("dinov2-reg4", True, "moco", said, "train.max_steps=4")
    told = resolve("shapes/moco-ser", told, {"model.weights": str(tmp_path / "theirs.pth")})
    run = pretraining.prepare(told, out=tmp_path / "run").run
    interrupt_after(run, 3)
    run.update_run(status="preempted", world_size=1)
    authors_file("dinov2-reg4", built(FAMILIES["dinov2-reg4"], seed=1), tmp_path / "theirs.pth")
    before = contents(run.path)
    status, err = run_in_process(
        ["pretrain", "--resume", run.path, "--device", "cpu"], monkeypatch, capsys
    )
    assert status == 2
    assert "theirs.pth was replaced (its SHA-256 was " in err
    assert contents(run.path) == before


# -- what is no beginning -------------------------------------------------------------------------


def cut(path, to):
    to.write_bytes(path.read_bytes()[:-2000])


RESNET = {"conv1.weight": (8, 3, 7, 7), "bn1.weight": (8,), "layer1.0.conv1.weight": (8, 8, 3, 3)}
NO_BEGINNING = {
    "heads that do not divide": (
        "theirs.pth",
        ["model.weights_as.num_heads=3"],
        "divide the width",
    ),
    "heads not said": ("theirs.pth", [], "add --set model.weights_as.num_heads=N"),
    "patches that do not fit": (
        "theirs.pth",
        ["model.weights_as.num_heads=2", "data.image_size=48"],
        "use 42 or 56",
    ),
    "another name": (
        "theirs.pth",
        ["model.weights_as.num_heads=2", "model.name=timm:vit_small_patch14_dinov2"],
        "leave model.name out",
    ),
    "a ResNet": ("resnet.pth", [], "holds a ResNet"),
    "a text": ("[bold]é\n.pth", [], "no checkpoint that can be read"),
    "a directory": ("folder", [], "has no run.json"),
    "cut short": ("cut.pth", [], "no checkpoint that can be read"),
    "nothing": ("\x1b[31mnone", [], "no model at \\x1b[31mnone"),
    "timm's, not here": ("timm:vit_small_patch14_dinov2", [], "model.name=timm:NAME"),
}


@pytest.mark.parametrize("what", NO_BEGINNING)
def test_what_is_no_beginning_is_refused_in_a_line(saved, tmp_path, monkeypatch, capsys, what):
    name, more, words = NO_BEGINNING[what]
    model, _ = saved("dinov2", True)[1]["authors"]
    monkeypatch.chdir(tmp_path)
    shutil.copy(model, "theirs.pth")
    torch.save({key: torch.zeros(shape) for key, shape in RESNET.items()}, "resnet.pth")
    (tmp_path / "[bold]é\n.pth").write_text("no weights\n")
    (tmp_path / "folder").mkdir()
    cut(tmp_path / "theirs.pth", tmp_path / "cut.pth")
    told = settings("dinov2", True, "moco", {}, *more)
    options = [word for one in told for word in ("--set", one)]
    status, err = run_in_process(
        ["pretrain", "--recipe", "shapes/moco-ser", "--weights", name, "--out", "never", *options],
        monkeypatch,
        capsys,
    )
    assert status == 2
    assert words in err
    (line,) = (line for line in err.splitlines() if line.strip())
    assert line.startswith("ser: ")
    assert not (tmp_path / "never").exists()
