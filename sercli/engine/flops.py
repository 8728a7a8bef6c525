"""Training FLOPs, counted on shapes alone: the run's, and those of what it is compared with."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sercli import distributed
from sercli.actions import GeometricAction
from sercli.addons.none import NoneConfig
from sercli.encoders.blocks import TokenBlock
from sercli.encoders.checkpointing import through
from sercli.encoders.sizes import cls_after_of
from sercli.encoders.tokens import Layout
from sercli.families import method_class
from sercli.objective import Objective
from sercli.recipe.schema import Recipe
from sercli.views import colours as photometrics
from sercli.views.making import ViewMaker, ViewParameters, Views
from sercli.views.plan import ViewPlan, plan_views


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of matrix products and convolutions in one step of the global batch.

    Attributes:
        step: Of the run, with b₂ on its mean grid, the unscaled one.
        none: Of the same recipe without the add-on: ordinary ViT, no b₂, no views of the add-on's.
        weight0: Of its λ = 0 control: the same invariance views, b₂ and delayed [CLS], but no term.
        parameters: Trainable parameters.
        again: What is computed a second time besides, to save memory (`train.accumulate`,
            `train.checkpointing`).
    """

    step: float
    none: float
    weight0: float
    parameters: int
    again: float = 0.0

    @property
    def ratio_none(self) -> float:
        return self.step / self.none

    @property
    def ratio_weight0(self) -> float:
        return self.step / self.weight0

    @property
    def ratio_again(self) -> float:
        """All that is computed, over a step that computes nothing twice."""
        return 1 + self.again / self.step

    def to_json(self) -> dict[str, float]:
        return {
            "step": self.step,
            "step_again": self.again,
            "step_none": self.none,
            "step_weight0": self.weight0,
            "ratio_none": self.ratio_none,
            "ratio_weight0": self.ratio_weight0,
        }


# Counts by what they depend on. `ser recipe check` counts dozens of recipes of a few shapes, and a
# run's references are often of one shape: each is counted once in a process.
_counts: dict[_Shape, _Counted] = {}


@dataclass(frozen=True)
class _Counted:
    """FLOPs of a step, and of parts of it that may have to be computed twice.

    Attributes:
        step: Forward and backward.
        encoding: The student's forward pass, up to what sends gradient back.
        insides: What checkpointing computes again in backward passes: the student's blocks, up to
            the last tensor that a backward pass needs.
    """

    step: float
    encoding: float
    insides: float

    def again(self, recipe: Recipe) -> float:
        """What a recipe has computed twice."""
        train = recipe.train
        encoding = self.encoding if train.accumulate > 1 else 0.0
        return encoding + (self.insides if train.checkpointing == "blocks" else 0.0)


@dataclass(frozen=True)
class _Shape:
    """All that the FLOPs of a step depend on.

    Attributes:
        parts: Classes of the objective's method and add-on: plug-ins may have one name.
        settings: Of model, method and add-on, as JSON.
        cls_after: Where [CLS] joins.
        standard, paired: Shapes of the views that are encoded.
        num_invariant: The first so many views of b₁ go all the way.
    """

    parts: tuple[type[nn.Module], ...]
    settings: tuple[str, ...]
    cls_after: int | None
    standard: tuple[torch.Size, ...]
    paired: tuple[torch.Size, ...]
    num_invariant: int


def count_flops(recipe: Recipe, objective: Objective | None = None) -> StepFlops:
    """Count a step of a recipe and of its two references, as one process would compute them.

    Args:
        recipe: Resolved.
        objective: Of the recipe, on the meta device, if there is one; None: it is built.
    """
    with distributed.alone():
        full = on_meta(recipe) if objective is None else objective
        parameters = trainable_parameters(full)
        counted = _count(recipe, full)
        step, again = counted.step, counted.again(recipe)
        if full.addon is None:
            return StepFlops(step, step, step, parameters, again)
        control = _count(recipe, full, without_term=True).step
        none = _count_none(without_addon(recipe)).step
        return StepFlops(step, none, control, parameters, again)


def on_meta(recipe: Recipe) -> Objective:
    """The objective of a recipe, shapes alone."""
    with torch.device("meta"):
        return Objective(recipe)


def trainable_parameters(objective: Objective) -> int:
    """Numbers that the optimiser changes."""
    return sum(p.numel() for p in objective.parameters() if p.requires_grad)


def without_addon(recipe: Recipe) -> Recipe:
    """The same recipe without its add-on, and without the views that only the add-on has."""
    none = NoneConfig(name="none")
    views = recipe.views
    if views.setting not in none.view_settings:
        views = views.model_copy(update={"setting": none.view_settings[0], "local": None})
    return recipe.model_copy(update={"addon": none, "views": views})


def views_on_meta(recipe: Recipe, plan: ViewPlan, *, processes: int = 1) -> Views:
    """Views of the sizes of a step, without values; of several processes, the first one's."""
    request = plan.request
    if request.paired is not None:
        unscaled = replace(request.paired, scale=(1.0, 1.0), aspect=(1.0, 1.0))
        plan = replace(plan, request=replace(request, paired=unscaled))
    part = plan.split(recipe.train.batch_size, world=processes)
    actions = ViewMaker(recipe.views, plan, part, seed=recipe.seed).actions(0)
    batch, patch = len(part.positions), plan.patch_size
    element = GeometricAction.identity(batch, plan.grid(0))
    nothing = photometrics.draw(torch.zeros(batch, photometrics.NUM_UNIFORMS), None)
    parameters = ViewParameters(torch.zeros(batch, 4), element.hflip, element.rot90, nothing)

    def blank(count: int, height: int, width: int) -> Tensor:
        return torch.empty(count, 3, height, width, device="meta")

    return Views(
        plan,
        part,
        standard=tuple(blank(part.num_standard, s.size, s.size) for s in plan.specs),
        paired=tuple(
            blank(len(part.paired_rows), a.grid[0] * patch, a.grid[1] * patch) for a in actions
        ),
        actions=actions,
        parameters=(parameters,) * plan.num_views,
        generator_seed=0,
    )


def _count_none(recipe: Recipe) -> _Counted:
    """FLOPs of a recipe without an add-on; it is built only if its shape is new."""
    model, method = recipe.model, method_class(recipe.method)
    plan = plan_views(recipe.views, image_size=recipe.data.image_size, patch_size=model.patch_size)
    cls_after = cls_after_of(model, layer=None, taps_cls=False)
    shape = _shape(recipe, views_on_meta(recipe, plan), cls_after, (method,))
    if shape in _counts:
        return _counts[shape]
    return _count(recipe, on_meta(recipe))


def _count(recipe: Recipe, objective: Objective, *, without_term: bool = False) -> _Counted:
    """FLOPs of a step of an objective; without its add-on's term, for the λ = 0 control."""
    student, views = objective.student, views_on_meta(recipe, objective.plan)
    addon = student.addon
    student.addon = None if without_term else addon
    parts = [part for part in (objective.method, student.addon) if part is not None]
    shape = _shape(recipe, views, objective.encoder.cls_after, tuple(map(type, parts)))
    try:
        if shape not in _counts:
            _counts[shape] = _count_step(objective, views)
    finally:
        student.addon = addon
        objective.zero_grad()
    return _counts[shape]


def _shape(
    recipe: Recipe, views: Views, cls_after: int | None, parts: tuple[type[nn.Module], ...]
) -> _Shape:
    """The shape of a step of a method and, if `parts` has a second, of its add-on."""
    settings = (recipe.model, recipe.method, recipe.addon)[: 1 + len(parts)]
    encoded = views.standard
    if len(parts) == 1:  # views that only the add-on looks at are not encoded then
        encoded = encoded[: views.plan.num_invariant]
    return _Shape(
        parts,
        tuple(one.model_dump_json() for one in settings),
        cls_after,
        tuple(view.shape for view in encoded),
        tuple(view.shape for view in views.paired),
        views.plan.num_invariant,
    )


# -- A step ---------------------------------------------------------------------------------------


def product_counter() -> FlopCounterMode:
    """torch's, which by itself passes over products that are added in place."""
    ops = torch.ops.aten
    in_place = {ops.addmm_: _added_product, ops.baddbmm_: _added_product}
    return FlopCounterMode(display=False, custom_mapping=in_place)


def _added_product(_to: torch.Size, one: torch.Size, other: torch.Size, **_: Any) -> int:
    """FLOPs of to += one @ other."""
    return 2 * one.numel() * other[-1]


def _count_step(objective: Objective, views: Views) -> _Counted:
    """FLOPs of forward and backward; the blocks of an encoder, all alike, are counted once."""
    with _tallied(objective) as tally, product_counter() as counter, torch.no_grad():
        objective.encode_student(objective.batch(views), trained_only=True)
    encoding = counter.get_total_flops() + tally.flops()
    with _tallied(objective) as tally, product_counter() as counter:
        objective(views).total.backward()
    return _Counted(
        float(counter.get_total_flops() + tally.flops()), float(encoding), float(tally.insides())
    )


@contextlib.contextmanager
def _tallied(objective: Objective) -> Iterator[_BlockTally]:
    """Inside, blocks are not run: their calls are tallied."""
    tally = _BlockTally()
    encoders = [objective.encoder]
    if objective.teacher is not None:
        encoders.append(objective.teacher.encoder)
    own = [(encoder.blocks, encoder.checkpointing) for encoder in encoders]
    try:
        for encoder in encoders:
            own_blocks = (cast(TokenBlock, block) for block in encoder.blocks)
            encoder.blocks = nn.ModuleList(_StandIn(block, tally) for block in own_blocks)
            encoder.checkpointing = False
        yield tally
    finally:
        for encoder, (blocks, checkpointing) in zip(encoders, own, strict=True):
            encoder.blocks, encoder.checkpointing = blocks, checkpointing


@dataclass(frozen=True)
class _BlockCall:
    """All that the FLOPs of one call of a block depend on.

    Attributes:
        tokens: [T, D].
        groups: How many images there are of which number of tokens.
        takes_gradient: Whether gradient goes on to what comes before.
        trained: Whether the block's own parameters take gradient.
    """

    tokens: torch.Size
    groups: tuple[tuple[int, int], ...]
    takes_gradient: bool
    trained: bool


@dataclass
class _BlockTally:
    """How often blocks are called, and how often gradient comes back through them."""

    blocks: dict[_BlockCall, tuple[TokenBlock, Layout]] = field(default_factory=dict)
    forward: Counter[_BlockCall] = field(default_factory=Counter)
    backward: Counter[_BlockCall] = field(default_factory=Counter)

    def flops(self) -> int:
        """Of all calls: each kind is made once, and counted."""
        total = 0
        for call in self.blocks:
            ahead, back = self._flops_of(call, backward=self.backward[call] > 0)
            total += self.forward[call] * ahead + self.backward[call] * back
        return total

    def insides(self) -> int:
        """What checkpointing would add to the backward passes."""
        total = 0
        for call, times in self.backward.items():
            plain, again = (
                self._flops_of(call, backward=True, again=again)[1] for again in (False, True)
            )
            total += times * (again - plain)
        return total

    def _flops_of(
        self, call: _BlockCall, *, backward: bool, again: bool = False
    ) -> tuple[int, int]:
        """FLOPs of a call of a block, forward and (0 if not wanted) backward."""
        block, layout = self.blocks[call]
        tokens = torch.empty(call.tokens, device="meta", requires_grad=call.takes_gradient)
        with product_counter() as counter:
            passed = through(block, tokens, layout, again=again)
            ahead = counter.get_total_flops()
            if backward:
                passed.backward(torch.empty_like(passed))
        return ahead, counter.get_total_flops() - ahead


class _StandIn(TokenBlock):
    """Takes a block's place while calls are tallied: its output has the shape of its input."""

    def __init__(self, block: TokenBlock, tally: _BlockTally) -> None:
        super().__init__()
        self.block, self.tally = block, tally

    def forward(self, tokens: Tensor, layout: Layout, keep: Tensor | None = None) -> Tensor:
        del keep  # it multiplies: no FLOPs are counted
        trained = [p for p in self.block.parameters() if p.requires_grad]
        call = _BlockCall(tokens.shape, layout.groups, tokens.requires_grad, bool(trained))
        self.tally.blocks.setdefault(call, (self.block, layout))
        passed: Tensor = _Tallied.apply(tokens, call, self.tally, *trained)
        return passed


class _Tallied(torch.autograd.Function):
    """The identity; the trained parameters are inputs, so that gradient comes back as it would."""

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, call: _BlockCall, tally: _BlockTally, *trained: Tensor
    ) -> Tensor:
        ctx.call, ctx.tally, ctx.num_trained = call, tally, len(trained)
        tally.forward[call] += 1
        return tokens.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ctx.tally.backward[ctx.call] += 1
        return gradient, None, None, *([None] * ctx.num_trained)
