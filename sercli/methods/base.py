"""What an objective is to the rest of `ser`."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from sercli.recipe.schedule import Moment
from sercli.recipe.schema import MethodConfig

TeacherMoves = Literal["before", "after"]


@dataclass(frozen=True)
class MethodInput:
    """What an objective's loss is computed from.

    Attributes:
        students: Its embeddings [B, E] of this rank for each view, the two global ones first.
        teachers: Likewise of the teacher, of the global views, without gradient (the students if
            there is none).
        counts: Rows on each rank.
        moment: Where in the run this step is.
    """

    students: Sequence[Tensor]
    teachers: Sequence[Tensor]
    counts: Sequence[int]
    moment: Moment


class Method(nn.Module, abc.ABC):
    """An invariant objective on final [CLS] embeddings: its trained heads and its loss.

    A subclass is made from its settings and the encoder's width: `Subclass(config, dim)`.

    Attributes:
        Config: The settings it can be given.
        uses_teacher: Whether there is a momentum encoder.
        teacher_moves: When step t averages the teacher, with the momentum of step t: "before" its
            forward passes, or "after" the student has moved.
        evaluates_teacher: Whether it is the teacher that evaluations take, by the authors' custom.
        needs_images: The smallest global batch, and why.
    """

    Config: ClassVar[type[MethodConfig]]
    uses_teacher: ClassVar[bool]
    teacher_moves: ClassVar[TeacherMoves] = "after"
    evaluates_teacher: ClassVar[bool]
    needs_images: ClassVar[tuple[int, str]]

    @abc.abstractmethod
    def shared_head(self) -> nn.Module:
        """The head that the teacher has an averaged copy of: [B, D] → [B, E]."""

    @abc.abstractmethod
    def student(self, cls: Tensor) -> Tensor:
        """All of the student's heads on one view: [B, D] → [B, E]."""

    @abc.abstractmethod
    def loss(self, given: MethodInput) -> Tensor:
        """A scalar whose *mean over ranks* is the objective of the global batch."""

    def momentum_at(self, progress: float) -> float:
        """Momentum of the teacher at progress 0…1 of the run (methods with a teacher say which)."""
        del progress
        return 1.0

    def held_parameters(self, moment: Moment) -> Sequence[nn.Parameter]:
        """Parameters that this step must leave alone."""
        del moment
        return ()
