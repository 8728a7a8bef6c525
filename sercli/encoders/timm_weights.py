"""Models of timm's, with weights that are on this machine."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from sercli.encoders.files import header_of, load_torch_file, read_safetensors, require_finite
from sercli.errors import UserError
from sercli.randomness import seeded

_LOCAL = "local-dir:"
_FILES = ("model.safetensors", "pytorch_model.bin")  # as the Hub names weights


def local_file(name: str) -> Path | None:
    """The file of weights that `timm:local-dir:DIR` is read from; None for other models."""
    stem = name.removeprefix("timm:")
    if not stem.startswith(_LOCAL):
        return None
    files = (Path(stem.removeprefix(_LOCAL)) / file for file in _FILES)
    return next((file for file in files if file.is_file()), None)


def create_timm(name: str, *, random_init: bool, **options: Any) -> Any:
    """A model of timm's, with weights on this machine or random ones.

    Args:
        name: `timm:NAME`, or `timm:local-dir:DIR` for a folder with config.json and weights, as the
            Hugging Face Hub has them.
        random_init: Random weights, the same at every call.
        options: Passed on to `timm.create_model`.

    Raises:
        UserError: timm knows no such model or weights, or they are not cached.
    """
    import huggingface_hub.constants
    import timm

    stem = name.removeprefix("timm:")
    architecture = stem.partition(".")[0]
    if stem.startswith(_LOCAL):
        config = Path(stem.removeprefix(_LOCAL)) / "config.json"
        if not config.is_file():
            raise UserError(
                f"{name}: there is no {config}", "a folder with config.json and weights is needed"
            )
    elif architecture not in timm.list_models():
        close = difflib.get_close_matches(architecture, timm.list_models("*vit*"), n=1)
        raise UserError(
            f"{name}: timm knows no model {architecture!r}",
            "the name of one of its ViTs is needed",
            f"did you mean timm:{close[0]}?" if close else "timm.list_models('vit_*') lists them",
        )
    elif not timm.is_model_pretrained(stem) and "." in stem:
        raise UserError(f"{name}: timm knows no weights {stem!r}")
    # Nothing is downloaded behind the user's back. The environment variable of this name is read
    # when huggingface_hub is imported, which is over.
    weights: dict[str, Any] = {"pretrained": not random_init}
    if not random_init and (own := _exported_weights(stem)) is not None:
        weights = {"checkpoint_path": str(own)}
    elif not random_init and (file := local_file(name)) is not None:
        weights["pretrained_cfg_overlay"] = {"source": "", "state_dict": _tensors(file)}
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        with seeded(0, "timm"):
            model = timm.create_model(stem, **weights, **options)
    except Exception as error:
        if stem.startswith(_LOCAL):
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"{name} cannot be read ({type(error).__name__}: {reason})") from error
        raise UserError(
            f"{name} has no weights on this machine ({type(error).__name__})",
            "weights must be cached, nothing is downloaded",
            "use --random-init for random weights, or give a checkpoint file",
        ) from error
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before
    if model.pretrained_cfg:
        model.pretrained_cfg.pop("state_dict", None)
    tensors = model.state_dict()
    if not any(tensor.is_meta for tensor in tensors.values()):  # of which there are only shapes
        require_finite(tensors, name)
    return model


def _tensors(file: Path) -> dict[str, Any]:
    """What a folder's weights are: read by ours, so that no code in them runs.

    timm 1.0.22 takes the torch files of a folder first, with whatever they run, and cannot read
    safetensors.
    """
    return read_safetensors(file)[1] if file.suffix == ".safetensors" else load_torch_file(file)


def _exported_weights(stem: str) -> Path | None:
    """The weights of a folder that `ser export` wrote, which are timm's by every name."""
    from sercli.encoders.foreign.layouts import EXPORT_LAYOUT  # which asks timm of its models

    file = Path(stem.removeprefix(_LOCAL)) / "model.safetensors"
    ours = stem.startswith(_LOCAL) and header_of(file).get("layout") == EXPORT_LAYOUT
    return file if ours else None
