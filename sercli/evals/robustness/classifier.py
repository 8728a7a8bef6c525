"""The classifier under test: images to logits, the classes' names, and the transform of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sercli.data.loading import image_to_tensor, normalise, resize_and_crop
from sercli.data.robustness.imagenet_classes import imagenet_classes
from sercli.encoders.timm_weights import create_timm
from sercli.engine.runtime import Runtime
from sercli.errors import RunFailed, UserError
from sercli.transfer import to_device

IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Classifier:
    """Images to logits over named classes.

    Attributes:
        network: Normalised images float [B, 3, S, S] on `device` → logits [B, C], in evaluation
            mode.
        classes: Their names, in the order of the logits.
        image_size: S, pixels.
        view: A picture to uint8 [3, S, S]; picklable, loader processes call it.
        mean, std: Normalisation of the input, RGB in 0…1.
        device: Where the network is.
        rule: What of it belongs to the protocol: which head, and how images reach it.
        model: The `model` field of results.
        partial: Whether its head is of a trial on a part of the images, and so every result of it.
        warnings: What the result that its head stands beside warns of.
    """

    network: Callable[[Tensor], Tensor]
    classes: tuple[str, ...]
    image_size: int
    view: Callable[[Image.Image], Tensor]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device
    rule: dict[str, Any]
    model: dict[str, Any]
    partial: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What every result of it has to say."""
        return ("the head was trained on a part of the images (--limit)",) if self.partial else ()

    def __call__(self, images: Tensor) -> Tensor:
        """Logits float32 [B, C] on `device` of uint8 images [B, 3, S, S]; see `Finite`.

        Raises:
            UserError: The network has not one logit for each class.
        """
        inputs = to_device(images, self.device).float() / 255
        with torch.no_grad():
            logits = self.network(normalise(inputs, self.mean, self.std)).float()
        if logits.shape[1] != len(self.classes):
            raise UserError(
                f"the head gives {logits.shape[1]} logits for {len(self.classes)} classes",
                "each class needs one",
            )
        return logits


class Finite:
    """Whether all logits of a set are finite: asked at the first batch, and at the end.

    To ask is to wait for the device.
    """

    def __init__(self) -> None:
        self._wrong: Tensor | None = None

    def see(self, logits: Tensor) -> Tensor:
        """The logits, looked at.

        Raises:
            RunFailed: One of the first batch is not finite.
        """
        wrong = (~logits.isfinite()).any()
        if self._wrong is None:
            self._wrong = wrong
            self.require()
        else:
            self._wrong |= wrong
        return logits

    def require(self) -> None:
        """Raise a RunFailed if one was not finite."""
        if self._wrong is not None and self._wrong:
            raise RunFailed("a logit is not finite: the weights or the head are damaged")


@dataclass(frozen=True)
class CentreView:
    """Resize of the shorter side to `resize` pixels, then the central `crop`×`crop`.

    Attributes:
        resize, crop: Pixels.
        interpolation: "bicubic" or "bilinear".
    """

    resize: int
    crop: int
    interpolation: str = "bicubic"

    def __call__(self, image: Image.Image) -> Tensor:
        """uint8 [3, crop, crop]."""
        shown = resize_and_crop(
            image, resize=self.resize, crop=self.crop, interpolation=self.interpolation
        )
        return image_to_tensor(shown)


def own_head(name: str, *, runtime: Runtime, random_init: bool = False) -> Classifier:
    """Any classifier of timm's on ImageNet's 1000 classes, with its own head.

    The transform is timm's, from the model's own `pretrained_cfg` (crop_pct, crop_mode,
    interpolation, mean, std, the size it was trained at), so that published accuracies can be
    reproduced.

    Args:
        name: `timm:NAME`.
        runtime: Where the model runs, and in which precision what comes before its head does.
        random_init: Random weights; otherwise those cached on this machine.

    Raises:
        UserError: No such model, no weights, or a head over other classes.
    """
    from timm.data import create_transform, resolve_data_config

    if not name.startswith("timm:"):
        raise UserError(
            f"--head own with {name}",
            "only a classifier of timm's has a head of its own",
            "give timm:NAME, or leave --head out to use the head that `ser linear-eval` trained",
        )
    model = create_timm(name, random_init=random_init)
    if model.num_classes != IMAGENET_CLASSES:
        raise UserError(
            f"the head of {name} has {model.num_classes} classes",
            f"ImageNet's {IMAGENET_CLASSES} are needed",
            "name weights that end in _in1k",
        )
    config = resolve_data_config({}, model=model)
    _, height, width = config["input_size"]
    if height != width:
        raise UserError(f"{name} takes images of {height}×{width}", "they must be square")
    shown = {key: config[key] for key in ("crop_pct", "crop_mode", "interpolation")}
    # "Prefetcher" is timm's word for pictures that stay uint8 until they are on the device.
    view = create_transform(config["input_size"], use_prefetcher=True, **shown)
    count = len(model.state_dict())
    return Classifier(
        network=_in_two(model.to(runtime.device).eval().requires_grad_(False), runtime),
        classes=imagenet_classes(),
        image_size=height,
        view=view,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        device=runtime.device,
        rule={"head": "own", "view": "timm's evaluation transform by the model's pretrained_cfg"},
        model={
            "source": name,
            "key": "random" if random_init else "timm",
            "matched": count,
            "expected": count,
            "precision": runtime.precision,
            "head": "own",
            "view": {**shown, "image_size": height, "mean": config["mean"], "std": config["std"]},
        },
    )


def _in_two(model: Any, runtime: Runtime) -> Callable[[Tensor], Tensor]:
    """A classifier of timm's whose encoder is in the runtime's precision; its head is float32."""
    plain: Callable[[Tensor], Tensor] = model
    if runtime.precision == "fp32":
        return plain

    def network(images: Tensor) -> Tensor:
        with runtime.autocast():
            tokens = model.forward_features(images)
        logits: Tensor = model.forward_head(tokens.float())
        return logits

    return network
