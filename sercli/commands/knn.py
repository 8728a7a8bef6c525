"""`ser knn`: nearest neighbours on frozen features."""

from __future__ import annotations

from typing import Annotated

import typer

from sercli.commands.evaluation import (
    BatchSize,
    ClsAfter,
    Data,
    Device,
    ImageSize,
    Key,
    Limit,
    Model,
    NumHeads,
    Out,
    Positions,
    RandomInit,
    Teacher,
    Workers,
    command_line,
    progress_of,
    tell,
)


def knn(
    model: Model,
    data: Data = None,
    out: Out = None,
    batch_size: BatchSize = 256,
    image_size: ImageSize = None,
    device: Device = None,
    workers: Workers = None,
    limit: Limit = None,
    teacher: Teacher = False,
    random_init: RandomInit = False,
    num_heads: NumHeads = None,
    cls_after: ClsAfter = None,
    key: Key = None,
    positions: Positions = None,
    floor: Annotated[
        bool, typer.Option("--floor/--no-floor", help="Score a random twin of the encoder as well.")
    ] = True,
) -> None:
    """Classify images by their nearest neighbours among the training images (DINO's protocol).

    Features are [CLS] after the final norm; the 20 most similar training images vote with
    exp(cosine / 0.07). Queries are the val split; a set without one lends a seeded fifth of each
    class. Written are results/knn.json and, beside it, the predictions. Under torchrun, processes
    share the images.
    """
    from sercli.commands.subject import resolve
    from sercli.data.loading import default_workers
    from sercli.encoders.foreign import Hints
    from sercli.engine.runtime import is_first_process, process_group, runtime_for
    from sercli.evals.knn import evaluate
    from sercli.evals.neighbours import NEIGHBOURS, REPORTED

    first = is_first_process()
    with process_group(device) as chosen, progress_of(first) as show:
        subject = resolve(
            model,
            command=command_line(),
            data=data,
            out=out,
            teacher=teacher,
            random_init=random_init,
            hints=Hints(num_heads, cls_after, key, positions),
            image_size=image_size,
        )
        has_val = subject.images.has("val")
        if first:
            tell(subject.loaded)
            if not has_val:
                note = "has no val/: a fifth of train is held out"
                typer.echo(f"{subject.images.path} {note}", err=True)
        outcome = evaluate(
            subject.loaded,
            subject.images.open("train"),
            subject.images.open("val") if has_val else None,
            device=chosen,
            batch_size=batch_size,
            limit=limit,
            floor=floor,
            image_size=image_size,
            workers=default_workers(runtime_for(chosen).ranks_here) if workers is None else workers,
            progress=show,
        )
    if not first:
        return
    run = subject.save(outcome.result, outcome.arrays)
    values, facts = outcome.result.metrics, outcome.result.data

    def shown(name: str) -> str:
        low, high = values[f"{name}/low"], values[f"{name}/high"]
        return f"{values[name]:.2f} % [{low:.2f}, {high:.2f}]"

    partial = " (partial)" if facts["partial"] else ""
    typer.echo(
        f"kNN of {model} ({outcome.result.model['key']}) on {facts['path']}: {facts['n']} images, "
        f"neighbours among {facts['bank']}{partial}\n"
        f"top-1  {shown('top1')}   k = {REPORTED}, 95 % interval\n"
        f"top-5  {shown('top5')}"
    )
    others = ", ".join(f"{values[f'k{k}/top1']:.2f} (k = {k})" for k in NEIGHBOURS)
    typer.echo(f"top-1 by k: {others}")
    if floor:
        typer.echo(f"random twin  {shown('random/top1')}")
    typer.echo(f"chance  {outcome.chance:.2f} % (always the most frequent class)")
    typer.echo(f"wrote {run.result(outcome.result.name)}")
