"""Compiling what a step computes token by token and pixel by pixel, before the first step.

Attention stays as it is: it has kernels of its own. What lies around it in a block has one
dimension that varies, the number of tokens of a pass, whatever views and grids they are of; what
runs over pixels has the number of images. So nothing that a step draws compiles anything again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn

from sercli.data.images.kept import cache_directory
from sercli.encoders.blocks import EAGER, Parts, ViTBlock, after_attention, before_attention
from sercli.encoders.vit import Encoder
from sercli.engine.runtime import Runtime
from sercli.objective import Objective
from sercli.views.making import ViewMaker
from sercli.views.passes import Passes

# Ways in which a part is called: with and without gradient, on tokens that take gradient or, behind
# a frozen embedding, do not, branches dropped or not. torch allows 8, and runs what is beyond them
# uncompiled, without a word.
_WAYS = 32

_FAILURES = (RuntimeError, ImportError, OSError)  # of compilers, and of their absence

Backend = str | Callable[..., Any]  # as torch.compile takes them


@dataclass(frozen=True)
class _Way:
    """One way in which blocks are called in a step.

    Attributes:
        encoder: Whose blocks.
        num_tokens: About as many as in a step: kernels are made for what they are shown.
        trained: Whether gradient is taken.
        takes_gradient: Whether the tokens take it, too.
        drops: Whether branches are dropped.
    """

    encoder: Encoder
    num_tokens: int
    trained: bool
    takes_gradient: bool
    drops: bool


def compile_step(
    objective: Objective,
    maker: ViewMaker,
    runtime: Runtime,
    *,
    accumulate: int = 1,
    say: Callable[[str], None],
    backend: Backend = "inductor",
) -> bool:
    """Have the blocks of student and teacher run compiled in training, and compile them.

    On a GPU what runs over the pixels of views does so, too; on a CPU it is in cache as it is.
    Where compiling fails (a machine without a compiler), it is said in a line and all stays as it
    is.

    Args:
        objective: On its device, in training mode; parameters and their names do not change.
        maker: Of its views.
        runtime: Its device and precision.
        accumulate: Micro-batches that images are encoded in.
        say: Told what is done, and how long it took.
        backend: Of `torch.compile`.

    Returns:
        Whether they run compiled.
    """
    _keep_what_is_compiled()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _WAYS)
    began, before = time.perf_counter(), _graphs()
    number = compile_blocks(objective.blocks(), backend=backend)
    say(f"compiling what {number} blocks compute around attention (train.compile=off: uncompiled)")
    try:
        rows = -(-len(maker.part.positions) // accumulate)
        for way in _ways(objective, rows, twice=accumulate > 1):
            _call(way, runtime)
        if runtime.device.type == "cuda":
            compile_passes(maker, runtime.device, backend=backend)
    except _FAILURES as error:
        _run(objective.blocks(), EAGER)
        reason = next(iter(str(error).strip().splitlines()), "")[:160]
        say(f"they cannot be compiled here and run uncompiled: {type(error).__name__}: {reason}")
        return False
    seconds = time.perf_counter() - began
    say(f"compiled {_graphs() - before} graphs in {seconds:.0f} s")
    return True


def compile_passes(
    maker: ViewMaker, device: torch.device, *, backend: Backend = "inductor"
) -> None:
    """Compile what runs over the pixels of views, and have it run so.

    It has a graph for each size of views and each choice of terms.
    """
    compiled = _compiled_passes(backend)
    for size in sorted({spec.size for spec in maker.plan.specs}):
        _call_passes(compiled, size, device)
    maker.passes = compiled


def compile_blocks(blocks: Iterable[nn.Module], *, backend: Backend = "inductor") -> int:
    """Have blocks run compiled in training, from their first call on.

    All share what is compiled, once for each way they are called. In evaluation they run as they
    are: what a run is watched by does not depend on a compiler.

    Args:
        blocks: Of encoders; those that are not ours stay as they are.
        backend: Of `torch.compile`.

    Returns:
        How many blocks run compiled.
    """
    return _run(blocks, _compiled(backend))


def _run(blocks: Iterable[nn.Module], parts: Parts) -> int:
    ours = [block for block in blocks if isinstance(block, ViTBlock)]
    for block in ours:
        block.parts = parts
    return len(ours)


def _compiled(backend: Backend) -> Parts:
    compiled_before: Any = torch.compile(before_attention, backend=backend)
    compiled_after: Any = torch.compile(after_attention, backend=backend)

    def before(block: ViTBlock, tokens: Tensor, turns: Tensor | None) -> Tensor:
        if not block.training:
            return before_attention(block, tokens, turns)
        for varying in (tokens, turns):
            if varying is not None:
                torch._dynamo.mark_dynamic(varying, 0)
        packed: Tensor = compiled_before(block, tokens, turns)
        return packed

    def after(block: ViTBlock, tokens: Tensor, attended: Tensor, keep: Tensor | None) -> Tensor:
        if not block.training:
            return after_attention(block, tokens, attended, keep)
        for varying, dim in ((tokens, 0), (attended, 0), (keep, 1)):
            if varying is not None:
                torch._dynamo.mark_dynamic(varying, dim)
        passed: Tensor = compiled_after(block, tokens, attended, keep)
        return passed

    return Parts(before, after)


def _compiled_passes(backend: Backend) -> Passes:
    eager = Passes()
    blend: Any = torch.compile(eager.blend, backend=backend)
    turn_hue: Any = torch.compile(eager.turn_hue, backend=backend)
    finish: Any = torch.compile(eager.finish, backend=backend)

    def several(images: Tensor, *numbers: tuple[Tensor | None, int]) -> bool:
        """Note what varies; one image, to which torch makes a graph of its own, stays eager."""
        if len(images) < 2:
            return False
        for varying, dim in ((images, 0), *numbers):
            if varying is not None:
                torch._dynamo.mark_dynamic(varying, dim)
        return True

    def blended(images: Tensor, numbers: Tensor, *, grey: bool, mean: bool) -> None:
        numbers = numbers.contiguous()  # of some of all images, else
        by = blend if several(images, (numbers, 1)) else eager.blend
        by(images, numbers, grey=grey, mean=mean)

    def turned(images: Tensor, shift: Tensor) -> None:
        by = turn_hue if several(images, (shift, 0)) else eager.turn_hue
        by(images, shift)

    def finished(images: Tensor, limit: Tensor | None, scale: Tensor, shift: Tensor) -> None:
        by = finish if several(images, (limit, 0)) else eager.finish
        by(images, limit, scale, shift)

    return Passes(blended, turned, finished)


def _keep_what_is_compiled() -> None:
    """In the user's cache, where torch would take the machine's temporary folder."""
    place = cache_directory()
    if place is None or "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    folder = place / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def _graphs() -> int:
    """Graphs that were traced in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


# -- Before the first step ------------------------------------------------------------------------


def _ways(objective: Objective, rows: int, *, twice: bool) -> list[_Way]:
    """The ways in which a step calls blocks; those of the first block, too.

    Args:
        objective: Whose.
        rows: Images of a pass.
        twice: Whether the student encodes without gradient first.
    """
    plan, student = objective.plan, objective.encoder
    counts = [rows * plan.grid(view)[0] * plan.grid(view)[1] for view in range(len(plan.specs))]
    drops = objective.drop_path > 0
    trained = sum(counts[: plan.num_invariant])
    ways = [_Way(student, trained, True, True, drops)]
    embedding = [student.pos_embed, *student.patch_embed.parameters()]
    embedding += student.norm_pre.parameters()
    if not student.cls_after:  # what joins later does not enter the first block
        embedding += [student.cls_token, student.reg_token]
    if not any(p is not None and p.requires_grad for p in embedding):
        ways.append(_Way(student, trained, True, False, drops))
    if twice:
        ways.append(_Way(student, trained, False, False, drops))
    if objective.teacher is not None:
        ways.append(_Way(objective.teacher.encoder, sum(counts[:2]), False, False, False))
    return ways


def _call(way: _Way, runtime: Runtime) -> None:
    """Call the first block as a step does, forwards and backwards, on zeros."""
    block = way.encoder.blocks[0]
    if not isinstance(block, ViTBlock):
        return
    parameters = [p for p in block.parameters() if p.requires_grad]
    number, device = way.num_tokens, runtime.device
    tokens = torch.zeros(number, way.encoder.dim, device=device, requires_grad=way.takes_gradient)
    keep = torch.ones(2, number, device=device) if way.drops else None
    with runtime.autocast(), torch.set_grad_enabled(way.trained):
        turns = None
        if way.encoder.rope is not None:
            turns = torch.zeros(number, 2, 2 * len(way.encoder.rope.periods), device=device)
        packed = block.parts.before(block, tokens, turns)
        attended = torch.zeros_like(packed[:, 0].flatten(1)).requires_grad_(way.trained)
        passed = block.parts.after(block, tokens, attended, keep)
    if way.trained:
        inputs = [*([tokens] if way.takes_gradient else []), attended, *parameters]
        outputs = [packed, passed]
        torch.autograd.grad(outputs, inputs, [torch.zeros_like(x) for x in outputs])


@torch.no_grad()
def _call_passes(passes: Passes, size: int, device: torch.device) -> None:
    """Call what runs over pixels with each choice of its terms, on grey images."""
    images = torch.full((8, 3, size, size), 0.5, device=device)
    numbers = torch.full((7, 8), 0.1, device=device)
    for grey, mean in ((False, False), (True, False), (False, True), (True, True)):
        passes.blend(images, numbers, grey=grey, mean=mean)
    passes.turn_hue(images, torch.full((8, 1, 1), 0.1, device=device))
    scale, shift = (torch.ones(3, 1, 1, device=device) for _ in range(2))
    for limit in (None, torch.full((8, 1, 1, 1), 2.0, device=device)):
        passes.finish(images, limit, scale, shift)
