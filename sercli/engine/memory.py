"""Memory of a training step: counted on shapes before it is trained, and measured on a device.

What is counted is what PyTorch's allocator counts, tensors: neither a device's own context (about
half a GiB on CUDA) nor the gaps between tensors. Compiled blocks keep less than is counted here.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sercli import distributed
from sercli.encoders.batches import Batch, Encoded
from sercli.engine.accumulation import Autocast, Gradients
from sercli.engine.flops import on_meta, views_on_meta
from sercli.engine.optimiser import MOMENTS
from sercli.engine.runtime import Runtime
from sercli.errors import RunFailed, lacks_memory
from sercli.families import addon_class, method_class
from sercli.objective import Objective
from sercli.recipe.schedule import START
from sercli.recipe.schema import Recipe
from sercli.views.colours import NUM_UNIFORMS
from sercli.views.making import ViewMaker
from sercli.views.plan import ViewPlan
from sercli.views.reading import Samples

_ROUNDING = 512  # bytes, of PyTorch's CUDA allocator
_WORKSPACES = 64 * 2**20  # bytes that torch has cuBLAS and cuBLASLt work in, on Hopper


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a process's tensors.

    Attributes:
        peak: The most at any time of a step.
        held: Before it: weights, the teacher, moments, the images of its views.
    """

    peak: int
    held: int

    def micro_batches_for(self, size: int, accumulate: int) -> int | None:
        """`train.accumulate` with which a step would fit; None if what is held does not.

        All that a step takes above what is held is taken to shrink with the micro-batch.
        """
        if self.held >= size:
            return None
        return math.ceil(accumulate * (self.peak - self.held) / (size - self.held))


def count_memory(
    recipe: Recipe, runtime: Runtime, objective: Objective | None = None, *, processes: int = 1
) -> StepMemory:
    """Memory of a step: it is taken on shapes, and every tensor is followed from birth to death.

    Args:
        recipe: Resolved.
        runtime: The device, which need not be there, and the precision.
        objective: Of the recipe, on the meta device, if there is one; None: it is built.
        processes: How many share the batch. Of what they exchange, gathered rows are counted.
    """
    cuda, dtype = runtime.device.type == "cuda", runtime.autocast_dtype
    # Batch norm, which here is of one process, needs two images.
    processes = max(1, min(processes, recipe.train.batch_size // 2))
    if (key := _key(recipe, cuda, dtype, processes)) in _counts:
        return _counts[key]
    with distributed.alone():
        objective = on_meta(recipe) if objective is None else objective
        trained = [p for p in objective.parameters() if p.requires_grad]
        tensors = _LiveTensors(taken=_WORKSPACES if cuda else 0)
        for tensor in objective.state_dict().values():
            tensors.note(tensor)
        with tensors:
            kept = MOMENTS[recipe.train.optimiser]
            moments = [torch.empty_like(p) for p in trained for _ in kept]
            if processes > 1 and recipe.train.accumulate == 1:  # DDP's buckets stay
                moments += [torch.empty_like(p) for p in trained]
            gradients = [torch.empty_like(p) for p in trained]  # of the step before
            _make_views(recipe, objective.plan, processes)
            del gradients
        views = views_on_meta(recipe, objective.plan, processes=processes)
        for tensor in (*views.standard, *views.paired):
            tensors.note(tensor)
        held = tensors.now
        with tensors:
            products = _Products(dtype)
            step = _Sketch(
                objective, accumulate=recipe.train.accumulate, autocast=products.autocast
            )
            with products.around(objective.blocks()):
                step(views, START)
        objective.zero_grad()
    _counts[key] = StepMemory(tensors.peak, held)
    return _counts[key]


def _make_views(recipe: Recipe, plan: ViewPlan, processes: int) -> None:
    """Make views of a step without values, and drop them: what that takes, too, is followed."""
    part, crops = plan.split(recipe.train.batch_size, world=processes), plan.crops(paired=False)
    rows, shape = len(part.positions), (len(part.positions), len(crops))
    samples = Samples(
        crops=[
            torch.empty(rows, 3, one.size, one.size, dtype=torch.uint8, device="meta")
            for one in crops
        ],
        uniforms=torch.rand(*shape, NUM_UNIFORMS + 1, generator=torch.Generator().manual_seed(0)),
        boxes=torch.zeros(*shape, 4),
        turns=torch.zeros(shape, dtype=torch.long),
        indices=part.positions,
    )
    ViewMaker(recipe.views, plan, part, seed=recipe.seed)(samples, 0, torch.device("meta"))


# What a process has counted: tests start many runs of a few shapes.
_counts: dict[tuple[object, ...], StepMemory] = {}


def _key(recipe: Recipe, *others: object) -> tuple[object, ...]:
    """All that memory depends on."""
    sections = (recipe.data, recipe.model, recipe.views, recipe.method, recipe.addon)
    train = recipe.train
    return (
        method_class(recipe.method),
        addon_class(recipe.addon),
        *(section.model_dump_json() for section in sections),
        *(train.batch_size, train.accumulate, train.checkpointing, train.optimiser),
        *others,
    )


class _Sketch(Gradients):
    """A step that leaves out what takes no more memory than what came before."""

    def __init__(self, objective: Objective, *, accumulate: int, autocast: Autocast) -> None:
        super().__init__(objective, accumulate=accumulate, autocast=autocast)
        self._seen: dict[tuple[object, ...], Encoded | None] = {}

    def encoded(self, part: Batch) -> Encoded:
        encoded = self._once("student", part, super().encoded)
        assert encoded is not None
        return encoded

    def taught(self, part: Batch) -> Encoded | None:
        return self._once("teacher", part, super().taught)

    def _once(
        self, who: str, part: Batch, encode: Callable[[Batch], Encoded | None]
    ) -> Encoded | None:
        """What comes out of micro-batches of one shape has one shape."""
        key = (who, *(view.shape for view in (*part.standard, *part.paired)))
        if key not in self._seen:
            self._seen[key] = encode(part)
            return self._seen[key]
        seen = self._seen[key]
        return None if seen is None else seen.map(torch.empty_like)

    def send_back(self, parts: Sequence[Batch], gradients: Sequence[Tensor | None]) -> None:
        """From the second on, all meet the gradients that the one before left."""
        super().send_back(parts[:2], gradients)


class _LiveTensors(TorchDispatchMode):
    """Follows the memory of tensors without values: each from its birth until nobody has it.

    Args:
        taken: Bytes that are taken already.

    Attributes:
        now: Bytes of those that live.
        peak: The most that ever lived at once.
    """

    def __init__(self, *, taken: int) -> None:
        super().__init__()
        self.now = self.peak = taken
        self._known: dict[int, weakref.ref[Any]] = {}

    def note(self, tensor: Tensor) -> None:
        """Count a tensor's memory, unless it is another's that is counted."""
        if tensor.device.type != "meta":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known and self._known[key]() is storage:
            return
        size = -(-storage.nbytes() // _ROUNDING) * _ROUNDING
        self.now += size
        self.peak = max(self.peak, self.now)
        self._known[key] = weakref.ref(storage, lambda _: self._gone(key, size))

    def _gone(self, key: int, size: int) -> None:
        self.now -= size
        self._known.pop(key, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor):
                self.note(one)
        return made


_PRODUCTS = frozenset(
    {
        F.linear,
        F.scaled_dot_product_attention,
        torch.addmm,
        torch.bmm,
        torch.conv2d,
        torch.matmul,
        torch.mm,
        Tensor.__matmul__,
        Tensor.matmul,
        Tensor.mm,
    }
)


class _Products(TorchFunctionMode):
    """Autocast for the meta device, which has none: products alone, as in `sercli.precision`.

    Attention keeps what the fused kernels of CUDA and CPU keep: no matrix of tokens by tokens.

    Args:
        dtype: Of products; None: that of their operands.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype, self.inside = dtype, False
        self._casts: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Inside, weights are cast once, as autocast does."""
        self.inside = True
        try:
            with self:
                yield
        finally:
            self.inside = False
            self._casts.clear()

    @contextlib.contextmanager
    def around(self, blocks: Iterable[nn.Module]) -> Iterator[None]:
        """Inside, blocks are cast wherever they are called: checkpointing does so in `backward`."""
        entered: list[bool] = []

        def enter(*_: object) -> None:
            entered.append(not self.inside)
            if entered[-1]:
                self.__enter__()

        def leave(*_: object) -> None:
            if entered.pop():
                self.__exit__(None, None, None)

        with contextlib.ExitStack() as hooks:
            for block in blocks:
                hooks.callback(block.register_forward_pre_hook(enter).remove)
                hooks.callback(block.register_forward_hook(leave, always_call=True).remove)
            yield

    def _cast(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_meta or value.dtype != torch.float32:
            return value
        if not isinstance(value, nn.Parameter) or not self.inside:
            return value.to(self.dtype)
        if id(value) not in self._casts:
            self._casts[id(value)] = value.to(self.dtype)
        return self._casts[id(value)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.dtype is not None and func in _PRODUCTS:
            args = tuple(self._cast(value) for value in args)
            kwargs = {name: self._cast(value) for name, value in kwargs.items()}
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            return _FusedAttention.apply(*args[:3])
        return func(*args, **kwargs)


class _FusedAttention(torch.autograd.Function):
    """What fused attention keeps: its operands, its result, a number a row."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attended = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, attended, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return attended

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        del gradient
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


# -- On a device ----------------------------------------------------------------------------------


class Peak:
    """The most memory that tensors took on a device since it was last asked; CUDA only."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.forget()

    def forget(self) -> None:
        """Begin anew: what was taken until now was not a step's."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def take(self) -> dict[str, float]:
        """For a row of metrics.jsonl, {"peak_memory_gib": …}; begins anew."""
        if self.device.type != "cuda":
            return {}
        peak = torch.cuda.max_memory_allocated(self.device) / 2**30
        self.forget()
        return {"peak_memory_gib": round(peak, 3)}


def most_resident() -> int | None:
    """The most memory that this process ever had, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


@contextlib.contextmanager
def saying_what_helps(recipe: Recipe, run: Path, step: int, images: int) -> Iterator[None]:
    """Inside, a step that runs out of memory says what needs less of it.

    Args:
        recipe: What is trained.
        run: The run directory.
        step: Which one is under way, from 1.
        images: Of this process.

    Raises:
        RunFailed: It ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        helps = less(recipe, images)
        how = (
            f"; use {' or '.join(helps)} in {run}/recipe.yaml (the same numbers) and --resume {run}"
        )
        raise RunFailed(
            f"memory is short in step {step}: {_said(error)}"
            f"{how if helps else '; use a smaller train.batch_size or more processes'}"
        ) from error


def _said(error: BaseException) -> str:
    """What torch says of it: its first sentences, of a device how much was wanted and is there."""
    text = str(error).partition("\n")[0]
    wanted = re.search(r"Tried to allocate [^.]*\.[0-9]+ [A-Za-z]+|Tried to allocate [^.]*", text)
    capacity = re.search(r"total capacity of [0-9.]+ [A-Za-z]+", text)
    found = [one.group() for one in (wanted, capacity) if one]
    return ", ".join(found) or text[:200] or type(error).__name__


def less(recipe: Recipe, images: int, *, accumulate: int | None = None) -> list[str]:
    """Settings with which a step takes less memory and computes the same.

    Args:
        recipe: What is trained.
        images: Of a process.
        accumulate: Micro-batches that will do, if that is known; None: twice as many.
    """
    train = recipe.train
    more = min(accumulate or 2 * train.accumulate, images)
    return [
        *([f"train.accumulate={more}"] if more > train.accumulate else []),
        *(["train.checkpointing=blocks"] if train.checkpointing == "off" else []),
    ]
