"""The linear probe: all learning rates × feature sets in one pass, a hold-out, one test.

The encoder is frozen. Linear classifiers are trained on training images (`training.py`); the
best of them is chosen on a share of train that no step sees, and only then are test images read.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sercli.data import ImageSource
from sercli.data.loading import evaluation_resize
from sercli.encoders.loading import encoder_sha256
from sercli.encoders.vit import final_norm
from sercli.engine.preemption import Stopping
from sercli.engine.runtime import Runtime
from sercli.errors import Interrupted, Preempted, RunFailed
from sercli.evals.common import TOP, Outcome, Progress, Right, commonest_share, model_of
from sercli.evals.linear.classifiers import Choice, HeadRow, choose
from sercli.evals.linear.convergence import Training, companion_rates, doubt
from sercli.evals.linear.features import Reader, Scale
from sercli.evals.linear.heads import HeadFacts, ProbeHead
from sercli.evals.linear.kept import cached, fingerprint
from sercli.evals.linear.probe import Probe
from sercli.evals.linear.training import HeldOut, Unfinished, train_heads
from sercli.runs.result import Result, protocol_id
from sercli.signals import StopRequest

_ROWS_AT_ONCE = 4096

Features = Callable[[int], Iterator[Tensor]]  # the first step → the parts of each step from it on


@dataclass(frozen=True)
class ProbeOutcome(Outcome):
    """What a probe found; arrays are image_ids, labels and predictions [M] of the test images.

    Attributes:
        head: The head that the hold-out chose, with what it needs to predict.
        table: Feature set → percent of the hold-out right, for each learning rate at its best
            epoch; None for a head that diverged.
        edge: "lowest" or "highest" where the chosen learning rate ends the grid.
        warnings: What makes the number doubtful, a sentence each; the result has them too.
        chance: Percent right for always naming the most frequent class of train.
    """

    head: ProbeHead
    table: dict[str, list[float | None]]
    edge: str | None
    warnings: tuple[str, ...]
    chance: float


def evaluate(
    probe: Probe,
    *,
    runtime: Runtime,
    unfinished: Path | None = None,
    cache: Path | None = None,
    request: StopRequest | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> ProbeOutcome:
    """Train, choose, test. Every rank gets the same outcome.

    Args:
        probe: From `prepare`; its encoder is moved to the runtime's device.
        runtime: Device and precision.
        unfinished: File that an interrupted probe goes on from; the caller removes it.
        cache: File that keeps the features of central crops of train between probes.
        request: Set by signal handlers.
        workers: Loader processes; None: by the number of cores.
        progress: Called with what is done, how much of it, and all of it.
        say: Shows a line to a person.

    Raises:
        Interrupted, Preempted: As asked for; what is trained is in `unfinished`.
        RunFailed: The encoder changed or gives what is not finite, or all heads diverged.
    """
    encoder = probe.loaded.encoder.to(runtime.device).eval()
    before = encoder_sha256(encoder)
    stopping = Stopping(request, runtime.device)
    reader = _reader(probe, runtime, stopping, workers)
    rows = _heads(probe, runtime.device)
    held, features, scale = _training_features(probe, reader, cache, before, progress)
    stepper = train_heads(
        rows,
        features,
        plan=probe.plan,
        labels=_labels(probe.train, probe.split.train),
        order=probe.order,
        held=held,
        request=request or StopRequest(),
        unfinished=_unfinished(probe, unfinished, before, runtime, rows),
        progress=progress,
        say=say,
    )
    chosen = choose(rows, best=True)
    if chosen is None:
        raise RunFailed("all heads diverged: none has finite logits; try lower rates with --lr")
    try:
        table = reader.table(probe.test, probe.split.test, what="test", progress=progress)
    except (Interrupted, Preempted):
        stepper.save()
        raise
    if encoder_sha256(encoder) != before:
        raise RunFailed("the encoder's parameters changed while heads were trained on it")
    model = {**model_of(probe.loaded, runtime), "sha256": before}
    return _outcome(probe, rows, held, scale, chosen, table, model)


def _reader(probe: Probe, runtime: Runtime, stopping: Stopping, workers: int | None) -> Reader:
    return Reader(
        probe.loaded,
        probe.plan,
        runtime,
        interpolation=probe.preset.interpolation,
        seed=probe.options.seed,
        at_once=probe.options.at_once,
        check=stopping.check,
        workers=workers,
    )


def _heads(probe: Probe, device: torch.device) -> dict[str, HeadRow]:
    scale = probe.batch_size / 256
    rates = probe.preset.learning_rates
    return {
        name: HeadRow(
            name,
            len(parts) * probe.loaded.encoder.dim,
            learning_rates=[rate * scale for rate in rates],
            companions=[rate * scale for rate in companion_rates(rates)],
            num_classes=len(probe.train.classes),
            seed=probe.options.seed,
            device=device,
        )
        for name, parts in probe.plan.sets.items()
    }


def _labels(source: ImageSource, indices: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(source.labels[indices])


def _training_features(
    probe: Probe, reader: Reader, cache: Path | None, encoder: str, progress: Progress | None
) -> tuple[HeldOut, Features, Scale]:
    """Features of the hold-out, and of the images of each step: encoded as they come, or once.

    Those that are encoded once are standardised.
    """
    split, order = probe.split, probe.order
    if probe.options.augment:
        table = reader.table(probe.train, split.hold_out, what="hold-out", progress=progress)

        def augmented(first: int) -> Iterator[Tensor]:
            images = (
                [(int(index), epoch) for index in split.train[positions]]
                for epoch, positions in order.batches(first)
            )
            return reader.batches(probe.train, images, rows=order.batch_size)

        scale = Scale.none(probe.plan, probe.loaded.encoder.dim)
        return _held_out(probe, table), augmented, scale

    pool = np.union1d(split.train, split.hold_out)
    key = " ".join(
        (
            *(encoder, fingerprint(probe.train, pool), *probe.plan.parts),
            *(probe.preset.interpolation, str(probe.loaded.image_size)),
            *(reader.runtime.device.type, reader.runtime.precision),
        )
    )
    if probe.options.shots is not None or probe.options.limit is not None:
        cache = None  # a part of the images is soon encoded, and must not replace the whole
    everything = cached(
        cache,
        key,
        lambda: reader.table(probe.train, pool, what="train", progress=progress),
        shape=(len(pool), len(probe.plan.parts), probe.loaded.encoder.dim),
    )
    trained = torch.from_numpy(np.searchsorted(pool, split.train))
    scale = Scale.of(everything, trained)
    scale.apply_(everything)

    def central(first: int) -> Iterator[Tensor]:
        for _, positions in order.batches(first):
            yield everything[trained[torch.from_numpy(positions)]]

    held = _held_out(probe, everything[np.searchsorted(pool, split.hold_out)])
    return held, central, scale


def _held_out(probe: Probe, table: Tensor) -> HeldOut:
    if not table.isfinite().all():
        raise RunFailed("the encoder gives features that are not finite")
    features = {name: probe.plan.join(name, table) for name in probe.plan.sets}
    return HeldOut(features, _labels(probe.train, probe.split.hold_out))


def _unfinished(
    probe: Probe,
    path: Path | None,
    encoder: str,
    runtime: Runtime,
    rows: Mapping[str, HeadRow],
) -> Unfinished | None:
    if path is None:
        return None
    images = np.union1d(probe.split.train, probe.split.hold_out)
    identity = {
        "protocol": protocol_id(probe.protocol),
        "encoder": encoder,
        "precision": runtime.precision,
        "set of images": fingerprint(probe.train, images),
        "set of companions": list(companion_rates(probe.preset.learning_rates)),
    }
    return Unfinished(path, identity, rows)


# -- The test -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Score:
    """Predictions int64 [M], and how many of the M images are right."""

    predictions: Tensor
    right: Right


def _folded(
    probe: Probe, rows: Mapping[str, HeadRow], scale: Scale, choice: Choice
) -> tuple[Tensor, Tensor]:
    """Weight and bias of a head, for features as the encoder gives them."""
    weight, bias = rows[choice.feature_set].head(choice.index, best=choice.best)
    return scale.fold(probe.plan, choice.feature_set, weight, bias)


def _score(
    probe: Probe, head: tuple[Tensor, Tensor], choice: Choice, table: Tensor, labels: Tensor
) -> _Score:
    weight, bias = head
    predictions, correct5 = [], 0
    for start in range(0, len(table), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        features = probe.plan.join(choice.feature_set, table[rows]).to(weight.device)
        logits = torch.nn.functional.linear(features, weight, bias).cpu()
        predictions.append(logits.argmax(1))
        five = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
        correct5 += int((five == labels[rows, None]).sum())
    predicted = torch.cat(predictions)
    return _Score(predicted, Right(int((predicted == labels).sum()), correct5, len(labels)))


def _outcome(
    probe: Probe,
    rows: Mapping[str, HeadRow],
    held: HeldOut,
    scale: Scale,
    chosen: Choice,
    table: Tensor,
    model: dict[str, Any],
) -> ProbeOutcome:
    labels = _labels(probe.test, probe.split.test)
    choices = {"best": chosen, "last": choose(rows, best=False)} | {
        name: choose({name: row}, best=True) for name, row in rows.items()
    }
    scores = {
        name: None if c is None else _score(probe, _folded(probe, rows, scale, c), c, table, labels)
        for name, c in choices.items()
    }
    main = scores["best"]
    assert main is not None
    metrics = main.right.metrics()
    for name, score in scores.items():
        metrics[f"{name}/top1"] = None if score is None else score.right.top1
        metrics[f"{name}/top5"] = None if score is None else score.right.top5
    rates = probe.preset.learning_rates
    edge = None
    if len(rates) > 1:
        edge = {0: "lowest", len(rates) - 1: "highest"}.get(chosen.index)
    percents = {name: _percents(row, len(probe.split.hold_out)) for name, row in rows.items()}
    warnings = _warnings(probe, rows[chosen.feature_set], held, chosen, edge)
    head = _head(probe, _folded(probe, rows, scale, chosen), chosen, model["sha256"], warnings)
    result = Result(
        protocol=probe.protocol,
        model=model,
        data={**_data(probe, chosen, edge, percents), "warnings": list(warnings)},
        metrics=metrics,
    )
    arrays: dict[str, NDArray[Any]] = {
        "image_ids": np.array([probe.test.identifier(int(i)) for i in probe.split.test]),
        "labels": labels.numpy(),
        "predictions": main.predictions.numpy(),
    }
    chance = commonest_share(labels.numpy(), known=probe.train.labels[probe.split.train])
    return ProbeOutcome(result, arrays, head, percents, edge, warnings, chance)


def _warnings(
    probe: Probe, row: HeadRow, held: HeldOut, chosen: Choice, edge: str | None
) -> tuple[str, ...]:
    rates, order = probe.preset.learning_rates, probe.order
    found = []
    if edge is not None:
        found.append(
            f"the chosen learning rate {rates[chosen.index]:g} is the {edge} of the grid; a better "
            "one may lie beyond: repeat with --lr …"
        )
    doubtful = doubt(
        Training(order.epochs, order.total_steps, probe.options.augment),
        rate=rates[chosen.index],
        rates=(*rates, *companion_rates(rates)),
        judged=row.judge(held.features[chosen.feature_set], held.labels),
    )
    return (*found, doubtful) if doubtful is not None else tuple(found)


def _percents(row: HeadRow, count: int) -> list[float | None]:
    offered = row.best.correct[: row.choices].tolist()
    return [None if correct < 0 else 100 * correct / count for correct in offered]


def _data(
    probe: Probe, chosen: Choice, edge: str | None, percents: Mapping[str, list[float | None]]
) -> dict[str, Any]:
    split = probe.split
    return {
        "path": probe.train.name,
        "n": len(split.test),
        "train": len(split.train),
        "hold_out": len(split.hold_out),
        "partial": split.partial,
        "image_size": probe.loaded.image_size,
        "batch_size": probe.batch_size,
        "parts": {name: list(parts) for name, parts in probe.plan.sets.items()},
        "chosen": {
            "feature_set": chosen.feature_set,
            "learning_rate": probe.preset.learning_rates[chosen.index],
            "epoch": chosen.epoch,
            "hold_out_top1": 100 * chosen.correct / len(split.hold_out),
            "edge": edge,
        },
        "hold_out_top1": dict(percents),
    }


def _head(
    probe: Probe,
    folded: tuple[Tensor, Tensor],
    chosen: Choice,
    encoder: str,
    warnings: tuple[str, ...],
) -> ProbeHead:
    loaded = probe.loaded
    facts = HeadFacts(
        classes=tuple(probe.train.classes),
        feature_set=chosen.feature_set,
        parts=probe.plan.sets[chosen.feature_set],
        learning_rate=probe.preset.learning_rates[chosen.index],
        epoch=chosen.epoch,
        encoder_sha256=encoder,
        image_size=loaded.image_size,
        resize=evaluation_resize(loaded.image_size),
        interpolation=probe.preset.interpolation,
        mean=tuple(loaded.mean),
        std=tuple(loaded.std),
        protocol_id=protocol_id(probe.protocol),
        partial=probe.split.partial,
        warnings=warnings,
    )
    return ProbeHead(facts, *folded, copy.deepcopy(final_norm(loaded.encoder)))
