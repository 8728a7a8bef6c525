"""A result: what was measured, by which rule, of what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from sercli.errors import UserError
from sercli.runs.files import json_object
from sercli.runs.layout import METRICS, laid_out
from sercli.runs.reading import LARGEST_JSON, parse_json, read_bytes, shown

SCHEMA = 1
_REPEAT = "repeat the evaluation, or remove the file"
_CONTENT = "content_sha256"


def now() -> str:
    """The time as in every file of a run directory: UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def protocol_id(protocol: Mapping[str, Any]) -> str:
    """The first 12 hex digits of the SHA-256 of a protocol's canonical JSON."""
    return _id_of(json.dumps(protocol, allow_nan=False))


@lru_cache(maxsize=1000)
def _id_of(stored: str) -> str:
    """Of a protocol as JSON has it, whose keys are text; a thousand runs have the same few."""
    return _sha256(_canonical(json.loads(stored)))[:12]


def content_sha256(value: Mapping[str, Any]) -> str:
    """The SHA-256 of a result's canonical JSON without `content_sha256` itself, in hex."""
    return _sha256(_canonical(_without_hash(value)))


def _is_what_was_written(value: Mapping[str, Any], numbers: str) -> bool:
    """Whether a result has its own `content_sha256`, if it says one.

    Args:
        value: What its file says.
        numbers: The inside of its metrics as canonical JSON, as far as its file's lines tell
            (`laid_out`). Where that gives the hash, it is of canonical JSON that says the same;
            where not (another layout, damage), the values decide.
    """
    told = value.get(_CONTENT)
    return (
        told is None
        or (numbers and told == _sha256(_with_numbers(value, numbers)))
        or told == content_sha256(value)
    )


def _with_numbers(value: Mapping[str, Any], numbers: str) -> str:
    """Canonical JSON of a result, its numbers as they are given."""
    empty = f'"{METRICS}":{{}}'
    rest = _canonical({**_without_hash(value), METRICS: {}})
    return rest.replace(empty, f"{empty[:-1]}{numbers}}}")


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """What a result's file says, and its numbers as canonical JSON, if its lines tell them.

    Raises:
        UserError: It cannot be read, or is no JSON object.
    """
    data = read_bytes(path, limit=LARGEST_JSON)
    try:
        laid = laid_out(data.decode())
        rest = None if laid is None else parse_json(laid.rest, str(path))
    except (UserError, UnicodeDecodeError):  # said of the whole
        laid = rest = None
    if laid is None or not isinstance(rest, dict) or rest.get(METRICS) != {}:
        return json_object(data, str(path)), ""
    return {**rest, METRICS: laid.metrics}, laid.canonical


def _without_hash(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: inner for key, inner in value.items() if key != _CONTENT}


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Result:
    """One measured result, as stored in `results/`.

    Attributes:
        protocol: name, variant (or None), version and settings: the *rule*, all of it hashed.
        model: source, key, matched, expected (tensors), and what else names the weights.
        data: path, n (images scored), partial.
        metrics: flat names; accuracies in percent, scores in 0…1, undefined values None.
        predictions_sha256: Of the arrays beside it, if there are any and they are on disk.
        command: What was typed for it; empty where that is not known.
    """

    protocol: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, float | None]
    created: str = field(default_factory=now)
    predictions_sha256: str | None = None
    command: tuple[str, ...] = ()

    @cached_property
    def protocol_id(self) -> str:
        return protocol_id(self.protocol)

    @property
    def name(self) -> str:
        """`<protocol>` or `<protocol>--<variant>`: the stem of the result's file."""
        variant = self.protocol.get("variant")
        return f"{self.protocol['name']}--{variant}" if variant else str(self.protocol["name"])

    def to_json(self) -> dict[str, Any]:
        value = {
            "schema": SCHEMA,
            "protocol": self.protocol,
            "protocol_id": self.protocol_id,
            "model": self.model,
            "data": self.data,
            "metrics": self.metrics,
            "created": self.created,
        }
        if self.predictions_sha256 is not None:
            value["predictions_sha256"] = self.predictions_sha256
        if self.command:
            value["command"] = list(self.command)
        as_stored = json.loads(json.dumps(value, allow_nan=False))  # keys are text there
        return {**value, _CONTENT: content_sha256(as_stored)}

    @classmethod
    def of_run(cls, path: Path) -> Result:
        """Read a result of a run directory, whose file is called as it is.

        Of two files with one result, such as a copy that someone kept, only one could be shown.

        Raises:
            UserError: It is called otherwise, or as `from_file`.
        """
        result = cls.from_file(path)
        if result.name != path.stem:
            raise UserError(
                f"{path} holds the result {result.name}",
                "a result's file has its name",
                f"remove it, move it elsewhere, or make it {result.name}.json",
            )
        return result

    @classmethod
    def from_file(cls, path: Path) -> Result:
        """Read a result.

        Raises:
            UserError: It cannot be read, is of another schema, lacks something or has it of another
                type, or is not what was written.
        """
        from sercli.runs.stored import ResultFile, require  # pydantic takes a while to import

        value, numbers = _read(path)
        if value.get("schema") != SCHEMA:
            raise UserError(
                f"{path} has schema {shown(value.get('schema'))}",
                f"this version of ser reads schema {SCHEMA}",
                _REPEAT,
            )
        # Numbers of lines of ours have been looked at.
        plain = {**value, METRICS: {}} if numbers else value
        typed = require(ResultFile, plain, str(path), _REPEAT)
        result = cls(
            **{key: value[key] for key in ("protocol", "model", "data", "metrics", "created")},
            predictions_sha256=typed.predictions_sha256,
            command=tuple(typed.command),
        )
        if typed.protocol_id != result.protocol_id:
            raise UserError(
                f"{path} says protocol_id {shown(typed.protocol_id)} but its protocol hashes to "
                f"{result.protocol_id}",
                "a result's protocol must not be edited",
                _REPEAT,
            )
        if not _is_what_was_written(value, numbers):
            raise UserError(
                f"{path} is not what was written: its content_sha256 is another",
                "a result is not edited by hand",
                _REPEAT,
            )
        return result
