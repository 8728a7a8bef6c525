"""`ser pretrain`: from images to an encoder."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from sercli import addons, methods
from sercli.commands.caching import fill_cache, fill_cache_of
from sercli.commands.options import (
    Bounds,
    Device,
    Plugins,
    Settings,
    addon_option,
    method_option,
    option_objects,
    place_of,
)
from sercli.errors import UserError
from sercli.visible import say

if TYPE_CHECKING:
    import torch

    from sercli.engine.pretraining import Prepared
    from sercli.engine.resuming import GoingOn
    from sercli.recipe.files import Resolved
    from sercli.runs.run_dir import RunDir

_PROFILE_STEPS = 10  # enough for a mean; a trace of more is slow to open

# `recipe.schema.ViewSetting`, which takes a while to import; a test compares them.
ViewsChoice = Literal["2", "3", "2+4-crops", "2+4-rotations"]


@dataclass(frozen=True)
class NewRun:
    """What is trained, on what, and where it goes."""

    panel: ClassVar[str] = "A new run"

    method: Annotated[str | None, method_option(show_default=methods.DEFAULT)] = None
    addon: Annotated[str | None, addon_option(show_default=addons.DEFAULT)] = None
    layer: Annotated[
        int | None, typer.Option(help="Block the add-on taps, 1…depth.", show_default="3")
    ] = None
    views: Annotated[
        ViewsChoice | None,
        typer.Option(
            help="Views of an image: 2; 3 (equimod); 2+4-crops (multi-crop); 2+4-rotations (essl).",
            show_default="the recipe's, usually 2",
        ),
    ] = None
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Name under `recipes/` or a YAML file, e.g. a run's `recipe.yaml`.",
            show_default="shapes/METHOD-ADDON; with --data scenes/… or imagenet/…",
        ),
    ] = None
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR|shapes",
            help="Directory of class folders (or of `train/` and `val/`) or of images without "
            "labels, archives, a list of images, or `shapes` or `shapes:scenes`, the embedded "
            "world; repeated: all as one set.",
            show_default="the recipe's",
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="RUNDIR", help="Run directory to make.", show_default="runs/RECIPE, -2, -3…"
        ),
    ] = None
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Begin from these: a run directory, a checkpoint file or `timm:NAME`. The "
            "architecture and the images' mean and std are then theirs; heads are new.",
            show_default="none: drawn by the seed",
        ),
    ] = None
    seed: Annotated[int | None, typer.Option(help="Seed of the run.", show_default="0")] = None
    set_: Settings = None
    plugin: Plugins = None

    @property
    def flags(self) -> dict[str, Any]:
        """The values given by options of their own, by recipe key."""
        values: dict[str, Any] = {
            "method.name": self.method,
            "addon.name": self.addon,
            "addon.layer": self.layer,
            "views.setting": self.views,
            "data.path": place_of(self.data),
            "model.weights": self.weights,
            "seed": self.seed,
        }
        return {key: value for key, value in values.items() if value is not None}


@option_objects
def pretrain(
    new: NewRun,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUNDIR", help="Run directory to go on with, exactly where it stopped."
        ),
    ] = None,
    device: Device = None,
    nproc: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    bounds: Bounds = None,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Print where a step goes, and keep a trace of a few in the run directory "
            "(trace.json.gz, for chrome://tracing or ui.perfetto.dev).",
        ),
    ] = False,
    profile_steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps that --profile looks at, after the first five.", show_default="10"
        ),
    ] = None,
    allow_changed: Annotated[
        bool,
        typer.Option(
            "--allow-changed",
            help="With --resume: go on although recipe, images or what depends on the number of "
            "processes changed; run.json records it.",
        ),
    ] = False,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="With --resume: another machine's process that trained it is gone for sure.",
        ),
    ] = False,
) -> None:
    """Pretrain a ViT: an invariant objective, alone or with an equivariance add-on.

    Without options: MoCo-v3 + SER at layer 3 on the embedded world, in minutes on a laptop.
    """
    if bounds is not None:
        _set_bounds(bounds, nproc)
    looked_at = _looked_at(profile, profile_steps)
    if resume is None:
        _require_nothing_to_resume(allow_changed=allow_changed, take_over=take_over)
        _start(new, device=device, nproc=nproc, profile_steps=looked_at)
    else:
        _require_nothing_new(new)
        again = _Again(
            resume, allow_changed=allow_changed, take_over=take_over, profile_steps=looked_at
        )
        _resume(again, device=device, nproc=nproc)


def _looked_at(profile: bool, steps: int | None) -> int:
    """How many steps are profiled."""
    if steps is not None and not profile:
        raise UserError(
            f"--profile-steps {steps}",
            "it is for a run that is looked at",
            "add --profile, or leave it out",
        )
    return (steps or _PROFILE_STEPS) if profile else 0


def _require_nothing_to_resume(*, allow_changed: bool, take_over: bool) -> None:
    """Refuse options of a run that is gone on with, where there is none."""
    if allow_changed or take_over:
        raise UserError(
            "--allow-changed" if allow_changed else "--take-over",
            "it is for a run that is gone on with",
            "add --resume RUNDIR, or leave it out",
        )


def _require_nothing_new(new: NewRun) -> None:
    """Refuse options that describe a run, where its recipe does."""
    if new != NewRun():
        raise UserError(
            "--resume with options that describe a new run",
            "a run is resumed with the recipe it was started with",
            "leave out all but --device, --nproc, --bounds, --profile, --profile-steps, "
            "--allow-changed and --take-over",
        )


def _set_bounds(bounds: str, nproc: int) -> None:
    """Have the processes of this start watched by these bounds."""
    import os

    from sercli.engine.bounds import VARIABLE, read_bounds
    from sercli.engine.processes import launched_by

    read_bounds(bounds)
    if nproc == 1 and launched_by() is None:
        raise UserError(
            f"--bounds {bounds} with one process",
            "they say how long several wait for each other",
            "leave it out",
        )
    os.environ[VARIABLE] = bounds


def _start(new: NewRun, *, device: str | None, nproc: int, profile_steps: int) -> None:
    from sercli.engine.processes import launched_by
    from sercli.families import default_recipe, resolve

    name, flags, plugins = new.recipe, new.flags, tuple(new.plugin or ())
    if name is None:
        start = default_recipe(
            method=new.method, addon=new.addon, data=place_of(new.data), plugins=plugins
        )
        name, flags = start.recipe, {**flags, **start.flags}
    settings = tuple(new.set_ or ())
    # Before torch is imported; of several processes rank 0 resolves and refuses, below.
    early = None
    if launched_by() is None:
        early = _resolve_early(name, settings, flags, plugins=plugins, out=new.out)
        fill_cache(early.recipe)
    else:
        fill_cache_of(lambda: resolve(name, settings, flags, plugins=plugins).recipe)
    from sercli import distributed, signals
    from sercli.engine import launch, pretraining, runtime

    runtime.require_devices(device, nproc)
    prepared: list[Prepared] = []  # by the first process, which alone prepares

    def prepare() -> RunDir:
        resolved = early or resolve(name, settings, flags, plugins=plugins)
        processes = max(nproc, distributed.world_size())
        prepared.append(
            pretraining.prepare(
                resolved, out=new.out, processes=processes, device=chosen, until=until
            )
        )
        return prepared[0].run

    with contextlib.ExitStack() as until:
        chosen = until.enter_context(runtime.process_group(device, stage="start"))
        if distributed.active():  # they stop together, which they can from here on
            until.enter_context(signals.at_boundaries(alone=False))
        run = runtime.decided_by_first(prepare)
        if nproc == 1:
            own = prepared[0] if prepared else None
            _train(run, chosen, prepared=own, profile_steps=profile_steps)
        else:
            options = _profile_options(profile_steps)
            launch.launch(run, nproc=nproc, device=device, options=options)
    _print_what_is_next(run)


def _resolve_early(
    name: str,
    settings: tuple[str, ...],
    flags: dict[str, Any],
    *,
    plugins: tuple[Path, ...],
    out: Path | None,
) -> Resolved:
    """Resolve the recipe, and refuse what cannot be before the seconds that torch takes.

    Raises:
        UserError: The directory is there, or the recipe or its images cannot be used.
    """
    from sercli.data import has_split
    from sercli.data.cores import require_loaders
    from sercli.encoders.asked import require_weights
    from sercli.families import resolve
    from sercli.runs.places import refuse_existing

    refuse_existing(out)
    resolved = resolve(name, settings, flags, plugins=plugins)
    require_loaders(resolved.recipe.data.workers, "data.workers")
    require_weights(resolved.recipe.model)
    has_split(resolved.recipe.data.path, "train")
    return resolved


@dataclass(frozen=True)
class _Again:
    """What is resumed, and what it may be resumed in spite of."""

    path: Path
    allow_changed: bool
    take_over: bool
    profile_steps: int

    @property
    def options(self) -> tuple[str, ...]:
        """As the processes of `--nproc` are told."""
        return (
            *(["--allow-changed"] if self.allow_changed else []),
            *(["--take-over"] if self.take_over else []),
            *_profile_options(self.profile_steps),
        )


def _profile_options(steps: int) -> tuple[str, ...]:
    """`--profile`, as the processes of `--nproc` are told."""
    return ("--profile", "--profile-steps", str(steps)) if steps else ()


def _resume(again: _Again, *, device: str | None, nproc: int) -> None:
    from sercli.engine.stops import early_stops_recorded
    from sercli.runs.run_dir import RunDir

    run = RunDir.open(again.path)
    if run.read_run()["status"] == "done":
        say(f"{again.path} is done; nothing to resume")
        return
    with early_stops_recorded(run):
        _go_on(run, again, device=device, nproc=nproc)
    _print_what_is_next(run)


def _go_on(run: RunDir, again: _Again, *, device: str | None, nproc: int) -> None:
    from sercli.engine.processes import launched_by
    from sercli.engine.resuming import read_resolved
    from sercli.runs.facts import facts_of
    from sercli.runs.lease import refuse_if_leased

    going_on: list[GoingOn] = []  # by the first process, which alone compares

    def examine(processes: int) -> None:
        from sercli.engine import resuming

        run.require_writable()
        going_on.append(
            resuming.examine(run, processes=processes, allow_changed=again.allow_changed)
        )

    alone = launched_by() is None
    if alone:
        refuse_if_leased(run)
    if facts_of(str(run.path)).setting("data", "cache") is not None:
        fill_cache_of(lambda: read_resolved(run).recipe)
    if alone:  # before torch is imported
        examine(nproc)
    from sercli import distributed
    from sercli.engine import launch, runtime

    if nproc > 1:
        runtime.require_devices(device, nproc)
        launch.launch(run, nproc=nproc, device=device, options=again.options)
    else:
        with runtime.process_group(device, stage="start") as chosen:
            if launched_by() is not None:
                runtime.decided_by_first(lambda: examine(distributed.world_size()))
            own = going_on[0] if going_on else None
            _train(
                run, chosen, going_on=own,
                take_over=again.take_over, profile_steps=again.profile_steps,
            )  # fmt: skip


def _train(
    run: RunDir,
    device: torch.device,
    *,
    prepared: Prepared | None = None,
    going_on: GoingOn | None = None,
    take_over: bool = False,
    profile_steps: int = 0,
) -> None:
    from sercli.engine import pretraining
    from sercli.evals.monitor import training_monitor

    pretraining.train(
        run,
        device=device,
        make_monitor=training_monitor,
        prepared=prepared,
        going_on=going_on,
        take_over=take_over,
        profile_steps=profile_steps,
    )


def _print_what_is_next(run: RunDir) -> None:
    from sercli.engine.processes import is_first_process, under_agent

    if is_first_process() and not under_agent():
        path = run.path
        typed = shlex.quote(str(path))
        say(
            f"done: {path}",
            f"next: ser equiv-score {typed}; ser knn {typed}; ser compare {typed}",
        )
