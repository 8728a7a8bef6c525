"""Arrays beside a result (.npz), looked at before memory is set aside for them."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sercli.errors import UserError, from_os_error
from sercli.runs.reading import MIB, open_regular, require_regular, shown

LARGEST = 128 * MIB  # of one array, unpacked: ids, labels and predictions of a million images
_HEADER = 16_384
_BLOCK = 65_536
_REMEDY = "repeat the evaluation, or remove the file"


def read_arrays(
    path: Path, names: Sequence[str], *, sha256: str | None
) -> dict[str, NDArray[Any]] | None:
    """Some arrays of an .npz file.

    Args:
        path: The file.
        names: Of the arrays that are wanted.
        sha256: What the file's must be; None: it is not known.

    Returns:
        The arrays by name; None where the file does not have all of them.

    Raises:
        UserError: The file is not what was written, or no archive of plain arrays, or one of the
            arrays is larger than those of an evaluation are.
    """
    require_regular(path)
    try:
        with open_regular(path) as file:
            # Opened once, for its hash and for what is in it.
            if sha256 is not None and _sha256(file) != sha256:
                raise UserError(
                    f"{path} is damaged: it is not what was written",
                    "its SHA-256 must be predictions_sha256 of the result beside it",
                    _REMEDY,
                )
            archive = zipfile.ZipFile(file)
            inside = {info.filename: info for info in archive.infolist()}
            if not {f"{name}.npy" for name in names} <= set(inside):
                return None
            return {name: _array(archive, inside[f"{name}.npy"]) for name in names}
    except UserError:
        raise
    except OSError as error:
        raise from_os_error(error, f"cannot read {path}") from error
    except Exception as error:  # zipfile, zlib and NumPy's header raise a dozen kinds
        raise UserError(
            f"{path} cannot be read as predictions ({type(error).__name__}: {str(error)[:160]})",
            "it is written beside the result",
            _REMEDY,
        ) from error


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()  # `file_digest` makes a buffer of 256 KiB for each file
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    """One member, if its header and its size agree."""
    if info.file_size > LARGEST:
        raise ValueError(f"{info.filename} is {info.file_size} bytes, at most {LARGEST} are read")
    with archive.open(info) as file:
        stored = file.read(LARGEST + 1)
    inside = io.BytesIO(stored)
    shape, dtype = read_header(inside)
    if dtype.hasobject or dtype.kind not in "biufSU":
        raise ValueError(f"{info.filename} holds {shown(str(dtype))}, not numbers or text")
    data = memoryview(stored)[inside.tell() :]
    count = math.prod(shape)
    if count * dtype.itemsize != len(data):
        raise ValueError(f"{info.filename} does not hold {shown(shape)} values")
    if not dtype.itemsize:
        return np.zeros(shape if count <= len(data) else 0, dtype)
    return np.frombuffer(data, dtype).reshape(shape)


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array in NumPy's format; the file is left where its values begin.

    Raises:
        ValueError: It is of another form, or in Fortran's order, which ser does not write; NumPy
            raises a few others of what is no header at all.
    """
    version = np.lib.format.read_magic(file)
    length = int.from_bytes(file.read(2 if version[0] == 1 else 4), "little")
    if length > _HEADER:
        raise ValueError(f"a header of {length} bytes")
    size = (2 if version[0] == 1 else 4, length)
    return _read_header(version, size[1].to_bytes(size[0], "little") + file.read(length))


@lru_cache(maxsize=1000)
def _read_header(version: tuple[int, int], text: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Of its bytes: a thousand runs have the same few, and NumPy compiles each as Python."""
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"version {version} of NumPy's format")
    shape, fortran, dtype = read[version](io.BytesIO(text))
    if fortran or any(side < 0 for side in shape):
        raise ValueError("an array of another order or of no size")
    return shape, dtype
