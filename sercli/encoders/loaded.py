"""An encoder that was read: where it comes from, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sercli.data.loading import IMAGENET_MEAN, IMAGENET_STD
from sercli.encoders.describing import hidden_settings
from sercli.encoders.foreign import num_heads as heads_of
from sercli.encoders.vit import Encoder
from sercli.errors import UserError


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder and where it comes from.

    Attributes:
        encoder: In evaluation mode, on the CPU.
        source: What was asked for (a path, or `timm:NAME`).
        key: Which weights were taken: "student", "teacher", "encoder" (a file with one that is
            neither), "timm" or "random".
        matched: Tensors taken from the source.
        expected: Tensors the encoder has.
        image_size: Side of the images it was trained on, pixels.
        mean, std: Normalisation of its input, RGB in 0…1.
        layout: "ser", "timm" (also of timm:NAME), or the name of a layout of `sercli.foreign`.
        place: Where in a file of that layout it was, "" for the file itself.
        usual_heads: Attention heads that the layout's own code gives such a ViT, if it is known.
        assumed: Whether nothing says how its own code resamples positions: timm's way is taken.
        file: What it was read from; None: a model of timm's.
        left: What else is there and was not taken, such as heads: the names of tensors, or of
            what holds them.
        note: What is to be said of it, "" nothing.
    """

    encoder: Encoder
    source: str
    key: str
    matched: int
    expected: int
    image_size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    layout: str = "ser"
    place: str = ""
    usual_heads: int | None = None
    assumed: bool = False
    file: Path | None = None
    left: tuple[str, ...] = ()
    note: str = ""

    @property
    def num_heads(self) -> int | None:
        """Attention heads (None for blocks of an unusual kind)."""
        return heads_of(self.encoder)

    def at(self, image_size: int | None) -> LoadedEncoder:
        """The same encoder for images of another side; None: as it is.

        Raises:
            UserError: It is no multiple of the patch.
        """
        if image_size is None:
            return self
        if image_size % self.encoder.patch_size:
            raise UserError(
                f"--image-size {image_size}",
                f"it must be a multiple of the patch, which is {self.encoder.patch_size} px",
            )
        return replace(self, image_size=image_size)

    def describe(self) -> dict[str, Any]:
        """The `model` field of a result."""
        return {
            "source": self.source,
            "key": self.key,
            "matched": self.matched,
            "expected": self.expected,
            "layout": self.layout,
            "place": self.place,
            "num_heads": self.num_heads,
            "cls_after": self.encoder.cls_after,
            "positions": self.encoder.pos_resize,
        }

    @property
    def summary(self) -> str:
        """What was read, in one line."""
        encoder, place = self.encoder, f" at {self.place}" if self.place else ""
        joins = f", [CLS] joins after block {encoder.cls_after}" if encoder.cls_after else ""
        usual, mlp = self.usual_heads, hidden_settings(encoder).get("mlp")
        inside = f", {mlp}" if mlp else ""
        asked = "" if usual in (None, self.num_heads) else f" (its own code gives it {usual})"
        return (
            f"{self.source}: {self.key}{place}, layout {self.layout}, {self.matched} of "
            f"{self.expected} tensors; {encoder.depth} blocks, {encoder.dim} wide, "
            f"{self.num_heads} heads{asked}{inside}, patch {encoder.patch_size}, "
            f"{self.image_size} px{joins}; {self._positions}"
            + (f"; {self.note}" if self.note else "")
        )

    @property
    def _positions(self) -> str:
        """How they go at another size, in a few words."""
        encoder = self.encoder
        if encoder.pos_embed is None:
            return "rotary positions" if encoder.rope is not None else "no positions"
        assumed = " (assumed, see --positions)" if self.assumed else ""
        return f"at another size positions go by {encoder.pos_resize}{assumed}"
