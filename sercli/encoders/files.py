"""Tensors in files: safetensors whose bytes follow from their content, and torch's, read safely.

Files of torch are read with `weights_only=True`: tensors, plain values and the harmless records
that public training scripts store beside them; no code of a file is ever run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sercli.errors import UserError, from_os_error

_HASH = "tensors_sha256"

# -- Whether it is what was written ---------------------------------------------------------------


def require_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Refuse weights that are no finite numbers: whatever is computed with them means nothing.

    Args:
        tensors: The weights by name.
        name: What the user called the file, for messages.

    Raises:
        UserError: Some are not finite; it names the first.
    """
    bad = {
        key: count
        for key, value in tensors.items()
        if value.is_floating_point() and (count := int((~torch.isfinite(value)).sum()))
    }
    if bad:
        key, count = next(iter(bad.items()))
        raise UserError(
            f"{name}: {count} of {tensors[key].numel()} numbers of {key} are not finite "
            f"({len(bad)} of {len(tensors)} tensors hold such)",
            "weights must be finite",
            "its training diverged or the file is damaged: take an earlier checkpoint",
        )


def sha256_of(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 over names, types, shapes and bytes of tensors, in hex, whatever their order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        plain = tensor.detach().cpu().contiguous().view(-1)
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


# -- safetensors ----------------------------------------------------------------------------------


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file, whose bytes are a function of tensors and metadata alone.

    The library orders the metadata by a hash that differs from process to process; here it is
    sorted, and has the SHA-256 of the tensors, by which `read_safetensors` tells a damaged file.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {**metadata, _HASH: sha256_of(plain)}
    data = memoryview(safetensors.torch.save(plain, metadata))
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8:end]))
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8, as the library has it
    return b"".join([len(text).to_bytes(8, "little"), text, data[end:]])


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a safetensors file.

    Raises:
        UserError: Unreadable, or its tensors are not those that `safetensors_bytes` was given.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = list(file.keys())
            header: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
    except OSError as error:
        raise from_os_error(error, f"cannot read {path}") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is no safetensors file that can be read ({error})") from error
    if header.pop(_HASH, None) not in (None, sha256_of(tensors)):
        require_finite(tensors, str(path))
        raise UserError(
            f"{path} is damaged: its tensors are not those that were written",
            f"their SHA-256 must be that of the header, {_HASH}",
            "take a copy, or write it anew (of a run: from its checkpoints)",
        )
    return header, tensors


# -- torch's --------------------------------------------------------------------------------------


class _Record:
    """Stands in for a harmless object of another package; what it held is dropped."""

    def __new__(cls, *_arguments: Any) -> _Record:
        return super().__new__(cls)

    def __init__(self, *_arguments: Any) -> None:
        """Take anything, keep nothing."""

    def __setstate__(self, _state: Any) -> None:
        """Take anything, keep nothing."""


# What public training scripts store beside tensors, by the names under which it was pickled: the
# losses as NumPy arrays, paths and enumerations among the arguments, whole heads as modules (the
# SER authors'). An array of no numbers is pickled with a call of `bytes`. All become `_Record`:
# neither these packages, nor `bytes`, nor any code of a file is called.
_RECORDS = (
    *(
        f"numpy.{core}.multiarray.{f}"
        for core in ("core", "_core")
        for f in ("_reconstruct", "scalar")
    ),
    "numpy.ndarray",
    "numpy.dtype",
    "builtins.bytes",
    *(
        f"{module}.{kind}Path"
        for module in ("pathlib", "pathlib._local")
        for kind in ("Posix", "Windows")
    ),
    "torchvision.transforms.functional.InterpolationMode",
    *(f"torch.nn.modules.container.{kind}" for kind in ("Sequential", "ModuleList")),
    *(f"torch.nn.modules.linear.{kind}" for kind in ("Linear", "Identity")),
    *(f"torch.nn.modules.batchnorm.{kind}" for kind in ("BatchNorm1d", "SyncBatchNorm")),
    *(f"torch.nn.modules.activation.{kind}" for kind in ("ReLU", "GELU")),
)


def load_torch_file(path: Path) -> dict[str, Any]:
    """Read a `.pt`/`.pth` mapping with `weights_only=True`: no code of the file's is run.

    Raises:
        UserError: Unreadable, damaged, not a mapping, or it needs more than tensors.
    """
    allowed: list[Any] = [argparse.Namespace, *((_Record, name) for name in _RECORDS)]
    try:
        with torch.serialization.safe_globals(allowed):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except OSError as error:
        raise from_os_error(error, f"cannot read {path}") from error
    except Exception as error:
        if needed := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} is not only tensors: reading all of it would run {needed[1]}",
                "code of a file is never run",
                "`ser export --help` shows how to convert a file that you trust",
            ) from error
        # torch puts the reason after advice to run the file's code, which is not passed on.
        lines = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
        reason = lines[0].partition(". ")[0][:160] if lines else "unreadable"
        raise UserError(
            f"{path} is no checkpoint that can be read ({type(error).__name__}: {reason})",
            "a file written by torch.save with tensors and plain values only is needed",
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}", "a mapping of tensors is needed")
    return state
