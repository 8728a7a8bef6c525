"""Reading encoders: a run directory, anybody's checkpoint file, or `timm:NAME`; writing ours.

Files are read with `weights_only=True`: tensors, plain values and the harmless records that public
training scripts store beside them; no code of a file is ever run. A file that needs more is
refused. If you trust it, convert it once, in a place that may run its code:

    import torch
    state = torch.load("theirs.pth", "cpu", weights_only=False)["state_dict"]  # runs its code
    tensors = {k: v for k, v in state.items() if torch.is_tensor(v)}
    torch.save({"state_dict": tensors}, "plain.pth")
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack

import torch
from pydantic import ConfigDict, Field, Json
from torch import Tensor

from sercli import distributed
from sercli.data.loading import IMAGENET_MEAN, IMAGENET_STD
from sercli.encoders.asked import Hints, Said, require_source
from sercli.encoders.describing import hidden_settings
from sercli.encoders.export.reading import as_ours, says_all, stated_positions
from sercli.encoders.files import (
    is_plain,
    load_torch_file,
    read_safetensors,
    require_finite,
    safetensors_bytes,
)
from sercli.encoders.foreign import ATTENTION_POOL, EXPORT_LAYOUT, Colour, read_beside
from sercli.encoders.foreign import num_heads as heads_of
from sercli.encoders.foreign import read as read_foreign
from sercli.encoders.loaded import LoadedEncoder as LoadedEncoder
from sercli.encoders.sizes import size_of
from sercli.encoders.taking import pools_by_attention
from sercli.encoders.timm_vit import SerVit
from sercli.encoders.timm_weights import create_timm, local_file
from sercli.encoders.vit import Encoder
from sercli.errors import UserError
from sercli.recipe.schema import Model, PosResize
from sercli.runs.facts import read_facts
from sercli.runs.files import hash_of, verifies, write_atomic
from sercli.runs.reading import require_regular, shown
from sercli.runs.run_dir import RunDir
from sercli.runs.stored import Stored, require
from sercli.visible import say

_FORMAT = "ser-encoder"
_REWRITE = "a file written by this version of ser is needed"
_LARGEST_IMAGE = 1 << 14
_OUR_HEADER = {"model", "step"}


def load_encoder(
    source: str | Path,
    *,
    teacher: bool = False,
    random_init: bool = False,
    **said: Unpack[Said],
) -> Encoder:
    """The encoder of a run directory, a checkpoint file, or `timm:NAME`, in evaluation mode.

    Args:
        source: Run directory, file, or `timm:NAME`.
        teacher: The momentum encoder instead of the student.
        random_init: Random weights for `timm:NAME` (otherwise weights cached on this machine).
        said: What a file does not say itself, see `Said`.

    Raises:
        UserError: Nothing there, an unknown layout, or tensors that do not match.
    """
    return read_encoder(source, teacher=teacher, random_init=random_init, **said).encoder


def read_encoder(
    source: str | Path,
    *,
    teacher: bool = False,
    random_init: bool = False,
    **said: Unpack[Said],
) -> LoadedEncoder:
    """`load_encoder` with where the weights come from."""
    name = str(source)
    hints = Hints(**said)
    require_source(name, teacher=teacher, random_init=random_init, hints=hints)
    if name.startswith("timm:"):
        return _read_timm(name, random_init=random_init)
    path, role = Path(source), "teacher" if teacher else "student"
    if path.is_dir():
        return _read_run(RunDir.open(path), name, role)
    return _read_file(path, name, role, hints)


def _read_run(run: RunDir, name: str, key: str) -> LoadedEncoder:
    if run.encoder.is_file():
        header, stored = read_safetensors(run.encoder)
        tensors = _only(stored, "teacher.", key == "teacher")
        if tensors:
            return _ours(header, stored, name, key, run.encoder)
    for step in reversed(run.checkpoint_steps()):
        if run.checkpoint_verifies(step):
            _say_what_stands_in(run, step, key)
            return _read_torch(run.checkpoint(step), name, key, Hints())
    status = read_facts(run).status
    what = key if run.encoder.is_file() else "weights"
    raise UserError(
        f"{name} holds no {what} (its run is {status})",
        "a checkpoint or encoder.safetensors is needed",
        f"ser pretrain --resume {name}",
    )


def _say_what_stands_in(run: RunDir, step: int, key: str) -> None:
    """A line on standard error: which weights are read where the run's own encoder is not there."""
    if distributed.rank() == 0:
        missing = f"holds no {key}" if run.encoder.is_file() else "is missing"
        say(f"note: {run.encoder} {missing}: the {key} of {run.checkpoint(step)} is read", err=True)


def _read_file(path: Path, name: str, key: str, hints: Hints) -> LoadedEncoder:
    if path.suffix == ".safetensors":
        header, stored = read_safetensors(path)
        if header.get("format") == _FORMAT or header.keys() >= _OUR_HEADER:
            hints.refuse(name)
            return _ours(header, stored, name, key, path)
        if says_all(header):
            hints.refuse(name)
            metadata, tensors, held = as_ours(header, stored, name, key)
            role = held if held in ("student", "teacher") else "encoder"
            built = _build({**metadata, "format": _FORMAT}, tensors, name, role)
            return replace(built, layout=EXPORT_LAYOUT, file=path)
        return _read_foreign(stored, header, name, key, hints, path)
    require_regular(path)
    if hash_of(path).is_file() and not verifies(path):
        raise UserError(
            f"{path} is damaged: it is not what was written",
            f"its SHA-256 must be that of {hash_of(path)}",
            "take an earlier checkpoint",
        )
    return _read_torch(path, name, key, hints)


def _read_torch(path: Path, name: str, key: str, hints: Hints) -> LoadedEncoder:
    state = load_torch_file(path)
    metadata = state.get("encoder")
    if not isinstance(metadata, Mapping) or "objective" not in state:
        return _read_foreign(state, {}, name, key, hints, path)
    hints.refuse(name)
    prefix = f"{key}.encoder."
    stored = state["objective"]
    if not isinstance(stored, Mapping) or not all(
        isinstance(key, str) and is_plain(value) for key, value in stored.items()
    ):
        raise UserError(
            f"{path} is no checkpoint of ser", "its `objective` must hold tensors by name"
        )
    tensors = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
    left = tuple(one for one in stored if not one.startswith(prefix))
    return replace(_build(metadata, tensors, name, key), file=path, left=left)


def _read_foreign(
    state: Mapping[str, Any],
    header: Mapping[str, str],
    name: str,
    key: str,
    hints: Hints,
    path: Path,
) -> LoadedEncoder:
    found = read_foreign(
        state, name, teacher=key == "teacher", hints=hints, header=header, beside=read_beside(path)
    )
    encoder = found.encoder.eval().requires_grad_(False)
    return LoadedEncoder(
        encoder,
        name,
        found.role,
        found.matched,
        len(encoder.state_dict()),
        encoder.grid[0] * encoder.patch_size,
        found.mean,
        found.std,
        found.layout,
        found.place,
        found.usual_heads,
        found.assumed,
        path,
        found.left,
        found.note,
    )


def _ours(
    header: Mapping[str, Any], stored: dict[str, Tensor], name: str, key: str, path: Path
) -> LoadedEncoder:
    """One of the encoders that a safetensors file of ours holds."""
    teacher = key == "teacher"
    loaded = _build(header, _only(stored, "teacher.", teacher), name, key)
    left = tuple(_only(stored, "teacher.", not teacher))
    return replace(loaded, file=path, left=left)


def _only(tensors: dict[str, Tensor], prefix: str, inside: bool) -> dict[str, Tensor]:
    if inside:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return {k: v for k, v in tensors.items() if not k.startswith(prefix)}


class EncoderHeader(Stored):
    """What is written beside the tensors of an encoder of ours, all of it text."""

    model_config = ConfigDict(strict=False)  # numbers are written as text

    format: Literal["ser-encoder"]
    model: Json[Model]
    image_size: Annotated[int, Field(ge=1, le=_LARGEST_IMAGE)]
    cls_after: Annotated[int, Field(ge=0)]
    positions: PosResize = "bicubic"  # earlier ones do not say it
    mean: Json[Colour]
    std: Json[Colour]


def _build(
    metadata: Mapping[str, Any], tensors: dict[str, Tensor], name: str, key: str
) -> LoadedEncoder:
    header = require(EncoderHeader, metadata, f"{name}: its header")
    if not tensors:
        raise UserError(f"{name} holds no {key}", "", "ask for the other, or another file")
    size, model = header.image_size, header.model
    if size_of(model).depth > len(tensors):  # before so many blocks are made
        raise UserError(f"{name}: {size_of(model).depth} blocks, {len(tensors)} tensors", "")
    with torch.device("meta"):  # without memory, as the header may say anything
        expected = _shapes(model, size, header.cls_after, name)
    wrong = [k for k in expected if k not in tensors or tensors[k].shape != expected[k]]
    wrong += [k for k in tensors if k not in expected]
    if wrong:
        raise UserError(
            f"{name}: {max(0, len(expected) - len(wrong))} of {len(expected)} tensors match "
            f"({shown(wrong[0])} does not)",
            "all must",
        )
    require_finite(tensors, name)
    encoder = Encoder.from_model(model, image_size=size, cls_after=header.cls_after)
    encoder.pos_resize = header.positions
    encoder.load_state_dict(tensors)
    encoder.eval().requires_grad_(False)
    count = len(expected)
    return LoadedEncoder(encoder, name, key, count, count, size, header.mean, header.std)


def _shapes(model: Model, image_size: int, cls_after: int, name: str) -> dict[str, torch.Size]:
    """Those of the tensors of an encoder."""
    try:
        encoder = Encoder.from_model(model, image_size=image_size, cls_after=cls_after)
    except (RuntimeError, ValueError, OverflowError) as error:  # sizes beyond those of a tensor
        raise UserError(
            f"{name}: no encoder of {image_size} pixels can be built as its header says", _REWRITE
        ) from error
    return {key: value.shape for key, value in encoder.state_dict().items()}


def encoder_sha256(encoder: Encoder) -> str:
    """The SHA-256 over names and bytes of all parameters and buffers, in hex.

    What no tensor shows is hashed too: attention heads, the block after which [CLS] joins, how
    positions are resampled, and `hidden_settings` (usual ones not, as hashes from before there were
    others hold).
    """
    resized = "" if encoder.pos_resize == "bicubic" else f"{encoder.pos_resize} "
    hidden = "".join(f"{name}={value} " for name, value in hidden_settings(encoder).items())
    digest = hashlib.sha256(f"{heads_of(encoder)} {encoder.cls_after} {resized}{hidden}".encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _read_timm(name: str, *, random_init: bool) -> LoadedEncoder:
    vit = create_timm(name, random_init=random_init, num_classes=0)
    note = ""
    if isinstance(vit, SerVit):
        encoder = vit.encoder().eval().requires_grad_(False)
    else:
        note = ATTENTION_POOL if pools_by_attention(vit) else ""
        encoder = Encoder.from_timm(vit).eval().requires_grad_(False)
        encoder.pos_resize = stated_positions(name) or encoder.pos_resize
    config = vit.pretrained_cfg or {}
    count = len(encoder.state_dict())
    size = encoder.grid[0] * encoder.patch_size
    mean, std = config.get("mean", IMAGENET_MEAN), config.get("std", IMAGENET_STD)
    key = "random" if random_init else "timm"
    return LoadedEncoder(
        encoder, name, key, count, count, size, tuple(mean), tuple(std), layout="timm",
        file=local_file(name), note=note,
    )  # fmt: skip


# -- Writing --------------------------------------------------------------------------------------


def encoder_metadata(
    model: Model,
    encoder: Encoder,
    *,
    step: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> dict[str, str]:
    """The header of our files: enough to build the encoder again.

    Args:
        model: Of the recipe; what it began from is left out, as the file has its own weights.
        encoder: What is written.
        step: After which.
        mean, std: What its images were normalised by.
    """
    began = dict.fromkeys(("weights", "weights_sha256", "weights_as"))
    return {
        "format": _FORMAT,
        "model": model.model_copy(update=began).model_dump_json(),
        "image_size": str(encoder.grid[0] * encoder.patch_size),
        "cls_after": str(encoder.cls_after or 0),
        "positions": encoder.pos_resize,
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "step": str(step),
    }


def write_encoder(
    path: Path, metadata: dict[str, str], *, student: Encoder, teacher: Encoder | None
) -> None:
    """Write encoder.safetensors: the student under plain names, a teacher under `teacher.`."""
    tensors = dict(student.state_dict())
    if teacher is not None:
        tensors |= {f"teacher.{k}": v for k, v in teacher.state_dict().items()}
    data = safetensors_bytes(tensors, metadata)
    write_atomic(path, lambda file: file.write(data))
