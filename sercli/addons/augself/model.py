"""AugSelf: a head for each target, what the targets are, and the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sercli import distributed
from sercli.addons.augself import AugSelfConfig
from sercli.addons.base import Addon, AddonInput, Tap
from sercli.heads import mlp
from sercli.precision import at_least_fp32
from sercli.views.making import ViewParameters, ViewRecord


class AugSelf(Addon):
    """An MLP for each target, on both views' vectors side by side, in both orders.

    Every target is of the first view relative to the second; regressions are of tanh outputs.
    """

    Config = AugSelfConfig
    needs_images = (2, "batch norm")
    widths: ClassVar[dict[str, int]] = {
        "crop": 4,
        "colour": 4,
        "flip": 1,
        "blur": 1,
        "rotation": 4,
    }

    def __init__(self, config: AugSelfConfig, dim: int) -> None:
        super().__init__()
        self.tap = Tap(config, dim)
        self.weights = {name: float(getattr(config, name)) for name in self.widths}
        hidden = config.hidden_width
        self.heads = nn.ModuleDict(
            {
                name: mlp(
                    [2 * dim, hidden, hidden, self.widths[name]], last_norm=False, last_bias=True
                )
                for name, weight in self.weights.items()
                if weight
            }
        )

    def prepare(self, record: ViewRecord) -> Mapping[str, Tensor]:
        """The targets of both orders, one after the other."""
        one, two = record.parameters[:2]
        return {
            name: torch.cat([TARGETS[name](one, two), TARGETS[name](two, one)])
            for name in self.heads
        }

    def loss(self, given: AddonInput) -> Tensor:
        """Σ over targets of weight · error, mean over images, both orders and components."""
        first, second = (self.tap(features) for features in given.students[:2])
        pairs = torch.cat([torch.cat([first, second], 1), torch.cat([second, first], 1)])
        targets = self.prepared(given)
        loss: Tensor = pairs.new_zeros((), dtype=at_least_fp32(pairs))
        for name, head in self.heads.items():
            error = _error(name, head(pairs).to(loss.dtype), targets[name])
            loss = loss + self.weights[name] * error
        return loss * distributed.share_of(given.counts)


def _error(name: str, predicted: Tensor, target: Tensor) -> Tensor:
    if name == "rotation":
        return F.cross_entropy(predicted, target)
    if name == "flip":
        return F.binary_cross_entropy_with_logits(predicted, target.to(predicted.dtype))
    return F.mse_loss(predicted.tanh(), target.to(predicted.dtype))


def crop_target(one: ViewParameters, two: ViewParameters) -> Tensor:
    """[B, 4] in −1…1: difference of centres (y, x) and of heights and widths, as shares.

    x runs to the left where the first view is mirrored.
    """
    (x1, y1, w1, h1), (x2, y2, w2, h2) = (p.box.unbind(1) for p in (one, two))
    across = (x1 + w1 / 2) - (x2 + w2 / 2)
    across = torch.where(one.hflip, -across, across)
    return torch.stack([(y1 + h1 / 2) - (y2 + h2 / 2), across, h1 - h2, w1 - w2], dim=1)


def colour_target(one: ViewParameters, two: ViewParameters) -> Tensor:
    """[B, 4], brightness, contrast, saturation and hue, each over the width of its range.

    In −1…1, and beyond only if the two views' strengths differ and one exceeds 1.
    """
    relative = []
    for colours in (one.colours, two.colours):
        spans = colours.spans[:, :4]
        from_none = colours.applied_factors - torch.tensor([1.0, 1.0, 1.0, 0.0])
        relative.append(torch.where(spans > 0, from_none / spans, torch.zeros_like(spans)))
    return relative[0] - relative[1]


def flip_target(one: ViewParameters, two: ViewParameters) -> Tensor:
    """[B, 1]: 1 where both or neither are mirrored."""
    return (one.hflip == two.hflip).float()[:, None]


def blur_target(one: ViewParameters, two: ViewParameters) -> Tensor:
    """[B, 1] in −1…1: difference of sigmas (0: not blurred), over the largest there can be."""
    largest = torch.maximum(one.colours.spans[:, 4], two.colours.spans[:, 4])
    return ((one.colours.blur_sigma - two.colours.blur_sigma) / largest)[:, None]


def rotation_target(one: ViewParameters, two: ViewParameters) -> Tensor:
    """[B], the relative quarter turn 0…3."""
    return (one.rot90 - two.rot90) % 4


TARGETS: dict[str, Callable[[ViewParameters, ViewParameters], Tensor]] = {
    "crop": crop_target,
    "colour": colour_target,
    "flip": flip_target,
    "blur": blur_target,
    "rotation": rotation_target,
}
