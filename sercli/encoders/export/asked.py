"""Which forms there are, and what is refused of a place before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sercli.errors import UserError
from sercli.runs.places import require_place
from sercli.visible import counted

# Form: how its file's name ends; "": it is a folder. `formats/` has a file for each.
SUFFIXES: Mapping[str, str] = {
    "timm": ".safetensors",
    "hf": "",
    "torchvision": ".pth",
    "onnx": ".onnx",
}
# What a folder of form `hf` consists of.
FOLDER = ("config.json", "model.safetensors", "README.md")


def form_of(out: Path, asked: str | None) -> str:
    """The form that is asked for, or that the name of OUT says.

    Raises:
        UserError: Its name says none, or another one.
    """
    by_name = {suffix: form for form, suffix in SUFFIXES.items()}
    if asked is None:
        if out.suffix in by_name:
            return by_name[out.suffix]
        known = ", ".join(f"{suffix or 'a folder without one'} ({f})" for f, suffix in _by_form())
        raise UserError(
            f"{out} as the file to write",
            f"its name must end in one of {known}",
            "name it so, or add --format hf for a folder of any name",
        )
    suffix = SUFFIXES[asked]
    if suffix and out.suffix != suffix:
        raise UserError(f"{out} with --format {asked}", f"its name must end in {suffix}")
    return asked


def _by_form() -> list[tuple[str, str]]:
    return sorted(SUFFIXES.items(), key=lambda pair: not pair[1])


def require_free(out: Path, form: str, *, force: bool) -> None:
    """Refuse a place that cannot take what is exported, before anything is computed.

    Raises:
        UserError: It is there already, or is of another kind; `force` replaces a file, or a folder
            that holds what an export does and nothing else.
    """
    folder = not SUFFIXES[form]
    require_place(out, f"the {'folder' if folder else 'file'} to write:")
    if not out.exists():
        return
    if out.is_dir() != folder or not force:
        remedy = "name another" + (", or --force to replace it" if out.is_dir() == folder else "")
        raise UserError(f"{out} exists", "an export does not replace anything unasked", remedy)
    if folder and (others := sorted({p.name for p in out.iterdir()} - set(FOLDER))):
        raise UserError(
            f"{out} holds {others[0]}"
            + (f" and {counted(len(others) - 1, 'other')}" if others[1:] else ""),
            "--force replaces folders of what an export writes only",
            "name another",
        )
