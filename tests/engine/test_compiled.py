"""Compiled blocks: how many times they are traced (by a back end that compiles nothing)."""

import os

import pytest
import torch
import torch._dynamo

from sercli.benchmarks.step import StepTimer
from sercli.engine.compiling import compile_passes, compile_step
from sercli.engine.runtime import runtime_for
from sercli.recipe.schema import Photometrics
from sercli.views.passes import Passes
from tests.support.architectures import SETTINGS
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
        "moco",
        "ser",
        dict(model={"patch_embed": "frozen", "pos_embed": "sincos"}),
    ),
    "no teacher": ("barlow-twins", "essl", {}),
    "rotary positions": ("dino", "ser", dict(model={"num_heads": 4, **SETTINGS["dinov3"]})),
    "saved memory": ("dino", "ser", dict(setting="2+4-crops", model={"drop_path": 0.1})),
}
SAVING = {"saved memory": {"accumulate": 3, "checkpointing": "blocks"}}  # fmt: skip


def stepper_of(name, precision="bf16"):
    method, addon, options = RECIPES[name]
    recipe = recipe_of(method, addon, 2, depth=3, **options)
    train = recipe.train.model_copy(update=SAVING.get(name, {}))
    recipe = recipe.model_copy(update={"train": train})
    return StepTimer(recipe, runtime_for(torch.device("cpu"), precision))


def compiled(stepper, backend, say=lambda _: None):
    return compile_step(
        stepper.objective,
        stepper.make_views,
        stepper.runtime,
        accumulate=stepper.recipe.train.accumulate,
        say=say,
        backend=backend,
    )


@pytest.mark.parametrize(
    ("name", "graphs"),
    [
        ("multi-crop", 4),
        ("a frozen embedding", 6),
        ("no teacher", 2),
        ("rotary positions", 4),
        ("saved memory", 6),
    ],
)
def test_nothing_is_traced_after_the_start_whatever_the_grids(name, graphs):
    """Two parts for all blocks of the student, two of the teacher; two behind frozen embeddings.

    Micro-batches run the student's without gradient, too.

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


@pytest.mark.parametrize("name", ["multi-crop", "rotary positions", "saved memory"])
def test_compiling_changes_neither_values_nor_names(name):
    found = []
    for backend in (None, "aot_eager"):
        stepper = stepper_of(name, "fp32")
        if backend is not None:
            assert compiled(stepper, backend)
            assert all(p.grad is None for p in stepper.objective.parameters())
        stepper.take()
        stepper.take()
        found.append(stepper.objective.state_dict())
    assert list(found[0]) == list(found[1])
    for parameter, value in found[0].items():
        ours = found[1][parameter]
        torch.testing.assert_close(ours, value, rtol=1e-4, atol=1e-5, msg=parameter)


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


@torch.no_grad()
def test_pixels_compiled_are_those_that_are_not_whatever_the_images():
    """For both sizes of views, any number of images, and each choice of terms."""
    maker, eager = stepper_of("multi-crop").make_views, Passes()
    compile_passes(maker, torch.device("cpu"), backend="aot_eager")
    at_the_start = traced()
    draws = torch.Generator().manual_seed(0)
    for size in {spec.size for spec in maker.plan.specs}:
        for count in (1, 2, 5, 9):
            images = torch.rand(count, 3, size, size, generator=draws)
            numbers = torch.rand(7, 20, generator=draws)[:, 3 : 3 + count]
            shift = torch.rand(count, 1, 1, generator=draws) - 0.5
            limit = torch.rand(count, 1, 1, 1, generator=draws) + 1
            scale, bias = torch.rand(2, 3, 1, 1, generator=draws)
            for grey, mean in ((False, False), (True, False), (False, True), (True, True)):
                found = [images.clone(), images.clone()]
                for passes, one in zip((eager, maker.passes), found, strict=True):
                    passes.blend(one, numbers, grey=grey, mean=mean)
                    passes.turn_hue(one, shift)
                    passes.finish(one, limit if grey else None, scale, bias)
                torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)
    assert traced() == at_the_start


def views_of_some_steps(stepper):
    """Of as many slices and sizes as there may be."""
    found = []
    for step in range(3):
        views = stepper.make_views(stepper.samples, step, torch.device("cpu"))
        found += [*views.standard, *views.paired]
    return found


def test_views_by_compiled_passes_are_the_same_and_trace_nothing_more():
    """Slices of a batch lie in memory in other ways than the images of the first call."""
    colours = {"jitter_p": 0.8, "grey_p": 0.3, "blur_p": 0.5, "solarise_p": 0.5}
    recipe = recipe_of("moco", "none", setting="2+4-crops")
    chosen = {f"view{i}": Photometrics(**colours) for i in (1, 2)}
    views = recipe.views.model_copy(update=chosen)
    train = recipe.train.model_copy(update={"batch_size": 32})
    recipe = recipe.model_copy(update={"views": views, "train": train})
    plain, fast = (StepTimer(recipe, runtime_for(torch.device("cpu"))) for _ in range(2))
    compile_passes(fast.make_views, torch.device("cpu"), backend="aot_eager")
    at_the_start = traced()
    found = views_of_some_steps(fast)
    assert traced() == at_the_start
    for one, other in zip(found, views_of_some_steps(plain), strict=True):
        assert (one - other).abs().max() < 1e-5  # over a standard deviation of 0.22 and more


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
