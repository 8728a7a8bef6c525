"""DINO: the student predicts what the teacher says of other views."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sercli.losses.checks import require_pair
from sercli.precision import at_least_fp32, without_autocast
from sercli.visible import counted


def dino_cross_entropy(
    students: Sequence[Tensor], targets: Sequence[Tensor], *, temperature: float
) -> Tensor:
    """Cross entropy of DINO between the teacher's and the student's views of the same images.

    Mean over all pairs (t, v), v ≠ t, of the mean over rows of

        −Σ_k targets[t]_k · log softmax(students[v] / τ)_k

    Args:
        students: V tensors of logits [n, K].
        targets: T ≤ V tensors of probabilities [n, K]: the teacher's, centred and sharpened, of
            the first T views. They get no gradient.
        temperature: τ > 0, of the student.

    Returns:
        fp32 scalar (float64 for float64 input; 0 for no rows).

    Raises:
        ValueError: Shapes or numbers of views do not fit.
    """
    if len(students) < 2:
        raise ValueError(f"{counted(len(students), 'student view')}: at least 2 are needed")
    if not 1 <= len(targets) <= len(students):
        raise ValueError(
            f"{counted(len(targets), 'target view')}: must be 1 to {len(students)}, "
            "the student's views"
        )
    if not temperature > 0:  # nor NaN
        raise ValueError(f"temperature {temperature}: must be positive")
    for name, views in (("students", students), ("targets", targets)):
        for index, view in enumerate(views):
            require_pair(students[0], view, "students[0]", f"{name}[{index}]")
    wide = at_least_fp32(*students, *targets)
    with without_autocast(students[0]):
        fixed = [target.detach().to(wide) for target in targets]
        total = torch.zeros((), dtype=wide, device=students[0].device)
        for v, student in enumerate(students):
            log_probability = F.log_softmax(student.to(wide) / temperature, dim=1)
            for t, target in enumerate(fixed):
                if t != v:
                    total = total - (target * log_probability).sum()
        pairs = len(targets) * (len(students) - 1)
        return total / (pairs * max(len(students[0]), 1))
