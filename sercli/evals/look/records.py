"""Attention of [CLS], patch tokens and nearest neighbours of a few images, for pictures of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from sercli.data import ImageSource
from sercli.data.images.decode import read_rgb
from sercli.data.loading import evaluation_batches
from sercli.encoders.loading import LoadedEncoder
from sercli.engine.runtime import Runtime
from sercli.errors import UserError
from sercli.evals.common import Progress
from sercli.evals.knn import extract
from sercli.randomness import numpy_generator

_UNKNOWN = -1


class Files(ImageSource):
    """Image files as they were named; nothing is known of their classes."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.name, self.split, self.classes = "files", "given", ("",)
        self.labels = np.zeros(len(paths), dtype=np.int64)
        self._paths = tuple(paths)

    def load(self, index: int) -> Image.Image:
        return read_rgb(str(self._paths[index]), called=str(self._paths[index]))

    def describe(self, index: int) -> str:
        return str(self._paths[index])

    def identifier(self, index: int) -> str:
        return str(self._paths[index])


@dataclass(frozen=True)
class Chosen:
    """The images that are looked at.

    Attributes:
        source: Where they are.
        indices: Which of them, in order.
        labelled: Whether their classes are known, and are those of the training images.
    """

    source: ImageSource
    indices: tuple[int, ...]
    labelled: bool = True

    @classmethod
    def of(cls, source: ImageSource, asked: Sequence[int] | None, *, num: int, seed: int) -> Chosen:
        """Those asked for, or so many drawn from a seed, in the order of the set.

        Raises:
            UserError: One is not there.
        """
        if asked is not None:
            wrong = [index for index in asked if not 0 <= index < len(source)]
            if wrong:
                raise UserError(
                    f"--images {wrong[0]}",
                    f"{source.name}/{source.split} has images 0…{len(source) - 1}",
                )
            return cls(source, tuple(asked), labelled=bool(source.classes))
        drawn = numpy_generator(seed, "look", "images").permutation(len(source))[:num]
        return cls(source, tuple(sorted(drawn.tolist())), labelled=bool(source.classes))

    @property
    def names(self) -> list[str]:
        return [self.source.identifier(index) for index in self.indices]

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 [n]; −1: not known."""
        if not self.labelled:
            return np.full(len(self.indices), _UNKNOWN, np.int64)
        return self.source.labels[list(self.indices)]


@dataclass(frozen=True)
class Seen:
    """What the encoder makes of n images.

    Attributes:
        pictures: float32 [n, S, S, 3] in 0…1, as the encoder sees them.
        attention_layer: Block whose attention it is; None: no [CLS] attends anywhere.
        attention: float32 [n, H, h, w], what [CLS] gives each patch in each head; with what it
            gives to itself and to registers 1.
        tokens: layer → float32 [n, h, w, D], raw output of that block.
        features: float32 [n, D], [CLS] after the final norm.
    """

    pictures: NDArray[np.float32]
    attention_layer: int | None
    attention: NDArray[np.float32] | None
    tokens: dict[int, NDArray[np.float32]]
    features: NDArray[np.float32]


@dataclass(frozen=True)
class Neighbours:
    """The k nearest training images of n images.

    Attributes:
        indices: int64 [n, k] in the training set, the nearest first.
        similarity: float32 [n, k], cosines of [CLS] after the final norm.
        labels: int64 [n, k].
        names: [n][k], their identifiers.
        pictures: float32 [n, k, S, S, 3] in 0…1.
        bank: Training images that were searched.
    """

    indices: NDArray[np.int64]
    similarity: NDArray[np.float32]
    labels: NDArray[np.int64]
    names: list[list[str]]
    pictures: NDArray[np.float32]
    bank: int


def attention_layer(loaded: LoadedEncoder, asked: int | None) -> int | None:
    """The block whose attention is shown: the one asked for, or the last; None: there is no [CLS].

    Raises:
        UserError: [CLS] does not attend in the one asked for.
    """
    encoder = loaded.encoder
    if encoder.cls_after is None and asked is None:
        return None
    layer = encoder.depth if asked is None else asked
    encoder.attending([layer])
    return layer


def token_layers(depth: int, asked: Sequence[int] | None, tapped: int | None) -> list[int]:
    """The blocks whose tokens are shown: those asked for, or the tapped one and three of four.

    Raises:
        UserError: There is no such block.
    """
    if asked is None:
        quarters = {max(1, depth * part // 4) for part in (1, 2, 3, 4)}
        return sorted(quarters | ({tapped} if tapped is not None else set()))
    wrong = [layer for layer in asked if not 0 <= layer <= depth]
    if wrong or not asked:
        raise UserError(f"--layers {wrong[0] if wrong else 'none'}", f"blocks are 0…{depth}")
    return sorted(set(asked))


def look(
    loaded: LoadedEncoder,
    chosen: Chosen,
    *,
    runtime: Runtime,
    layers: Sequence[int],
    attention: int | None,
    image_size: int,
) -> Seen:
    """Attention and tokens of images, each encoded by itself.

    Args:
        loaded: The encoder; it is moved to the runtime's device.
        chosen: The images.
        runtime: Where, and in which precision, it encodes; attention is float32.
        layers: Blocks whose tokens are kept.
        attention: Block whose attention is kept; None: none.
        image_size: Side in pixels, a multiple of the patch.
    """
    encoder = loaded.encoder.to(runtime.device).eval()
    pictures, maps, features = [], [], []
    tokens: dict[int, list[NDArray[np.float32]]] = {layer: [] for layer in layers}
    wanted = () if attention is None else (attention,)
    for images in _batches(loaded, chosen.source, chosen.indices, image_size, runtime):
        with torch.no_grad(), runtime.autocast():
            found = encoder(images, layers, attention=wanted)
        pictures.append(_pixels(images, loaded))
        features.append(found.cls.float().cpu().numpy())
        for layer in layers:
            tokens[layer].append(found.grids[layer].float().permute(0, 2, 3, 1).cpu().numpy())
        if attention is not None:
            maps.append(found.attention[attention].cpu().numpy())
    return Seen(
        pictures=np.concatenate(pictures),
        attention_layer=attention,
        attention=np.concatenate(maps) if maps else None,
        tokens={layer: np.concatenate(grids) for layer, grids in tokens.items()},
        features=np.concatenate(features),
    )


def neighbours(
    loaded: LoadedEncoder,
    chosen: Chosen,
    seen: Seen,
    train: ImageSource,
    *,
    runtime: Runtime,
    num: int,
    limit: int | None,
    image_size: int,
    batch_size: int = 256,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Neighbours:
    """The nearest training images of each image, by the cosine of [CLS]; never the image itself.

    Args:
        loaded: The encoder, on the runtime's device.
        chosen: The images.
        seen: What `look` made of them.
        train: Training images.
        runtime: Where, and in which precision, it encodes.
        num: How many neighbours of each.
        limit: At most so many training images are searched, drawn from a fixed seed.
        image_size: Side in pixels.
        batch_size: Images encoded at a time.
        workers: Loader processes; None: by the number of cores.
        progress: Called with the split, the images done, and all of them.
    """
    everything = numpy_generator(0, "look", "bank").permutation(len(train))[:limit]
    indices = np.sort(everything)
    bank, labels = extract(
        loaded.encoder,
        train,
        runtime=runtime,
        image_size=image_size,
        indices=indices.tolist(),
        batch_size=batch_size,
        mean=loaded.mean,
        std=loaded.std,
        workers=workers,
        progress=progress,
    )
    same = (chosen.source.name, chosen.source.split) == (train.name, train.split)
    own = indices[None] == np.array(chosen.indices)[:, None] if same else None
    best = _nearest(seen.features, bank, num, without=own)
    places = best.indices.cpu().numpy()
    found = indices[places]
    batches = _batches(loaded, train, found.ravel().tolist(), image_size, runtime)
    shown = np.concatenate([_pixels(images, loaded) for images in batches])
    return Neighbours(
        indices=found,
        similarity=best.values.float().cpu().numpy(),
        labels=labels.cpu().numpy()[places],
        names=[[train.identifier(index) for index in row] for row in found.tolist()],
        pictures=shown.reshape(*found.shape, *shown.shape[1:]),
        bank=len(indices),
    )


def _nearest(
    queries: NDArray[np.float32], bank: torch.Tensor, num: int, *, without: NDArray[np.bool_] | None
) -> torch.return_types.topk:
    """The `num` rows of a bank that are nearest to each query by cosine, nearest first.

    Args:
        queries: [N, D].
        bank: [M, D].
        num: How many; fewer where the bank is small.
        without: [N, M], which are passed over; None: none.
    """
    features = torch.from_numpy(queries).to(bank.device)
    cosines = F.normalize(features.float(), dim=1) @ F.normalize(bank.float(), dim=1).T
    if without is not None:
        cosines = cosines.masked_fill(torch.from_numpy(without).to(cosines.device), -torch.inf)
    return cosines.topk(min(num, max(1, len(bank) - 1)), dim=1)


def arrays_of(
    chosen: Chosen, seen: Seen, near: Neighbours | None, classes: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """What is kept beside the figures, by name; see runs/README.md."""
    arrays: dict[str, NDArray[Any]] = {
        "image_ids": np.array(chosen.names),
        "labels": chosen.labels,
        "classes": np.array(classes, str),
        "pictures": np.round(255 * seen.pictures).astype(np.uint8),
        "features": seen.features,
        **{f"tokens/block{layer:02d}": tokens for layer, tokens in seen.tokens.items()},
    }
    if seen.attention is not None:
        arrays["attention"] = seen.attention
        arrays["attention_block"] = np.array(seen.attention_layer)
    if near is not None:
        arrays["neighbour_ids"] = np.array(near.names)
        arrays["neighbour_indices"] = near.indices
        arrays["neighbour_labels"] = near.labels
        arrays["neighbour_cosines"] = near.similarity
    return arrays


def _batches(
    loaded: LoadedEncoder,
    source: ImageSource,
    indices: Sequence[int],
    image_size: int,
    runtime: Runtime,
) -> Iterator[torch.Tensor]:
    """Normalised [1, 3, S, S], the central square crop of each image."""
    yield from evaluation_batches(
        source,
        image_size=image_size,
        indices=indices,
        batch_size=1,
        mean=loaded.mean,
        std=loaded.std,
        device=runtime.device,
        workers=0,
    )


def _pixels(images: torch.Tensor, loaded: LoadedEncoder) -> NDArray[np.float32]:
    """[B, S, S, 3] in 0…1 of normalised images."""
    mean, std = (images.new_tensor(x).view(3, 1, 1) for x in (loaded.mean, loaded.std))
    pixels: NDArray[np.float32] = (
        (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    )
    return pixels
