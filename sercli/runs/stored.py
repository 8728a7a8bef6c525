"""Files of ours, typed: what run.json, a result and other stored mappings must hold.

Whatever reads one of them has it looked at here, so that a value of another type is a `UserError`
of one line and not a traceback where it is used. Keys that are not named here pass: a newer
version may have written them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, InstanceOf, ValidationError

from sercli.errors import UserError
from sercli.runs.reading import shown

_FILE_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,199}", re.ASCII)


class Stored(BaseModel):
    """Of a file of ours: types as they are written; a newer version's further keys pass."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)


# Text that may name a file: a byte that is no UTF-8 stands in it as half of a character, which
# pydantic's own str refuses.
Text = InstanceOf[str]

_M = TypeVar("_M", bound=BaseModel)


def require(model: type[_M], value: Mapping[str, Any], name: str, remedy: str = "") -> _M:
    """A mapping that was read, typed.

    Args:
        model: What it must be.
        value: What was read.
        name: What it is called, for messages.
        remedy: What to do about one that is not so.

    Raises:
        UserError: A key is missing or of another type; it names the first.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UserError(
            f"{name}: {first_problem(error)}", "a file written by ser is needed", remedy
        ) from (error)


def first_problem(error: ValidationError) -> str:
    """The first thing that a model of pydantic's finds wrong, in a few words."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    message = f"{message[:1].lower()}{message[1:200]}"
    if problem["type"] == "missing":
        return f"it has no {place[:100]}"
    return f"{place[:100]} is {shown(problem['input'])}: {message}"


# -- run.json -------------------------------------------------------------------------------------


def _word(text: str) -> str:
    if not 0 < len(text) <= 100:
        raise ValueError("a word is needed")
    return text


_Status = Annotated[int, Field(ge=0, le=255)]


class _Titles(Stored):
    method: Text | None = None
    addon: Text | None = None


class _Timings(Stored):
    train_seconds: float | None = None
    steps: float | None = None
    images_per_s: float | None = None
    data_wait: float | None = None


class _Parameters(Stored):
    trainable: float | None = None
    encoder: float | None = None


class _Memory(Stored):
    counted_gib: float | None = None
    peak_gib: float | None = None
    resident_gib: float | None = None


class _Flops(Stored):
    step: float | None = None
    step_none: float | None = None
    step_weight0: float | None = None
    ratio_none: float | None = None
    ratio_weight0: float | None = None


class RunRecord(Stored):
    """The keys of run.json that ser itself reads.

    Attributes:
        status: How the run stands.
        exit_status, error: Of the last attempt.
        recipe_name, seed: What was asked for.
        device: Where it ran.
        evaluates: The MODEL, in a directory that only collects results.
        titles: What tables call its method and add-on.
        timings, parameters, flops, memory: Numbers by name.
        recipe, recipe_sha256, data, world_size: What it was started with, for `--resume`.
        saved_step: Of the last checkpoint.
        milestones: Steps whose checkpoints stay.
        changed: Where it became another run.
    """

    status: Annotated[Text, AfterValidator(_word)]
    exit_status: _Status | None = None
    error: Text | None = None
    recipe_name: Text | None = None
    seed: int | None = None
    device: Text | None = None
    evaluates: Text | None = None
    titles: _Titles | None = None
    timings: _Timings | None = None
    parameters: _Parameters | None = None
    flops: _Flops | None = None
    memory: _Memory | None = None
    recipe: dict[str, Any] | None = None
    recipe_sha256: str | None = None
    data: dict[str, Any] | None = None
    world_size: Annotated[int, Field(ge=1)] | None = None
    saved_step: Annotated[int, Field(ge=0)] | None = None
    milestones: list[Annotated[int, Field(ge=0)]] | None = None
    changed: list[dict[str, Any]] | None = None


# -- A result -------------------------------------------------------------------------------------


def _file_name(text: str) -> str:
    if not _FILE_NAME.fullmatch(text):
        raise ValueError("letters, digits and .+_- are needed, as it is part of a file's name")
    return text


_Name = Annotated[str, AfterValidator(_file_name)]
_Count = Annotated[int, Field(ge=0)]
_SHA256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Protocol(Stored):
    name: _Name
    variant: _Name | None = None
    settings: dict[str, Any] = {}


class _Model(Stored):
    source: Text | None = None
    key: Text | None = None
    matched: _Count | None = None
    expected: _Count | None = None


class _Data(Stored):
    path: Text | None = None
    n: _Count | None = None
    partial: bool = False
    warnings: list[Text] = []
    notes: list[Text] = []


class ResultFile(Stored):
    """A file of results/: what a `Result` is made of, and the hashes by which damage is told."""

    protocol: _Protocol
    protocol_id: str
    model: _Model
    data: _Data
    metrics: dict[Text, float | None]
    created: Annotated[str, Field(pattern=r"^[A-Za-z0-9:+.-]{1,40}$")]  # of a file's name, too
    predictions_sha256: _SHA256 | None = None
    command: list[Text] = []
    content_sha256: _SHA256 | None = None
