"""A pretraining run from its recipe to its end: check, announce, make the directory, train."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sercli import distributed
from sercli.data import open_source
from sercli.data.source import ImageSource
from sercli.engine import runtime as runtimes
from sercli.engine.flops import StepFlops, count_flops
from sercli.engine.loop import Monitor, Trainer
from sercli.engine.preemption import stop_request
from sercli.engine.progress import TrainingProgress
from sercli.engine.tracking import require_tensorboard
from sercli.errors import Interrupted, Preempted, SerError, UserError
from sercli.objective import Objective, addon_configs, method_configs
from sercli.recipe import files as recipe_files
from sercli.recipe.files import Resolved
from sercli.recipe.schedule import Schedule
from sercli.recipe.schema import Recipe
from sercli.runs.run_dir import RunDir, next_free
from sercli.views.plan import ViewPlan

MonitorFactory = Callable[[Recipe, ImageSource, runtimes.Runtime], Monitor]


def resolve(name: str, settings: tuple[str, ...], flags: Mapping[str, Any]) -> Resolved:
    """Resolve a recipe with the methods and add-ons there are."""
    return recipe_files.load(
        name, methods=method_configs(), addons=addon_configs(), settings=settings, flags=flags
    )


def read_recipe(run: RunDir) -> Recipe:
    """The resolved recipe of a run directory."""
    return _read_recipe(run).recipe


def _read_recipe(run: RunDir) -> Resolved:
    if not run.recipe.is_file():
        raise UserError(f"{run.path} has no recipe.yaml", "it was not made by ser pretrain")
    return resolve(str(run.recipe), (), {})


def _unknown_then(resolved: Resolved) -> str | None:
    """What to say of a run's recipe, which has all settings there were when it was written."""
    added = [key for key, origin in resolved.origins.items() if origin == "default"]
    if not added:
        return None
    return (
        f"warning: an earlier version of ser wrote {resolved.name}: it goes on by today's rules, "
        f"and with today's defaults of {', '.join(added)}"
    )


def training_source(recipe: Recipe) -> ImageSource:
    """The images a recipe trains on."""
    return open_source(
        recipe.data.path,
        "train",
        image_size=recipe.data.image_size,
        num_images=recipe.data.num_train,
        seed=recipe.seed,
    )


@dataclass(frozen=True)
class Plan:
    """What a recipe comes to on its data: found out before anything is written."""

    schedule: Schedule
    num_images: int
    num_paired: int
    views: str
    tokens: int
    cls_after: int | None
    flops: StepFlops


def make_plan(recipe: Recipe, source: ImageSource, *, processes: int = 1) -> Plan:
    """Check a recipe against its data and its processes, and count what it costs.

    Raises:
        UserError: Batch larger than the data, n₂ < 2, a layer that does not exist, sizes that do
            not fit.
    """
    schedule = Schedule.of(recipe.train, len(source))
    with torch.device("meta"):
        objective = Objective(recipe)
    with distributed.alone():
        plan = objective.plan
        part = plan.split(recipe.train.batch_size)
        plan.split(recipe.train.batch_size, world=processes)  # refused now, not by the processes
    encoder = objective.encoder
    tokens = encoder.grid[0] * encoder.grid[1]
    flops = count_flops(recipe)
    return Plan(
        schedule,
        len(source),
        part.total_paired,
        _describe(objective.plan),
        tokens,
        encoder.cls_after,
        flops,
    )


def _describe(plan: ViewPlan) -> str:
    """E.g. "2 global of 224 px, 4 local of 96 px; 6 in the invariance loss"."""
    kinds = Counter((spec.kind, spec.size) for spec in plan.specs)
    parts = [f"{number} {kind} of {size} px" for (kind, size), number in kinds.items()]
    return f"{', '.join(parts)}; {plan.num_invariant} in the invariance loss"


def announce(resolved: Resolved, plan: Plan, out: Path, console: Console) -> None:
    """Print what was derived from the recipe."""
    recipe, schedule, flops = resolved.recipe, plan.schedule, plan.flops
    layer = recipe.addon.tapped_layer
    addon = "" if layer is None else f" + {recipe.addon.name} at layer {layer}"
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    rows = {
        "run": str(out),
        "recipe": f"{resolved.name}: {recipe.method.name}{addon}, seed {recipe.seed}",
        "data": f"{recipe.data.path}, {plan.num_images:,} images of {recipe.data.image_size} px",
        "model": (
            f"{recipe.model.name}, patches of {recipe.model.patch_size} px: {plan.tokens} tokens, "
            f"{flops.parameters:,} trainable parameters, [CLS] joins after block {plan.cls_after}"
        ),
        "global batch": f"{recipe.train.batch_size} images"
        + (f", n₂ = {plan.num_paired} of them in b₂" if plan.num_paired else ""),
        "views": plan.views,
        "schedule": (
            f"{schedule.total_steps:,} steps ({schedule.steps_per_epoch:,} an epoch), "
            f"{schedule.warmup_steps:,} of warm-up"
        ),
        "learning rate": (
            f"{schedule.lr:.3g} = {recipe.train.lr:g} × {recipe.train.batch_size} / 256"
        ),
        "FLOPs a step": f"{flops.step:.3e}"
        + (
            f" = {flops.ratio_none:.4f} × without the add-on, "
            f"{flops.ratio_weight0:.4f} × its λ = 0 control"
            if layer is not None
            else ""
        ),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table, highlight=False)


def prepare(
    name: str,
    settings: tuple[str, ...],
    flags: Mapping[str, Any],
    *,
    out: Path | None,
    processes: int = 1,
) -> RunDir:
    """Check everything, make the run directory, and print what was derived.

    Raises:
        UserError: Anything that would not train; nothing is written then.
    """
    if out is not None and out.exists():
        raise UserError(
            f"--out {out} exists",
            "a new run needs a new directory",
            "give another, or --resume it",
        )
    resolved = resolve(name, settings, flags)
    if resolved.recipe.train.tensorboard:
        require_tensorboard()
    source = training_source(resolved.recipe)
    plan = make_plan(resolved.recipe, source, processes=processes)
    run = create_run(resolved, plan, out)
    announce(resolved, plan, run.path, Console())
    return run


def create_run(resolved: Resolved, plan: Plan, out: Path | None) -> RunDir:
    """Make the run directory: `--out`, or the first free `runs/<recipe>`, `-2`, `-3`…"""
    path = out
    if path is None:
        stem = resolved.name
        if stem.endswith((".yaml", ".yml")):
            stem = Path(stem).parent.name if Path(stem).stem == "recipe" else Path(stem).stem
        path = next_free(Path("runs") / stem.replace("/", "-"))
    return RunDir.create(
        path,
        recipe=resolved.recipe.to_yaml(),
        run={
            "status": "running",
            "recipe_name": resolved.name,
            "command": shlex.join(["ser", *sys.argv[1:]]),
            "seed": resolved.recipe.seed,
            "flops": plan.flops.to_json(),
            "parameters": {"trainable": plan.flops.parameters},
        },
    )


def train(run: RunDir, *, device: torch.device, make_monitor: MonitorFactory) -> None:
    """Train a run directory to its end, from its last checkpoint if there is one.

    Raises:
        Preempted, Interrupted: Stopped by a signal; resumable.
        SerError: The run failed; run.json says why.
    """
    resolved = _read_recipe(run)
    recipe, outdated = resolved.recipe, _unknown_then(resolved)
    first = distributed.rank() == 0
    with stop_request() as request:
        try:
            runtime = runtimes.runtime_for(device, recipe.train.precision)
            source = training_source(recipe)
            monitor = make_monitor(recipe, source, runtime)
            trainer = Trainer(run, recipe, source, runtime, monitor=monitor)
            total = trainer.schedule.total_steps
            with TrainingProgress(total, quiet=not first) as progress:
                if outdated is not None:
                    progress.message(outdated)
                trainer.resume(progress.message)
                if first:
                    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
                    run.update_run(
                        status="running",
                        exit_status=None,  # of an earlier attempt
                        error=None,
                        device=name,
                        **runtimes.describe(),
                    )
                trainer.train(request, progress)
            _record(run, trainer)
        except BaseException as error:
            _record_stop(run, error)
            raise


def _record(run: RunDir, trainer: Trainer) -> None:
    if distributed.rank():
        return
    rates = [row["images_per_s"] for row in run.read_metrics() if "images_per_s" in row]
    waits = [row["data_wait"] for row in run.read_metrics() if "data_wait" in row]
    run.update_run(
        status="done",
        exit_status=0,
        timings={
            "train_seconds": trainer.train_seconds,
            "steps": trainer.step,
            "images_per_s": sorted(rates)[len(rates) // 2] if rates else None,
            "data_wait": sum(waits) / len(waits) if waits else None,
        },
    )


def _record_stop(run: RunDir, error: BaseException) -> None:
    """Say in run.json how the run ended; under torchrun that is the only signal there is."""
    resumable = isinstance(error, Preempted | Interrupted | KeyboardInterrupt)
    if resumable and distributed.rank():
        return
    exit_status = error.exit_status if isinstance(error, SerError) else 130 if resumable else 1
    try:
        run.update_run(
            status="preempted" if resumable else "failed",
            exit_status=exit_status,
            error=str(error) or type(error).__name__,
        )
    except SerError:
        return  # the disk is full or gone: the error itself is what must be seen


def launch(run: RunDir, *, nproc: int, device: str | None) -> None:
    """Train with `nproc` processes on this machine, under torchrun's own agent.

    Raises:
        SerError: As the workers ended, read from run.json.
    """
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ[runtimes.UNDER_AGENT] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"ser-{os.getpid()}",
        max_restarts=0,
        start_method="spawn",
    )
    arguments = ["-m", "sercli", "pretrain", "--resume", str(run.path)]
    if device is not None:
        arguments += ["--device", device]
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except (ChildFailedError, SignalException, KeyboardInterrupt):
        raise_for_status(run)
        raise
    raise_for_status(run)


def raise_for_status(run: RunDir) -> None:
    """Raise what run.json says a run ended with; nothing if it is done."""
    state = run.read_run()
    if state["status"] == "done":
        return
    message = str(state.get("error") or f"the run ended with status {state['status']}")
    status = state.get("exit_status") or 1
    kinds: dict[int, type[SerError]] = {75: Preempted, 130: Interrupted}
    error = kinds.get(status, SerError)(message)
    if not isinstance(error, Preempted | Interrupted):
        error.exit_status = status
    raise error
