"""What the processes of test_distributed run: a module of its own, as `spawn` imports it by name.

One launch of a group serves all tests: its processes write what they found to files that the tests
compare with one process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from sercli import distributed
from sercli.engine.accumulation import Gradients
from sercli.families import addon_configs, method_configs
from sercli.heads import BatchNorm
from sercli.losses import patch_nt_xent
from sercli.objective import Objective
from sercli.recipe.files import from_mapping
from sercli.recipe.schedule import START
from sercli.recipe.schema import Photometrics
from sercli.recipe.schema import Views as ViewsConfig
from sercli.views.colours import NUM_UNIFORMS
from sercli.views.making import ViewMaker, Views
from sercli.views.plan import PairedViews, ViewPlan, ViewRequest, partition, plan_views
from sercli.views.reading import Samples
from tests.support.recipes import COLOURS, narrow

FORMS = ("cross-view", "both-views", "cross-view+spatial:1", "both-views+spatial:1")
SHARES = {2: ((3, 2), (5, 0)), 3: ((3, 1, 2), (0, 4, 1))}


@dataclasses.dataclass(frozen=True)
class Case:
    """One objective on one global batch. `fraction` is SER's; `addon` has the add-on's settings.

    The quick cases are run by default, the others with `-m run`.
    """

    batch_size: int
    fraction: float = 0.5
    addon: tuple[tuple[str, Any], ...] = ()
    small_buckets: bool = False
    method: str = "moco"
    setting: str | None = None
    drop_path: float = 0.0
    accumulate: int = 1
    checkpointing: str = "off"
    quick: bool = False

    @property
    def name(self) -> str:
        parts = [f"{self.method} {self.batch_size} · {self.fraction:.3g}"]
        parts += [f"{key}={value}" for key, value in self.addon]
        parts += [self.setting] if self.setting else []
        parts += [f"drop_path={self.drop_path}"] if self.drop_path else []
        parts += [f"accumulate={self.accumulate}"] if self.accumulate > 1 else []
        parts += [f"checkpointing={self.checkpointing}"] if self.checkpointing != "off" else []
        parts += ["small buckets"] if self.small_buckets else []
        return ", ".join(parts)


def cases(world: int) -> list[Case]:
    """Equal and unequal shares of b₂, and a rank without any; every method and every add-on."""

    def of(addon: str, **options: Any) -> tuple[tuple[str, Any], ...]:
        return (("name", addon), *options.items())

    both = (("negatives", "both-views"),)
    if world == 2:
        forms = [Case(8, share, (("negatives", f),)) for f in FORMS for share in (0.5, 0.375)]
        return [
            *forms,
            Case(7, 3 / 7, both),
            Case(8, 0.375, (*both, ("layer", 4))),
            Case(8, 0.375, (("negatives", "cross-view"), ("elements", "complementary"))),
            Case(8, 0.375, (("negatives", "cross-view"), ("key_projector", "student"))),
            Case(8, 0.375, (("weight", 0),), small_buckets=True),
            Case(8, addon=of("none")),
            Case(8, 0.5, both, small_buckets=True, quick=True),
            Case(8, 0.375, both, small_buckets=True),
            Case(8, 0.375, (("action", "placebo"),)),
            Case(8, 0.375, both, setting="2+4-crops"),
            Case(7, addon=of("none"), method="dino"),
            Case(8, 0.375, both, method="dino"),
            Case(8, 0.375, both, method="dino", small_buckets=True),
            Case(8, 0.375, both, method="dino", drop_path=0.2),
            Case(7, 3 / 7, both, method="dino", setting="2+4-crops", quick=True),
            Case(7, addon=of("none"), method="barlow-twins"),
            Case(8, 0.375, both, method="barlow-twins", quick=True),
            Case(7, addon=of("augself", flip=0.5)),
            Case(8, addon=of("stl")),
            Case(
                6, addon=of("stl"), small_buckets=True, quick=True
            ),  # groups of two: four images and two
            Case(7, addon=of("equimod"), quick=True),
            Case(7, 3 / 7, both, accumulate=3, quick=True),
            Case(7, 3 / 7, both, method="dino", setting="2+4-crops", drop_path=0.2, accumulate=2),
            Case(8, 0.375, both, method="barlow-twins", accumulate=2),
            Case(8, 0.375, both, small_buckets=True, checkpointing="blocks"),
            Case(6, addon=of("stl"), accumulate=2, quick=True),
            Case(7, addon=of("equimod"), accumulate=2),
            Case(7, addon=of("essl"), accumulate=3),
            Case(8, 0.375, (("weight", 0),), accumulate=2),
            Case(7, addon=of("essl")),
            Case(7, addon=of("essl", form="predict-and-views")),
        ]
    return [
        Case(9, 2 / 9, both),  # n₂ = 2 on three ranks
        Case(9, 2 / 9, (("negatives", "cross-view+spatial:1"),), small_buckets=True),
        Case(8, 0.625, (("negatives", "both-views+spatial:1"),)),
        Case(8, 0.25, both, method="dino", drop_path=0.2),
        Case(8, 0.25, both, method="barlow-twins"),
        Case(8, addon=of("stl")),  # four groups: four images, two and two
        Case(8, addon=of("equimod")),
        Case(9, 2 / 9, both, accumulate=2),
        Case(8, 0.25, both, method="dino", drop_path=0.2, accumulate=2),
    ]


# -- one objective --------------------------------------------------------------------------------


def build(case: Case) -> Objective:
    """The same weights in every process."""
    given = dict(case.addon)
    name = given.pop("name", "ser")
    options = {} if name == "none" else {"layer": 2, "weight": 0.7, **given}
    if name == "ser":
        options["fraction"] = case.fraction
    tree = narrow(case.method, name, case.setting, **options)
    tree["model"]["drop_path"] = case.drop_path
    tree["train"] = {"checkpointing": case.checkpointing}
    recipe = from_mapping(tree, methods=method_configs(), addons=addon_configs()).recipe
    objective = Objective(recipe).double()
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        if objective.teacher is not None:
            for parameter in objective.teacher.parameters():
                parameter.mul_(1 + 0.1 * torch.rand(1, generator=draws).item())
        for buffer in objective.buffers():
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=draws))
    return objective


def make_views(request: PairedViews | ViewPlan | None, batch_size: int, *, seed: int) -> Views:
    """This rank's rows of a global batch that is the same whatever the number of ranks; float64."""
    colours = Photometrics(**COLOURS)
    config = ViewsConfig(view1=colours, view2=colours)
    if isinstance(request, ViewPlan):
        plan = request
    else:
        plan = plan_views(config, image_size=32, patch_size=8, request=ViewRequest(request))
    part = partition(batch_size, plan.paired, group=plan.request.group)
    maker = ViewMaker(config, plan, part, seed=seed)
    crops = plan.crops(paired=False)
    read = []
    for row, position in enumerate(part.positions):
        draws = torch.Generator().manual_seed(1000 * seed + position)
        paired = row >= part.num_standard
        bases = [
            torch.randint(256, (3, spec.size, spec.size), generator=draws).byte()
            for spec in plan.crops(paired=paired)
        ]
        shown = [spec.base if paired else spec.crop for spec in crops]
        leader = torch.Generator().manual_seed(1000 * seed + position - position % part.group)
        uniforms = torch.rand(len(crops), NUM_UNIFORMS + 1, generator=leader)
        boxes = 0.2 + 0.3 * torch.rand(len(bases), 4, generator=leader)
        read.append(([bases[i] for i in shown], uniforms, boxes[shown]))
    pictures, uniforms, boxes = zip(*read, strict=True)
    samples = Samples(
        crops=[torch.stack(images) for images in zip(*pictures, strict=True)],
        uniforms=torch.stack(uniforms),
        boxes=torch.stack(boxes),
        turns=torch.zeros(len(read), len(crops), dtype=torch.long),
        indices=part.positions,
    )
    return in_float64(maker(samples, 0, torch.device("cpu")))


def in_float64(views: Views) -> Views:
    return dataclasses.replace(
        views,
        standard=tuple(view.double() for view in views.standard),
        paired=tuple(view.double() for view in views.paired),
    )


def in_float32(views: Views) -> Views:
    return dataclasses.replace(
        views,
        standard=tuple(view.float() for view in views.standard),
        paired=tuple(view.float() for view in views.paired),
    )


def run_objective(case: Case) -> dict[str, Any]:
    """Losses (this rank's) and gradients, through DDP where there are other ranks."""
    objective = build(case)
    views = make_views(objective.plan, case.batch_size, seed=7)
    module: torch.nn.Module = objective
    if distributed.active() and case.accumulate == 1:
        # As engine/accumulation.py wraps it.
        options = {"bucket_cap_mb": 0.001} if case.small_buckets else {}
        module = distributed.data_parallel(objective, gradient_as_bucket_view=True, **options)
    found: dict[str, Any] = {
        "paired_counts": views.part.paired_counts,
        "positions": list(views.part.positions),
        "group": objective.plan.request.group,
    }
    for _ in range(1 + case.small_buckets):  # then DDP has its buckets in their final order
        if case.accumulate > 1:
            gradients = Gradients(objective, accumulate=case.accumulate, autocast=nullcontext)
            losses = gradients(views, START)
            continue
        module.zero_grad(set_to_none=not distributed.active())
        losses = module(views)
        losses.total.backward()
    found["losses"] = [losses.total.item(), losses.invariance.item()]
    if losses.equivariance is not None:
        found["losses"].append(losses.equivariance.item())
    found["gradients"] = {
        name: parameter.grad.clone()
        for name, parameter in objective.named_parameters()
        if parameter.grad is not None
    }
    found["buffers"] = {name: buffer.clone() for name, buffer in objective.named_buffers()}
    return found


# -- single collectives ---------------------------------------------------------------------------


def rows_of(counts: tuple[int, ...], dim: int = 3) -> list[torch.Tensor]:
    """The rows of each rank."""
    draws = torch.Generator().manual_seed(1)
    total = torch.randn(sum(counts), dim, generator=draws, dtype=torch.float64)
    return list(total.split(counts))


def gather_loss(gathered: torch.Tensor, rank: int) -> torch.Tensor:
    """A loss in which every rank weighs every row differently."""
    weights = torch.arange(gathered.numel(), dtype=gathered.dtype).view_as(gathered)
    return (gathered.square() * (weights + 1) * (rank + 1)).sum()


def run_gather(counts: tuple[int, ...]) -> dict[str, Any]:
    rank = dist.get_rank()
    rows = rows_of(counts)[rank].requires_grad_()
    gathered = distributed.gather_rows(rows, counts)
    gather_loss(gathered, rank).backward()
    with torch.no_grad():
        plain = distributed.gather_rows(rows, counts)
    try:
        distributed.gather_rows(rows[:0] if len(rows) else rows.new_zeros(1, 3), counts)
        refused = False
    except ValueError:
        refused = True
    return {
        "value": gathered.detach(),
        "gradient": rows.grad,
        "plain": plain,
        "plain_requires_grad": plain.requires_grad,
        "refused": refused,
    }


def norm_loss(normalised: torch.Tensor, start: int) -> torch.Tensor:
    """A sum over rows, each weighed by its global number."""
    count, dim = normalised.shape
    weights = torch.sin(torch.arange(start * dim, (start + count) * dim, dtype=normalised.dtype))
    return (normalised.tanh() * weights.view(count, dim)).sum()


def run_batch_norm(counts: tuple[int, ...], *, affine: bool) -> dict[str, Any]:
    rank = dist.get_rank()
    norm = BatchNorm(3, affine=affine).double()
    shape_norm(norm)
    rows = (5 + 2 * rows_of(counts)[rank]).requires_grad_()
    normalised = norm(rows)
    norm_loss(normalised, sum(counts[:rank])).backward()
    return {
        "value": normalised.detach(),
        "gradient": rows.grad,
        "parameters": [p.grad for p in norm.parameters()],
    }


def shape_norm(norm: BatchNorm) -> None:
    """Give a scale and a shift that show."""
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.arange(3.0))


def token_maps(counts: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(2)
    shape = (sum(counts), 6, 4)
    return tuple(torch.randn(shape, generator=draws, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def run_patch_loss(counts: tuple[int, ...], negatives: str) -> dict[str, Any]:
    """Student–student: anchors, keys and own-view tokens all carry gradient."""
    rank = dist.get_rank()
    anchors, keys = (m.split(counts)[rank].clone().requires_grad_() for m in token_maps(counts))
    own = distributed.gather_rows(anchors, counts) if negatives.startswith("both") else None
    loss = patch_nt_xent(
        anchors,
        distributed.gather_rows(keys, counts),
        temperature=0.3,
        negatives=negatives,
        grid=(2, 3),
        anchor_offset=sum(counts[:rank]),
        own_view=own,
    )
    (loss * (counts[rank] / sum(counts))).backward()
    return {
        "loss": loss.item() * counts[rank] / sum(counts),
        "anchors": anchors.grad,
        "keys": keys.grad,
    }


def run_small() -> dict[str, Any]:
    world, rank = dist.get_world_size(), dist.get_rank()
    value = torch.tensor([1.0 + rank], dtype=torch.float64, requires_grad=True)
    total = distributed.sum_over_ranks(value)
    (total * (rank + 1)).sum().backward()
    with distributed.alone():
        alone = (distributed.active(), distributed.rank(), distributed.world_size())
        untouched = distributed.gather_rows(value.detach(), (1,) * world)
    return {
        "sum": total.item(),
        "sum_gradient": value.grad.item(),
        "any": distributed.any_rank(rank % 2, torch.device("cpu")),
        "none": distributed.any_rank(0, torch.device("cpu")),
        "object": distributed.broadcast_object({"from": rank}),
        "rows": [distributed.rows_of_rank(7), distributed.rows_of_rank(9, first=5)],
        "alone": alone,
        "alone_rows": len(untouched),
        "rank": distributed.rank(),
        "world": distributed.world_size(),
    }


# -- the processes --------------------------------------------------------------------------------


def everything(names: Collection[str]) -> dict[str, Any]:
    """All that a group finds, by name; of the whole objective, the cases of these names."""
    world = dist.get_world_size()
    jobs: dict[str, Any] = {"small": run_small}
    for counts in SHARES[world]:
        jobs[f"gather {counts}"] = lambda c=counts: run_gather(c)
        for affine in (True, False):
            jobs[f"norm {counts} {affine}"] = lambda c=counts, a=affine: run_batch_norm(c, affine=a)
        for negatives in FORMS:
            jobs[f"patch {counts} {negatives}"] = lambda c=counts, n=negatives: run_patch_loss(c, n)
    for case in (case for case in cases(world) if case.name in names):
        jobs[case.name] = lambda c=case: run_objective(c)
    found = {}
    for name, job in jobs.items():
        try:
            found[name] = job()
        except Exception as error:
            raise RuntimeError(f"{name} on rank {dist.get_rank()}") from error
    return found


def main(rank: int, folder: str, world: int, names: Collection[str]) -> None:
    """Entry of each process."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=180),
    )
    torch.save(everything(names), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def reference_batch_norm(rows: torch.Tensor, norm: BatchNorm) -> torch.Tensor:
    """torch's own batch norm on the joined rows."""
    return F.batch_norm(rows, None, None, norm.weight, norm.bias, training=True, eps=1e-5)
