"""The trained module: every view encoded once, method loss + λ · add-on loss, EMA teacher."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sercli.addons import ADDONS, Addon, AddonInput, NoneConfig, TermConfig
from sercli.encoder import Encoder, Features, cls_after_of, depth_of, encode
from sercli.errors import UserError
from sercli.methods import METHODS, Method
from sercli.randomness import seeded
from sercli.recipe import AddonConfig, MethodConfig, Recipe
from sercli.views import PairedViews, Views

METHOD_CONFIGS: dict[str, type[MethodConfig]] = {n: m.Config for n, m in METHODS.items()}
ADDON_CONFIGS: dict[str, type[AddonConfig]] = {
    **{n: a.Config for n, a in ADDONS.items()},
    "none": NoneConfig,
}


@dataclass(frozen=True)
class Losses:
    """Scalars whose mean over ranks is the value for the global batch.

    Attributes:
        total: L_inv + λ · L_equiv, with gradient.
        invariance: L_inv.
        equivariance: L_equiv before λ; None without an add-on.
        cls: [B, D], the student's [CLS] of the first view, detached.
    """

    total: Tensor
    invariance: Tensor
    equivariance: Tensor | None
    cls: Tensor


class Objective(nn.Module):
    """Student (encoder, method heads, add-on heads) and, where the method has one, its teacher.

    Args:
        recipe: The resolved recipe.

    Raises:
        UserError: The layer does not exist, or sizes do not fit.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        layer = recipe.addon.tapped_layer
        depth = depth_of(recipe.model)
        if layer is not None and layer > depth:
            raise UserError(
                f"--layer {layer}",
                f"it must be in 1…{depth}: {recipe.model.name} has {depth} blocks",
            )
        self.layers = () if layer is None else (layer,)
        encoder = Encoder.from_model(
            recipe.model,
            image_size=recipe.data.image_size,
            cls_after=cls_after_of(recipe.model, layer=layer, taps_cls=recipe.addon.taps_cls),
        )
        encoder.initialise(recipe.seed)
        with seeded(recipe.seed, "method"):
            method = METHODS[recipe.method.name](recipe.method, encoder.dim)
        addon: Addon | None = None
        if recipe.addon.name in ADDONS:
            with seeded(recipe.seed, "addon"):
                addon = ADDONS[recipe.addon.name](recipe.addon, encoder.dim)
        self.weight = recipe.addon.weight if isinstance(recipe.addon, TermConfig) else 0.0
        self.student = Student(encoder, method, addon)
        if recipe.model.patch_embed == "frozen":
            encoder.patch_embed.requires_grad_(False)
        if recipe.model.pos_embed == "sincos":
            encoder.pos_embed.requires_grad_(False)
        if addon is not None and self.weight == 0:
            addon.requires_grad_(False)
        self.teacher: Teacher | None = None
        if method.uses_teacher:
            self.teacher = Teacher(
                copy.deepcopy(encoder),
                copy.deepcopy(method.shared_head()),
                copy.deepcopy(addon.shared_head()) if addon is not None else None,
            )
            self.teacher.requires_grad_(False)

    @property
    def encoder(self) -> Encoder:
        return self.student.encoder

    @property
    def method(self) -> Method:
        return self.student.method

    @property
    def addon(self) -> Addon | None:
        return self.student.addon

    def paired_views(self) -> PairedViews | None:
        """The b₂ that the add-on asks for."""
        return None if self.addon is None else self.addon.paired_views()

    def forward(self, views: Views) -> Losses:
        """Encode every view once with the student (and the teacher), and compute the losses."""
        students, paired_students = self._encode(self.student.encoder, views)
        online = [self.method.student(cls) for cls in students]
        targets, paired_teachers = online, None
        if self.teacher is not None:
            with torch.no_grad():
                teachers, paired_teachers = self._encode(self.teacher.encoder, views)
                targets = [self.teacher.method(cls) for cls in teachers]
        invariance = self.method.loss(online, targets, views.counts)
        equivariance = None
        total = invariance
        if self.addon is not None:
            head = None if self.teacher is None else self.teacher.addon
            given = AddonInput(paired_students, paired_teachers, head, views)
            # With λ = 0 the term is only watched: it must not touch a single gradient.
            with torch.set_grad_enabled(self.weight > 0 and torch.is_grad_enabled()):
                equivariance = self.addon.loss(given)
            if self.weight > 0:
                total = invariance + self.weight * equivariance
        detached = None if equivariance is None else equivariance.detach()
        return Losses(total, invariance.detach(), detached, students[0].detach())

    def _encode(self, encoder: nn.Module, views: Views) -> tuple[list[Tensor], list[Features]]:
        """[CLS] of each view, b₁ and b₂ joined, and the features of b₂ alone."""
        features = encode(encoder, [*views.standard, *views.paired], self.layers)
        standard, paired = features[: len(views.standard)], features[len(views.standard) :]
        if not paired:
            return [f.cls for f in standard], []
        return [torch.cat([s.cls, p.cls]) for s, p in zip(standard, paired, strict=True)], paired

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """teacher ← momentum · teacher + (1 − momentum) · student."""
        if self.teacher is None:
            return
        pairs = [
            (self.teacher.encoder, self.encoder),
            (self.teacher.method, self.method.shared_head()),
        ]
        if self.addon is not None and self.teacher.addon is not None:
            head = self.addon.shared_head()
            assert head is not None
            pairs.append((self.teacher.addon, head))
        averaged: list[Tensor] = [p for teacher, _ in pairs for p in teacher.parameters()]
        current: list[Tensor] = [p for _, student in pairs for p in student.parameters()]
        torch._foreach_lerp_(averaged, current, 1 - momentum)


class Student(nn.Module):
    """What is trained."""

    def __init__(self, encoder: Encoder, method: Method, addon: Addon | None) -> None:
        super().__init__()
        self.encoder, self.method, self.addon = encoder, method, addon


class Teacher(nn.Module):
    """Averaged copies of the encoder and of the heads that the method and the add-on share."""

    def __init__(self, encoder: Encoder, method: nn.Module, addon: nn.Module | None) -> None:
        super().__init__()
        self.encoder, self.method, self.addon = encoder, method, addon
