"""`ser pretrain`: from images to an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sercli.errors import UserError

if TYPE_CHECKING:
    import torch

    from sercli.engine.pretraining import Prepared
    from sercli.runs.run_dir import RunDir


def pretrain(
    method: Annotated[
        str | None,
        typer.Option(help="Invariant objective: moco, dino or barlow-twins.", show_default="moco"),
    ] = None,
    addon: Annotated[
        str | None,
        typer.Option(
            help="Equivariance add-on: ser, augself, stl, equimod, essl or none.",
            show_default="ser",
        ),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Block the add-on taps, 1…depth.", show_default="3")
    ] = None,
    views: Annotated[
        str | None,
        typer.Option(
            help="Views of an image: 2; 3 (equimod); 2+4-crops (multi-crop); 2+4-rotations (essl).",
            show_default="the recipe's, usually 2",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Name under recipes/ or a YAML file, e.g. a run's recipe.yaml.",
            show_default="shapes/METHOD-ADDON; imagenet/METHOD-ADDON with --data DIR",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Directory of class folders (or of train/ and val/), or shapes, the embedded "
            "world.",
            show_default="the recipe's",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Run directory to make.", show_default="runs/RECIPE, -2, -3…"),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Run directory to go on with, exactly where it stopped.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the run.", show_default="0")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda.", show_default="cuda if there is one")
    ] = None,
    nproc: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any recipe key, e.g. train.lr=1e-3."),
    ] = None,
) -> None:
    """Pretrain a ViT: an invariant objective, alone or with an equivariance add-on.

    Without options: MoCo-v3 + SER at layer 3 on the embedded world, in minutes on a laptop.
    """
    flags: dict[str, Any] = {
        "method.name": method,
        "addon.name": addon,
        "addon.layer": layer,
        "views.setting": views,
        "data.path": data,
        "seed": seed,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    if resume is not None:
        if given or recipe or out or set_:
            raise UserError(
                "--resume with options that describe a new run",
                "a run is resumed with the recipe it was started with",
                "leave out all but --device and --nproc",
            )
        _resume(resume, device=device, nproc=nproc)
        return
    name = recipe or _default_recipe(method or "moco", addon or "ser", data)
    _start(name, tuple(set_ or ()), given, out=out, device=device, nproc=nproc)


def _default_recipe(method: str, addon: str, data: str | None) -> str:
    from sercli.objective import addon_configs, method_configs

    for option, value, table in (
        ("--method", method, method_configs()),
        ("--addon", addon, addon_configs()),
    ):
        if value not in table:
            raise UserError(f"{option} {value}", f"known: {', '.join(table)}")
    world = "shapes" if data in (None, "shapes") else "imagenet"
    return f"{world}/{method}-{addon}"


def _start(
    name: str,
    settings: tuple[str, ...],
    flags: dict[str, Any],
    *,
    out: Path | None,
    device: str | None,
    nproc: int,
) -> None:
    from sercli import distributed
    from sercli.engine import launch, pretraining, runtime

    runtime.require_devices(device, nproc)
    prepared: list[Prepared] = []  # by the first process, which alone prepares

    def prepare(processes: int) -> RunDir:
        prepared.append(pretraining.prepare(name, settings, flags, out=out, processes=processes))
        return prepared[0].run

    with runtime.process_group(device) as chosen:
        processes = max(nproc, distributed.world_size())
        run = runtime.decided_by_first(lambda: prepare(processes))
        if nproc == 1:
            _train(run, chosen, prepared[0] if prepared else None)
    if nproc > 1:
        launch.launch(run, nproc=nproc, device=device)
    _tell_what_is_next(run)


def _resume(path: Path, *, device: str | None, nproc: int) -> None:
    from sercli.engine import launch, pretraining, runtime
    from sercli.runs.run_dir import RunDir

    run = RunDir.open(path)
    if run.read_run()["status"] == "done":
        print(f"{path} is done; nothing to resume")
        return
    if nproc > 1:
        runtime.require_devices(device, nproc)
        pretraining.read_recipe(run)  # refused now, not by the processes
        launch.launch(run, nproc=nproc, device=device)
    else:
        with runtime.process_group(device) as chosen:
            _train(run, chosen, None)
    _tell_what_is_next(run)


def _train(run: RunDir, device: torch.device, prepared: Prepared | None) -> None:
    from sercli.engine import pretraining
    from sercli.evals.monitor import training_monitor

    pretraining.train(run, device=device, make_monitor=training_monitor, prepared=prepared)


def _tell_what_is_next(run: RunDir) -> None:
    from sercli.engine import runtime

    if runtime.is_first_process() and not runtime.under_agent():
        path = run.path
        print(f"done: {path}\nnext: ser equiv-score {path}; ser knn {path}; ser compare {path}")
