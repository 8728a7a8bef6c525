"""`ser coco-detect`: Mask R-CNN on the frozen encoder, scored as COCO does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

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
from sercli.commands.options import ModelOptions, RunOptions, option_objects
from sercli.commands.printing import print_table, progress_of
from sercli.errors import UserError
from sercli.evals.detection.options import Engine, Metric, Options, PresetName
from sercli.visible import counted, say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sercli.data.coco.source import DetectionSource
    from sercli.evals.detection.evaluate import DetectionOutcome
    from sercli.evals.detection.task import Task
    from sercli.runs.facts import RunFacts
    from sercli.runs.result import Result
    from sercli.runs.run_dir import RunDir

_COLUMNS = {
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "APs": "ap_small",
    "APm": "ap_medium",
    "APl": "ap_large",
}
_FEW_CLASSES = 20
_SURE = 0.5  # detections below this score are not pictured


@dataclass(frozen=True)
class DetectorOptions:
    """What is trained, and how it is scored."""

    panel: ClassVar[str] = "The detector"

    engine: Annotated[
        Engine | None,
        typer.Option(
            help="Default: detectron2 for a directory (the paper's setting), torchvision for the "
            "embedded world. Numbers of different engines are not comparable.",
        ),
    ] = None
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="1x|3x|STEPS",
            help="1x: 90,000 steps. 0: the detector untrained, a floor. Default: the preset's.",
        ),
    ] = None
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Side of the square canvas in pixels, a multiple of two patches."),
    ] = None
    preset: Annotated[
        PresetName | None,
        typer.Option(
            help="standard: 256 channels, 512 regions, 1024 px, 1x of 16 images at 1e-4. tiny, for "
            "a laptop: 64 channels, 64 regions, small heads, 128 px, 600 steps of 8 "
            "images at 1e-3. Default: standard for a directory, tiny for the embedded world.",
        ),
    ] = None
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Training images a step; part of the protocol.")
    ] = None
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of AdamW.")] = None
    no_flip: Annotated[bool, typer.Option("--no-flip", help="Do not mirror images.")] = False
    cache_features: Annotated[
        bool,
        typer.Option(
            "--cache-features",
            help="Encode each training image once and keep its grid on disk; nothing is mirrored "
            "then.",
        ),
    ] = False
    metric: Annotated[
        Metric,
        typer.Option(
            help="Implementation of average precision; the faster one gives no intervals.",
        ),
    ] = "pycocotools"
    eval_batch: Annotated[
        int,
        typer.Option(min=1, help="Images scored at a time; no number depends on it."),
    ] = 8
    seed: Annotated[
        int, typer.Option(min=0, help="Of heads, order, mirroring and sampled regions.")
    ] = 0
    restart: Annotated[bool, typer.Option("--restart", help="Train anew instead of going on.")] = (
        False
    )


@option_objects
def coco_detect(
    detector: DetectorOptions,
    run: RunOptions,
    model: ModelOptions,
    coco: Annotated[
        str | None,
        typer.Option(
            "--coco",
            "--data",
            metavar="DIR|shapes",
            help="A set in COCO's format (`annotations/` with `instances_*.json`, `train2017/`, "
            "`val2017/`); `shapes` or `shapes:scenes` are the embedded world. Default: "
            "what the run was trained on, if it is one of these two.",
        ),
    ] = None,
) -> None:
    """Train Mask R-CNN on the frozen encoder and score its boxes and masks on val.

    The encoder sees a fixed square canvas, with [CLS], its final norm and global attention, and
    does not move; a simple feature pyramid, proposals, box and mask heads are trained. Interrupted,
    the same command goes on where it stopped. Several processes:
    `torchrun -m sercli coco-detect …`. Written are `results/coco-detect--ENGINE.json`, the
    detections, the heads and a figure.
    """
    from sercli.data.registry import require_detection
    from sercli.engine.processes import is_first_process
    from sercli.runs.facts import facts_of

    require_usable(model, run)
    facts = facts_of(model.source)
    place = coco or _default_data(facts, model.source)
    options = _options(place, detector, run)
    options.require_valid()
    require_detection(place)
    first = is_first_process()
    if first:
        say(f"engine {options.engine}, preset {options.preset}")
    options.require_engine()
    task, outcome, directory = _evaluate(model, run, facts, place, options, detector.restart)
    if first:
        _save(directory, outcome, task, model.source, asked_for(model).owner)
        _print(outcome.result, model.source, directory)


def _options(place: str, detector: DetectorOptions, run: RunOptions) -> Options:
    from sercli.data.registry import detection_kind

    usual = detection_kind(place).detector
    assert usual is not None  # or it would be no detection set
    return Options(  # kinds of data know no engines; `require_valid` looks at what they say
        engine=detector.engine or cast(Engine, usual.engine),
        preset=detector.preset or cast(PresetName, usual.preset),
        image_size=detector.image_size,
        batch_size=detector.batch_size,
        schedule=detector.schedule,
        lr=detector.lr,
        flip=not detector.no_flip,
        cache_features=detector.cache_features,
        seed=detector.seed,
        limit=run.limit,
        at_once=detector.eval_batch,
        metric=detector.metric,
    )


def _evaluate(
    model: ModelOptions,
    run: RunOptions,
    facts: RunFacts,
    place: str,
    options: Options,
    restart: bool,
) -> tuple[Task, DetectionOutcome, RunDir]:
    """Train the detector and score it; what was decided, what came out, and its run directory."""
    from sercli.commands.subject import destination, open_or_create
    from sercli.engine.processes import is_first_process
    from sercli.engine.progress import TrainingProgress
    from sercli.engine.runtime import decided_by_first, process_group, runtime_for
    from sercli.evals.detection.evaluate import evaluate
    from sercli.evals.detection.task import prepare
    from sercli.signals import at_boundaries

    first = is_first_process()

    def tell(*lines: str) -> None:
        if first:
            say_to_stderr(*lines)

    with process_group(run.device) as chosen, at_boundaries() as request:
        asked = asked_for(model)
        target = destination(asked, run.out)
        loaded = read_model(model)
        if first:
            say_what_was_read(loaded)
        canvas = options.canvas(loaded.encoder.patch_size)  # a wrong size is refused first
        train, val = _open(place, facts, canvas.size)
        task = prepare(loaded, train, val, options)
        tell(*_announcement(task))
        directory = decided_by_first(
            lambda: open_or_create(target, owner=asked.owner, command=command_line())
        )
        with progress_of(first) as progress:
            outcome = evaluate(
                task,
                directory,
                runtime=runtime_for(chosen, run.precision),
                request=request,
                restart=restart,
                workers=loader_processes(run, chosen),
                training=TrainingProgress(task.schedule.total_steps, quiet=not first),
                progress=progress,
                say=tell,
            )
    return task, outcome, directory


def _default_data(facts: RunFacts, model: str) -> str:
    from sercli.data.registry import find_kind

    path = facts.data_path
    kind = None if path is None else find_kind(path)
    if kind is not None and kind.detector is not None:
        return str(path)
    raise UserError(
        f"{model} was not trained on the embedded world",
        "a detection set must be named",
        "add --coco DIR (COCO's annotations/, train2017/ and val2017/), or --coco shapes",
    )


def _open(place: str, facts: RunFacts, size: int) -> tuple[DetectionSource, DetectionSource]:
    """Train and val of a COCO directory, or of the embedded world rendered for the canvas."""
    from sercli.data.registry import open_detection

    seed = facts.seed if isinstance(facts.seed, int) else 0
    return (
        open_detection(place, "train", image_size=size, seed=seed),
        open_detection(place, "val", image_size=size, seed=seed),
    )


def _announcement(task: Task) -> list[str]:
    schedule = task.schedule
    side = int(task.train.sizes.max())
    lines = [
        f"{len(task.order.indices):,} of {counted(len(task.train), 'image')} to train on (those "
        f"with objects), {len(task.scored):,} to score; "
        f"{counted(len(task.train.categories), 'category')}; "
        f"canvas {task.canvas.size} px, {task.canvas.grid} x {task.canvas.grid} patches; "
        f"{counted(schedule.total_steps, 'step')} of {counted(task.order.batch_size, 'image')}, "
        f"learning rate {schedule.lr:g}"
    ]
    if 2 * side < task.canvas.size:
        lines.append(
            f"note: the canvas of {task.canvas.size} px enlarges images of at most {side} px; a "
            "smaller --image-size (or --preset tiny) takes less time and memory"
        )
    return lines


def _save(run: RunDir, outcome: DetectionOutcome, task: Task, model: str, owner: str) -> None:
    from sercli.commands.subject import save
    from sercli.evals.detection.evaluate import save_head
    from sercli.report.figures.detections import detection_figure
    from sercli.report.figures.style import save_figure

    result = outcome.result
    partial = ", partial" if result.data["partial"] else ""
    figure = detection_figure(
        _panels(outcome, task),
        title=f"{model} on {result.data['path']}: {task.options.engine}, "
        f"{counted(task.schedule.total_steps, 'step')}{partial}",
    )

    def beside(run: RunDir) -> None:
        save_head(outcome, run)
        told = "Images with their annotated objects, each beside what the detector found in it."
        save_figure(figure, run.figures, result.name, description=told)

    command = command_line()
    save(run.path, result, outcome.arrays, owner=owner, command=command, beside=beside)


def _panels(outcome: DetectionOutcome, task: Task) -> list[Any]:
    import numpy as np
    from pycocotools.coco import COCO

    from sercli.report.figures.detections import DetectionPanel, Shown

    source = task.val
    names = [category.name for category in source.categories]
    labels = source.labels_by_id()
    panels = []
    for index, found in sorted(outcome.pictured.items()):
        width, height = source.sizes[index].tolist()
        coco = COCO()
        coco.imgs = {int(source.image_ids[index]): {"width": width, "height": height}}
        truth = [
            Shown(
                names[labels[one["category_id"]]],
                tuple(one["bbox"]),
                coco.annToMask(one).astype(bool),
                None,
            )
            for one in source.annotations(index)
        ]
        seen = [
            Shown(
                names[label],
                (x1, y1, x2 - x1, y2 - y1),
                mask,
                score,
            )
            for label, (x1, y1, x2, y2), mask, score in zip(
                found.labels.tolist(),
                found.boxes.tolist(),
                found.masks.numpy(),
                found.scores.tolist(),
                strict=True,
            )
            if score >= _SURE
        ]
        panels.append(DetectionPanel(np.asarray(source.load(index)), truth, seen))
    return panels


def _print(result: Result, model: str, run: RunDir) -> None:
    values, facts = result.metrics, result.data
    rows = []
    for name, prefix in (("boxes", ""), ("masks", "mask_")):
        rows.append([name, *(_cell(values, f"{prefix}{key}") for key in _COLUMNS.values())])
    partial = " (partial)" if facts["partial"] else ""
    print_table(
        ["", *_COLUMNS],
        rows,
        title=f"{model} ({result.model['key']}) on {facts['path']}: "
        f"{counted(facts['n'], 'image')}{partial}, "
        f"{result.protocol['variant']}",
        caption="average precision in percent"
        + ("; 95 % jackknife intervals over images" if "ap/low" in values else "")
        + ("; -: no objects of that size" if any("-" in row for row in rows) else ""),
    )
    classes = [key.removeprefix("ap/") for key in values if key.startswith("ap/")]
    classes = [name for name in classes if name not in ("low", "high")]
    if len(classes) <= _FEW_CLASSES:
        print_table(
            ["class", "box AP", "mask AP"],
            [
                [name, _cell(values, f"ap/{name}"), _cell(values, f"mask_ap/{name}")]
                for name in classes
            ],
            title="By class",
            caption="over IoU 0.50 to 0.95",
        )
    for file in (
        run.result(result.name),
        run.predictions(result.name),
        run.head(result.name),
        run.figures / f"{result.name}.png",
    ):
        say(f"wrote {file}")


def _cell(values: Mapping[str, float | None], name: str) -> str:
    value = values.get(name)
    if value is None:
        return "-"
    low, high = values.get(f"{name}/low"), values.get(f"{name}/high")
    if low is None or high is None:
        return f"{value:.1f}"
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"
