"""Arrow files as `datasets.load_from_disk` reads them: `image` of struct{bytes, path}, `label`.

A stream of record batches without compression, so that an image can be read where it lies.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sercli.runs.files import write_json

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS, _BYTES = 100, 64 * 2**20  # of a batch, at most; a larger image is alone in one


def features_of(classes: Sequence[str]) -> dict[str, Any]:
    """The columns, as Hugging Face's metadata call them."""
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if classes:
        features["label"] = {"names": list(classes), "_type": "ClassLabel"}
    return features


def _schema(classes: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    fields = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
    if classes:
        fields.append(("label", pa.int64()))
    told = json.dumps({"info": {"features": features_of(classes)}})
    return pa.schema(fields, {"huggingface": told})


class ArrowShard:
    """Writes rows one after another, a batch at a time.

    Args:
        file: Where to.
        classes: Names; none: there are no labels.
    """

    def __init__(self, file: io.RawIOBase, classes: Sequence[str]) -> None:
        from pyarrow import ipc

        self._schema = _schema(classes)
        self._stream = ipc.new_stream(file, self._schema)
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, name: str, data: bytes, label: int | None) -> None:
        """An image, called `name` within the set, and the index of its class."""
        if self._rows and self._bytes + len(data) > _BYTES:
            self._flush()
        path = name.encode("utf-8", "backslashreplace").decode()
        row: dict[str, Any] = {"image": {"bytes": data, "path": path}}
        self._rows.append(row if label is None else row | {"label": label})
        self._bytes += len(data)
        if len(self._rows) >= _ROWS:
            self._flush()

    def close(self) -> None:
        """The end of the stream."""
        self._flush()
        self._stream.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._stream.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
        self._rows, self._bytes = [], 0


def write_state(
    folder: Path, split: str, shards: Sequence[str], classes: Sequence[str], *, digest: str
) -> None:
    """What `load_from_disk` wants to know of a split.

    Raises:
        UserError, RunFailed: It cannot be written.
    """
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in shards],
        "_fingerprint": digest[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    info = {"citation": "", "description": "", "homepage": "", "license": ""}
    write_json(folder / "dataset_info.json", info | {"features": features_of(classes)})
    write_json(folder / "state.json", state)


def write_splits(out: Path, splits: Sequence[str]) -> None:
    """Which splits there are; written last, as it makes the folder one that can be loaded.

    Raises:
        UserError, RunFailed: It cannot be written.
    """
    write_json(out / "dataset_dict.json", {"splits": [*splits]})
