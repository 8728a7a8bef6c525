"""Linear classifiers on frozen features: many trained in one pass, and the choice among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sercli.randomness import generator

MOMENTUM = 0.9
INIT_STD = 0.01
_ROWS_AT_ONCE = 2048


class HeadRow:
    """The classifiers of one feature set, one a learning rate: H heads as one [D, H·C] map.

    The heads share nothing: each follows SGD with momentum on the mean cross entropy of its own
    logits, as if it were trained alone. All start from the same draw of N(0, 0.01), bias 0.

    Args:
        name: Of the feature set.
        width: D.
        learning_rates: H of them.
        num_classes: C.
        seed: Of the first weights, which do not depend on the learning rates.
        companions: Learning rates of further heads, trained alike but never chosen; they come last
            among the H.
        device: Where all tensors are; None: the default device.
        dtype: What all tensors are computed in.

    Attributes:
        choices: How many of the H may be chosen.
    """

    def __init__(
        self,
        name: str,
        width: int,
        *,
        learning_rates: Sequence[float],
        num_classes: int,
        seed: int,
        companions: Sequence[float] = (),
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.choices = len(learning_rates)
        learning_rates = [*learning_rates, *companions]
        shape = (width, len(learning_rates), num_classes)
        draws = generator(seed, "linear-eval", "init", name)
        start = INIT_STD * torch.randn(width, 1, num_classes, generator=draws)
        self.rates = torch.tensor(learning_rates, device=device, dtype=dtype)[:, None]
        self.weight = start.to(device, dtype).expand(shape).contiguous()
        self.bias = torch.zeros(shape[1:], device=device, dtype=dtype)
        self.weight_momentum = torch.zeros_like(self.weight)
        self.bias_momentum = torch.zeros_like(self.bias)
        self.best_weight, self.best_bias = self.weight.clone(), self.bias.clone()
        self.best = Standing.none(shape[1])
        self.last = Standing.none(shape[1])

    @torch.no_grad()
    def step(self, features: Tensor, labels: Tensor, *, factor: float) -> Tensor:
        """One step of every head, with `factor` times its learning rate.

        Args:
            features: [B, D].
            labels: int64 [B].
            factor: What the schedule multiplies every learning rate by in this step.

        Returns:
            The mean cross entropy of each head before the step, [H].
        """
        log_p = self.logits(features).log_softmax(2)
        own = labels[:, None, None].expand(-1, log_p.shape[1], 1)
        losses = -log_p.gather(2, own)[:, :, 0].mean(0)
        # ∂(mean cross entropy)/∂logits = (softmax − one-hot) / B, in place.
        gradient = log_p.exp_()
        gradient.scatter_add_(2, own, gradient.new_full((), -1).expand(own.shape))
        gradient.div_(len(labels))
        momentum = self.weight_momentum.flatten(1)  # a view: the product is added in place
        momentum.addmm_(features.T, gradient.flatten(1), beta=MOMENTUM)
        self.bias_momentum.mul_(MOMENTUM).add_(gradient.sum(0))
        rates = self.rates * factor
        self.weight.addcmul_(self.weight_momentum, rates, value=-1)
        self.bias.addcmul_(self.bias_momentum, rates, value=-1)
        return losses

    def logits(self, features: Tensor) -> Tensor:
        """Of every head: [B, D] → [B, H, C], in one product."""
        product = torch.addmm(self.bias.flatten(), features, self.weight.flatten(1))
        return product.view(len(features), *self.bias.shape)

    @torch.no_grad()
    def measure(self, features: Tensor, labels: Tensor, *, epoch: int) -> None:
        """Note how every head does on the hold-out, and keep those that never did better.

        Args:
            features: [N, D], on any device.
            labels: int64 [N], on any device.
            epoch: How many are done.
        """
        judged = self.judge(features, labels)
        loss = judged.loss.mean(1)
        diverged = ~loss.isfinite()
        correct = judged.right.sum(1).masked_fill(diverged, -1)
        self.last = Standing(
            correct, loss.masked_fill(diverged, torch.inf), torch.full_like(correct, epoch)
        )
        better = self.last.better_than(self.best)
        self.best = self.best.replaced(self.last, better)
        here = better.to(self.bias.device)[:, None]
        self.best_weight.copy_(torch.where(here, self.weight, self.best_weight))
        self.best_bias.copy_(torch.where(here, self.bias, self.best_bias))

    @torch.no_grad()
    def judge(self, features: Tensor, labels: Tensor) -> Judgement:
        """How every head, as it is, does on each image.

        Args:
            features: [N, D], on any device.
            labels: int64 [N], on any device.
        """
        right, loss = [], []
        for start in range(0, len(features), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            logits = self.logits(features[rows].to(self.bias.device, self.bias.dtype))
            own = labels[rows].to(self.bias.device)[:, None]
            right.append(logits.argmax(2) == own)
            picked = logits.gather(2, own[:, :, None].expand(-1, logits.shape[1], 1))[:, :, 0]
            loss.append((logits.logsumexp(2) - picked).double())
        return Judgement(torch.cat(right).T.cpu(), torch.cat(loss).T.cpu())

    def head(self, index: int, *, best: bool) -> tuple[Tensor, Tensor]:
        """Weight [C, D] and bias [C] of one head, at its best epoch or as it is."""
        weight, bias = (self.best_weight, self.best_bias) if best else (self.weight, self.bias)
        return weight[:, index].T.contiguous(), bias[index].clone()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that training goes on from."""
        standings = {"best": self.best, "last": self.last}
        return {name: getattr(self, name) for name in _TENSORS} | {
            f"{name}.{key}": value
            for name, standing in standings.items()
            for key, value in vars(standing).items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            KeyError, RuntimeError: It is of other heads.
        """
        for name, own in self.state_dict().items():
            if state[name].shape != own.shape or state[name].dtype != own.dtype:
                raise RuntimeError(f"{name} is of another shape or type")
        for name in _TENSORS:
            getattr(self, name).copy_(state[name])
        for name in ("best", "last"):
            keys = ("correct", "loss", "epoch")
            setattr(self, name, Standing(*(state[f"{name}.{key}"] for key in keys)))


_TENSORS = (
    *("weight", "bias", "weight_momentum", "bias_momentum"),
    *("best_weight", "best_bias"),
)


@dataclass(frozen=True)
class Judgement:
    """How H heads do on each of N images.

    Attributes:
        right: bool [H, N], on the CPU.
        loss: float64 [H, N], cross entropy, on the CPU.
    """

    right: Tensor
    loss: Tensor


@dataclass(frozen=True)
class Standing:
    """How H heads do on the hold-out.

    Attributes:
        correct: int64 [H], images right; −1 for a head whose logits are not finite.
        loss: float64 [H], mean cross entropy.
        epoch: int64 [H], epochs done then; 0: never measured.
    """

    correct: Tensor
    loss: Tensor
    epoch: Tensor

    @classmethod
    def none(cls, heads: int) -> Standing:
        """Before the first measurement."""
        correct = torch.full((heads,), -1)
        loss = torch.full((heads,), torch.inf, dtype=torch.float64)
        return cls(correct, loss, torch.zeros(heads, dtype=torch.long))

    def better_than(self, other: Standing) -> Tensor:
        """bool [H]: more images right, or as many with a lower loss."""
        tied = (self.correct == other.correct) & (self.loss < other.loss)
        return (self.correct > other.correct) | tied

    def replaced(self, other: Standing, where: Tensor) -> Standing:
        """The heads `where` is true from `other`."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Standing(*(torch.where(where, new, old) for old, new in pairs))


@dataclass(frozen=True)
class Choice:
    """A head that the hold-out ranks first.

    Attributes:
        feature_set: Which of the probe's feature sets it takes.
        index: Of its learning rate.
        epoch: Epochs it was trained for.
        correct: Images of the hold-out it has right.
        best: Whether it is kept from its best epoch (else it is as it ended).
    """

    feature_set: str
    index: int
    epoch: int
    correct: int
    best: bool


def choose(rows: Mapping[str, HeadRow], *, best: bool) -> Choice | None:
    """The head with most images of the hold-out right; of several, the one with the lowest loss.

    Args:
        rows: By feature set.
        best: Each head at its best epoch, else as it ended.

    Returns:
        None if no head has finite logits.
    """
    found: list[tuple[int, float, Choice]] = []
    for name, row in rows.items():
        standing = row.best if best else row.last
        numbers = zip(*(value.tolist() for value in vars(standing).values()), strict=True)
        for index, (correct, loss, epoch) in enumerate(numbers):
            if correct >= 0 and index < row.choices:
                choice = Choice(name, index, epoch, correct, best)
                found.append((-correct, loss, choice))
    return min(found, key=lambda item: item[:2])[2] if found else None
