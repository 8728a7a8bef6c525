"""What a training logs, as people see it: the keys of metrics.jsonl that are drawn as curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Logged:
    """One key of the rows of metrics.jsonl.

    Attributes:
        key: As it stands there.
        title: What an axis is called, with the unit.
        scale: "log" where the values of one training span decades.
    """

    key: str
    title: str
    scale: Literal["linear", "log"] = "linear"


# In the order in which a reader asks: does it learn, is it healthy, what drove it.
LOGGED = (
    Logged("loss", "loss, in all"),
    Logged("loss_inv", "loss, invariant objective"),
    Logged("loss_equiv", "loss, equivariance term"),
    Logged("knn_top1", "kNN monitor, top-1 (%)"),
    Logged("effective_rank", "effective rank of the embeddings"),
    Logged("lr", "learning rate"),
    Logged("grad_norm", "norm of the gradient", "log"),
)
