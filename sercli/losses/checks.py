"""What the matrices of a loss must be; ValueErrors, as these are a programmer's mistakes."""

from __future__ import annotations

from torch import Tensor

from sercli.visible import counted


def require_pair(one: Tensor, other: Tensor, one_name: str, other_name: str) -> None:
    """Two matrices of one shape, a row an image.

    Raises:
        ValueError: They are not.
    """
    if one.ndim != 2:
        raise ValueError(f"{one_name} {tuple(one.shape)}: must be a matrix, one row an image")
    if other.shape != one.shape:
        raise ValueError(
            f"{other_name} {tuple(other.shape)} does not fit {one_name} {tuple(one.shape)}: "
            "shapes must be equal"
        )


def require_contrast(
    rows: Tensor,
    gathered: Tensor,
    rows_name: str,
    gathered_name: str,
    offset: int,
    temperature: float,
) -> None:
    """Rows of this rank among the gathered ones, with others to contrast them with.

    Raises:
        ValueError: Shapes, offset or temperature do not fit, or there are no others.
    """
    if rows.ndim != 2 or gathered.ndim != 2 or rows.shape[1] != gathered.shape[1]:
        raise ValueError(
            f"{gathered_name} {tuple(gathered.shape)}: must be a matrix as wide as {rows_name} "
            f"{tuple(rows.shape)}"
        )
    if len(gathered) < 2:
        raise ValueError(
            f"{counted(len(gathered), 'row')} in {gathered_name}: no negatives, "
            "at least 2 are needed"
        )
    if not 0 <= offset <= len(gathered) - len(rows):
        raise ValueError(
            f"offset {offset}: {counted(len(rows), 'row')} of {rows_name} must lie among the "
            f"{len(gathered)} of {gathered_name}"
        )
    if not temperature > 0:  # nor NaN
        raise ValueError(f"temperature {temperature}: must be positive")
