"""The linear probe of patch tokens: train, choose on a hold-out, score every pixel of val once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sercli import distributed
from sercli.data.loading import default_workers, load_rows
from sercli.encoders.files import safetensors_bytes
from sercli.encoders.loading import LoadedEncoder, encoder_sha256
from sercli.engine.preemption import Stopping
from sercli.engine.runtime import Runtime
from sercli.errors import RunFailed, UserError
from sercli.evals.common import (
    SEED,
    Metrics,
    Outcome,
    Progress,
    model_of,
    resample_weights,
)
from sercli.evals.linear.features import Scale
from sercli.evals.segmentation.frames import Frame
from sercli.evals.segmentation.heads import Heads, best, held_out, positions, train
from sercli.evals.segmentation.scores import Counts, metrics
from sercli.evals.segmentation.task import Task, keys_of, pictured
from sercli.evals.segmentation.tokens import Key, Supply, TokenReader, Windows
from sercli.protocols.segment import PROTOCOL
from sercli.runs.result import Result, protocol_id
from sercli.signals import StopRequest
from sercli.transfer import to_device

_VALUES_AT_ONCE = 16 << 20  # logits of pixels


@dataclass(frozen=True)
class SegmentationOutcome(Outcome):
    """What was found; arrays are image_ids [M], and of each image and class how many pixels are
    right (`intersections`) or in either (`unions`), and how many are of it (`truth`), [M, C].

    Attributes:
        pictured: Index in val → predicted classes, uint8 [H, W].
        head: Bytes of a safetensors file of the last layer's classifier.
        warnings: What makes the number doubtful, a sentence each; the result has them too.
    """

    pictured: dict[int, NDArray[np.uint8]]
    head: bytes
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Probed:
    """One encoder's heads, chosen and scored.

    Attributes:
        hold_out: Mean IoU of every head, [L][H] in percent.
        which: The chosen head of each layer.
        heads: Weight [C, D] and bias [C] of those, for tokens as they are.
        counts: Of each layer.
        pictured: As in the outcome.
    """

    hold_out: list[list[float | None]]
    which: list[int]
    heads: list[tuple[Tensor, Tensor]]
    counts: list[Counts]
    pictured: dict[int, NDArray[np.uint8]]


def evaluate(
    task: Task,
    *,
    runtime: Runtime,
    request: StopRequest | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> SegmentationOutcome:
    """Probe an encoder and, unless it is not wanted, its random twin. Ranks get the same outcome.

    Args:
        task: From `prepare`; its encoder is moved to the runtime's device.
        runtime: Device and precision; heads are float32.
        request: Set by signal handlers.
        workers: Loader processes; None: by the number of cores.
        progress: Called with what is done, how much of it, and all of it.

    Raises:
        Interrupted, Preempted: As asked for; the same command starts anew.
        UnreadableImage: An image or a mask cannot be read.
        RunFailed: The encoder changed or gives what is not finite, or all heads diverged.
    """
    workers = default_workers(runtime.ranks_here) if workers is None else workers
    stopping = Stopping(
        request, runtime.device, "stopped; nothing is kept, and the same command starts anew"
    )
    loaded = task.loaded
    twin: LoadedEncoder | None = None
    if task.options.floor:
        # Drawn on the CPU, where a seed gives the same weights on every machine.
        twin = dataclasses.replace(loaded, encoder=loaded.encoder.cpu().random_twin(SEED))
    before = encoder_sha256(loaded.encoder)
    probe = _Probe(task, runtime, request or StopRequest(), stopping, workers, progress)
    found = probe.of(loaded, "")
    if encoder_sha256(loaded.encoder) != before:
        raise RunFailed("the encoder's parameters changed while heads were trained on it")
    floor = None if twin is None else probe.of(twin, "random twin, ")
    values, arrays = _numbers(task, found, floor)
    model = {**model_of(loaded, runtime), "sha256": before}
    warnings = tuple(_warnings(task, found))
    result = Result(
        protocol=task.protocol,
        model=model,
        data=_data(task, found, warnings),
        metrics=values,
    )
    head = _head(task, found, before)
    return SegmentationOutcome(result, arrays, found.pictured, head, warnings)


@dataclass(frozen=True)
class _Probe:
    """Everything around an encoder."""

    task: Task
    runtime: Runtime
    request: StopRequest
    stopping: Stopping
    workers: int
    progress: Progress | None

    def of(self, loaded: LoadedEncoder, whose: str) -> _Probed:
        """Train the heads of an encoder, choose among them, and score those chosen."""
        task, options = self.task, self.task.options
        loaded.encoder.to(self.runtime.device).eval()
        reader = TokenReader(
            loaded, task.layers, self.runtime, options.at_once, self.workers, self.stopping.check
        )
        heads = self._trained(reader, whose)
        hold_out = held_out(heads, self._of_hold_out(reader, whose))
        which = [best(found) for found in hold_out]
        chosen = [one for one in which if one is not None]
        if len(chosen) < len(which):
            raise RunFailed("all heads of a layer diverged; try lower rates with --lr")
        folded = [heads.folded(place, one) for place, one in enumerate(chosen)]
        counts, pictures = self._scored(reader, folded, whose)
        return _Probed(hold_out, chosen, folded, counts, pictures)

    def _trained(self, reader: TokenReader, whose: str) -> Heads:
        task, options = self.task, self.task.options
        keys, seed = task.training, options.seed
        supply = Supply(
            reader,
            task.train,
            task.frames,
            keys,
            known=task.scale_rows,
            what=f"{whose}train",
            progress=self.progress,
        )
        rows = supply.known.flatten(0, 1)  # tokens [n, L, D]
        heads = Heads(
            task.layers,
            options.learning_rates,
            Scale.of(rows, torch.arange(len(rows))),
            grid=reader.grid,
            points=reader.points,
            num_classes=len(task.train.classes),
            seed=seed,
            device=self.runtime.device,
        )
        order = positions(len(keys), batch=options.batch_size, steps=options.steps, seed=seed)
        train(
            heads,
            supply.batches(order, rows=options.batch_size),
            steps=options.steps,
            batch=options.batch_size,
            windows=len(keys),
            what=f"{whose}probe",
            request=self.request,
            progress=self.progress,
        )
        return heads

    def _of_hold_out(self, reader: TokenReader, whose: str) -> Iterator[Any]:
        task, rows = self.task, self.task.options.batch_size
        keys = keys_of(task.frames, task.split.hold_out)
        batches = [keys[start : start + rows] for start in range(0, len(keys), rows)]
        done = 0
        for some in reader.batches(task.train, task.frames, batches, rows=rows):
            yield some
            self.stopping.check()
            done += len(some.tokens)
            if self.progress is not None:
                self.progress(f"{whose}hold-out", done, len(keys))

    # -- The test ---------------------------------------------------------------------------------

    def _scored(
        self, reader: TokenReader, heads: Sequence[tuple[Tensor, Tensor]], whose: str
    ) -> tuple[list[Counts], dict[int, NDArray[np.uint8]]]:
        """Counts of each layer over the test images, and the last layer's predictions of a few.

        Rank r takes every W-th image, all its windows.
        """
        task, classes = self.task, len(self.task.val.classes)
        test, wanted = task.split.test, set(pictured(task.split.test))
        kept: dict[int, NDArray[np.uint8]] = {}
        own: list[NDArray[np.int64]] = []
        for index, mask, maps in self._maps(reader, heads, whose):
            frame = task.test_frames[index]
            predicted = [predict(one, frame) for one in maps]
            found = [Counts.of_image(mask, one, classes) for one in predicted]
            own.append(np.stack([[one.right[0], one.called[0], one.truth[0]] for one in found]))
            if index in wanted:
                kept[index] = predicted[-1]
        shape = (len(own), len(heads), 3, classes)
        counted = torch.from_numpy(np.array(own, dtype=np.int64).reshape(shape))
        everything = distributed.gather_in_order(counted.to(self.runtime.device), len(test)).cpu()
        pictures: dict[int, NDArray[np.uint8]] = {}
        for part in distributed.gather_objects(kept):
            pictures |= part
        layers = everything.numpy().transpose(1, 2, 0, 3)
        return [Counts(*one) for one in layers], dict(sorted(pictures.items()))

    def _maps(
        self, reader: TokenReader, heads: Sequence[tuple[Tensor, Tensor]], whose: str
    ) -> Iterator[tuple[int, NDArray[np.uint8], list[list[Tensor]]]]:
        """Of each test image of this rank its index, its mask, and every layer's maps of logits."""
        task, rows = self.task, self.task.options.at_once
        batches = self._batches(distributed.rank())
        loaded = load_rows(
            Windows(task.val, task.test_frames, reader.points, whole=True),
            batches,
            rows=rows,
            workers=self.workers,
            device=self.runtime.device,
        )
        waiting: list[list[Tensor]] = [[] for _ in heads]
        done, number = 0, len(task.split.test)
        longest = max(len(self._batches(rank)) for rank in range(distributed.world_size()))
        for keys, batch in zip(batches, loaded, strict=True):
            tokens = reader.encode(batch.columns["pixels"])
            layers = [
                _maps_of(tokens[:, :, place], weight, bias, reader.grid)
                for place, (weight, bias) in enumerate(heads)
            ]
            for row, ((index, _), mask) in enumerate(zip(keys, batch.notes, strict=True)):
                for one, maps in zip(waiting, layers, strict=True):
                    one.append(maps[row])
                if mask is not None:
                    yield index, mask, waiting
                    waiting = [[] for _ in heads]
                    done += distributed.world_size()
            self.stopping.check()
            if self.progress is not None:
                self.progress(f"{whose}val", min(done, number), number)
        for _ in range(longest - len(batches)):  # all ask as often whether to stop
            self.stopping.check()

    def _batches(self, rank: int) -> list[list[Key]]:
        """The windows that a rank encodes at a time."""
        task, rows = self.task, self.task.options.at_once
        keys = keys_of(task.test_frames, task.split.test[rank :: distributed.world_size()])
        return [keys[start : start + rows] for start in range(0, len(keys), rows)]


def _maps_of(tokens: Tensor, weight: Tensor, bias: Tensor, grid: int) -> Tensor:
    """Logits of tokens [B, T, D] as maps [B, C, g, g]."""
    logits = torch.nn.functional.linear(tokens, weight, bias)
    return logits.transpose(1, 2).reshape(len(tokens), -1, grid, grid)


def predict(maps: Sequence[Tensor], frame: Frame) -> NDArray[np.uint8]:
    """The class of every pixel, uint8 [H, W].

    Args:
        maps: Logits [C, g, g] of each window of the image.
        frame: How it was cut.
    """
    device, grid = maps[0].device, maps[0].shape[-1]
    joined = torch.cat(list(maps), dim=1 if frame.upright else 2)
    rows, columns = (to_device(torch.from_numpy(one), device) for one in frame.matrices(grid))
    wide = joined @ columns.T
    step = max(1, _VALUES_AT_ONCE // (len(joined) * frame.width))
    pieces = [(rows[start : start + step] @ wide).argmax(0) for start in range(0, len(rows), step)]
    return torch.cat(pieces).to(torch.uint8).cpu().numpy()


# -- The result -----------------------------------------------------------------------------------


def _numbers(
    task: Task, found: _Probed, floor: _Probed | None
) -> tuple[Metrics, dict[str, NDArray[Any]]]:
    """All metrics, and what they rest on for each image."""
    classes, resamples = task.val.classes, resample_weights(PROTOCOL.name, len(task.split.test))
    values: Metrics = {}
    arrays: dict[str, NDArray[Any]] = {
        "image_ids": np.array([task.val.identifier(int(index)) for index in task.split.test]),
        "classes": np.array(classes),
    }
    if not found.counts[-1].truth.any():
        raise UserError(
            f"no pixel of the {len(task.split.test)} test images of {task.val.name} has a class",
            "all are ignored, so that nothing can be scored",
        )
    for prefix, probed in (("", found), ("random/", floor)):
        if probed is None:
            continue
        of_layers = list(zip(task.layers, probed.counts, strict=True))
        for layer, counts in (of_layers[-1], *of_layers[:-1]):  # columns of tables go by this
            last = layer == task.layers[-1]
            of_layer = metrics(counts, classes, resamples)
            end = "" if last else f"/block{layer:02d}"
            values |= {
                _named(name, prefix, end): value
                for name, value in of_layer.items()
                if (last and not prefix) or not name.startswith("iou/")
            }
            stored = f"{prefix}{end.removeprefix('/')}".replace("/", "_")
            stored += "_" if end else ""
            arrays |= {
                f"{stored}intersections": counts.right,
                f"{stored}unions": counts.unions,
                f"{stored}truth": counts.truth,
            }
    return values, arrays


def _named(name: str, prefix: str, end: str) -> str:
    """`miou/low` of a layer, of the twin: `random/miou/block03/low`."""
    family, _, bound = name.partition("/")
    if not end:
        return f"{prefix}{name}"
    return f"{prefix}{family}{end}" + (f"/{bound}" if bound else "")


def _warnings(task: Task, found: _Probed) -> Iterator[str]:
    rates = task.options.learning_rates
    for layer, which in zip(task.layers, found.which, strict=True):
        edge = {0: "lowest", len(rates) - 1: "highest"}.get(which) if len(rates) > 1 else None
        if edge is not None:
            yield (
                f"the chosen learning rate {rates[which]:g} of block {layer} is the {edge} of the "
                "grid; a better one may lie beyond: repeat with --lr …"
            )


def _data(task: Task, found: _Probed, warnings: Sequence[str]) -> dict[str, Any]:
    split, rates = task.split, task.options.learning_rates
    return {
        "path": task.val.name,
        "n": len(split.test),
        "train": len(split.train),
        "hold_out": len(split.hold_out),
        "windows": len(task.training),
        "partial": split.partial,
        "image_size": task.loaded.image_size,
        "classes": len(task.val.classes),
        "fingerprint": task.train.fingerprint(split.train.tolist()),
        "chosen": {
            f"block{layer:02d}": {
                "learning_rate": rates[which],
                "hold_out_miou": scores[which],
            }
            for layer, which, scores in zip(task.layers, found.which, found.hold_out, strict=True)
        },
        "hold_out_miou": {
            f"block{layer:02d}": scores
            for layer, scores in zip(task.layers, found.hold_out, strict=True)
        },
        "warnings": list(warnings),
    }


def _head(task: Task, found: _Probed, encoder: str) -> bytes:
    weight, bias = found.heads[-1]
    header = {
        "format": "ser-segmentation",
        "protocol_id": protocol_id(task.protocol),
        "encoder_sha256": encoder,
        "classes": json.dumps(list(task.val.classes)),
        "layer": str(task.layers[-1]),
        "image_size": str(task.loaded.image_size),
    }
    return safetensors_bytes({"weight": weight.cpu(), "bias": bias.cpu()}, header)
