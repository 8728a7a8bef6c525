"""What `ser export` wrote for timm, read again: by what its header says, to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from torch import Tensor

from sercli.encoders.export.timm_naming import OURS
from sercli.encoders.export.timm_tensors import our_tensors
from sercli.encoders.files import header_of
from sercli.encoders.foreign import EXPORT_LAYOUT
from sercli.errors import UserError
from sercli.recipe.model import Model, PosResize
from sercli.runs.reading import shown


def says_all(header: Mapping[str, str]) -> bool:
    """Whether a header is of an export that says every setting; earlier ones do not."""
    return header.get("layout") == EXPORT_LAYOUT and "settings" in header


def as_ours(
    header: Mapping[str, str], stored: Mapping[str, Tensor], name: str, key: str
) -> tuple[dict[str, str], dict[str, Tensor], str]:
    """Header and tensors of an export as those of a file of ours, and whose weights it holds.

    Args:
        header: One that `says_all`.
        stored: The file's tensors.
        name: What the user called it, for messages.
        key: "teacher" where the momentum encoder is asked for.

    Raises:
        UserError: It holds another, or its header says no encoder.
    """
    held = header.get("weights", "encoder")
    if key == "teacher" != held:
        raise UserError(f"{name} holds no teacher (it holds the {shown(held)})")
    try:
        model = Model.model_validate_json(header["settings"])
        ours = header.get("architecture") == OURS
        tensors = dict(stored) if ours else our_tensors(stored, model)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{name}: its header says no encoder", "it must be as written") from error
    return {**header, "model": header["settings"]}, tensors, held


def stated_positions(name: str) -> PosResize | None:
    """How the model in a folder that `ser export` wrote resamples positions; None of any other."""
    folder = name.removeprefix("timm:local-dir:")
    if folder == name:
        return None
    told = header_of(Path(folder) / "model.safetensors").get("positions")
    return next((way for way in get_args(PosResize) if way == told), None)
