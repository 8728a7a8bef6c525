"""`ser features`: an encoder's features in a file, for people."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from sercli.commands.evaluation import (
    asked_for,
    command_line,
    loader_processes,
    read_model,
    require_images,
    require_model,
    require_usable,
    say_to_stderr,
    say_what_was_read,
)
from sercli.commands.options import (
    BatchSize,
    ImageOptions,
    MachineOptions,
    ModelOptions,
    option_objects,
)
from sercli.commands.printing import progress_of
from sercli.errors import UserError
from sercli.runs.places import require_place
from sercli.visible import counted, say

if TYPE_CHECKING:
    from sercli.evals.features import FeatureFile

_SUFFIXES = (".npz", ".parquet")


@dataclass(frozen=True)
class FileOptions:
    """Which features, of which images, in which file."""

    panel: ClassVar[str] = "The file"

    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="An .npz (NumPy) or a .parquet (data frames; needs pyarrow). Default: "
            "`features/SPLIT.npz` in the run directory, or in that of the model's results.",
        ),
    ] = None
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file if it is there already.")
    ] = False
    split: Annotated[
        Literal["train", "val"] | None,
        typer.Option(help="Default: val, or train where there is no val."),
    ] = None
    parts: Annotated[
        str,
        typer.Option(
            metavar="NAME|PART+…",
            help="A feature set of the linear probe (cls1, cls4, cls1+pooled), or parts, side by "
            "side: `cls` (the encoder's summary), `cls@9` ([CLS] after block 9), `pooled@9` (the "
            "mean patch token). All after the final norm.",
        ),
    ] = "cls"


@option_objects
def features(
    file: FileOptions,
    images: ImageOptions,
    run: MachineOptions,
    model: ModelOptions,
    batch_size: BatchSize = 256,
) -> None:
    """Write an encoder's features of a set of images, for NumPy or pandas.

    Arrays (or columns) are features [N, D] in float32, labels, classes and identifiers, with what
    they are of (model and its hash, preprocessing, precision) as JSON under `facts`. Images are
    seen as by `ser knn`. The file is written as features come, in bounded memory, and takes its
    name when it is whole. Under torchrun, processes share the images.
    """
    _refuse_unusable(file, images, model)
    from sercli.commands.images import images_of
    from sercli.engine.processes import is_first_process
    from sercli.engine.runtime import decided_by_first, process_group, runtime_for
    from sercli.evals.features import FeatureFile
    from sercli.evals.linear.features import plan_parts
    from sercli.runs.facts import facts_of

    first = is_first_process()
    with process_group(run.device) as chosen, progress_of(first) as progress:
        loaded = read_model(model).at(images.image_size)
        plan = plan_parts(loaded.encoder, file.parts)
        found = images_of(
            facts_of(model.source),
            model.source,
            data=images.place,
            image_size=loaded.image_size,
            classes=images.classes,
        )
        if first:
            say_what_was_read(loaded)
            for note in plan.notes:
                say_to_stderr(note)
        source = found.open_unseen() if file.split is None else found.open(file.split)
        made = FeatureFile.of(loaded, source, plan, limit=run.limit)
        path = decided_by_first(lambda: _place(file, model, made))
        made.write(
            path,
            runtime=runtime_for(chosen, run.precision),
            batch_size=batch_size,
            workers=loader_processes(run, chosen),
            progress=progress,
        )
    if first:
        count, width = made.shape
        partial = " (partial)" if run.limit is not None and count < len(source) else ""
        say(
            f"features {file.parts} of {model.source} ({loaded.key}) on {source.name}/"
            f"{source.split}: {counted(count, 'image')}{partial}, {width} numbers each",
            f"wrote {path}",
        )


def _refuse_unusable(file: FileOptions, images: ImageOptions, model: ModelOptions) -> None:
    """Refuse what cannot be, before torch is imported.

    Raises:
        UserError: The model, the images or the file cannot be used.
    """
    from sercli.runs.files import require_writable

    if file.out is None:
        require_usable(model, None)
    else:
        require_model(model)
        _require_free(file.out, force=file.force)
        require_writable(file.out.parent)
    require_images(model, images.place, images.classes)


def _require_free(path: Path, *, force: bool) -> None:
    """Refuse a place that cannot take the file.

    Raises:
        UserError: Another suffix, pyarrow is missing, a directory, or there already.
    """
    require_place(path, "--out")
    if path.suffix not in _SUFFIXES:
        raise UserError(f"--out {path}", f"its name must end in {' or '.join(_SUFFIXES)}")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            f"--out {path}",
            "a .parquet needs pyarrow, which is not installed",
            "pip install 'sercli[parquet]', or name an .npz",
        )
    if path.is_dir() or (path.exists() and not force):
        remedy = "" if path.is_dir() else "name another with --out, or --force to replace it"
        raise UserError(f"{path} exists", "features replace nothing unasked", remedy)


def _place(file: FileOptions, model: ModelOptions, made: FeatureFile) -> Path:
    """Where the file goes; the run directory of a default place is made.

    Raises:
        UserError: There is one already.
        RunFailed: There is no room for it.
    """
    from sercli.commands.subject import destination, open_or_create

    path = file.out
    if path is None:
        asked = asked_for(model)
        target = destination(asked, None)
        run = open_or_create(target, owner=asked.owner, command=command_line())
        path = run.features(made.source.split)
        _require_free(path, force=file.force)
    made.require_room(path)
    return path
