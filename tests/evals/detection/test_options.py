"""What a detector is unless the user says otherwise."""

from __future__ import annotations

import pytest

from sercli.errors import UserError
from sercli.evals.detection.options import Options


@pytest.mark.parametrize(
    ("preset", "patch", "size"),
    [("tiny", 8, 128), ("tiny", 16, 128), ("tiny", 12, 120), ("standard", 14, 1036)],
)
def test_the_canvas_of_a_preset_fits_every_patch(preset: str, patch: int, size: int) -> None:
    options = Options(engine="torchvision", preset=preset)  # type: ignore[arg-type]
    assert options.canvas(patch).size == size


def test_a_canvas_that_was_asked_for_is_not_rounded() -> None:
    asked = Options(engine="torchvision", preset="tiny", image_size=128)
    with pytest.raises(UserError, match="multiple of two patches"):
        asked.canvas(12)
