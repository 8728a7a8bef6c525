"""What an equivariance add-on is to the rest of `ser`."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from sercli import distributed
from sercli.addons.settings import SummaryConfig, TermConfig
from sercli.encoders.vit import Features
from sercli.heads import LayerNorm
from sercli.losses import nt_xent
from sercli.precision import widened
from sercli.transfer import send
from sercli.views.making import ViewRecord, Views
from sercli.views.plan import ViewRequest

SENT = "add-on: "  # so begin the names in `Views.sent` of what an add-on prepared


@dataclass(frozen=True)
class AddonInput:
    """What an add-on's loss is computed from.

    Features are those of b₂ where the add-on asked for pairs of views, and of all images of this
    rank otherwise. Views that do not enter the invariance loss are encoded up to the tapped layer
    only.

    Attributes:
        students: Features, with the tapped layer, for each view.
        teachers: Likewise of the teacher, without gradient: of every view of b₂, or of the two
            global views of all images; None where the method has no teacher.
        teacher_head: The averaged copy of `Addon.shared_head()`, or None.
        views: The views, their group elements and what made them.
    """

    students: Sequence[Features]
    teachers: Sequence[Features] | None
    teacher_head: nn.Module | None
    views: Views

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows of the features on each rank."""
        return self.views.addon_counts


class Tap(nn.Module):
    """The vector of an image at the tapped layer, through a LayerNorm of its own.

    Args:
        config: Which layer, and [CLS] or the mean of the patch tokens.
        dim: Width D of the encoder.
    """

    def __init__(self, config: SummaryConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.norm = LayerNorm(dim, eps=1e-6)

    def forward(self, features: Features) -> Tensor:
        """[B, D]."""
        if self.config.tap == "cls":
            vector = features.cls_tokens[self.config.layer]
        else:
            vector = widened(features.grids[self.config.layer]).mean((2, 3))
        normed: Tensor = self.norm(vector)
        return normed


def contrast(one: Tensor, two: Tensor, counts: Sequence[int], *, temperature: float) -> Tensor:
    """NT-Xent over the rows of all ranks: a scalar whose mean over ranks is that of all rows.

    Args:
        one, two: [n, E] of this rank; row i of one belongs to row i of the other.
        counts: Rows of each on each rank.
        temperature: τ.
    """
    loss: Tensor = nt_xent(
        one,
        two,
        temperature=temperature,
        all_first=distributed.gather_rows(one, counts),
        all_second=distributed.gather_rows(two, counts),
        offset=distributed.offset_of(counts),
    )
    return loss * distributed.share_of(counts)


class Addon(nn.Module, abc.ABC):
    """An equivariance term at one layer: its heads, the views it needs, and its loss.

    A subclass is made from its settings and the encoder's width: `Subclass(config, dim)`.

    Attributes:
        Config: The settings it can be given.
        needs_images: The smallest global batch, and why.
    """

    Config: ClassVar[type[TermConfig]]
    needs_images: ClassVar[tuple[int, str]]

    def view_request(self) -> ViewRequest:
        """The views it works on; unless it says otherwise, those of all images."""
        return ViewRequest()

    def shared_head(self) -> nn.Module | None:
        """The head that the teacher has an averaged copy of, if any."""
        return None

    def prepare(self, record: ViewRecord) -> Mapping[str, Tensor]:
        """What the loss needs of a step that the CPU makes: it travels with the views, in one copy.

        Args:
            record: What is drawn for the step.

        Returns:
            Tensors on the CPU, by name; `prepared` has them on the device.
        """
        del record
        return {}

    def prepared(self, given: AddonInput) -> Mapping[str, Tensor]:
        """What `prepare` made of this step, on the device."""
        sent = {
            name.removeprefix(SENT): tensor
            for name, tensor in given.views.sent.items()
            if name.startswith(SENT)
        }
        return sent or send(self.prepare(given.views), given.views.standard[0].device)

    @abc.abstractmethod
    def loss(self, given: AddonInput) -> Tensor:
        """A scalar whose *mean over ranks* is the term of the global batch (before λ)."""
