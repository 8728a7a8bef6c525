"""Linear classifiers on frozen features: many trained in one pass, and the chosen one as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sercli.encoders.files import read_safetensors, require_finite, safetensors_bytes
from sercli.encoders.loading import encoder_sha256
from sercli.encoders.vit import Encoder, Features
from sercli.errors import UserError
from sercli.evals.linear.features import layers_of, parts_of
from sercli.randomness import generator
from sercli.runs.files import write_atomic

MOMENTUM = 0.9
INIT_STD = 0.01
_FORMAT = "ser-probe-head"
_ROWS_AT_ONCE = 2048


# -- Training -------------------------------------------------------------------------------------


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
        device: Of all tensors.
        dtype: Of all tensors.

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
            factor: The schedule's.

        Returns:
            The mean cross entropy of each head before the step, [H].
        """
        log_p = self.logits(features).log_softmax(2)
        own = labels[:, None, None].expand(-1, log_p.shape[1], 1)
        losses = -log_p.gather(2, own)[:, :, 0].mean(0)
        # ∂(mean cross entropy)/∂logits = (softmax − one-hot) / B, in place.
        gradient = log_p.exp_()
        gradient.scatter_add_(2, own, gradient.new_tensor(-1).expand(own.shape))
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
        feature_set: Its name.
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


# -- The chosen head ------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeadFacts:
    """What a head's file says of it.

    Attributes:
        classes: Names, in the order of the logits.
        feature_set: Name of its features.
        parts: Parts of the encoder's output that make them, in order.
        learning_rate: For 256 images.
        epoch: Epochs it was trained for.
        encoder_sha256: Of the encoder it belongs to.
        image_size: Side of an image, pixels.
        resize: Shorter side before the central crop, pixels.
        interpolation: Of that resize.
        mean, std: Normalisation of the input.
        protocol_id: Of the result that it stands beside.
        partial: Whether that result is partial: trained on a part of the images, for a trial.
        warnings: What that result warns of.
    """

    classes: tuple[str, ...]
    feature_set: str
    parts: tuple[str, ...]
    learning_rate: float
    epoch: int
    encoder_sha256: str
    image_size: int
    resize: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    protocol_id: str
    partial: bool = False
    warnings: tuple[str, ...] = ()


class ProbeHead(nn.Module):
    """A trained linear classifier: `head(encoder(images, layers=head.layers))` gives logits.

    Args:
        facts: What is known of it.
        weight: [C, D of the feature set].
        bias: [C].
        norm: The encoder's final norm, which raw tokens pass first.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, facts: HeadFacts, weight: Tensor, bias: Tensor, norm: nn.Module) -> None:
        super().__init__()
        _require_norm(norm)
        self.facts = facts
        self.norm = norm
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""
        return self.facts.classes

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers to ask the encoder for."""
        return layers_of(self.facts.parts)

    @torch.no_grad()
    def forward(self, features: Features) -> Tensor:
        """Logits, float32 [B, C], of the features of an encoder asked for `layers`."""
        joined = parts_of(features, self.facts.parts, self.norm).flatten(1)
        with torch.autocast(joined.device.type, enabled=False):  # the head is float32
            return nn.functional.linear(joined, self.weight, self.bias)

    def require_encoder(self, encoder: Encoder) -> None:
        """Refuse another encoder than the one the head was trained on.

        Raises:
            UserError: Its parameters differ.
        """
        found = encoder_sha256(encoder)
        if found != self.facts.encoder_sha256:
            raise UserError(
                f"the head was trained on the encoder {self.facts.encoder_sha256[:12]}, "
                f"this one is {found[:12]}",
                "a head belongs to one encoder",
                "repeat `ser linear-eval` for this model",
            )

    def save(self, path: Path) -> None:
        """Write the head; `load_head` reads it."""
        tensors = {"weight": self.weight, "bias": self.bias}
        tensors |= {f"norm.{key}": value for key, value in self.norm.state_dict().items()}
        facts = {"format": _FORMAT} | {k: json.dumps(v) for k, v in asdict(self.facts).items()}
        if isinstance(self.norm, nn.LayerNorm):
            facts["norm_eps"] = json.dumps(self.norm.eps)
        data = safetensors_bytes(tensors, facts)
        write_atomic(path, lambda file: file.write(data))


def _require_norm(norm: nn.Module) -> None:
    plain = isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None
    if not plain and not isinstance(norm, nn.Identity):
        raise UserError(
            f"the encoder's final norm is a {type(norm).__name__}",
            "a head can be kept with a LayerNorm (weight and bias) or with none",
        )


def load_head(path: Path) -> ProbeHead:
    """Read a head that `ser linear-eval` wrote; it is on the CPU.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    if not path.is_file():
        raise UserError(
            f"there is no probe head at {path}",
            "a linear probe of the model is needed",
            "run `ser linear-eval` first",
        )
    header, tensors = read_safetensors(path)
    require_finite(tensors, str(path))
    try:
        if header.get("format") != _FORMAT:
            raise KeyError(f"format {_FORMAT}")
        # Heads of earlier versions do not say these.
        header = {"partial": "false", "warnings": "[]", **header}
        values = {name: _value(header[name]) for name in HeadFacts.__dataclass_fields__}
        return ProbeHead(
            HeadFacts(**values), tensors["weight"], tensors["bias"], _norm_of(header, tensors)
        )
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path} is no probe head of ser (it lacks {error})",
            "a head that `ser linear-eval` wrote is needed",
            "name one of heads/linear-eval--*.safetensors",
        ) from error


def _value(text: str) -> Any:
    value = json.loads(text)
    return tuple(value) if isinstance(value, list) else value


def _norm_of(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> nn.Module:
    if "norm.weight" not in tensors:
        return nn.Identity()
    weight = tensors["norm.weight"]
    norm = nn.LayerNorm(weight.shape[0], eps=float(json.loads(header["norm_eps"])))
    norm.load_state_dict({"weight": weight, "bias": tensors["norm.bias"]})
    return norm.requires_grad_(False)
