"""A result: what was measured, by which rule, of what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sercli.errors import UserError
from sercli.runs.files import read_json

SCHEMA = 1


def now() -> str:
    """The time as in every file of a run directory: UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def protocol_id(protocol: Mapping[str, Any]) -> str:
    """The first 12 hex digits of the SHA-256 of a protocol's canonical JSON."""
    as_stored = json.loads(json.dumps(protocol, allow_nan=False))  # keys are text there
    canonical = json.dumps(as_stored, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Result:
    """One measured result, as stored in `results/`.

    Attributes:
        protocol: name, variant (or None), version and settings: the *rule*, all of it hashed.
        model: source, key, matched, expected (tensors), and what else names the weights.
        data: path, n (images scored), partial.
        metrics: flat names; accuracies in percent, scores in 0…1, undefined values None.
    """

    protocol: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, float | None]
    created: str = field(default_factory=now)

    @property
    def protocol_id(self) -> str:
        return protocol_id(self.protocol)

    @property
    def name(self) -> str:
        """`<protocol>` or `<protocol>--<variant>`: the stem of the result's file."""
        variant = self.protocol.get("variant")
        return f"{self.protocol['name']}--{variant}" if variant else str(self.protocol["name"])

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "protocol": self.protocol,
            "protocol_id": self.protocol_id,
            "model": self.model,
            "data": self.data,
            "metrics": self.metrics,
            "created": self.created,
        }

    @classmethod
    def from_file(cls, path: Path) -> Result:
        value = read_json(path)
        if value.get("schema") != SCHEMA:
            raise UserError(
                f"{path} has schema {value.get('schema')!r}",
                f"this version of ser reads schema {SCHEMA}",
                "repeat the evaluation",
            )
        try:
            result = cls(
                **{key: value[key] for key in ("protocol", "model", "data", "metrics", "created")}
            )
            stored, computed = value["protocol_id"], result.protocol_id
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is no result of ser (lacks {error})") from error
        if stored != computed:
            raise UserError(
                f"{path} says protocol_id {stored} but its protocol hashes to {computed}",
                "a result's protocol must not be edited",
                "repeat the evaluation",
            )
        return result
