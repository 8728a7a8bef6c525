"""What a recipe comes to on its data: checked and told before anything is written."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from sercli import distributed
from sercli.data.source import ImageSource
from sercli.engine.accumulation import require_images
from sercli.engine.flops import StepFlops, on_meta, trainable_parameters
from sercli.engine.memory import StepMemory, less
from sercli.engine.optimiser import MOMENTS
from sercli.objective import Objective
from sercli.recipe.files import Resolved
from sercli.recipe.schedule import Schedule
from sercli.recipe.schema import Data, Recipe
from sercli.recipe.training import Train
from sercli.screen import Screen
from sercli.views.plan import ViewPlan
from sercli.visible import counted, visible

_NAME_WIDTH = len("learning rate")  # the longest name of a row


@dataclass(frozen=True)
class Plan:
    """What a recipe comes to on its data: found out before anything is written.

    Attributes:
        schedule: Durations in steps.
        num_images: In the data.
        labelled: Whether these have labels.
        num_paired: n₂, images of the global batch in b₂.
        views: In words.
        tokens: Patch tokens of a global view.
        cls_after: The block after which [CLS] joins; None: there is no [CLS].
        objective: What would be trained, on the meta device: shapes without values.
        num_moments: What the optimiser keeps of each parameter.
    """

    schedule: Schedule
    num_images: int
    labelled: bool
    num_paired: int
    views: str
    tokens: int
    cls_after: int | None
    objective: Objective
    num_moments: int

    @property
    def parameters(self) -> int:
        """Trainable parameters."""
        return trainable_parameters(self.objective)

    @property
    def encoder_parameters(self) -> int:
        """Parameters of the encoder alone, trained or not."""
        return sum(parameter.numel() for parameter in self.objective.encoder.parameters())

    @property
    def checkpoint_bytes(self) -> int:
        """About the size of a checkpoint: what is trained, and moments of each parameter."""
        stored = self.objective.state_dict().values()
        trained = [p for p in self.objective.parameters() if p.requires_grad]
        moments = trained * self.num_moments
        return sum(tensor.numel() * tensor.element_size() for tensor in (*stored, *moments))

    @property
    def joins(self) -> str:
        """Where [CLS] joins, in words."""
        if self.cls_after is None:
            return "no [CLS]"
        return f"[CLS] joins after block {self.cls_after}"


def make_plan(recipe: Recipe, source: ImageSource, *, processes: int = 1) -> Plan:
    """Check a recipe against its data and its processes.

    Args:
        recipe: Resolved.
        source: Training images.
        processes: How many will train.

    Raises:
        UserError: Batch larger than the data, n₂ < 2, a layer that does not exist, sizes that do
            not fit.
    """
    schedule = Schedule.of(recipe.train, len(source))
    objective = on_meta(recipe)
    with distributed.alone():
        plan = objective.plan
        part = plan.split(recipe.train.batch_size)
        # Refused now, not by the processes.
        require_images(recipe.train, plan.split(recipe.train.batch_size, world=processes))
    encoder = objective.encoder
    tokens = encoder.grid[0] * encoder.grid[1]
    return Plan(
        schedule,
        len(source),
        bool(source.classes),
        part.total_paired,
        _describe(objective.plan),
        tokens,
        encoder.cls_after,
        objective,
        len(MOMENTS[recipe.train.optimiser]),
    )


def _describe(plan: ViewPlan) -> str:
    """E.g. "2 global of 224 px, 4 local of 96 px; 6 in the invariance loss"."""
    kinds = Counter((spec.kind, spec.size) for spec in plan.specs)
    parts = [f"{number} {kind} of {size} px" for (kind, size), number in kinds.items()]
    return f"{', '.join(parts)}; {plan.num_invariant} in the invariance loss"


def _part_of(data: Data, *, labelled: bool) -> str:
    """What is taken of a set, where that is not all."""
    classes = "" if data.classes is None else f"{counted(len(data.classes), 'class')}, "
    whole = "each class" if labelled else "them"
    share = "" if data.share == 1 else f"{100 * data.share:g} % of {whole}, "
    return classes + share


def print_plan(resolved: Resolved, plan: Plan, out: Path, console: Screen) -> None:
    """Print what was derived from the recipe."""
    recipe, schedule = resolved.recipe, plan.schedule
    layer = recipe.addon.tapped_layer
    addon = "" if layer is None else f" + {recipe.addon.name} at layer {layer}"
    rows = {
        "run": str(out),
        "recipe": f"{resolved.name}: {recipe.method.name}{addon}, seed {recipe.seed}",
        "data": f"{recipe.data.path}, {_part_of(recipe.data, labelled=plan.labelled)}"
        f"{counted(plan.num_images, 'image')} of {recipe.data.image_size} px"
        + ("" if plan.labelled else ", no labels"),
        "model": (
            f"{recipe.model.name}, patches of {recipe.model.patch_size} px: "
            f"{counted(plan.tokens, 'token')}, "
            f"{counted(plan.parameters, 'trainable parameter')}, {plan.joins}"
        ),
        "global batch": counted(recipe.train.batch_size, "image")
        + (f", n₂ = {plan.num_paired} of them in b₂" if plan.num_paired else ""),
        "views": plan.views,
        "schedule": (
            f"{counted(schedule.total_steps, 'step')} ({schedule.steps_per_epoch:,} an epoch), "
            f"{schedule.warmup_steps:,} of warm-up"
        ),
        "learning rate": _rates(recipe.train, schedule, plan.objective.encoder.depth),
    }
    if recipe.train.keep_epochs:
        rows["milestones"] = _milestones(recipe, plan, out)
    _print_rows(rows, console)


def _rates(train: Train, schedule: Schedule, depth: int) -> str:
    """The peak of the learning rate, and what is not usual of it."""
    parts = [f"{schedule.lr:.3g} = {train.lr:g} × {train.batch_size} / 256"]
    if train.optimiser != "adamw":
        parts[0] += f", {train.optimiser.upper()}"
    if train.lr_biases is not None:
        parts.append(f"biases and norms {schedule.lr * train.lr_biases / train.lr:.3g}")
    if train.layer_decay is not None:
        first = train.layer_decay ** (depth + 1)
        parts.append(f"× {train.layer_decay:g} a block downwards, × {first:.3g} at the embedding")
    return "; ".join(parts)


def _milestones(recipe: Recipe, plan: Plan, out: Path) -> str:
    """How many checkpoints stay, and what they take on the disk: it adds up."""
    schedule = plan.schedule
    number, size = schedule.total_steps // schedule.keep_steps, plan.checkpoint_bytes
    epochs = recipe.train.keep_epochs
    every = "every epoch" if epochs == 1 else f"every {epochs:g} epochs"
    if number == 0:
        return f"{every}: none, as the run is shorter"
    free = shutil.disk_usage(out).free
    short = f"; {_gigabytes(free)} are free" if number * size > free else ""
    return (
        f"{every} a checkpoint that is kept: {number:,} of about {_gigabytes(size)}, "
        f"{_gigabytes(number * size)} in all{short}"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def print_flops(recipe: Recipe, flops: StepFlops, console: Screen) -> None:
    """Print what a step costs, beneath the plan: counting takes longer than all of that."""
    ratios = ""
    if recipe.addon.tapped_layer is not None:
        ratios = (
            f" = {flops.ratio_none:.4f} × without the add-on, "
            f"{flops.ratio_weight0:.4f} × its λ = 0 control"
        )
    rows = {"FLOPs a step": f"{flops.step:.3e}{ratios}"}
    if flops.again:
        rows["recomputed"] = computed_twice(recipe, flops)
    _print_rows(rows, console)


def print_memory(
    recipe: Recipe, memory: StepMemory, console: Screen, *, size: int | None, images: int
) -> None:
    """Print what memory a step takes of a process.

    Args:
        recipe: Resolved.
        memory: As counted.
        console: Where.
        size: Bytes of the device; None: not known.
        images: Of a process.
    """
    text = f"{gib(memory.peak)} of tensors at its peak, {gib(memory.held)} of them all the time"
    if size is not None:
        text += f"; the device has {gib(size)}"
        if memory.peak > size:
            enough = memory.micro_batches_for(size, recipe.train.accumulate)
            helps = less(recipe, images, accumulate=enough)
            text += f": too little{'; use ' if helps else ''}{' or '.join(helps)}"
    _print_rows({"memory a step": text}, console)


def gib(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"


def computed_twice(recipe: Recipe, flops: StepFlops) -> str:
    """What the settings that save memory cost: 1.25 × the FLOPs for train.accumulate=4."""
    train = recipe.train
    settings = [
        *([f"train.accumulate={train.accumulate}"] if train.accumulate > 1 else []),
        *([f"train.checkpointing={train.checkpointing}"] if train.checkpointing != "off" else []),
    ]
    return f"{flops.ratio_again:.2f} × the FLOPs, for less memory ({', '.join(settings)})"


def _print_rows(rows: Mapping[str, str], console: Screen) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", min_width=_NAME_WIDTH)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, visible(value))
    console.print(table)
