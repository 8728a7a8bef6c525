"""What an equivariance add-on is to the rest of `ser`."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from sercli.encoder import Features
from sercli.recipe import AddonConfig, NotNegative
from sercli.views import PairedViews, Views


@dataclass(frozen=True)
class AddonInput:
    """What an add-on's loss is computed from.

    Attributes:
        students: Features of b₂, with the tapped layer, for each view.
        teachers: Likewise of the teacher, without gradient; None where the method has none.
        teacher_head: The averaged copy of `Addon.shared_head()`, or None.
        views: The views and their group elements.
    """

    students: Sequence[Features]
    teachers: Sequence[Features] | None
    teacher_head: nn.Module | None
    views: Views


class TermConfig(AddonConfig):
    """Settings that every add-on has."""

    layer: Annotated[int, Field(ge=1)] = Field(3, description="tapped block, 1…depth")
    weight: NotNegative = Field(1.0, description="λ; 0 is the control without the term")

    @property
    def tapped_layer(self) -> int:
        return self.layer


class Addon(nn.Module, abc.ABC):
    """An equivariance term at one layer: its heads, the views it needs, and its loss.

    Attributes:
        Config: The settings it can be given.
    """

    Config: ClassVar[type[TermConfig]]

    @abc.abstractmethod
    def paired_views(self) -> PairedViews | None:
        """The b₂ it needs, or None."""

    @abc.abstractmethod
    def shared_head(self) -> nn.Module | None:
        """The head that the teacher has an averaged copy of, if any."""

    @abc.abstractmethod
    def loss(self, given: AddonInput) -> Tensor:
        """A scalar whose *mean over ranks* is the term of the global batch (before λ)."""
