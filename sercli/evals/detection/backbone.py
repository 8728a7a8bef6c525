"""The frozen encoder as a detector's backbone, and the simple feature pyramid on its last grid."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from sercli.data.coco.source import DetectionSource
from sercli.data.loading import load_batches
from sercli.encoders.loading import LoadedEncoder, encoder_sha256
from sercli.encoders.vit import final_norm
from sercli.engine.runtime import Runtime
from sercli.errors import RunFailed, from_os_error
from sercli.evals.common import Progress
from sercli.evals.detection.images import UNITS, Canvas, DetectionImages, Sample, on_canvas
from sercli.runs.arrays import read_header
from sercli.runs.files import hash_of, verifies, write_atomic, write_text
from sercli.runs.reading import require_regular

LEVELS = ("p2", "p3", "p4", "p5", "p6")
STRIDES = (4, 8, 16, 32, 64)  # units of the detector's frame


class FrozenEncoder:
    """An encoder that only gives features: no gradient, no training mode.

    It is no module, so that a detector neither trains nor stores it nor switches its mode.

    Args:
        loaded: The encoder; it is moved to the runtime's device.
        canvas: What it is shown.
        runtime: Device and precision.
    """

    def __init__(self, loaded: LoadedEncoder, canvas: Canvas, runtime: Runtime) -> None:
        self.loaded, self.canvas, self.runtime = loaded, canvas, runtime
        self.encoder = loaded.encoder.to(runtime.device).eval().requires_grad_(False)
        self.sha256 = encoder_sha256(self.encoder)

    @property
    def dim(self) -> int:
        return self.encoder.dim

    @property
    def mixed(self) -> bool:
        """Whether it computes in bf16."""
        return self.runtime.autocast_dtype is not None

    @torch.no_grad()
    def grids(self, images: Tensor) -> Tensor:
        """The last block's patch tokens after the final norm.

        [CLS] takes part in attention, as in training. Attention is global.

        Args:
            images: float [B, 3, S, S], normalised.

        Returns:
            float32 [B, D, S/patch, S/patch].
        """
        layer = self.encoder.depth
        with self.runtime.autocast():
            raw = self.encoder(images, (layer,)).grids[layer]
            tokens = final_norm(self.encoder)(raw.permute(0, 2, 3, 1))
        grids: Tensor = tokens.permute(0, 3, 1, 2).float().contiguous()
        return grids

    def grids_of(self, samples: Sequence[Sample]) -> Tensor:
        """The grids of samples with images."""
        mean, std = self.loaded.mean, self.loaded.std
        device = self.runtime.device
        return self.grids(on_canvas(samples, self.canvas, mean=mean, std=std, device=device))

    def require_unchanged(self) -> None:
        """Raise a RunFailed if a parameter moved since the start."""
        if encoder_sha256(self.encoder) != self.sha256:
            raise RunFailed("the encoder's parameters changed while a detector was trained on it")


class SimpleFeaturePyramid(nn.Module):
    """ViTDet's pyramid (Li et al. 2022): scales 4, 2, 1, ½ of one grid, and a max-pool of the last.

    Args:
        dim: Channels D of the grid.
        channels: Channels C that every level of the pyramid has.
    """

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        half, quarter = dim // 2, dim // 4
        enlarge4: list[nn.Module] = [
            nn.ConvTranspose2d(dim, half, 2, stride=2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
        ]
        enlarge2: list[nn.Module] = [nn.ConvTranspose2d(dim, half, 2, stride=2)]
        stages: list[tuple[list[nn.Module], int]] = [
            (enlarge4, quarter),
            (enlarge2, half),
            ([], dim),
            ([nn.MaxPool2d(2, stride=2)], dim),
        ]
        self.stages = nn.ModuleList(
            nn.Sequential(
                *scale,
                nn.Conv2d(width, channels, 1, bias=False),
                LayerNorm2d(channels),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                LayerNorm2d(channels),
            )
            for scale, width in stages
        )

    def forward(self, grid: Tensor) -> dict[str, Tensor]:
        """[B, D, h, w] → p2…p6: [B, C, 4h, 4w] to [B, C, ⌈h/4⌉, ⌈w/4⌉]."""
        found = [stage(grid) for stage in self.stages]
        found.append(nn.functional.max_pool2d(found[-1], 1, stride=2))
        return dict(zip(LEVELS, found, strict=True))


assert STRIDES[2] == UNITS  # p4 is the encoder's own grid


class GridCache:
    """The grids of some images on disk, as the encoder gives them without augmentation.

    Attributes:
        path: NumPy file of an array [N, D, h, w].
        indices: int64 [N], of the source, in the order of its rows.
    """

    def __init__(self, path: Path, indices: NDArray[np.int64]) -> None:
        self.path, self.indices = path, indices
        self._rows = {int(index): row for row, index in enumerate(indices)}
        try:
            self._grids = np.load(path, mmap_mode="r")
        except OSError as error:
            raise from_os_error(error, f"cannot read {path}") from error

    def grids_of(self, samples: Sequence[Sample], device: torch.device) -> Tensor:
        """float32 [B, D, h, w]."""
        rows = np.stack([self._grids[self._rows[sample.index]] for sample in samples])
        return torch.from_numpy(rows).to(device).float()

    @classmethod
    def write(
        cls,
        path: Path,
        source: DetectionSource,
        indices: NDArray[np.int64],
        frozen: FrozenEncoder,
        *,
        batch_size: int,
        workers: int,
        progress: Progress | None,
        check: Callable[[], None],
    ) -> None:
        """Encode the images and write their grids, all of them or none.

        Grids of a bf16 encoder are kept as float16, which loses nothing of its 8 bits unless a
        value is beyond ±65504; those of a float32 encoder as they are.

        Args:
            path: NumPy file that takes the grids; another of that name is replaced.
            source: Where the images are read.
            indices: int64 [N], those wanted.
            frozen: What encodes them.
            batch_size: Images taken at a time.
            workers: Loader processes.
            progress: Called with "features", the images done, and all.
            check: Called after each batch; may raise to end the writing.
        """
        kind, shape = _layout(len(indices), frozen)
        batches = [
            [(int(index), None) for index in indices[start : start + batch_size]]
            for start in range(0, len(indices), batch_size)
        ]
        images = DetectionImages(source, frozen.canvas)

        def write(file: BinaryIO) -> None:
            digest = hashlib.sha256()

            def put(data: bytes) -> None:
                file.write(data)
                digest.update(data)

            start = io.BytesIO()
            header = {"descr": kind.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(start, header)
            put(start.getvalue())
            done = 0
            if progress is not None:
                progress("features", 0, len(indices))
            for samples in load_batches(images, batches, workers=workers):
                put(frozen.grids_of(samples).cpu().numpy().astype(kind).tobytes())
                done += len(samples)
                if progress is not None:
                    progress("features", done, len(indices))
                check()
            # Before the grids take their name: those of a name have their hash.
            write_text(hash_of(path), f"{digest.hexdigest()}  {path.name}\n")

        write_atomic(path, write)

    @staticmethod
    def is_whole(path: Path, count: int, frozen: FrozenEncoder) -> bool:
        """Whether there are grids of so many images, and they are what was written.

        Those of earlier versions have no hash beside them: their size is looked at.
        """
        kind, shape = _layout(count, frozen)
        try:
            require_regular(path)
            with open(path, "rb") as file:
                found = read_header(file)
                size = path.stat().st_size - file.tell()
        except Exception:  # NumPy's header raises a dozen kinds; what cannot be read is made anew
            return False
        fits = found == (shape, kind) and size == math.prod(shape) * kind.itemsize
        return fits and (verifies(path) or not hash_of(path).exists())


def _layout(count: int, frozen: FrozenEncoder) -> tuple[np.dtype[Any], tuple[int, int, int, int]]:
    """Type and shape of the grids of some images."""
    kind: np.dtype[Any] = np.dtype(np.float16 if frozen.mixed else np.float32)
    return kind, (count, frozen.dim, frozen.canvas.grid, frozen.canvas.grid)
