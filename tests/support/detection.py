"""A small encoder, small heads and a small world, for the tests of detection."""

from __future__ import annotations

import safetensors.torch
import torch
from torch import Tensor

from sercli.data.shapes.detection import ShapesDetection
from sercli.encoders.loading import LoadedEncoder
from sercli.encoders.vit import Encoder
from sercli.engine.runtime import runtime_for
from sercli.evals.detection.backbone import FrozenEncoder
from sercli.evals.detection.images import Canvas
from sercli.evals.detection.options import Heads
from sercli.recipe.schema import Model

HEADS = Heads(
    channels=16,
    anchors=16,
    proposals=(60, 30),
    test_proposals=(60, 30),
    regions=16,
    box_width=16,
    mask_channels=8,
    mask_layers=1,
)
CPU = runtime_for(torch.device("cpu"))


def small_encoder(*, patch_size: int = 8, cls_after: int = 0, seed: int = 0) -> LoadedEncoder:
    """3 blocks, 32 wide, trained on 6 × 6 patches."""
    size = 6 * patch_size
    model = Model(name="vit_micro", width=32, depth=3, num_heads=2, patch_size=patch_size)
    encoder = Encoder.from_model(model, image_size=size, cls_after=cls_after).initialise(seed)
    return LoadedEncoder(encoder.eval(), "small", "student", 1, 1, size)


def frozen(size: int = 64, *, patch_size: int = 8, cls_after: int = 0) -> FrozenEncoder:
    loaded = small_encoder(patch_size=patch_size, cls_after=cls_after)
    return FrozenEncoder(loaded, Canvas.of(size, patch_size=patch_size), CPU)


def world(split: str = "train", *, size: int = 64, num_images: int = 8) -> ShapesDetection:
    return ShapesDetection(split, image_size=size, num_images=num_images)


def weights(head: bytes) -> dict[str, Tensor]:
    """Of a trained detector; a safetensors file may order its header as it likes."""
    return safetensors.torch.load(head)
