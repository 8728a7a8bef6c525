"""`ser linear-eval`: a linear probe on frozen features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from sercli.commands.evaluation import (
    loader_processes,
    require_subject,
    resolve_subject,
    say_to_stderr,
    say_what_was_read,
)
from sercli.commands.options import (
    ImageOptions,
    ModelOptions,
    RunOptions,
    option_objects,
    parse_shots,
)
from sercli.commands.printing import percent_with_interval, print_table, progress_of
from sercli.evals.linear.options import Options, PresetName
from sercli.visible import counted, say

if TYPE_CHECKING:
    from sercli.commands.subject import Subject
    from sercli.evals.linear.evaluate import ProbeOutcome
    from sercli.evals.linear.probe import Probe
    from sercli.runs.run_dir import RunDir


@dataclass(frozen=True)
class ProbeOptions:
    """What is trained, and on how much."""

    panel: ClassVar[str] = "The probe"

    preset: Annotated[
        PresetName,
        typer.Option(
            help="ser: 13 learning rates x 3 feature sets, the best chosen on a hold-out of train; "
            "dino, moco-v3: their one learning rate and feature set (DINO's for ViT-B and wider: "
            "the last [CLS] with the mean patch).",
        ),
    ] = "ser"
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Default: the preset's (50, 100, 90).")
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Training images a step; part of the protocol. Default: the preset's, at most a "
            "sixteenth of the images.",
        ),
    ] = None
    lr: Annotated[
        list[float] | None,
        typer.Option(help="Learning rate for 256 images (repeat it), instead of the preset's."),
    ] = None
    cached_features: Annotated[
        bool,
        typer.Option(
            "--cached-features",
            help="No augmentation: central crops are encoded once, kept, and standardised; another "
            "probe takes seconds, and `--epochs 500` hardly more.",
        ),
    ] = False
    shots: Annotated[
        str | None,
        typer.Option(metavar="1%|10%", help="Use this share of train, as many of each class."),
    ] = None
    encode_batch: Annotated[
        int,
        typer.Option(min=1, help="Images the encoder takes at a time; no number depends on it."),
    ] = 256
    seed: Annotated[
        int, typer.Option(min=0, help="Of hold-out, shots, order, crops and first weights.")
    ] = 0
    restart: Annotated[
        bool, typer.Option("--restart", help="Drop an unfinished probe instead of going on.")
    ] = False


@option_objects
def linear_eval(
    probe: ProbeOptions, images: ImageOptions, run: RunOptions, model: ModelOptions
) -> None:
    """Train linear classifiers on frozen features, choose on a hold-out of train, test once on val.

    One pass trains a classifier for every learning rate and feature set: [CLS] of the last block
    (cls1), of the last four (cls4), and [CLS] with the mean patch token (cls1+pooled). A warning
    tells where the best rate ends the grid, and where training may have been too short: fewer than
    800 steps, or accuracy that still rises from half the rate to the chosen one. Interrupted, the
    same command goes on where it stopped. Several processes: `torchrun -m sercli linear-eval …`.
    Written are `results/linear-eval--PRESET.json`, its predictions, and the head.
    """
    options = _options(probe, images, run)
    require_subject(model, run, images.place, images.classes, labels_for="the linear probe")
    from sercli.engine.processes import is_first_process
    from sercli.engine.runtime import process_group, runtime_for
    from sercli.evals.linear.evaluate import evaluate
    from sercli.signals import at_boundaries

    first = is_first_process()

    def tell(*lines: str) -> None:
        if first:
            say_to_stderr(*lines)

    with process_group(run.device) as chosen, at_boundaries() as request:
        subject = resolve_subject(
            model,
            run,
            data=images.place,
            image_size=images.image_size,
            classes=images.classes,
        )
        if first:
            say_what_was_read(subject.loaded)
        prepared = _prepare(subject, options, tell)
        directory = _run_directory(subject)
        unfinished = directory.unfinished_head(prepared.name)
        if probe.restart and first:
            unfinished.unlink(missing_ok=True)
        with progress_of(first) as progress:
            outcome = evaluate(
                prepared,
                runtime=runtime_for(chosen, run.precision),
                unfinished=unfinished,
                cache=None if options.augment else directory.feature_cache("train"),
                request=request,
                workers=loader_processes(run, chosen),
                progress=progress,
                say=tell,
            )
    if first:
        head = directory.head(prepared.name)
        subject.save(outcome.result, outcome.arrays, beside=lambda _run: outcome.head.save(head))
        unfinished.unlink(missing_ok=True)
        _print(model.source, prepared, outcome, directory)


def _options(probe: ProbeOptions, images: ImageOptions, run: RunOptions) -> Options:
    """What is trained.

    Raises:
        UserError: A value cannot be.
    """
    options = Options(
        preset=probe.preset,
        learning_rates=tuple(probe.lr) if probe.lr else None,
        epochs=probe.epochs,
        batch_size=probe.batch_size,
        augment=not probe.cached_features,
        shots=parse_shots(probe.shots),
        seed=probe.seed,
        limit=run.limit,
        at_once=probe.encode_batch,
        image_size=images.image_size,
    )
    options.resolve()  # refused now, before anything is read
    return options


def _run_directory(subject: Subject) -> RunDir:
    """The directory for the results; made by the first process, as soon as nothing can be wrong."""
    from sercli.commands.subject import open_or_create
    from sercli.engine.runtime import decided_by_first

    return decided_by_first(
        lambda: open_or_create(subject.out, owner=subject.asked.owner, command=subject.command)
    )


def _prepare(subject: Subject, options: Options, tell: Callable[[str], None]) -> Probe:
    """The probe before its first step, announced."""
    from sercli.evals.linear.probe import prepare

    has_val = subject.images.has("val")
    if not has_val:
        tell(f"{subject.images.path} has no val/: the test set is a fifth of train")
    probe = prepare(
        subject.loaded,
        subject.images.open("train"),
        subject.images.open("val") if has_val else None,
        options,
    )
    preset, split, order = probe.preset, probe.split, probe.order
    for note in probe.plan.notes:
        tell(note)
    tell(
        f"{counted(len(preset.learning_rates), 'learning rate')} x "
        f"{counted(len(preset.feature_sets), 'feature set')}, "
        f"{counted(preset.epochs, 'epoch')} of {counted(order.steps_per_epoch, 'step')} of "
        f"{counted(probe.batch_size, 'image')}; "
        f"{counted(len(split.train), 'image')} to train on, {len(split.hold_out):,} to choose on, "
        f"{len(split.test):,} to test on"
    )
    return probe


def _print(model: str, probe: Probe, outcome: ProbeOutcome, run: RunDir) -> None:
    values, facts = outcome.result.metrics, outcome.result.data
    chosen = facts["chosen"]
    sets, rates = list(outcome.table), probe.preset.learning_rates
    if len(rates) * len(sets) > 1:
        rows = [
            [f"{rate:g}", *(_cell(outcome.table[name][index]) for name in sets)]
            for index, rate in enumerate(rates)
        ]
        print_table(
            ["learning rate", *sets],
            rows,
            title=f"Hold-out accuracy, percent of {facts['hold_out']:,} images of train",
            caption=f"each head at its best epoch; learning rates are for 256 images, here times "
            f"{probe.batch_size / 256:g}",
            marked=rates.index(chosen["learning_rate"]),
        )

    partial = " (partial)" if facts["partial"] else ""
    say(
        f"linear probe of {model} ({outcome.result.model['key']}) on {facts['path']}: "
        f"{counted(facts['n'], 'test image')}{partial}",
        f"chosen on the hold-out: {chosen['feature_set']}, learning rate "
        f"{chosen['learning_rate']:g}, epoch {chosen['epoch']} of {probe.preset.epochs}",
        f"top-1  {percent_with_interval(values, 'top1')}   95 % interval",
        f"top-5  {percent_with_interval(values, 'top5')}",
        f"top-1 of the best epoch {_cell(values['best/top1'])}, of the last "
        f"{_cell(values['last/top1'])}; "
        + ", ".join(f"{name} {_cell(values[f'{name}/top1'])}" for name in sets),
        f"chance  {outcome.chance:.2f} % (always the most frequent class)",
    )
    for text in outcome.warnings:
        say(f"warning: {text}", err=True)
    say(f"wrote {run.result(outcome.result.name)}", f"wrote {run.head(probe.name)}")


def _cell(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.2f}"
