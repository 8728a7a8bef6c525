"""`ser segment`: a linear probe of patch tokens, scored pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from sercli.commands.evaluation import (
    asked_for,
    command_line,
    loader_processes,
    read_model,
    require_usable,
    say_to_stderr,
    say_what_was_read,
)
from sercli.commands.options import ModelOptions, RunOptions, option_objects, parse_layers
from sercli.commands.printing import percent_with_interval, print_table, progress_of
from sercli.errors import UserError
from sercli.evals.segmentation.options import GRID, Options
from sercli.visible import counted, say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sercli.evals.segmentation.evaluate import SegmentationOutcome
    from sercli.evals.segmentation.task import Task
    from sercli.runs.facts import RunFacts
    from sercli.runs.run_dir import RunDir

_FEW_CLASSES = 25


@dataclass(frozen=True)
class SegmentOptions:
    """What is trained, on which images."""

    panel: ClassVar[str] = "The probe"

    data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|shapes",
            help="Images and masks of indices, as VOC has them (`JPEGImages/`, "
            "`SegmentationClass/`, `ImageSets/Segmentation/`) or ADE20K (`images/training/`, "
            "`annotations/training/`, …); `shapes` or `shapes:scenes` are the embedded world. "
            "Default: what the run was trained on, if it has masks.",
        ),
    ] = None
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="L,...",
            help="Blocks to score beside the last one, 0 is the embedding: `3,9`.",
        ),
    ] = None
    image_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Side in pixels of the square windows that images are cut into, a multiple of the "
            "patch. Default: of training.",
        ),
    ] = None
    steps: Annotated[int, typer.Option(min=1, help="Training steps; part of the protocol.")] = (
        Options.steps
    )
    batch_size: Annotated[
        int, typer.Option(min=1, help="Windows a step; part of the protocol.")
    ] = Options.batch_size
    lr: Annotated[
        list[float] | None,
        typer.Option(
            help="Peak learning rate of AdamW (repeat it). Default: "
            f"{', '.join(f'{rate:g}' for rate in GRID)}.",
        ),
    ] = None
    encode_batch: Annotated[
        int,
        typer.Option(min=1, help="Windows the encoder takes at a time; no number depends on it."),
    ] = Options.at_once
    floor: Annotated[
        bool, typer.Option("--floor/--no-floor", help="Probe a random twin of the encoder as well.")
    ] = True
    seed: Annotated[
        int, typer.Option(min=0, help="Of hold-out, limit, order and first weights.")
    ] = 0


@option_objects
def segment(segmentation: SegmentOptions, run: RunOptions, model: ModelOptions) -> None:
    """Train a linear classifier of patch tokens and score every pixel of val: mean IoU.

    Does the encoder know where things are, as well as what they are? Tokens of the frozen encoder
    are standardised, and a linear map of each gives the logits, which are upsampled to the mask;
    the learning rate is chosen on a hold-out of train. An image is cut into square windows, none is
    padded. A random twin of the encoder is the floor. Several processes:
    `torchrun -m sercli segment …`. Written are
    `results/segment.json` (`segment--voc.json`, `segment--ade20k.json`), the counts of each image
    beside it, the classifier and a figure.
    """
    from sercli.data.masks.opening import require_masks
    from sercli.engine.processes import is_first_process
    from sercli.runs.facts import facts_of

    options = _options(segmentation, run)
    options.require_valid()
    require_usable(model, run)
    facts = facts_of(model.source)
    place = segmentation.data or _default_data(facts, model.source)
    require_masks(place)
    task, outcome, directory = _evaluate(model, run, facts, place, options)
    if is_first_process():
        figure = _save(directory, outcome, task, model)
        _print(outcome, task, model.source, directory)
        say(f"wrote {figure}")


def _options(segmentation: SegmentOptions, run: RunOptions) -> Options:
    return Options(
        layers=tuple(parse_layers(segmentation.layers) or ()),
        learning_rates=tuple(sorted(set(segmentation.lr or GRID))),
        steps=segmentation.steps,
        batch_size=segmentation.batch_size,
        floor=segmentation.floor,
        seed=segmentation.seed,
        limit=run.limit,
        at_once=segmentation.encode_batch,
        image_size=segmentation.image_size,
    )


def _default_data(facts: RunFacts, model: str) -> str:
    from sercli.data.registry import find_kind

    path = facts.data_path
    kind = None if path is None else find_kind(path)
    if kind is not None and kind.has_classes_of_pixels:
        return str(path)
    raise UserError(
        f"{model} was not trained on images with masks",
        "a set with a class for every pixel must be named",
        "add --data DIR (in VOC's or ADE20K's layout), or --data shapes",
    )


def _evaluate(
    model: ModelOptions, run: RunOptions, facts: RunFacts, place: str, options: Options
) -> tuple[Task, SegmentationOutcome, RunDir]:
    """Train and score; what was decided, what came out, and its run directory."""
    from sercli.commands.subject import destination, open_or_create
    from sercli.data.masks.opening import open_masks
    from sercli.engine.processes import is_first_process
    from sercli.engine.runtime import decided_by_first, process_group, runtime_for
    from sercli.evals.segmentation.evaluate import evaluate
    from sercli.evals.segmentation.task import prepare
    from sercli.signals import at_boundaries

    first = is_first_process()
    with process_group(run.device) as chosen, at_boundaries() as request:
        asked = asked_for(model)
        target = destination(asked, run.out)
        loaded = read_model(model)
        if first:
            say_what_was_read(loaded)
        loaded = loaded.at(options.image_size)  # a wrong size is refused first
        seed = facts.seed if isinstance(facts.seed, int) else 0
        train, val = (
            open_masks(place, split, image_size=loaded.image_size, seed=seed)
            for split in ("train", "val")
        )
        task = prepare(loaded, train, val, options)
        if first:
            say_to_stderr(_announcement(task))
        directory = decided_by_first(
            lambda: open_or_create(target, owner=asked.owner, command=command_line())
        )
        with progress_of(first) as progress:
            outcome = evaluate(
                task,
                runtime=runtime_for(chosen, run.precision),
                request=request,
                workers=loader_processes(run, chosen),
                progress=progress,
            )
    return task, outcome, directory


def _announcement(task: Task) -> str:
    split, options, side = task.split, task.options, task.loaded.image_size
    grid = side // task.loaded.encoder.patch_size
    return (
        f"{counted(len(split.train), 'image')} to train on ({len(task.training):,} windows of "
        f"{side} px, {grid} x {grid} patches), {len(split.hold_out):,} to choose on, "
        f"{len(split.test):,} to score; {len(task.train.classes)} classes; "
        f"{counted(options.steps, 'step')} of {counted(options.batch_size, 'window')}, "
        f"{counted(len(options.learning_rates), 'learning rate')}"
    )


def _save(run: RunDir, outcome: SegmentationOutcome, task: Task, model: ModelOptions) -> str:
    """Write the result, its counts, the head and the figure; the figure's path."""
    import numpy as np

    from sercli.commands.subject import save
    from sercli.report.figures.segmentation import SegmentationPanel, segmentation_figure
    from sercli.report.figures.style import save_figure
    from sercli.runs.files import write_atomic

    result, owner = outcome.result, asked_for(model).owner
    save(run.path, result, outcome.arrays, owner=owner, command=command_line())
    # The earlier one is put aside by now.
    write_atomic(run.head(result.name), lambda file: file.write(outcome.head))
    partial = ", partial" if result.data["partial"] else ""
    score = f"mean IoU {result.metrics['miou']:.1f} %"
    names = f"{model.source} on {result.data['path']}"
    figure = segmentation_figure(
        [
            SegmentationPanel(np.asarray(task.val.load(index)), task.val.mask(index), predicted)
            for index, predicted in outcome.pictured.items()
        ],
        task.val.classes,
        title=f"{names}: {score}{partial}",
    )
    number = counted(len(outcome.pictured), "image")
    paths = save_figure(
        figure,
        run.figures,
        result.name,
        description=f"{number} of val, each beside the true and the predicted class of its "
        f"pixels, by a linear probe of patch tokens of {names}; {score} of all images.",
    )
    return ", ".join(map(str, paths))


def _print(outcome: SegmentationOutcome, task: Task, model: str, run: RunDir) -> None:
    values, facts = outcome.result.metrics, outcome.result.data
    partial = " (partial)" if facts["partial"] else ""
    classes = task.val.classes
    if len(classes) <= _FEW_CLASSES:
        print_table(
            ["class", "IoU", "95 % interval"],
            [[name, *_cells(values, f"iou/{name}")] for name in classes],
            title=f"By class, percent of {counted(facts['n'], 'image')}",
            caption="intervals by bootstrap over images; -: the class does not occur",
        )
    say(
        f"linear probe of patch tokens of {model} ({outcome.result.model['key']}) on "
        f"{facts['path']}: {counted(facts['n'], 'test image')}{partial}"
    )
    for layer in task.layers:
        end = "" if layer == task.layers[-1] else f"/block{layer:02d}"
        chosen = facts["chosen"][f"block{layer:02d}"]
        say(
            f"block {layer}: mean IoU {percent_with_interval(values, f'miou{end}')}, pixels right "
            f"{values[f'pixel_accuracy{end}']:.2f} %, rate {chosen['learning_rate']:g}"
        )
        if f"random/miou{end}" in values:
            floor = percent_with_interval(values, f"random/miou{end}")
            say(f"block {layer} of the random twin: mean IoU {floor}")
    for text in outcome.warnings:
        say(f"warning: {text}", err=True)
    name = outcome.result.name
    say(f"wrote {run.result(name)}", f"wrote {run.predictions(name)}", f"wrote {run.head(name)}")


def _cells(values: Mapping[str, float | None], name: str) -> tuple[str, str]:
    value, low, high = (values.get(f"{name}{end}") for end in ("", "/low", "/high"))
    if value is None or low is None or high is None:
        return "-", "-"
    return f"{value:.2f}", f"[{low:.2f}, {high:.2f}]"
