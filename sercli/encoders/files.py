"""Tensors in files: safetensors whose bytes follow from their content, and torch's, read safely.

Files of torch are read with `weights_only=True`: tensors, plain values and the harmless records
that public training scripts store beside them; no code of a file is ever run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sercli.errors import UserError, from_os_error
from sercli.runs.reading import MIB, require_regular, shown

_HASH, _HEADER_HASH = "tensors_sha256", "header_sha256"
_LARGEST_HEADER = 8 * MIB  # of a ViT with 40 blocks and its teacher: 0.1 MiB
_MOST_TENSORS = 50_000
_EXPANDED = 64 * MIB
_TIMES = 16

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
    sorted, and has the SHA-256 of the tensors and its own, by which `read_safetensors` tells a
    damaged file.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = signed(plain, metadata)
    data = memoryview(safetensors.torch.save(plain, metadata))
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8:end]))
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8, as the library has it
    return b"".join([len(text).to_bytes(8, "little"), text, data[end:]])


def signed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata with the hashes of the tensors and of itself."""
    whole = {**metadata, _HASH: sha256_of(tensors)}
    return {**whole, _HEADER_HASH: _header_sha256(whole)}


def _header_sha256(metadata: Mapping[str, str]) -> str:
    rest = sorted((key, value) for key, value in metadata.items() if key != _HEADER_HASH)
    return hashlib.sha256(json.dumps(rest).encode()).hexdigest()


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a safetensors file.

    Raises:
        UserError: Unreadable, or it is not what `safetensors_bytes` was given.
    """
    _require_small_header(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) > _MOST_TENSORS:
                raise safetensors.SafetensorError(f"{len(names)} tensors")
            header: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
    except OSError as error:
        raise from_os_error(error, f"cannot read {path}") from error
    except Exception as error:  # of the library, which meets types that torch lacks, too
        raise UserError(
            f"{path} is no safetensors file that can be read ({str(error)[:200]})"
        ) from error
    told = header.pop(_HEADER_HASH, None)
    if told not in (None, _header_sha256(header)):
        raise _damaged(path, "header is not what was", _HEADER_HASH)
    if _HASH in header and header.pop(_HASH) != sha256_of(tensors):
        require_finite(tensors, str(path))
        raise _damaged(path, "tensors are not those that were", _HASH)
    return header, tensors


def header_of(path: Path) -> dict[str, str]:
    """The header alone; empty for a file that has none that can be read."""
    try:
        _require_small_header(path)
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (UserError, OSError, safetensors.SafetensorError):
        return {}


def _damaged(path: Path, what: str, key: str) -> UserError:
    return UserError(
        f"{path} is damaged: its {what} written",
        f"the SHA-256 must be that of the header, {key}",
        "take a copy, or write it anew (of a run: from its checkpoints)",
    )


def _require_small_header(path: Path) -> None:
    """Refuse a header that would take longer to read than any model's tensors."""
    require_regular(path)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
    except OSError as error:
        raise from_os_error(error, f"cannot read {path}") from error
    if length > min(_LARGEST_HEADER, max(0, size - 8)):
        raise UserError(
            f"{path} is no safetensors file that can be read (a header of {length} bytes in a "
            f"file of {size})"
        )


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


def is_plain(value: object) -> bool:
    """Whether a value is a tensor of real numbers, each in memory: none sparse or quantised."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_complex() or value.is_nested)
    )


def load_torch_file(path: Path) -> dict[str, Any]:
    """Read a `.pt`/`.pth` mapping with `weights_only=True`: no code of the file's is run.

    Raises:
        UserError: Unreadable, damaged, not a mapping, it needs more than tensors, or its tensors
            are larger than the file.
    """
    require_regular(path)
    records = _whole_records(path)
    allowed: list[Any] = [argparse.Namespace, *((_Record, name) for name in _RECORDS)]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle's version: what is read is read
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except OSError as error:
        raise from_os_error(error, f"cannot read {path}") from error
    except Exception as error:
        if needed := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} is not only tensors: reading all of it would run {needed[1][:160]}",
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
    _require_in_file(path, state, records)
    return state


def _whole_records(path: Path) -> Counter[int] | None:
    """How large the records of an archive of torch.save are; None for the format before it.

    torch reads past the checksums that it wrote. A file whose every checksum is wrong was written
    without them (`torch.serialization.set_crc32_options(False)`); one with some is damaged.

    Raises:
        UserError: Damaged, or larger unpacked than it is.
    """
    sizes: Counter[int] = Counter()
    wrong, right = [], 0
    try:
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > 2 * path.stat().st_size + MIB:
                raise zipfile.BadZipFile("it is larger unpacked than it is")
            for member in members:
                sizes[member.file_size] += 1
                try:
                    with archive.open(member) as file:
                        while file.read(MIB):
                            pass
                    right += bool(member.file_size)
                except zipfile.BadZipFile:
                    wrong.append(member.filename)
    except OSError as error:
        raise from_os_error(error, f"cannot read {path}") from error
    except Exception as error:  # zipfile and zlib raise a dozen kinds
        raise UserError(
            f"{path} is no checkpoint that can be read ({str(error)[:160]})",
            "a file written by torch.save is needed",
        ) from error
    if wrong and right:
        raise UserError(
            f"{path} is damaged: {len(wrong)} of {len(wrong) + right} of its records are not what "
            f"was written ({shown(wrong[0])})",
            "their checksums must be those of the archive",
            "take an earlier checkpoint, or a copy",
        )
    return sizes


def _require_in_file(path: Path, state: object, records: Counter[int] | None) -> None:
    """Refuse tensors that claim memory which the file does not hold, before it is touched.

    A few bytes can describe a storage of any size, a view that repeats one number a million million
    times, or one tensor under a thousand names.
    """
    limit = path.stat().st_size
    tensors = list(_tensors_in(state))
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}
    sizes = Counter(tensor.untyped_storage().nbytes() for tensor in storages.values())
    stored = sum(size * count for size, count in sizes.items())
    claimed = [tensor.numel() * tensor.element_size() for tensor in tensors]
    repeated = any(
        bytes_ > _EXPANDED and bytes_ > tensor.untyped_storage().nbytes()
        for bytes_, tensor in zip(claimed, tensors, strict=True)
    )
    absent = records is not None and any(size and not records[size] for size in sizes)
    if stored > limit or absent or repeated or sum(claimed) > _TIMES * limit + _EXPANDED:
        raise UserError(
            f"{path} describes {sum(claimed)} bytes of tensors in a file of {limit}",
            "tensors must lie in the file",
        )


def _tensors_in(state: object) -> Iterator[Tensor]:
    """All that are plain, however deep; a container that stands in several places once."""
    seen: set[int] = set()
    left = [state]
    while left:
        value = left.pop()
        if is_plain(value):
            assert isinstance(value, Tensor)
            yield value
            continue
        inner = vars(value) if isinstance(value, argparse.Namespace) else value
        if isinstance(inner, dict | list | tuple | set) and id(inner) not in seen:
            seen.add(id(inner))
            left += inner.values() if isinstance(inner, dict) else inner
