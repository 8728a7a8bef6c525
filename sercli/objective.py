"""The trained module: every view encoded once, method loss + λ · add-on loss, EMA teacher."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sercli import randomness
from sercli.addons import Addon, AddonInput, TermConfig
from sercli.addons.base import SENT
from sercli.encoders.batches import Batch, Encoded
from sercli.encoders.sizes import cls_after_of, size_of
from sercli.encoders.vit import Encoder, Features
from sercli.errors import UserError
from sercli.families import addon_class, method_class
from sercli.methods import Method
from sercli.methods.base import MethodInput, TeacherMoves
from sercli.parts import step_part
from sercli.recipe.schedule import START, Moment
from sercli.recipe.schema import Recipe
from sercli.transfer import send
from sercli.views.making import ViewRecord, Views
from sercli.views.plan import ViewPlan, plan_views

_DROP_PATH = "drop path"


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
        recipe: Every setting of the run, typed and checked.

    Attributes:
        plan: The views that it works on.

    Raises:
        UserError: The layer does not exist, or sizes do not fit.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        layer = recipe.addon.tapped_layer
        depth = size_of(recipe.model).depth
        if layer is not None and layer > depth:
            raise UserError(
                f"--layer {layer}",
                f"it must be in 1…{depth}: {recipe.model.name} has {depth} blocks",
            )
        self.layers = () if layer is None else (layer,)
        self.drop_path = recipe.model.drop_path
        encoder = Encoder.from_model(
            recipe.model,
            image_size=recipe.data.image_size,
            cls_after=cls_after_of(recipe.model, layer=layer, taps_cls=recipe.addon.taps_cls),
        )
        encoder.initialise(recipe.seed)
        with randomness.seeded(recipe.seed, "method"):
            method = method_class(recipe.method)(recipe.method, encoder.dim)
        addon: Addon | None = None
        if (made_of := addon_class(recipe.addon)) is not None:
            with randomness.seeded(recipe.seed, "addon"):
                addon = made_of(recipe.addon, encoder.dim)
        for part, name in ((method, recipe.method.name), (addon, recipe.addon.name)):
            if part is not None and recipe.train.batch_size < part.needs_images[0]:
                least, why = part.needs_images
                raise UserError(
                    f"train.batch_size {recipe.train.batch_size}",
                    f"{name} needs at least {least} images a step: {why}",
                    f"use train.batch_size={least} or more",
                )
        self.plan: ViewPlan = plan_views(
            recipe.views,
            image_size=recipe.data.image_size,
            patch_size=recipe.model.patch_size,
            request=None if addon is None else addon.view_request(),
        )
        self.weight = recipe.addon.weight if isinstance(recipe.addon, TermConfig) else 0.0
        self.student = Student(encoder, method, addon)
        if recipe.model.patch_embed == "frozen":
            encoder.patch_embed.requires_grad_(False)
        if encoder.pos_embed is not None and encoder.fixed_positions:
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
        encoder.checkpointing = recipe.train.checkpointing == "blocks"

    @property
    def encoder(self) -> Encoder:
        return self.student.encoder

    @property
    def method(self) -> Method:
        return self.student.method

    @property
    def addon(self) -> Addon | None:
        return self.student.addon

    @property
    def evaluated_encoder(self) -> Encoder:
        """The student's, or the teacher's where that is the authors' custom."""
        if self.teacher is not None and self.method.evaluates_teacher:
            return self.teacher.encoder
        return self.student.encoder

    def blocks(self) -> Iterator[nn.Module]:
        """The blocks of the student's encoder, and of the teacher's: what there is to compile."""
        yield from self.encoder.blocks
        if self.teacher is not None:
            yield from self.teacher.encoder.blocks

    def forward(self, views: Views, moment: Moment = START) -> Losses:
        """Encode every view once with the student (and the teacher), and compute the losses.

        The student encodes all views, the teacher the two global ones and all of b₂. Views that
        only the add-on looks at go no further than its layer.
        """
        batch = self.batch(views)
        return self.losses(self.encode_student(batch), self.encode_teacher(batch), views, moment)

    def batch(self, views: Views) -> Batch:
        """What there is to encode of a step, with its draws of stochastic depth."""
        keeps = self._keeps(views)
        if keeps is None:
            return Batch(views.standard, views.paired)
        first = [keep[: len(v)] for keep, v in zip(keeps, views.standard, strict=False)]
        last = [keep[len(keep) - len(v) :] for keep, v in zip(keeps, views.paired, strict=False)]
        return Batch(views.standard, views.paired, tuple(first), tuple(last))

    @step_part("forward, student")
    def encode_student(self, batch: Batch, *, trained_only: bool = False) -> Encoded:
        """The student's outputs for the losses.

        All views go through the encoder in one pass. Those that only the add-on looks at leave it
        after its layer; if its term is only watched, they go by themselves, without gradient.

        Args:
            batch: Any of the images of a step.
            trained_only: Leave out views that send back no gradient (of a term that is watched).
        """
        split, keeps = self.plan.num_invariant, batch.keeps
        standard, others = batch.standard[:split], batch.standard[split:]
        if self.addon is None or (trained_only and self.weight == 0):
            others = ()
        whole, last = [*standard, *batch.paired], max(self.layers, default=None)
        kept = None if keeps is None else [*keeps[:split], *batch.paired_keeps]
        kept_others = None if keeps is None else list(keeps[split : split + len(others)])
        if others and self.weight > 0:
            found = self.encoder.encode(
                [*whole, *others],
                self.layers,
                keeps=None if kept is None or kept_others is None else [*kept, *kept_others],
                until=[None] * len(whole) + [last] * len(others),
            )
        else:
            found = self.encoder.encode(whole, self.layers, keeps=kept)
            if others:
                with torch.no_grad():
                    found += self.encoder.encode(
                        others, self.layers, keeps=kept_others, until=[last] * len(others)
                    )
        return Encoded.of(
            found[: len(whole)], num_standard=len(standard), others=found[len(whole) :]
        )

    @step_part("forward, teacher")
    @torch.no_grad()
    def encode_teacher(self, batch: Batch) -> Encoded | None:
        """The teacher's outputs of the global views and of b₂, if there is a teacher."""
        if self.teacher is None:
            return None
        standard = batch.standard[:2]
        encoded = self.teacher.encoder.encode([*standard, *batch.paired], self.layers)
        return Encoded.of(encoded, num_standard=len(standard))

    @step_part("losses")
    def losses(
        self, student: Encoded, teacher: Encoded | None, views: Views, moment: Moment = START
    ) -> Losses:
        """Heads and losses on what the encoders made of all images of this rank."""
        students = student.cls
        online = [self.method.student(cls) for cls in students]
        invariance = self.method.loss(
            MethodInput(
                students=online,
                teachers=online if teacher is None else self._targets(teacher),
                counts=views.part.counts,
                moment=moment,
            )
        )
        equivariance = self._term(
            student.features, None if teacher is None else teacher.features, views
        )
        total = invariance
        if equivariance is not None and self.weight > 0:
            total = invariance + self.weight * equivariance
        detached = None if equivariance is None else equivariance.detach()
        return Losses(total, invariance.detach(), detached, students[0].detach())

    @torch.no_grad()
    def _targets(self, encoded: Encoded) -> list[Tensor]:
        """The teacher's embeddings of the global views."""
        assert self.teacher is not None
        return [self.teacher.method(cls) for cls in encoded.cls[:2]]

    def _term(
        self, features: list[Features], teacher_features: list[Features] | None, views: Views
    ) -> Tensor | None:
        """The add-on's loss before λ; None without an add-on."""
        if self.addon is None:
            return None
        head = None if self.teacher is None else self.teacher.addon
        if self.weight == 0:  # the term is only watched: it must not touch a single gradient
            features = [f.detach() for f in features]
        given = AddonInput(features, teacher_features, head, views)
        with self._term_gradient():
            return self.addon.loss(given)

    def _term_gradient(self) -> torch.set_grad_enabled:
        """Inside, gradients are taken if the term has a weight."""
        return torch.set_grad_enabled(self.weight > 0 and torch.is_grad_enabled())

    def prepare(self, record: ViewRecord) -> dict[str, Tensor]:
        """What the CPU draws for a step beside the views, to travel with them (`Views.sent`)."""
        found: dict[str, Tensor] = {}
        if self.drop_path:
            found[_DROP_PATH] = self._draw_drop_path(record)
        if self.addon is not None:
            found |= {SENT + name: t for name, t in self.addon.prepare(record).items()}
        return found

    def _keeps(self, views: Views) -> list[Tensor] | None:
        """Stochastic depth: what each image's branches are multiplied by, [B, depth, 2] a view.

        Drawn for the global batch and by position, so that it does not depend on the ranks.
        """
        if not self.drop_path or not self.training:
            return None
        keeps = views.sent.get(_DROP_PATH)
        if keeps is None:  # of views that were made without `prepare`
            keeps = send({"": self._draw_drop_path(views)}, views.standard[0].device)[""]
        return list(keeps.unbind())

    def _draw_drop_path(self, record: ViewRecord) -> Tensor:
        """[views, B, depth, 2] on the CPU."""
        depth, total = self.encoder.depth, sum(record.part.counts)
        kept = 1 - torch.linspace(0, self.drop_path, depth)[:, None]
        draws = randomness.generator(record.generator_seed, "drop-path")
        positions = torch.tensor(record.part.positions, dtype=torch.long)
        uniforms = [
            torch.rand(total, depth, 2, generator=draws)[positions] for _ in record.plan.specs
        ]
        return (torch.stack(uniforms) < kept) / kept

    def move_teacher(self, moment: Moment, *, when: TeacherMoves) -> None:
        """Average the teacher with this step's momentum, if that is when its method does so."""
        if self.teacher is not None and self.method.teacher_moves == when:
            self._update_teacher(self.method.momentum_at(moment.progress))

    @torch.no_grad()
    def _update_teacher(self, momentum: float) -> None:
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
    """Averaged copies of the encoder and of the heads that the method and the add-on share.

    Attributes:
        encoder: The momentum encoder.
        method: The method's shared head, not the method: checkpoints call its weights
            `teacher.method.…`.
        addon: The add-on's shared head, likewise; None where it has none.
    """

    def __init__(self, encoder: Encoder, method: nn.Module, addon: nn.Module | None) -> None:
        super().__init__()
        self.encoder, self.method, self.addon = encoder, method, addon
