"""`ser robustness`: a trained probe, or a classifier of timm's, on shifted test sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from sercli.commands.evaluation import (
    asked_for,
    command_line,
    hints_of,
    loader_processes,
    read_model,
    require_images,
    require_usable,
    say_to_stderr,
    say_what_was_read,
)
from sercli.commands.options import (
    BatchSize,
    ModelOptions,
    RunOptions,
    option_objects,
    place_of,
)
from sercli.commands.printing import print_table, progress_of
from sercli.errors import UserError
from sercli.runs.places import require_place
from sercli.visible import say

if TYPE_CHECKING:
    from torch import Tensor

    from sercli.data import ImageSource
    from sercli.encoders.loading import LoadedEncoder
    from sercli.engine.runtime import Runtime
    from sercli.evals.common import Outcome
    from sercli.evals.robustness.classifier import Classifier
    from sercli.runs.result import Result
    from sercli.runs.run_dir import RunDir

_OWN = "own"
_HEAD = "linear-eval--ser"
_PROBES = "linear-eval--*.safetensors"  # detectors have heads, too
# Folders below --all, by the set they hold.
_FOLDERS = {
    "imagenet-r": ("imagenet-r",),
    "imagenet-a": ("imagenet-a",),
    "imagenet-sketch": ("imagenet-sketch", "sketch"),
    "imagenet-v2": ("imagenet-v2", "imagenetv2"),
    "imagenet-c": ("imagenet-c",),
    "imagenet-p": ("imagenet-p",),
}


def _directory(text: str) -> Any:
    return typer.Option(metavar="DIR", help=text)


@dataclass(frozen=True)
class SetOptions:
    """Which sets, and how complete they must be."""

    panel: ClassVar[str] = "The sets"

    imagenet_c: Annotated[Path | None, _directory("ImageNet-C: `<corruption>/1…5/<wnid>/`.")] = None
    imagenet_p: Annotated[Path | None, _directory("ImageNet-P: `<perturbation>/<wnid>/`.")] = None
    imagenet_r: Annotated[Path | None, _directory("ImageNet-R: 200 of the classes.")] = None
    imagenet_a: Annotated[Path | None, _directory("ImageNet-A: 200 of the classes.")] = None
    sketch: Annotated[Path | None, _directory("ImageNet-Sketch.")] = None
    v2: Annotated[
        list[Path] | None,
        _directory("ImageNet-V2: one of its three sets, or what holds them. May be repeated."),
    ] = None
    imagenet_c_otf: Annotated[
        bool,
        typer.Option(
            "--imagenet-c-otf",
            help="Corrupt val while reading it: a protocol of its own, not ImageNet-C.",
        ),
    ] = False
    everything: Annotated[
        Path | None,
        typer.Option(
            "--all",
            metavar="DIR",
            help="Evaluate every set found below DIR (imagenet-r, sketch, imagenet-v2, …, val), as "
            "`ser data shapes DIR` writes them.",
        ),
    ] = None
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR|shapes",
            help="Evaluate val of this set as well: its error is subtracted in relative mCE.",
        ),
    ] = None
    alexnet_p: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="AlexNet's numbers on ImageNet-P (JSON), for mFR."),
    ] = None
    allow_partial: Annotated[
        bool,
        typer.Option("--allow-partial", help="Accept incomplete sets; results are marked partial."),
    ] = False


@option_objects
def robustness(
    sets: SetOptions,
    run: RunOptions,
    model: ModelOptions,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|own",
            help="The probe, or `own`: the head of `timm:NAME`. Default: the run's "
            f"`heads/{_HEAD}.safetensors`, or the only one there is.",
        ),
    ] = None,
    batch_size: BatchSize = 256,
) -> None:
    """Measure a classifier on ImageNet-C, -P, -R, -A, -Sketch and -V2.

    The classifier is the probe that `ser linear-eval` trained, or with `--head own` any classifier
    of timm's, by its own transform. Each set gives `results/robustness--<set>.json` and, beside it,
    the predictions for each image; ImageNet-C gives a heat map as well. Under torchrun, processes
    share the images.
    """
    wanted = _wanted(sets)
    _refuse_unusable(model, run, wanted, own_head=head == _OWN)
    from sercli.commands.subject import destination
    from sercli.engine.processes import is_first_process
    from sercli.engine.runtime import process_group, runtime_for
    from sercli.evals.robustness.evaluate import evaluate
    from sercli.evals.robustness.opening import open_sets
    from sercli.evals.robustness.reading import Reading
    from sercli.evals.robustness.scores import Normalisers

    normalisers = None if sets.alexnet_p is None else Normalisers.from_file(sets.alexnet_p)
    first = is_first_process()
    results: dict[str, Result] = {}
    with process_group(run.device) as chosen, progress_of(first) as progress:
        asked = asked_for(model)
        target = destination(asked, run.out)
        classifier = _classifier(model, head, target, runtime_for(chosen, run.precision))
        opened = open_sets(
            wanted.folders,
            classifier.classes,
            v2=wanted.v2,
            val=_open_val(wanted, classifier, model.source),
            on_the_fly=wanted.on_the_fly,
            image_size=classifier.image_size,
            allow_partial=sets.allow_partial,
        )
        reading = Reading(batch_size, run.limit, loader_processes(run, chosen), progress)
        for outcome in evaluate(classifier, opened, reading=reading, alexnet=normalisers):
            results[outcome.result.protocol["variant"]] = outcome.result
            if first:
                _save(target, outcome, model.source, asked.owner)
    if first:
        _print(results, model.source, target)


# -- What is asked for ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wanted:
    """The sets asked for, by their paths.

    Attributes:
        folders: Set → directory.
        v2: Directories that are or hold sets of ImageNet-V2.
        data: Whose val is evaluated; None: none.
        on_the_fly: Whether val is corrupted.
    """

    folders: Mapping[str, Path]
    v2: Sequence[Path]
    data: str | None
    on_the_fly: bool


def _wanted(sets: SetOptions) -> _Wanted:
    """Merge what is named with what lies below --all; a name goes first.

    Raises:
        UserError: Nothing is asked for, nothing is found, or a table is given in vain.
    """
    asked = {
        "imagenet-r": sets.imagenet_r,
        "imagenet-a": sets.imagenet_a,
        "imagenet-sketch": sets.sketch,
        "imagenet-c": sets.imagenet_c,
        "imagenet-p": sets.imagenet_p,
    }
    folders = {name: path for name, path in asked.items() if path is not None}
    v2, data, everything = sets.v2 or [], place_of(sets.data), sets.everything
    for named in (*folders.values(), *v2):
        require_place(named, "data")
    if everything is not None:
        require_place(everything, "--all")
        if not everything.is_dir():
            raise UserError(f"--all {everything}", "it must be a directory that holds the sets")
        found = {
            name: everything / folder
            for name, names in _FOLDERS.items()
            for folder in reversed(names)
            if (everything / folder).is_dir()
        }
        v2 = v2 or [path for name, path in found.items() if name == "imagenet-v2"]
        folders = {name: path for name, path in found.items() if name != "imagenet-v2"} | folders
        if data is None and (everything / "val").is_dir():
            data = str(everything)
        if not (found or data):
            known = ", ".join(names[0] for names in _FOLDERS.values())
            raise UserError(f"--all {everything} holds none of the sets", f"known are {known}, val")
    if not (folders or v2 or data or sets.imagenet_c_otf):
        raise UserError(
            "no set to evaluate on",
            "at least one must be named",
            "add --all DIR, --data DIR, or a set such as --imagenet-r DIR",
        )
    if sets.alexnet_p is not None and "imagenet-p" not in folders:
        raise UserError("--alexnet-p without ImageNet-P", "it normalises that set's numbers only")
    return _Wanted(folders, v2, data, sets.imagenet_c_otf)


def _refuse_unusable(
    model: ModelOptions, run: RunOptions, wanted: _Wanted, *, own_head: bool
) -> None:
    """Refuse what cannot be, before torch is imported; the sets are looked into later.

    Raises:
        UserError: The model, its options or its val split cannot be used.
    """
    from sercli.commands.subject import destination, require_writable
    from sercli.encoders.asked import Hints

    if own_head:
        if model.teacher or hints_of(model) != Hints():
            raise UserError(
                "--teacher or what is said of a file (--num-heads, --key, …) with --head own",
                "they tell how to read a checkpoint, timm's classifiers are whole",
                "leave them out",
            )
        require_writable(destination(asked_for(model), run.out))
    else:
        require_usable(model, run)
    if wanted.data is not None or wanted.on_the_fly:
        require_images(model, wanted.data, labels_for="robustness")


def _open_val(wanted: _Wanted, classifier: Classifier, model: str) -> ImageSource | None:
    """The val split, where it is asked for.

    Raises:
        UserError: No data set is named or known, or it has no val.
    """
    from sercli.commands.images import images_of
    from sercli.runs.facts import facts_of

    if wanted.data is None and not wanted.on_the_fly:
        return None
    images = images_of(facts_of(model), model, data=wanted.data, image_size=classifier.image_size)
    if not images.has("val"):
        raise UserError(
            f"{images.path} has no val/", "clean images are those of val", "name another --data"
        )
    return images.open("val")


# -- The classifier -------------------------------------------------------------------------------


def _classifier(
    model: ModelOptions, head: str | None, target: Path, runtime: Runtime
) -> Classifier:
    """The model with its own head, or with a probe that was trained on it.

    Raises:
        UserError: There is no such head, or it is another encoder's.
    """
    from sercli.engine.processes import is_first_process
    from sercli.evals.robustness.classifier import own_head

    if head == _OWN:
        return own_head(model.source, runtime=runtime, random_init=model.random_init)
    file = _head_file(model.source, target) if head is None else Path(head)
    classifier, loaded = _probe(model, file, runtime)
    if is_first_process():
        say_what_was_read(loaded)
    return classifier


def _probe(model: ModelOptions, file: Path, runtime: Runtime) -> tuple[Classifier, LoadedEncoder]:
    """The encoder with the probe in `file` that was trained on it.

    Raises:
        UserError: There is no probe, or it is another encoder's.
    """
    from sercli.evals.common import model_of
    from sercli.evals.linear.heads import load_head
    from sercli.evals.robustness.classifier import CentreView, Classifier

    probe = load_head(file)
    loaded = read_model(model)
    probe.require_encoder(loaded.encoder)
    facts = probe.facts
    device = runtime.device
    encoder, probe = loaded.encoder.to(device).eval(), probe.to(device).eval()
    red, green, blue = facts.mean

    def network(images: Tensor) -> Tensor:
        with runtime.autocast():  # the head steps out of it
            logits: Tensor = probe(encoder(images, probe.layers))
        return logits

    classifier = Classifier(
        network=network,
        classes=facts.classes,
        image_size=facts.image_size,
        view=CentreView(facts.resize, facts.image_size, facts.interpolation),
        mean=(red, green, blue),
        std=(facts.std[0], facts.std[1], facts.std[2]),
        device=device,
        rule={
            "head": "probe of linear-eval",
            "head_protocol_id": facts.protocol_id,
            "view": "the head's: resize 256/224 of the side, central crop",
            "interpolation": facts.interpolation,
        },
        model={
            **model_of(loaded, runtime),
            "head": {
                "file": str(file),
                "feature_set": facts.feature_set,
                "learning_rate": facts.learning_rate,
                "epoch": facts.epoch,
            },
        },
        partial=facts.partial,
        warnings=facts.warnings,
    )
    return classifier, loaded


def _head_file(model: str, target: Path) -> Path:
    """The head beside the results, or else that of the model's own run directory.

    Where neither has the default probe's, the only one that there is.
    """
    from sercli.runs.run_dir import RunDir

    places = [RunDir(place) for place in dict.fromkeys((target, Path(model)))]
    found = [run.head(_HEAD) for run in places if run.head(_HEAD).is_file()]
    found = found or [file for run in places for file in sorted(run.heads.glob(_PROBES))]
    if len(found) > 1 and found[0].stem != _HEAD:
        raise UserError(
            f"{model} has {len(found)} heads: {', '.join(file.stem for file in found)}",
            f"none of them is {_HEAD}, which is taken by default",
            f"choose one, e.g. --head {found[0]}",
        )
    return found[0] if found else places[0].head(_HEAD)


# -- Results --------------------------------------------------------------------------------------


def _save(target: Path, outcome: Outcome, model: str, owner: str) -> None:
    """Write a result, its predictions, and the heat map of a grid of corruptions."""
    from sercli.commands.subject import save
    from sercli.evals.robustness.tables import GRIDS, corruption_rows, grid_title
    from sercli.report.figures.corruptions import CorruptionRow, corruption_figure
    from sercli.report.figures.style import save_figure

    result = outcome.result

    def picture(run: RunDir) -> None:
        title = "\n".join(grid_title(result, model))
        rows = [CorruptionRow(**vars(row)) for row in corruption_rows(result.metrics)]
        figure = corruption_figure(rows, title=title)
        told = f"Accuracy by corruption and severity. {title.replace(chr(10), ': ')}."
        save_figure(figure, run.figures, result.name, description=told)

    beside = picture if result.protocol["variant"] in GRIDS else None
    save(target, result, outcome.arrays, owner=owner, command=command_line(), beside=beside)


def _print(results: Mapping[str, Result], model: str, target: Path) -> None:
    from sercli.evals.robustness.tables import blocks, notes
    from sercli.runs.run_dir import RunDir

    for note in notes(results.values()):
        say_to_stderr(note)
    for block in blocks(results, model):
        print_table(block.headings, block.rows, title=block.title, caption=block.caption)
    written = [str(RunDir(target).result(result.name)) for result in results.values()]
    say(f"wrote {', '.join(written)}")
