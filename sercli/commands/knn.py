"""`ser knn`: nearest neighbours on frozen features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sercli.commands.evaluation import (
    loader_processes,
    require_subject,
    resolve_subject,
    say_to_stderr,
    say_what_was_read,
)
from sercli.commands.options import (
    BatchSize,
    ImageOptions,
    ModelOptions,
    RunOptions,
    option_objects,
    parse_shots,
)
from sercli.commands.printing import percent_with_interval, progress_of
from sercli.visible import counted, say

if TYPE_CHECKING:
    from sercli.evals.knn import KnnOutcome
    from sercli.runs.run_dir import RunDir


@option_objects
def knn(
    images: ImageOptions,
    run: RunOptions,
    model: ModelOptions,
    batch_size: BatchSize = 256,
    shots: Annotated[
        str | None,
        typer.Option(
            metavar="1%|10%",
            help="Neighbours among this share of each class of train, at least one image; 1% is "
            "part of 10%.",
        ),
    ] = None,
    floor: Annotated[
        bool, typer.Option("--floor/--no-floor", help="Score a random twin of the encoder as well.")
    ] = True,
) -> None:
    """Classify images by their nearest neighbours among the training images (DINO's protocol).

    Features are [CLS] after the final norm; the 20 most similar training images vote with
    exp(cosine / 0.07). Queries are the val split; a set without one lends a seeded fifth of each
    class. Written are `results/knn.json` and, beside it, the predictions. Under torchrun, processes
    share the images.
    """
    share = parse_shots(shots)
    require_subject(model, run, images.place, images.classes, labels_for="kNN")
    from sercli.engine.processes import is_first_process
    from sercli.engine.runtime import process_group, runtime_for
    from sercli.evals.knn import evaluate

    first = is_first_process()
    with process_group(run.device) as chosen, progress_of(first) as progress:
        subject = resolve_subject(
            model,
            run,
            data=images.place,
            image_size=images.image_size,
            classes=images.classes,
        )
        has_val = subject.images.has("val")
        if first:
            say_what_was_read(subject.loaded)
            if not has_val:
                say_to_stderr(f"{subject.images.path} has no val/: a fifth of train is held out")
        outcome = evaluate(
            subject.loaded,
            subject.images.open("train"),
            subject.images.open("val") if has_val else None,
            runtime=runtime_for(chosen, run.precision),
            batch_size=batch_size,
            limit=run.limit,
            shots=share,
            floor=floor,
            image_size=images.image_size,
            workers=loader_processes(run, chosen),
            progress=progress,
        )
    if first:
        _print(outcome, subject.save(outcome.result, outcome.arrays), model.source)


def _print(outcome: KnnOutcome, run: RunDir, model: str) -> None:
    from sercli.evals.neighbours import NEIGHBOURS, REPORTED

    values, facts = outcome.result.metrics, outcome.result.data
    partial = " (partial)" if facts["partial"] else ""
    say(
        f"kNN of {model} ({outcome.result.model['key']}) on {facts['path']}: "
        f"{counted(facts['n'], 'image')}, neighbours among {facts['bank']}{partial}",
        f"top-1  {percent_with_interval(values, 'top1')}   k = {REPORTED}, 95 % interval",
        f"top-5  {percent_with_interval(values, 'top5')}",
    )
    others = ", ".join(f"{values[f'k{k}/top1']:.2f} (k = {k})" for k in NEIGHBOURS)
    say(f"top-1 by k: {others}")
    if "random/top1" in values:
        say(f"random twin  {percent_with_interval(values, 'random/top1')}")
    say(f"chance  {outcome.chance:.2f} % (always the most frequent class)")
    say(f"wrote {run.result(outcome.result.name)}")
