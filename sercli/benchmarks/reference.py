"""The step that public code takes, to be held against: a forward for each view, loops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sercli.benchmarks.step import StepTimer
from sercli.methods.base import MethodInput
from sercli.objective import Losses
from sercli.recipe.schedule import Moment
from sercli.views.making import Views


class ReferenceTimer(StepTimer):
    """A step of a recipe without add-on as moco-v3's or DINO's code takes it.

    Each view goes through the student, and through the teacher, by itself; the teacher's average
    and the optimiser are loops over parameters; nothing is compiled. Views, heads and losses are
    ours.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        for group in self.optimiser.param_groups:
            group["fused"] = group["foreach"] = False

    def _losses(self, views: Views, moment: Moment) -> Losses:
        """Of the views one by one."""
        objective, method = self.objective, self.objective.method
        with self.runtime.autocast():
            cls = [objective.encoder(view).cls for view in views.standard]
            students = [method.student(one) for one in cls]
            with torch.no_grad():
                teachers = [self._taught(view) for view in views.standard[:2]]
            given = MethodInput(
                students=students,
                teachers=students if objective.teacher is None else teachers,
                counts=views.part.counts,
                moment=moment,
            )
            loss = method.loss(given)
        self.optimiser.zero_grad()
        loss.backward()
        return Losses(loss, loss.detach(), None, cls[0].detach())

    def _taught(self, view: Tensor) -> Tensor:
        teacher = self.objective.teacher
        if teacher is None:
            return view
        embedded: Tensor = teacher.method(teacher.encoder(view).cls)
        return embedded

    @torch.no_grad()
    def _move_teacher(self, moment: Moment, *, when: Any) -> None:
        objective = self.objective
        if objective.teacher is None or objective.method.teacher_moves != when:
            return
        momentum = objective.method.momentum_at(moment.progress)
        pairs = (
            (objective.teacher.encoder, objective.encoder),
            (objective.teacher.method, objective.method.shared_head()),
        )
        for teacher, student in pairs:
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.mul_(momentum).add_(fast, alpha=1 - momentum)
