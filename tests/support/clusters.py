"""Points that a linear head can nearly tell apart."""

import torch
from torch import Tensor


def clusters(
    count: int, *, seed: int = 0, classes: int = 4, dim: int = 6, noise: float = 1.5
) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(classes, (count,), generator=draws)
    return centres[labels] + noise * torch.randn(count, dim, generator=draws), labels
