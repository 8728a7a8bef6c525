"""Frozen features for linear probes: which parts of an encoder's output, read batch by batch.

A *part* is one vector [D] of an image, after the final norm; a *feature set* is some parts side by
side. Parts are named as a head's file stores them:

    cls         what the encoder says of the image: [CLS] after the last block
    cls@9       [CLS] after block 9
    pooled@12   the mean patch token after block 12
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from sercli import distributed
from sercli.data import ImageSource
from sercli.data.crops import cut, random_crop
from sercli.data.loading import (
    default_workers,
    evaluation_resize,
    image_to_tensor,
    load_images,
    normalise,
    resize_and_crop,
)
from sercli.encoders.loading import LoadedEncoder
from sercli.encoders.vit import Encoder, Features, final_norm
from sercli.engine.runtime import Runtime
from sercli.errors import UserError
from sercli.evals.common import Progress
from sercli.randomness import numpy_generator

LAST_BLOCKS = 4
FEATURE_SETS = ("cls1", "cls4", "cls1+pooled")
CROP_AREA, CROP_ASPECT, FLIP_P = (0.08, 1.0), (3 / 4, 4 / 3), 0.5
CROP_INTERPOLATION = "bilinear"
CENTRAL = -1  # in place of an epoch: the central crop, as in evaluation
_COPIED_AT_ONCE = 256 << 20  # bytes that a device gives before it is waited for
_ROWS_AT_ONCE = 4096
_CONSTANT = 1e-5  # relative to the mean, less deviation than this is rounding

Key = tuple[int, int]  # index of an image, epoch or CENTRAL


# -- Which features -------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeaturePlan:
    """Which parts of an encoder's output make the feature sets.

    Attributes:
        sets: Feature set → its parts, in order.
        notes: What a set lacks in this encoder, in words.
    """

    sets: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """All parts, each once: the columns of a table of features."""
        return tuple(dict.fromkeys(part for parts in self.sets.values() for part in parts))

    def join(self, name: str, table: Tensor) -> Tensor:
        """The features of one set: [N, P, D] → [N, parts of the set · D]."""
        # Not by a list of columns, which would be copied to the device, and waited for.
        return torch.cat([table[:, self.parts.index(part)] for part in self.sets[name]], dim=1)


def plan_features(encoder: Encoder, names: Sequence[str]) -> FeaturePlan:
    """Find the parts of feature sets.

    - `cls1`: [CLS] after the last block (an encoder without [CLS]: its mean patch token).
    - `cls4`: [CLS] of those of the last four blocks that have it, side by side.
    - `cls1+pooled`: [CLS] and the mean patch token after the last block.

    Raises:
        UserError: An unknown name, or `cls4` of an encoder without [CLS].
        ValueError: No names.
    """
    sets: dict[str, tuple[str, ...]] = {}
    notes: list[str] = []
    depth = encoder.depth
    for name in names:
        if name == "cls1":
            sets[name] = ("cls",)
        elif name == "cls1+pooled":
            sets[name] = ("cls", f"pooled@{depth}")
        elif name == "cls4":
            if encoder.cls_after is None or encoder.pools_mean:
                raise UserError(
                    "the encoder has no [CLS]",
                    "cls4 is the [CLS] of the last 4 blocks",
                    "use --preset moco-v3, which probes the encoder's own summary",
                )
            wanted = range(max(1, depth - LAST_BLOCKS + 1), depth + 1)
            found = [block for block in wanted if block > encoder.cls_after]
            sets[name] = (*(f"cls@{block}" for block in found[:-1]), "cls")
            if len(found) < len(wanted):
                notes.append(
                    f"cls4 is the [CLS] of {len(found)} of the last {len(wanted)} blocks: it "
                    f"joins after block {encoder.cls_after} of {depth}"
                )
        else:
            raise UserError(f"feature set {name!r}", f"known: {', '.join(FEATURE_SETS)}")
    if not sets:
        raise ValueError("no feature set")
    return FeaturePlan(sets, tuple(notes))


def plan_parts(encoder: Encoder, text: str) -> FeaturePlan:
    """A plan of one set: a feature set by its name, or parts with `+` between them.

    Raises:
        UserError: The encoder has no such part, or one is named twice.
    """
    if text in FEATURE_SETS:
        return plan_features(encoder, [text])
    parts = tuple(text.split("+"))
    first = None if encoder.pools_mean else encoder.cls_after
    for part in parts:
        kind, _, layer = part.partition("@")
        least = {"cls": None if first is None else first + 1, "pooled": 0}.get(kind)
        found = layer.isdecimal() and least is not None and least <= int(layer) <= encoder.depth
        if part != "cls" and not found:
            raise UserError(
                f"--parts {text}: {part!r}",
                f"known are {', '.join(FEATURE_SETS)}, cls, pooled@0 to pooled@{encoder.depth}"
                + ("" if first is None else f" and cls@{first + 1} to cls@{encoder.depth}"),
            )
    if len(set(parts)) < len(parts):
        raise UserError(f"--parts {text}", "each part stands there once")
    return FeaturePlan({text: parts})


@dataclass(frozen=True)
class Scale:
    """Standardises features, and lets a head that was trained on them take raw ones.

    Attributes:
        mean, std: [P, D], of each part and dimension.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def none(cls, plan: FeaturePlan, dim: int) -> Scale:
        """Leaves features as they are."""
        shape = (len(plan.parts), dim)
        return cls(torch.zeros(shape), torch.ones(shape))

    @classmethod
    def of(cls, table: Tensor, rows: Tensor) -> Scale:
        """That of some rows of a table [N, P, D]; a dimension that is constant is only shifted."""
        total, squares = torch.zeros(2, *table.shape[1:], dtype=torch.float64).unbind()
        for some in rows.split(_ROWS_AT_ONCE):
            values = table[some].double()
            total, squares = total + values.sum(0), squares + values.square().sum(0)
        mean = total / len(rows)
        std = (squares / len(rows) - mean.square()).clamp(min=0).sqrt()
        std = torch.where(std > _CONSTANT * (1 + mean.abs()), std, 1.0)
        return cls(mean.float(), std.float())

    def apply_(self, table: Tensor) -> Tensor:
        """Standardise a table [N, P, D] in place."""
        return table.sub_(self.mean).div_(self.std)

    def fold(
        self, plan: FeaturePlan, name: str, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weight [C, D of the set] and bias [C] that give raw features the same logits."""
        mean, std = (plan.join(name, x[None])[0].to(weight.device) for x in (self.mean, self.std))
        folded = weight / std
        return folded, bias - folded @ mean


def layers_of(parts: Iterable[str]) -> tuple[int, ...]:
    """The layers to ask an encoder for, so that it gives these parts."""
    return tuple(sorted({int(part.partition("@")[2]) for part in parts if "@" in part}))


def parts_of(features: Features, parts: Sequence[str], norm: nn.Module) -> Tensor:
    """The parts of B images, after the final norm: float32 [B, len(parts), D].

    Args:
        features: Of an encoder that was asked for `layers_of(parts)`.
        parts: Their names.
        norm: `final_norm` of that encoder, which raw tokens have yet to pass.
    """
    vectors = []
    for part in parts:
        kind, _, layer = part.partition("@")
        if not layer:
            vectors.append(features.cls)
        elif kind == "cls":
            vectors.append(norm(features.cls_tokens[int(layer)]))
        else:
            patches = features.grids[int(layer)].flatten(2).transpose(1, 2)
            vectors.append(norm(patches).mean(1))
    return torch.stack([vector.float() for vector in vectors], dim=1)


# -- Reading images -------------------------------------------------------------------------------


class ProbeImages:
    """Training crops, a function of (seed, epoch, index), and central crops: uint8 [3, S, S].

    Args:
        source: Where the images are read.
        image_size: Side S.
        interpolation: Of the resize before a central crop, "bicubic" or "bilinear".
        seed: Of the training crops.
    """

    def __init__(
        self, source: ImageSource, image_size: int, *, interpolation: str, seed: int
    ) -> None:
        self.source = source
        self.image_size = image_size
        self.interpolation = interpolation
        self.seed = seed

    def __getitem__(self, key: Key) -> Tensor:
        index, epoch = key
        image, size = self.source.load(index), self.image_size
        if epoch == CENTRAL:
            return image_to_tensor(central_crop(image, size, self.interpolation))
        draws = numpy_generator(self.seed, "linear-eval", "crop", epoch, index)
        box = random_crop(*image.size, area=CROP_AREA, aspect=CROP_ASPECT, draws=draws)
        crop = image_to_tensor(cut(image, box, size, CROP_INTERPOLATION))
        return crop.flip(-1) if draws.random() < FLIP_P else crop


def central_crop(image: Image.Image, size: int, interpolation: str) -> Image.Image:
    """Resize the shorter side to 256/224 of `size`, then take the central square."""
    resize = evaluation_resize(size)
    return resize_and_crop(image, resize=resize, crop=size, interpolation=interpolation)


@dataclass(frozen=True)
class Reader:
    """Encodes images batch by batch; the ranks share each batch, and all get all of it.

    Attributes:
        loaded: The encoder, on the runtime's device.
        plan: What is taken from it.
        runtime: Device and precision.
        interpolation: Of the resize before a central crop.
        seed: Of the training crops.
        at_once: Images the encoder takes at a time: memory, not the number, depends on it.
        check: Called after each batch of a table; may raise to end the reading.
        workers: Loader processes; None: by the number of cores.
    """

    loaded: LoadedEncoder
    plan: FeaturePlan
    runtime: Runtime
    interpolation: str
    seed: int
    at_once: int = 256
    check: Callable[[], None] | None = None
    workers: int | None = None

    def batches(
        self, source: ImageSource, batches: Iterable[Sequence[Key]], *, rows: int
    ) -> Iterator[Tensor]:
        """The parts of each global batch: float32 [n, P, D] on the device, the same on all ranks.

        Position p of a batch is encoded by rank p mod W; the largest batch has `rows` keys.
        """
        first, second = itertools.tee(batches)
        rank, world = distributed.rank(), distributed.world_size()
        dataset = ProbeImages(
            source, self.loaded.image_size, interpolation=self.interpolation, seed=self.seed
        )
        workers = self.workers
        if workers is None:
            workers = default_workers(self.runtime.ranks_here)
        loaded = load_images(
            dataset,
            (batch[rank::world] for batch in first),
            size=self.loaded.image_size,
            rows=-(-rows // world),
            workers=workers,
            device=self.runtime.device,
        )
        for images, batch in zip(loaded, second, strict=True):
            yield distributed.gather_in_order(self._encode(images), len(batch))

    def table(
        self,
        source: ImageSource,
        indices: NDArray[np.int64],
        *,
        what: str,
        progress: Progress | None = None,
    ) -> Tensor:
        """The parts of the central crops of images: float32 [N, P, D] on the CPU."""
        table = torch.empty(len(indices), len(self.plan.parts), self.loaded.encoder.dim)
        done = 0
        for features in self.pieces(source, indices, what=what, progress=progress):
            table[done : done + len(features)] = features
            done += len(features)
        return table

    def pieces(
        self,
        source: ImageSource,
        indices: NDArray[np.int64],
        *,
        what: str,
        progress: Progress | None = None,
    ) -> Iterator[Tensor]:
        """The parts of the central crops of images, in order: float32 [n, P, D] on the CPU.

        A piece is a batch; from CUDA, 256 MiB of them, as each copy to the host waits for all that
        was launched before.
        """
        waiting: list[Tensor] = []
        most = _COPIED_AT_ONCE if self.runtime.device.type == "cuda" else 0
        step = self.at_once * distributed.world_size()
        starts = range(0, len(indices), step)
        batches = ([(int(i), CENTRAL) for i in indices[start : start + step]] for start in starts)
        done = 0
        for features in self.batches(source, batches, rows=step):
            waiting.append(features)
            done += len(features)
            if self.check is not None:
                self.check()
            if progress is not None:
                progress(what, done, len(indices))
            if sum(piece.nbytes for piece in waiting) >= most:
                yield torch.cat(waiting).cpu()
                waiting.clear()
        if waiting:
            yield torch.cat(waiting).cpu()

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        encoder, device = self.loaded.encoder, self.runtime.device
        parts, norm = self.plan.parts, final_norm(encoder)
        pieces = [torch.zeros(0, len(parts), encoder.dim, device=device)]
        for start in range(0, len(images), self.at_once):
            pixels = images[start : start + self.at_once].float() / 255
            with self.runtime.autocast():
                features = encoder(
                    normalise(pixels, self.loaded.mean, self.loaded.std), layers_of(parts)
                )
                pieces.append(parts_of(features, parts, norm))
        return torch.cat(pieces)
