"""What the two engines share of a detector: its settings, what it returns."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sercli.evals.detection.images import Sample
from sercli.evals.detection.options import Heads, Schedule

MAX_DETECTIONS = 100
WEIGHT_DECAY = 0.1


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
