"""What a user chooses of a linear probe: presets and what stands instead of theirs. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from sercli.errors import UserError

if TYPE_CHECKING:
    from sercli.encoders.vit import Encoder

WIDE = 768  # ViT-B's width


@dataclass(frozen=True)
class Preset:
    """A published protocol.

    Attributes:
        feature_sets: See `plan_features`.
        learning_rates: For 256 images.
        epochs: Passes over the training images.
        batch_size: Images a step.
        interpolation: Of the resize before a central crop.
        feature_sets_wide: Those of encoders at least 768 wide, where they are others.
    """

    feature_sets: tuple[str, ...]
    learning_rates: tuple[float, ...]
    epochs: int
    batch_size: int
    interpolation: str
    feature_sets_wide: tuple[str, ...] = ()

    def feature_sets_of(self, encoder: Encoder) -> tuple[str, ...]:
        """The feature sets of an encoder."""
        wide = encoder.dim >= WIDE and self.feature_sets_wide
        return self.feature_sets_wide if wide else self.feature_sets


# The paper's own list is 1…10; DINO and MoCo-v3 lie within four decades, three rates a decade.
GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
PresetName = Literal["ser", "dino", "moco-v3"]
PRESETS: dict[PresetName, Preset] = {
    "ser": Preset(("cls1", "cls4", "cls1+pooled"), GRID, 50, 2048, "bicubic"),
    # Its script's help: four blocks for ViT-S, the last one with pooled patches for ViT-B.
    "dino": Preset(("cls4",), (0.001,), 100, 1024, "bicubic", ("cls1+pooled",)),
    "moco-v3": Preset(("cls1",), (3.0,), 90, 1024, "bilinear"),
}


@dataclass(frozen=True)
class Options:
    """What a user chooses; None: the preset's.

    Attributes:
        preset: Name.
        learning_rates: For 256 images.
        epochs: Passes over the training images.
        batch_size: Images a step; None: the preset's, at most a sixteenth of the images.
        augment: Crops and mirrors of the training images; else central crops, encoded once, whose
            features are standardised.
        shots: Share of the training images that may be used, as many of each class.
        seed: Of the hold-out, the shots, the order, the crops and the first weights.
        limit: At most this many images of train and of the test set each.
        at_once: Images the encoder takes at a time: the number does not depend on it.
        image_size: Side in pixels, a multiple of the patch; None: what the encoder was trained on.
    """

    preset: PresetName = "ser"
    learning_rates: tuple[float, ...] | None = None
    epochs: int | None = None
    batch_size: int | None = None
    augment: bool = True
    shots: float | None = None
    seed: int = 0
    limit: int | None = None
    at_once: int = 256
    image_size: int | None = None

    def resolve(self) -> Preset:
        """The preset with what is chosen instead.

        Raises:
            UserError: An unknown preset or a learning rate that is not above 0.
        """
        if self.preset not in PRESETS:
            raise UserError(f"--preset {self.preset}", f"known: {', '.join(PRESETS)}")
        preset = PRESETS[self.preset]
        rates = tuple(sorted(set(self.learning_rates or preset.learning_rates)))
        if wrong := [rate for rate in rates if not 0 < rate < float("inf")]:
            raise UserError(f"--lr {wrong[0]:g}", "a learning rate must be a number above 0")
        return replace(
            preset,
            learning_rates=rates,
            epochs=self.epochs or preset.epochs,
            batch_size=self.batch_size or preset.batch_size,
        )

    @property
    def variant(self) -> str:
        """Of the result's name: the preset, and what makes it another quantity."""
        shots = "" if self.shots is None else f"-{100 * self.shots:g}pct"
        return f"{self.preset}{'' if self.augment else '-no-augment'}{shots}"
