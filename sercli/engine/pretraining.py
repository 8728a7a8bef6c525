"""A pretraining run from its recipe to its end: check, announce, make the directory, train."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sercli import distributed, signals, stages
from sercli.data.cores import most_loaders, require_loaders
from sercli.data.registry import rendering_kind
from sercli.data.source import ImageSource
from sercli.engine import runtime as runtimes
from sercli.engine.beginning import Beginning, beginning_of
from sercli.engine.bottleneck import advice
from sercli.engine.flops import count_flops
from sercli.engine.memory import count_memory, most_resident
from sercli.engine.plan import Plan, make_plan, print_flops, print_memory, print_plan
from sercli.engine.preemption import Stopping
from sercli.engine.profiling import profiled
from sercli.engine.progress import TrainingProgress
from sercli.engine.resuming import Comparison, GoingOn, read_resolved, record_of, training_source
from sercli.engine.stops import stopped_outside, stops_recorded
from sercli.engine.tracking import require_tensorboard
from sercli.engine.trainer import Monitor, Trainer
from sercli.engine.watch import naming_who_is_gone
from sercli.engine.weights import moved
from sercli.families import title_of
from sercli.families.plugins import copies_for_run
from sercli.recipe.files import Resolved
from sercli.recipe.schema import Recipe
from sercli.runs.lease import Lease, leased
from sercli.runs.places import next_free, refuse_existing
from sercli.runs.run_dir import RunDir
from sercli.screen import Screen
from sercli.signals import at_boundaries, deferred
from sercli.visible import say

MonitorFactory = Callable[[Recipe, ImageSource, runtimes.Runtime], Monitor]


@dataclass(frozen=True)
class Prepared:
    """A run that can be trained, with what was found out on the way.

    Attributes:
        run: The new run directory.
        recipe: Resolved.
        source: Training images.
    """

    run: RunDir
    recipe: Recipe
    source: ImageSource


def read_recipe(run: RunDir) -> Recipe:
    """The resolved recipe of a run directory."""
    return read_resolved(run).recipe


def _unknown_then(resolved: Resolved) -> Iterator[str]:
    """What there is to say of a run's recipe, which has all settings that there were then."""
    added = [key for key, origin in resolved.origins.items() if origin == "default"]
    if added:
        yield (
            f"warning: an earlier version of ser wrote {resolved.name}: it goes on by today's "
            f"rules, and with today's defaults of {', '.join(added)}"
        )


def _fewer_loaders(recipe: Recipe) -> Iterator[str]:
    """What there is to say of a run that was started on a larger machine."""
    if (recipe.data.workers or 0) > most_loaders():
        yield (
            f"data.workers {recipe.data.workers}: this process may use fewer cores than the one "
            f"that started the run; it has {most_loaders()} loader processes"
        )


def prepare(
    resolved: Resolved,
    *,
    out: Path | None,
    processes: int = 1,
    device: torch.device | None = None,
    until: contextlib.ExitStack | None = None,
) -> Prepared:
    """Check everything, make the run directory, and print what was derived.

    Args:
        resolved: The recipe.
        out: The run directory to make; None: the first free `runs/<recipe>`.
        processes: How many will train.
        device: Of the first of them; None: the CPU.
        until: How the run ends is recorded until this closes; None: until it is prepared.

    Raises:
        UserError: A recipe or data that would not train; nothing is written then.
        Exception: A step's shapes do not go through the loss (that of a plug-in, say); run.json
            says so, as of a run that fails while it trains.
    """
    refuse_existing(out)
    if resolved.recipe.train.tensorboard:
        require_tensorboard()
    require_loaders(resolved.recipe.data.workers, "data.workers")
    beginning = beginning_of(resolved)
    resolved = resolved if beginning is None else beginning.resolved
    source = training_source(resolved.recipe)
    plan = make_plan(resolved.recipe, source, processes=processes)
    with contextlib.ExitStack() as prepared:
        with deferred():  # no stop comes between the directory and who says so in it
            run = create_run(resolved, plan, out, source)
            (until or prepared).enter_context(stops_recorded(run))
        stages.here.run = str(run.path.absolute())
        console = Screen()
        print_plan(resolved, plan, run.path, console)
        for note in resolved.notes:
            say(note)
        if not plan.labelled and resolved.recipe.train.monitor_epochs:
            say(f"note: {source.name} has no labels: the monitor watches for collapse, not kNN")
        if beginning is not None:
            _announce_weights(run, beginning, plan, source, device or torch.device("cpu"))
        flops = count_flops(resolved.recipe, plan.objective)  # a first pass through the loss
        run.update_run(flops=flops.to_json())
        print_flops(resolved.recipe, flops, console)
        _announce_memory(run, resolved.recipe, plan, processes, device or torch.device("cpu"))
    return Prepared(run, resolved.recipe, source)


def _announce_weights(
    run: RunDir, beginning: Beginning, plan: Plan, source: ImageSource, device: torch.device
) -> None:
    """Say what is begun from, and how far a delayed [CLS] leads from it; note it in run.json."""
    say(beginning.line)
    told = beginning.record()
    loaded = beginning.weights.loaded
    change = moved(loaded, beginning.recipe, plan.cls_after, source, device)
    if change is not None:
        say(change.line)
        told["moved"] = change.record()
    run.update_run(weights=told)


def _announce_memory(
    run: RunDir, recipe: Recipe, plan: Plan, processes: int, device: torch.device
) -> None:
    """Count the memory of a step, say it, and note it in run.json."""
    runtime = runtimes.runtime_for(device, recipe.train.precision)
    memory = count_memory(recipe, runtime, plan.objective, processes=processes)
    run.update_run(memory={"counted_gib": round(memory.peak / 2**30, 3)})
    size = None
    if device.type == "cuda":
        size = torch.cuda.get_device_properties(device).total_memory
    images = recipe.train.batch_size // processes
    print_memory(recipe, memory, Screen(), size=size, images=images)


def create_run(resolved: Resolved, plan: Plan, out: Path | None, source: ImageSource) -> RunDir:
    """Make the run directory: `--out`, or the first free `runs/<recipe>`, `-2`, `-3`…"""
    path = out
    if path is None:
        stem = resolved.name
        if stem.endswith((".yaml", ".yml")):
            stem = Path(stem).parent.name if Path(stem).stem == "recipe" else Path(stem).stem
        path = next_free(Path("runs") / stem.replace("/", "-"))
    plugins, copies = copies_for_run(resolved.recipe.plugins)
    text = resolved.recipe.model_copy(update={"plugins": plugins}).to_yaml()
    return RunDir.create(
        path,
        recipe=text,
        plugins=copies,
        run={
            "status": "running",
            "recipe_name": resolved.name,
            "command": shlex.join(["ser", *sys.argv[1:]]),
            "seed": resolved.recipe.seed,
            **record_of(resolved.recipe, text.encode(), source),
            "parameters": {"trainable": plan.parameters, "encoder": plan.encoder_parameters},
            "titles": {
                "method": title_of(type(resolved.recipe.method)),
                "addon": title_of(type(resolved.recipe.addon)),
            },
        },
    )


def train(
    run: RunDir,
    *,
    device: torch.device,
    make_monitor: MonitorFactory,
    prepared: Prepared | None = None,
    going_on: GoingOn | None = None,
    take_over: bool = False,
    profile_steps: int = 0,
) -> None:
    """Train a run directory to its end, from its last checkpoint if there is one.

    Args:
        run: The run directory.
        device: This process's.
        make_monitor: Makes what measures the encoder on the way.
        prepared: What this process prepared the run with; None: its recipe.yaml is read, and its
            data opened.
        going_on: What this process has read and opened already, of a run that is resumed; None: as
            above, and what it was started with is not compared.
        take_over: Do not wait to see whether another machine's process still trains it.
        profile_steps: Look at so many steps of the first process, and say where they go.

    Raises:
        Preempted, Interrupted: Stopped by a signal; resumable.
        UserError: It cannot be gone on with, or another process trains it; nothing was changed.
        SerError: The run failed; run.json says why.
    """
    news = None if going_on is None else going_on.comparison
    recipe, source, notes = _given(run, prepared, going_on)
    first = distributed.rank() == 0
    several = distributed.active()
    stages.here.run = str(run.path.absolute())
    anew = "world_size" not in run.read_run()  # no attempt of before has trained it
    with contextlib.ExitStack() as until:
        if several:
            until.enter_context(at_boundaries(alone=False))
        guard = until.enter_context(_alone_in(run, take_over))
        with stops_recorded(run, refusals=anew), naming_who_is_gone():
            runtime = runtimes.runtime_for(device, recipe.train.precision)
            monitor = make_monitor(recipe, source, runtime)
            trainer = Trainer(run, recipe, source, runtime, monitor=monitor, guard=guard)
            progress = _progress_of(trainer, quiet=not first)
            remarks = (f"note: {remark}" for remark in source.remarks())
            for note in (*notes, *remarks):
                progress.message(note)
            trainer.resume(progress.message)
        with stops_recorded(run), naming_who_is_gone(), progress:
            if first:
                _record_start(run, recipe, device, news, trainer.step, progress.message)
            with at_boundaries(alone=not several) as request:
                Stopping(request, device, stopped_outside(run)).check()
                steps = profile_steps if first else 0
                with profiled(run, device, steps, progress.message) as after_step:
                    trainer.train(request, progress, after_step=after_step)
                _record(run, trainer, progress.message)
                signals.settle()


def _given(
    run: RunDir, prepared: Prepared | None, going_on: GoingOn | None
) -> tuple[Recipe, ImageSource, tuple[str, ...]]:
    """Recipe, images, and what is to be said of them; of what was prepared here it was said."""
    if prepared is not None:
        return prepared.recipe, prepared.source, ()
    resolved = read_resolved(run) if going_on is None else going_on.resolved
    recipe = resolved.recipe
    notes = (*resolved.notes, *_unknown_then(resolved), *_fewer_loaders(recipe))
    return recipe, training_source(recipe) if going_on is None else going_on.source, notes


def _progress_of(trainer: Trainer, *, quiet: bool) -> TrainingProgress:
    data = trainer.recipe.data
    advise = partial(
        advice,
        data=data,
        workers=trainer.workers,
        rendered=rendering_kind(data.path) is not None,
    )
    return TrainingProgress(trainer.schedule.total_steps, quiet=quiet, advise=advise)


def _record_start(
    run: RunDir,
    recipe: Recipe,
    device: torch.device,
    news: Comparison | None,
    step: int,
    say: Callable[[str], None],
) -> None:
    """Say in run.json, and to the user, what goes on from a step; clear what killed ones left."""
    told: dict[str, Any] = {}
    if news is not None:
        told = news.news(step)
        for line in news.lines(step):
            say(line)
    run.sweep()
    run.sweep_checkpoints()
    run.update_run(
        status="running",
        exit_status=None,  # of an earlier attempt
        error=None,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        **told,
        **runtimes.describe(),
    )
    if "flops" not in run.read_run():  # it was stopped while they were counted
        run.update_run(flops=count_flops(recipe).to_json())


@contextlib.contextmanager
def _alone_in(run: RunDir, take_over: bool) -> Iterator[Callable[[], None]]:
    """Inside, no other command trains the run directory; the first process holds its lease.

    Yields:
        What refuses to write on where the directory is gone, or taken over.

    Raises:
        UserError: Another one does.
    """
    held: list[Lease] = []
    with contextlib.ExitStack() as stack:

        def take() -> None:
            held.append(
                stack.enter_context(leased(run, take_over=take_over, say=partial(say, err=True)))
            )

        runtimes.decided_by_first(take)

        def guard() -> None:
            run.require_there()
            for lease in held:
                lease.require_held()

        yield guard


def _record(run: RunDir, trainer: Trainer, say: Callable[[str], None]) -> None:
    if distributed.rank():
        return
    memory = dict(run.read_run().get("memory") or {})
    if peaks := run.logged("peak_memory_gib"):
        memory["peak_gib"] = max(peaks)
        say(f"peak memory: {max(peaks):.2f} GiB")
    elif (resident := most_resident()) is not None:
        memory["resident_gib"] = round(resident / 2**30, 3)
    rates = run.logged("images_per_s")
    waits = run.logged("data_wait")
    run.update_run(
        status="done",
        exit_status=0,
        memory=memory,
        timings={
            "train_seconds": trainer.train_seconds,
            "steps": trainer.step,
            "images_per_s": sorted(rates)[len(rates) // 2] if rates else None,
            "data_wait": sum(waits) / len(waits) if waits else None,
        },
    )
