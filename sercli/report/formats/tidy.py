"""The tidy frame as a file: all that runs measured, a line a number."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from sercli.errors import UserError
from sercli.report.formats.machine import no_formula
from sercli.visible import visible

if TYPE_CHECKING:
    import pandas as pd


def tidy_csv(frame: pd.DataFrame) -> str:
    """RFC 4180, numbers at full precision; what a row lacks is empty, and so is an undefined value.

    Texts are in one line, and none is a formula of a spreadsheet.
    """
    return _shown(frame, no_formula).to_csv(index=False, lineterminator="\r\n")


def parquet(frame: pd.DataFrame) -> bytes:
    """Apache Parquet, with the frame's dtypes.

    Raises:
        UserError: pyarrow is not installed.
    """
    try:
        import pyarrow  # noqa: F401  # what pandas says without it are three sentences
    except ImportError as error:
        raise UserError(
            "--format parquet",
            "it needs pyarrow, which is not installed",
            'pip install "sercli[parquet]", or take --format tidy-csv',
        ) from error
    stream = io.BytesIO()
    _shown(frame, str).to_parquet(stream, engine="pyarrow", index=False)
    return stream.getvalue()


def _shown(frame: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """The frame with texts as they may leave: no control characters, and valid Unicode."""
    texts = [name for name, dtype in frame.dtypes.items() if str(dtype) == "string"]
    return frame.assign(
        **{
            str(name): frame[name].map(
                {text: change(visible(text)) for text in frame[name].dropna().unique()}
            )
            for name in texts
        }
    ).astype(dict.fromkeys(texts, frame.dtypes["run"]))
