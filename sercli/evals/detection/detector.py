"""What the two engines share of a detector: sizes of its heads, its schedule, what it returns."""

from __future__ import annotations

import abc
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sercli.errors import UserError
from sercli.evals.detection.images import Sample

ENGINES = ("detectron2", "torchvision")
MAX_DETECTIONS = 100


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


PRESETS = {
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
WEIGHT_DECAY = 0.1


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
class Detections:
    """What is found in one image, best first.

    Attributes:
        boxes: float32 [n, 4], x1, y1, x2, y2; in units of the frame, or in pixels of the file.
        scores: float32 [n], 0…1.
        labels: int64 [n].
        masks: [n, h, w]: probabilities within each box, or bool of the whole image.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor


class Detector(nn.Module, abc.ABC):
    """Mask R-CNN on a grid of patch tokens: a pyramid, proposals, boxes and masks."""

    name: ClassVar[str]

    @abc.abstractmethod
    def forward(self, grids: Tensor, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The parts of the loss, scalars.

        Args:
            grids: float32 [B, D, h, w].
            samples: The B images, with objects.
        """

    @abc.abstractmethod
    def detect(self, grids: Tensor, samples: Sequence[Sample]) -> list[Detections]:
        """What is found, boxes in the frame and mask probabilities [n, 28, 28]."""

    @abc.abstractmethod
    def versions(self) -> dict[str, str]:
        """Of the libraries that compute it."""

    @abc.abstractmethod
    def paste(self, masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Mask probabilities [n, m, m] in their boxes → bool [n, H, W]."""


def in_pixels(detector: Detector, found: Detections, sample: Sample) -> Detections:
    """Detections in the frame → in pixels of the image's file; empty boxes are dropped."""
    height, width = sample.original
    scale = found.boxes.new_tensor(
        [width / sample.frame[1], height / sample.frame[0]] * 2, device="cpu"
    )
    boxes = found.boxes.float().cpu() * scale
    boxes[:, 0::2] = boxes[:, 0::2].clamp(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clamp(0, height)
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    boxes = boxes[kept]
    masks = detector.paste(found.masks.float().cpu()[kept], boxes, (height, width))
    return Detections(boxes, found.scores.cpu()[kept], found.labels.cpu()[kept], masks)


def to_coco(
    found: Detections, *, image_id: int, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Detections in pixels as COCO's results: raw category ids, x y width height, run lengths."""
    from pycocotools import mask as coco_mask

    corners = found.boxes.double().numpy()
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    masks: NDArray[np.uint8] = found.masks.numpy().astype(np.uint8)
    return [
        {
            "image_id": image_id,
            "category_id": int(category_ids[label]),
            "bbox": box.tolist(),
            "score": score,
            "segmentation": coco_mask.encode(np.asfortranarray(mask)),
        }
        for label, box, score, mask in zip(
            found.labels.tolist(), boxes, found.scores.double().tolist(), masks, strict=True
        )
    ]


def settings(heads: Heads, schedule: Schedule, *, batch_size: int) -> dict[str, Any]:
    """What of a detector's sizes and schedule is part of the protocol."""
    return {
        "heads": asdict(heads),
        "schedule": {
            "steps": schedule.total_steps,
            "batch_size": batch_size,
            "optimiser": "adamw",
            "lr": schedule.lr,
            "weight_decay": WEIGHT_DECAY,
            "warmup_steps": schedule.warmup_steps,
            "decay_steps": list(schedule.decay_steps),
        },
    }


def make_optimiser(detector: nn.Module) -> torch.optim.AdamW:
    """Fused AdamW that decays matrices and convolutions, not biases and norms."""
    trained = [p for p in detector.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, fused=True)
