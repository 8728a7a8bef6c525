"""Memory of a step: as counted on shapes, beside what PyTorch's profiler saw of a real one."""

import contextlib

import pytest
import torch

from sercli.engine import memory, pretraining
from sercli.engine.accumulation import Gradients
from sercli.engine.memory import StepMemory, count_memory, less
from sercli.engine.runtime import runtime_for
from sercli.engine.trainer import Trainer
from sercli.errors import RunFailed
from sercli.objective import Objective
from sercli.recipe.schedule import START
from tests.support import workers
from tests.support.recipes import recipe_of
from tests.support.training import SER, losses, start, train

BATCH = 48
CPU = runtime_for(torch.device("cpu"))
SETTINGS = (*SER, "train.max_steps=3")
UNSCALED = {"scale": (1, 1), "aspect": (1, 1)}  # as b₂ is counted
CASES = {
    "no add-on": ("moco", "none", None, {}),
    "ser": ("moco", "ser", 2, UNSCALED),
    "small crops": ("dino", "ser", 2, {"setting": "2+4-crops", **UNSCALED}),
    "a third view": ("barlow-twins", "equimod", 2, {}),
}
SAVING = {
    "at once": {},
    "accumulate": {"accumulate": 4},
    "checkpointing": {"checkpointing": "blocks"},
    "both": {"accumulate": 3, "checkpointing": "blocks"},
}


def recipe(case, **settings):
    method, addon, layer, options = CASES[case]
    made = recipe_of(method, addon, layer, depth=4, model={"width": 64}, **options)
    settings = {"batch_size": BATCH, **settings}
    return made.model_copy(update={"train": made.train.model_copy(update=settings)})


def measured(made_of):
    """Bytes of tensors at the peak of a real step on this CPU, above those held before it."""
    objective = Objective(made_of)
    views = workers.make_views(objective.plan, BATCH, seed=0)
    views = workers.in_float32(views)
    gradients = Gradients(
        objective, accumulate=made_of.train.accumulate, autocast=contextlib.nullcontext
    )
    gradients(views, START)
    objective.zero_grad()
    with torch.autograd.profiler.profile(profile_memory=True, use_cpu=True) as profile:
        start = torch.empty(1)
        gradients(views, START)
    totals = [
        event.extra_fields.total_allocated
        for event in flat(profile.kineto_results.experimental_event_tree())
        if event.tag.name == "Allocation"
    ]
    del start
    return max(totals) - totals[0]


def flat(events):
    for event in events:
        yield event
        yield from flat(event.children)


@pytest.mark.parametrize("saving", SAVING)
@pytest.mark.parametrize("case", ["ser", *(pytest.param(c, marks=pytest.mark.run) for c in (
    "no add-on", "small crops", "a third view",
))])  # fmt: skip
def test_what_is_counted_on_shapes_is_what_a_step_takes(monkeypatch, case, saving):
    # Making views, of so narrow a model, may take more.
    monkeypatch.setattr(memory, "_make_views", lambda *_: None)
    monkeypatch.setattr(memory, "_counts", {})
    made_of = recipe(case, **SAVING[saving])
    counted = count_memory(made_of, CPU)
    assert counted.peak - counted.held == pytest.approx(measured(made_of), rel=0.1)
    trained = [p for p in Objective(made_of).parameters() if p.requires_grad]
    assert counted.held > 12 * sum(p.numel() for p in trained)  # weights and two moments


def test_saving_memory_saves_it():
    peaks = {name: count_memory(recipe("ser", **s), CPU).peak for name, s in SAVING.items()}
    assert peaks["accumulate"] < 0.5 * peaks["at once"]
    assert peaks["checkpointing"] < 0.5 * peaks["at once"]
    assert peaks["both"] < min(peaks["accumulate"], peaks["checkpointing"])
    assert (
        count_memory(recipe("ser"), runtime_for(CPU.device, "bf16")).peak < 0.9 * peaks["at once"]
    )
    halves = count_memory(recipe("ser"), CPU, processes=2).peak
    assert 0.5 < halves / peaks["at once"] < 0.7


@pytest.mark.parametrize(("batch", "processes"), [(6, 2), (6, 3), (8, 8)])
def test_processes_with_few_images_of_b2_are_counted(batch, processes):
    """One or none of them: its negatives are those of the others."""
    small = recipe("ser", batch_size=batch)
    part = Objective(small).plan.split(batch, world=processes)
    assert part.paired_counts[0] < 2 < part.total_paired
    assert count_memory(small, CPU, processes=processes).peak > 0


def test_a_shape_is_counted_once(monkeypatch):
    monkeypatch.setattr(memory, "_counts", {})
    counted = count_memory(recipe("ser"), CPU)
    monkeypatch.setattr(memory, "on_meta", pytest.fail)
    assert count_memory(recipe("ser"), CPU) == counted


def test_micro_batches_that_fit():
    step = StepMemory(peak=100, held=20)
    assert step.micro_batches_for(100, 1) == 1
    assert step.micro_batches_for(60, 1) == 2
    assert step.micro_batches_for(30, 2) == 16
    assert step.micro_batches_for(20, 1) is None


def test_what_helps():
    assert less(recipe("ser"), 48) == ["train.accumulate=2", "train.checkpointing=blocks"]
    assert less(recipe("ser"), 48, accumulate=7)[0] == "train.accumulate=7"
    assert less(recipe("ser", accumulate=32, checkpointing="blocks"), 48) == ["train.accumulate=48"]
    assert less(recipe("ser", accumulate=48, checkpointing="blocks"), 48) == []


OF_CUDA = (
    "CUDA out of memory. Tried to allocate 2.32 GiB. GPU 0 has a total capacity of 79.10 GiB of "
    "which 1.88 GiB is free. Including non-PyTorch memory, this process has 77 GiB memory in use."
)
OF_CPU = (
    "[enforce fail at alloc_cpu.cpp:125] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 40000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError(OF_CUDA),
            "Tried to allocate 2.32 GiB, total capacity of 79.10 GiB",
        ),
        (RuntimeError(OF_CPU), "tried to allocate 40000000000 bytes"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_step_that_runs_out_of_memory_says_what_helps(tmp_path, monkeypatch, error, said):
    run = start(tmp_path / "run")

    def no_room(*_):
        raise error

    monkeypatch.setattr(Trainer, "_train_step", no_room)
    with pytest.raises(RunFailed) as failure:
        train(run)
    line = str(failure.value)
    assert line.startswith("memory is short in step 1: ")
    assert said in line
    assert "use train.accumulate=2 or train.checkpointing=blocks in " in line
    assert "\n" not in line
    assert (run.read_run()["status"], run.read_run()["exit_status"]) == ("failed", 3)
    # As it says: the run goes on, and is the run that it would have been.
    monkeypatch.undo()
    run.recipe.write_text(run.recipe.read_text().replace("accumulate: 1", "accumulate: 2"))
    assert pretraining.read_recipe(run).train.accumulate == 2


def test_errors_of_other_kinds_pass():
    with (
        pytest.raises(RuntimeError, match="shapes"),
        memory.saying_what_helps(recipe("ser"), "run", 1, 8),
    ):
        raise RuntimeError("shapes do not fit")


def test_a_run_in_micro_batches_is_the_run(tmp_path):
    """But for rounding; in bf16 and fp32 alike, in which it is done is no part of the recipe."""
    whole, parts = (
        start(tmp_path / name, (*SETTINGS, *more))
        for name, more in (("whole", ()), ("parts", ("train.accumulate=5",)))
    )
    train(whole)
    train(parts)
    for one, other in zip(losses(whole), losses(parts), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    assert parts.read_run()["flops"]["step_again"] > 0 == whole.read_run()["flops"]["step_again"]
    assert parts.read_run()["memory"]["counted_gib"] <= whole.read_run()["memory"]["counted_gib"]
