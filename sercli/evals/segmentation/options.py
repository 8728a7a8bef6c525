"""What a user chooses of a linear probe of patch tokens. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from sercli.errors import UserError

# DINOv2's own is 1e-3, for 40,000 steps; narrow encoders and fewer steps take more.
GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


@dataclass(frozen=True)
class Options:
    """What is trained, and on how much.

    Attributes:
        layers: Blocks that are scored beside the last one, 0 (the embedding) to depth.
        learning_rates: Peak learning rates of AdamW; the best is chosen on a hold-out of train.
        steps: Of training.
        batch_size: Windows a step.
        floor: Whether a random twin of the encoder is probed as well.
        seed: Of the hold-out, the order and the first weights.
        limit: At most this many images of train and of val each.
        at_once: Windows that the encoder takes at a time: no number depends on it.
        image_size: Side of a window in pixels, a multiple of the patch; None: of training.
    """

    layers: tuple[int, ...] = ()
    learning_rates: tuple[float, ...] = GRID
    steps: int = 2000
    batch_size: int = 16
    floor: bool = True
    seed: int = 0
    limit: int | None = None
    at_once: int = 64
    image_size: int | None = None

    def require_valid(self) -> None:
        """Refuse what can be refused without an encoder.

        Raises:
            UserError: A learning rate is out of range.
        """
        if wrong := [rate for rate in self.learning_rates if not 0 < rate < 1]:
            raise UserError(f"--lr {wrong[0]:g}", "it must be above 0 and below 1")

    def layers_of(self, depth: int) -> tuple[int, ...]:
        """All layers that are probed, the last one last.

        Raises:
            UserError: The encoder has no such block.
        """
        if wrong := [layer for layer in self.layers if not 0 <= layer <= depth]:
            raise UserError(
                f"--layers {wrong[0]}",
                f"the encoder's blocks are 1 to {depth}, and 0 is the embedding",
            )
        return (*sorted({*self.layers} - {depth}), depth)
