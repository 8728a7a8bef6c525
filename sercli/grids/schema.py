"""A grid of runs as a YAML file says it: strict keys, plain values, nothing that is run by reading.

Commands stand in it as a person types them, without `ser` and without what every run has of its
own: its directory, its seed. `{out}`, `{seed}`, the names of what is prepared, and `{data}`,
`{coco}`, `{robustness/FOLDER}` of the command line stand for paths.
"""

from __future__ import annotations

import re
import shlex
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}", re.ASCII)
_METRIC = re.compile(r"[A-Za-z0-9][\w.+-]*/\S+", re.ASCII)


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("letters, digits and .+_- are needed, as it is part of a file's name")
    return text


def _command(text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"it is no command line ({error})") from error
    if not words:
        raise ValueError("a command is needed")
    return text


def _metric(text: str) -> str:
    if not _METRIC.fullmatch(text):
        raise ValueError("it takes RESULT/METRIC, such as knn/top1")
    return text


def _unique(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError("one of them stands twice")
    return values


Name = Annotated[str, AfterValidator(_name)]
Command = Annotated[str, AfterValidator(_command)]
Metric = Annotated[str, AfterValidator(_metric)]
Names = Annotated[list[Name], AfterValidator(_unique)]
Seed = Annotated[int, Field(ge=0)]
Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_unique)]


class Part(BaseModel):
    """A mapping of a grid; other keys than its own are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Training(Part):
    """A row of the grid: a recipe, with each of its seeds.

    Attributes:
        recipe: Name under recipes/, or a YAML file.
        seeds: None: the grid's.
        set: Recipe keys, dotted or nested, over those of the grid.
        tables: Which tables it is for; none: all.
    """

    recipe: str
    seeds: Seeds | None = None
    set: dict[str, Any] = {}
    tables: Names = []

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"recipe": value} if isinstance(value, str) else value


class Called(Part):
    """What a command of `ser` makes; the command alone stands for it.

    Attributes:
        command: Its words.
    """

    command: Command

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"command": value} if isinstance(value, str) else value

    @property
    def words(self) -> list[str]:
        return shlex.split(self.command)


class Preparation(Called):
    """Files that evaluations read, made once for each seed that they are named with.

    Attributes:
        command: Of `ser`, which makes a new directory; that is its first argument.
    """


class Evaluation(Called):
    """What is measured of runs.

    Attributes:
        command: Of `ser`, an evaluator; the run is its MODEL.
        runs: Of which runs; None: all.
        results: Names of the results that it writes, where those are several.
        tables: Which tables it is for; none: all.
        encodes: Images that go through the encoder, for estimates: of `train` and `val` how often
            each, and `more`, a number of images.
    """

    runs: Names | None = None
    results: Names = []
    tables: Names = []
    encodes: dict[Literal["train", "val", "more"], Annotated[float, Field(ge=0)]] = {}


class Comparison(Part):
    """That a metric of one run is above, or below, that of another.

    Attributes:
        metric: RESULT/METRIC, as `ser compare --columns` has it.
        of: The run.
        above, below: The other; one of them.
    """

    metric: Metric
    of: Name
    above: Name | None = None
    below: Name | None = None

    @model_validator(mode="after")
    def _one(self) -> Comparison:
        if (self.above is None) == (self.below is None):
            raise ValueError("either `above:` or `below:` is needed")
        if self.of == self.other:
            raise ValueError("a run is not compared with itself")
        return self

    @property
    def other(self) -> str:
        return str(self.above or self.below)

    @property
    def sign(self) -> int:
        """+1: the run is said to be above the other; -1: below."""
        return 1 if self.above is not None else -1


class Claim(Part):
    """A statement that runs confirm or refute: all of its comparisons hold, or one does not.

    Attributes:
        text: The statement.
        comparisons: What must hold.
    """

    text: str
    comparisons: Annotated[list[Comparison], Field(min_length=1)]


class Grid(Part):
    """A grid of runs.

    Attributes:
        seeds: Of all runs that do not say theirs.
        set: Recipe keys of all runs.
        runs: By name; a run's directory is called NAME-seedN.
        prepare: What is made before evaluations, by name.
        evaluations: By name, in the order in which they are made of each run.
        tables: What `ser compare --table` is asked for at the end.
        claims: By name.
    """

    seeds: Seeds = [0]
    set: dict[str, Any] = {}
    runs: Annotated[dict[Name, Training], Field(min_length=1)]
    prepare: dict[Name, Preparation] = {}
    evaluations: dict[Name, Evaluation] = {}
    tables: Names = ["all"]
    claims: dict[Name, Claim] = {}

    def seeds_of(self, run: str) -> list[int]:
        """The seeds that a run is trained with."""
        own = self.runs[run].seeds
        return self.seeds if own is None else own

    def runs_of(self, evaluation: str) -> list[str]:
        """The runs that are evaluated."""
        own = self.evaluations[evaluation].runs
        return list(self.runs) if own is None else own

    @property
    def all_seeds(self) -> list[int]:
        """Every seed of some run, in the order in which they are met."""
        return list(dict.fromkeys(seed for run in self.runs for seed in self.seeds_of(run)))


PARTS: dict[str, type[Part]] = {
    "runs": Training,
    "prepare": Preparation,
    "evaluations": Evaluation,
    "claims": Claim,
}
