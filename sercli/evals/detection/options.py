"""What a user chooses of a detection: engine, preset, schedule, heads. Imports no torch."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from sercli.errors import UserError

if TYPE_CHECKING:
    from sercli.evals.detection.images import Canvas

Engine = Literal["detectron2", "torchvision"]
PresetName = Literal["standard", "tiny"]
Metric = Literal["pycocotools", "faster-coco-eval"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
METRICS: tuple[Metric, ...] = get_args(Metric)


@dataclass(frozen=True)
class Heads:
    """Sizes of Mask R-CNN's heads; the defaults are those of the literature.

    Attributes:
        channels: Of each level of the pyramid.
        anchors: Regions an image whose objectness is learnt at a step.
        proposals: Kept in training: before suppression (a level), and after it.
        test_proposals: The same in evaluation.
        regions: Regions an image that the box head learns from at a step.
        box_width: Of the two layers of the box head.
        mask_channels: Of the layers of the mask head.
        mask_layers: 3×3 convolutions of the mask head.
    """

    channels: int = 256
    anchors: int = 256
    proposals: tuple[int, int] = (2000, 1000)
    test_proposals: tuple[int, int] = (1000, 1000)
    regions: int = 512
    box_width: int = 1024
    mask_channels: int = 256
    mask_layers: int = 4


@dataclass(frozen=True)
class Preset:
    """What a detector is by default: its heads, its canvas and how long it learns.

    Attributes:
        heads: Sizes.
        image_size: Side of the canvas in pixels.
        batch_size: Images a step.
        schedule: `1x`, `3x` or steps.
        lr: Peak learning rate.
    """

    heads: Heads
    image_size: int
    batch_size: int
    schedule: str
    lr: float


PRESETS: dict[PresetName, Preset] = {
    "standard": Preset(Heads(), 1024, 16, "1x", 1e-4),
    "tiny": Preset(
        Heads(
            channels=64,
            anchors=64,
            proposals=(200, 100),
            test_proposals=(200, 100),
            regions=64,
            box_width=128,
            mask_channels=32,
            mask_layers=2,
        ),
        128,
        8,
        "600",
        1e-3,
    ),
}

_FULL = 90_000  # steps of 1x, with 16 images each
_DECAYS = {"1x": (2 / 3, 8 / 9), "3x": (7 / 9, 25 / 27)}


@dataclass(frozen=True)
class Schedule:
    """Learning rate: linear warm-up, then a tenth after each of two decays.

    Attributes:
        total_steps: 90,000 (1x), 270,000 (3x), or as many as asked for; 0: an untrained detector.
        warmup_steps: 1000, at most a twentieth of all.
        decay_steps: Steps at which the rate falls by ten.
        lr: Peak.
    """

    total_steps: int
    warmup_steps: int
    decay_steps: tuple[int, ...]
    lr: float

    @classmethod
    def of(cls, name: str, *, lr: float) -> Schedule:
        """A schedule by name, or by its number of steps (decays as in 1x).

        Raises:
            UserError: Neither.
        """
        if name not in _DECAYS and not re.fullmatch(r"\d+", name):
            raise UserError(
                f"--schedule {name}",
                "it must be 1x (90,000 steps), 3x (270,000) or a whole number of steps",
            )
        total = {"1x": _FULL, "3x": 3 * _FULL}.get(name)
        total = int(name) if total is None else total
        decays = tuple(round(total * share) for share in _DECAYS.get(name, _DECAYS["1x"]))
        return cls(total, min(1000, total // 20), decays, lr)

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0…total−1."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        return self.lr * 0.1 ** sum(step >= decay for decay in self.decay_steps)


@dataclass(frozen=True)
class Options:
    """What a user may choose; None: the preset's.

    Attributes:
        engine: "detectron2" or "torchvision".
        preset: "standard" or "tiny".
        image_size: Side of the canvas in pixels.
        batch_size: Training images a step, of all ranks.
        schedule: "1x", "3x", or a number of steps.
        lr: Peak learning rate.
        flip: Mirror half of the training images.
        cache_features: Encode each training image once and keep its grid; then nothing is mirrored.
        seed: Of heads, order, mirroring and sampled regions.
        limit: Use at most this many images of train and of val.
        at_once: Images taken at a time in evaluation.
        metric: Implementation of average precision.
    """

    engine: Engine
    preset: PresetName = "standard"
    image_size: int | None = None
    batch_size: int | None = None
    schedule: str | None = None
    lr: float | None = None
    flip: bool = True
    cache_features: bool = False
    seed: int = 0
    limit: int | None = None
    at_once: int = 8
    metric: Metric = "pycocotools"

    def require_valid(self) -> None:
        """Raise a UserError for what cannot be, before anything is read."""
        for name, value, known in (
            ("engine", self.engine, ENGINES),
            ("preset", self.preset, tuple(PRESETS)),
            ("metric", self.metric, METRICS),
        ):
            if value not in known:
                raise UserError(f"--{name} {value}", f"it must be {' or '.join(known)}")
        if self.lr is not None and not 0 < self.lr < 1:
            raise UserError(f"--lr {self.lr:g}", "it must be above 0 and below 1")
        Schedule.of(self.schedule or PRESETS[self.preset].schedule, lr=self.lr or 1e-4)

    def require_engine(self) -> None:
        """Raise a UserError if the engine is not installed."""
        if self.engine == "detectron2":
            require_detectron2()

    def canvas(self, patch_size: int) -> Canvas:
        """What an encoder of this patch size is shown.

        Without a size of the user's it is the preset's, or the multiple of two patches next to it.

        Raises:
            UserError: The user's size is no multiple of two patches.
        """
        from sercli.evals.detection.images import Canvas

        if self.image_size is not None:
            return Canvas.of(self.image_size, patch_size=patch_size)
        step, usual = 2 * patch_size, PRESETS[self.preset].image_size
        return Canvas.of(max(1, round(usual / step)) * step, patch_size=patch_size)


INSTALL_DETECTRON2 = (
    "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2'"
)


def require_detectron2() -> None:
    """Raise a UserError that says how to install detectron2, if it is missing or does not load."""
    try:
        importlib.import_module("detectron2._C")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "detectron2"
        raise UserError(
            "detectron2 is not installed" if missing else f"detectron2 does not load ({error})",
            "it is built from source against the torch that is installed: " + INSTALL_DETECTRON2,
            "or use --engine torchvision, which needs no build",
        ) from error
