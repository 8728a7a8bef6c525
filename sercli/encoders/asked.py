"""What is asked for of an encoder, or of its export: what is refused before torch is imported."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, get_args

from sercli.errors import UserError
from sercli.recipe.model import Model, PosResize, WeightsAs
from sercli.runs.places import require_place
from sercli.runs.run_dir import RunDir

ACTIVATIONS = ("gelu", "gelu-tanh", "quick-gelu")


class Said(TypedDict, total=False):
    """What the user says of a file that does not say it itself.

    Attributes:
        num_heads: Attention heads.
        cls_after: Block after which [CLS] joins.
        key: Where the encoder is, as the message that asks for it names it; what is usual of such
            encoders is then not insisted on.
        positions: How its own code resamples positions, see `Encoder.positions`.
        arch: The name that timm has for it, which says all that tensors do not.
        activation: Between the two layers of its MLPs.
    """

    num_heads: int | None
    cls_after: int | None
    key: str | None
    positions: str | None
    arch: str | None
    activation: str | None


@dataclass(frozen=True)
class Hints:
    """The same, looked at; None is what is not said. Attributes are those of `Said`."""

    num_heads: int | None = None
    cls_after: int | None = None
    key: str | None = None
    positions: str | None = None
    arch: str | None = None
    activation: str | None = None

    def __post_init__(self) -> None:
        """Refuse a way to resample positions, or an activation, that there is not."""
        if self.activation not in (None, *ACTIVATIONS):
            raise UserError(f"--activation {self.activation}", f"known: {', '.join(ACTIVATIONS)}")
        if self.positions not in (None, *get_args(PosResize)):
            known = ", ".join(get_args(PosResize))
            raise UserError(f"--positions {self.positions}", f"known: {known}")

    @property
    def given(self) -> str | None:
        """The first option that was given, as on the command line."""
        options = {
            "--num-heads": self.num_heads,
            "--cls-after": self.cls_after,
            "--key": self.key,
            "--positions": self.positions,
            "--arch": self.arch,
            "--activation": self.activation,
        }
        return next((name for name, value in options.items() if value is not None), None)

    def refuse(self, name: str) -> None:
        """Refuse hints for an encoder that needs none.

        Raises:
            UserError: Some are given.
        """
        if self.given is not None:
            raise UserError(
                f"{self.given} with {name}", "that is known of it; it goes with others' files"
            )


_OPTIONS = re.compile(
    r"(add )?--(num-heads|cls-after|key|positions|arch|activation|teacher)\b(?(1)( [^ ,;]+)?)"
)
_RANDOM = "--set model.name=timm:NAME in place of model.weights"


def as_recipe_keys(message: str) -> str:
    """A message that names options of evaluators, for a run that begins from such an encoder.

    "add --num-heads N" becomes "add --set model.weights_as.num_heads=N".
    """

    def spelt(match: re.Match[str]) -> str:
        add, option, value = match[1], match[2], match[3]
        key = f"model.weights_as.{option.replace('-', '_')}"
        if not add:
            return key
        if option == "teacher":
            return f"add --set {key}=true{value or ''}"
        return f"add --set {key}" + (f"={value.strip()}" if value else "")

    return _OPTIONS.sub(spelt, message).replace("--random-init", _RANDOM)


def require_weights(model: Model) -> None:
    """Refuse weights to begin from that are not there.

    Raises:
        UserError: They are not, or are said to be what they cannot be.
    """
    if model.weights is None:
        return
    said = (model.weights_as or WeightsAs()).model_dump()
    try:
        teacher = said.pop("teacher")
        require_source(model.weights, teacher=teacher, random_init=False, hints=Hints(**said))
    except UserError as error:
        raise UserError(as_recipe_keys(str(error))) from error


def require_source(name: str, *, teacher: bool, random_init: bool, hints: Hints) -> None:
    """Refuse a MODEL that is not there, and options that it cannot be read with.

    Args:
        name: A run directory, a file, or `timm:NAME`.
        teacher: Whether the momentum encoder is asked for.
        random_init: Whether random weights are.
        hints: What is said of the file.

    Raises:
        UserError: In these cases; the file itself is not looked into.
    """
    if name.startswith("timm:"):
        if teacher:
            raise UserError(f"{name} with the teacher asked for", "timm models have no teacher")
        hints.refuse(name)
        return
    require_place(name, "MODEL")
    if random_init:
        raise UserError(f"--random-init with {name}", "it goes with timm:NAME only")
    path = Path(name)
    if path.is_dir():
        hints.refuse(name)
        RunDir.open(path)
    elif not path.is_file():
        raise UserError(
            f"no model at {name}", "a run directory, a checkpoint file or timm:NAME is needed"
        )
