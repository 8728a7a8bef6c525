"""Compiled blocks: how many times they are traced (by a back end that compiles nothing)."""

import os

import pytest
import torch
import torch._dynamo

from sercli.benchmarks.step import StepTimer
from sercli.engine.compiling import compile_encoders, compile_views
from sercli.engine.runtime import runtime_for
from sercli.recipe.schema import Photometrics
from sercli.views.passes import EAGER
from tests.support.recipes import recipe_of


def traced():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def _traced_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


RECIPES = {
    "multi-crop": ("dino", "ser", dict(setting="2+4-crops", model={"drop_path": 0.1})),
    "a frozen embedding": (
        "moco", "ser", dict(model={"patch_embed": "frozen", "pos_embed": "sincos"})
    ),
    "no teacher": ("barlow-twins", "essl", {}),
}  # fmt: skip


def stepper_of(name, precision="bf16"):
    method, addon, options = RECIPES[name]
    recipe = recipe_of(method, addon, 2, depth=3, **options)
    return StepTimer(recipe, runtime_for(torch.device("cpu"), precision))


def compiled(stepper, backend, say=lambda _: None):
    rows = len(stepper.part.positions)
    return compile_encoders(stepper.objective, stepper.runtime, rows=rows, say=say, backend=backend)


@pytest.mark.parametrize(
    ("name", "graphs"), [("multi-crop", 4), ("a frozen embedding", 6), ("no teacher", 2)]
)
def test_nothing_is_traced_after_the_start_whatever_the_grids(name, graphs):
    """Two parts for all blocks of the student, two of the teacher; two behind frozen embeddings.

    Grids differ by view and by step, b₁ and b₂ have other images, small crops have no teacher, and
    the monitor evaluates other sizes.
    """
    stepper = stepper_of(name)
    assert compiled(stepper, "eager")
    found = [traced()]
    for size in (32, 48, 64):
        stepper.take()
        encoder = stepper.objective.evaluated_encoder.eval()
        with torch.no_grad(), stepper.runtime.autocast():
            encoder(torch.randn(size // 4, 3, size, size))
        encoder.train()
        found.append(traced())
    assert found == [graphs] * 4


def test_compiling_changes_neither_values_nor_names():
    found = []
    for backend in (None, "aot_eager"):
        stepper = stepper_of("multi-crop", "fp32")
        if backend is not None:
            assert compiled(stepper, backend)
            assert all(p.grad is None for p in stepper.objective.parameters())
        stepper.take()
        stepper.take()
        found.append(stepper.objective.state_dict())
    assert list(found[0]) == list(found[1])
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5, msg=name)


def compiled_views(stepper, backend, say=lambda _: None):
    return compile_views(stepper.make_views, torch.device("cpu"), say=say, backend=backend)


def views_of_some_steps(stepper):
    """Of as many chunks, slices and sizes as there may be."""
    found = []
    for step in range(3):
        views = stepper.make_views(stepper.samples, step, torch.device("cpu"))
        found += [*views.standard, *views.paired]
    return found


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.run)])
def test_colours_are_compiled_at_the_start_and_are_the_same(backend):
    colours = {"jitter_p": 0.8, "grey_p": 0.3, "blur_p": 0.5, "solarise_p": 0.5}
    recipe = recipe_of("moco", "none", setting="2+4-crops")
    chosen = {f"view{i}": Photometrics(**colours) for i in (1, 2)}
    views = recipe.views.model_copy(update=chosen)
    recipe = recipe.model_copy(update={"views": views})
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"batch_size": 32})})
    steppers = [StepTimer(recipe, runtime_for(torch.device("cpu"))) for _ in range(2)]
    assert compiled_views(steppers[1], backend)
    before = traced()
    assert 0 < before <= 8
    eager, ours = (views_of_some_steps(stepper) for stepper in steppers)
    assert traced() == before
    for one, other in zip(ours, eager, strict=True):
        assert (one - other).abs().max() < 1e-5  # over a standard deviation of 0.22 and more


def test_where_colours_cannot_be_compiled_they_are_eager():
    def refuses(_graph, _inputs):
        raise RuntimeError("no compiler")

    stepper, said = stepper_of("no teacher"), []
    assert not compiled_views(stepper, refuses, said.append)
    assert stepper.make_views.passes is EAGER
    assert "uncompiled" in said[1]


def test_where_nothing_can_be_compiled_blocks_run_as_they_are():
    def refuses(_graph, _inputs):
        raise RuntimeError("no compiler\nand a long story")

    stepper, said = stepper_of("no teacher"), []
    assert not compiled(stepper, refuses, said.append)
    assert len(said) == 2
    assert "train.compile=off" in said[0]
    assert "uncompiled" in said[1]
    assert "\n" not in said[1]
    stepper.take()


def test_what_is_compiled_is_kept_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SER_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    stepper = stepper_of("no teacher")
    compiled(stepper, "eager")
    assert os.environ.pop("TORCHINDUCTOR_CACHE_DIR") == str(tmp_path / "compiled")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    compiled(stepper, "eager")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"


@pytest.mark.run
def test_compiled_by_inductor_it_is_the_same_step():
    """The real compiler, on a CPU."""
    found = []
    for backend in (None, "inductor"):
        stepper = stepper_of("multi-crop", "fp32")
        if backend is not None:
            assert compiled(stepper, backend)
        stepper.take()
        before = traced()
        stepper.take()
        assert traced() == before
        found.append(stepper.objective.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5, msg=name)
