"""Which columns of a table are the images, their names and their labels, as Hugging Face has them.

An image is a struct of `bytes` and `path`, or plain bytes. Metadata of a schema, under the key
`huggingface`, say which column is an image, which a class label, and how the classes are called.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sercli.data.robustness.imagenet_classes import wnids_of_names
from sercli.errors import UserError
from sercli.runs.reading import LARGEST_JSON, shown

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "pixel_values")
_LABELS = ("label", "labels", "fine_label", "cls", "class", "target")
_METADATA = b"huggingface"


@dataclass(frozen=True)
class Columns:
    """Which columns are what.

    Attributes:
        image: Name of the images' column.
        in_struct: Whether its bytes are a field of a struct.
        has_path: Whether that struct has names as well.
        label: Name of the labels' column; None: there is none.
        as_text: Whether labels are names of classes; otherwise they are numbers.
        names: What the classes are called that labels count; None: nothing says so.
        unread: A column that is called as labels are, and its type, which is none of theirs; "".
    """

    image: str
    in_struct: bool
    has_path: bool
    label: str | None
    as_text: bool
    names: tuple[str, ...] | None
    unread: str = ""

    @property
    def bytes_column(self) -> str:
        """The column of bytes, as parquet calls it."""
        return f"{self.image}.bytes" if self.in_struct else self.image

    @property
    def small(self) -> list[str]:
        """The columns that are read for a list of the images: all but their bytes."""
        path = [f"{self.image}.path"] if self.has_path else []
        return path + ([] if self.label is None else [self.label])

    def said(self) -> str:
        """What must be the same in all files of a set, in words."""
        label = "no label" if self.label is None else f"the label {shown(self.label)}"
        if self.names is not None:
            label += f" of {len(self.names):,} classes"
        return f"images in {shown(self.image)}, {label}"


def require_pyarrow(path: str, what: str) -> None:
    """Refuse a set of tables where nothing can read it.

    Raises:
        UserError: pyarrow is not installed.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            f"{path} is {what}",
            "reading it needs pyarrow, which is not installed",
            "pip install 'sercli[parquet]'",
        )


def find_columns(schema: pa.Schema, file: str) -> Columns:
    """Which columns are what.

    Args:
        schema: Of the file.
        file: Its name in messages.

    Raises:
        UserError: None holds images.
    """
    features = _features(schema)
    told = [name for name, one in features.items() if one.get("_type") == "Image"]
    some = [*told, *_IMAGES, *(name for name in schema.names if _is_struct(schema, name))]
    rest = [name for name in schema.names if _is_bytes(schema.field(name).type)]
    able = [name for name in [*some, *(rest if len(rest) == 1 else [])] if _has(schema, name)]
    if not able:
        listed = ", ".join(map(shown, schema.names[:8])) or "none"
        more = f" and {len(schema.names) - 8} more" if len(schema.names) > 8 else ""
        raise UserError(
            f"{file} has no column of images (its columns: {listed}{more})",
            "images are a column `image` of struct{bytes, path}, or of bytes",
        )
    image = able[0]
    kind = schema.field(image).type
    struct = not _is_bytes(kind)
    path = struct and kind.get_field_index("path") >= 0 and _is_text(kind.field("path").type)
    label, unread = _label(schema, features)
    as_text = label is not None and _is_text(schema.field(label).type)
    names = None if label is None or as_text else _class_names(features.get(label, {}))
    return Columns(image, struct, path, label, as_text, names, unread)


def _label(schema: pa.Schema, features: dict[str, dict[str, Any]]) -> tuple[str | None, str]:
    """The labels' column, or a column that is called so and has another type than theirs."""
    told = [name for name, one in features.items() if one.get("_type") == "ClassLabel"]
    usual = [name for name in _LABELS if name in told]
    unread = ""
    for name in [*usual, *told, *_LABELS]:
        if schema.get_field_index(name) >= 0:
            kind = schema.field(name).type
            if _is_text(kind) or _is_whole(kind):
                return name, ""
            unread = unread or f"{shown(name)} of {kind}"
    return None, unread


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What the metadata say of each column; nothing where Hugging Face did not write them."""
    text = (schema.metadata or {}).get(_METADATA, b"")
    if not text or len(text) > LARGEST_JSON:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
        return {str(name): one for name, one in features.items() if isinstance(one, dict)}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return {}


def _class_names(feature: dict[str, Any]) -> tuple[str, ...] | None:
    """Names of classes, ImageNet's 1000 as their wnids: by these everything else knows them."""
    names = feature.get("names")
    if not isinstance(names, list) or not names or not all(isinstance(one, str) for one in names):
        return None
    return wnids_of_names(names) or tuple(names)


# -- Types -----------------------------------------------------------------------------------------


def _has(schema: pa.Schema, name: str) -> bool:
    if schema.get_field_index(name) < 0:  # -1 also for a name that stands twice
        return False
    return _is_bytes(schema.field(name).type) or _is_struct(schema, name)


def _is_struct(schema: pa.Schema, name: str) -> bool:
    """Whether a column is a struct with bytes."""
    from pyarrow import types

    if schema.get_field_index(name) < 0 or not types.is_struct(schema.field(name).type):
        return False
    kind = schema.field(name).type
    return kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type)


def _is_bytes(kind: pa.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _is_whole(kind: pa.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_integer(kind))
