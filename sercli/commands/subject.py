"""What every evaluation starts from: the model, its images, and the run directory for its results.

Protocols do not import this: a command resolves its subject, hands the encoder and the images to
the protocol, and saves what comes back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sercli.commands.images import Images, images_of
from sercli.encoders.asked import Hints
from sercli.errors import UserError
from sercli.runs.facts import facts_of, run_holding
from sercli.runs.files import file_sha256, write_atomic
from sercli.runs.places import require_place
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir

if TYPE_CHECKING:
    from sercli.encoders.loading import LoadedEncoder

_RESULTS_ROOT = Path("runs")


@dataclass(frozen=True)
class Asked:
    """A model as it was asked for: results of two that differ here never share a directory.

    Attributes:
        source: A run directory, a checkpoint file or `timm:NAME`.
        teacher: The momentum encoder instead of the student.
        random_init: Random weights for `timm:NAME`.
        hints: What a checkpoint file of another project does not say itself.
    """

    source: str
    teacher: bool = False
    random_init: bool = False
    hints: Hints = field(default_factory=Hints)

    @property
    def owner(self) -> str:
        """What a run directory that only collects results says it is for."""
        name = self.source if self.source.startswith("timm:") else str(Path(self.source))
        if self.random_init:
            return f"{name} with random weights"
        options = " ".join(f"{option} {value}".rstrip() for option, value in self._options())
        return f"{name} with {options}" if options else name

    def _options(self) -> Iterator[tuple[str, str]]:
        """The options that make it another model than its source alone."""
        if self.teacher:
            yield "--teacher", ""
        if self.random_init:
            yield "--random-init", ""
        for name, value in asdict(self.hints).items():
            if value is not None:
                yield f"--{name.replace('_', '-')}", str(value)

    def place(self) -> Path:
        """Where results go unless `--out` says it: the run directory itself, or one below `runs/`.

        One of before is taken where it was made for this very model: its name said less.
        """
        if Path(self.source).is_dir():
            return Path(self.source)
        suffixes = list(self._suffixes())
        own = _RESULTS_ROOT / "-".join([_short_name_of(self.source), *suffixes])
        if RunDir(own).run.is_file() and not self.has_made(RunDir(own)):
            own = _RESULTS_ROOT / "-".join([_name_of(self.source), *suffixes])
        earlier = RunDir(_RESULTS_ROOT / _short_name_of(self.source))
        if own.exists() or not earlier.run.is_file():
            return own
        return earlier.path if self.has_made(earlier) else own

    def has_made(self, run: RunDir) -> bool:
        """Whether the results in a directory that only collects some are of this very model."""
        owner = run.read_run().get("evaluates")
        if owner == self.owner:
            return True
        # Owners of before did not name options: there, what the results say of the model counts.
        said = {
            "key": "teacher" if self.teacher else None,
            "place": self.hints.key,
            "num_heads": self.hints.num_heads,
            "cls_after": self.hints.cls_after,
            "positions": self.hints.positions,
        }
        results = run.read_results()
        return (
            owner == replace(self, teacher=False, hints=Hints()).owner
            and bool(results)
            and all(
                result.model.get(name) == value
                for result in results
                for name, value in said.items()
                if value is not None
            )
        )

    def _suffixes(self) -> Iterator[str]:
        for option, value in self._options():
            yield re.sub(r"[^\w.+]+", "-", f"{option} {value}").strip("-")


def _name_of(source: str) -> str:
    """A directory's name for a model; that of a run's own file has the run's name in it."""
    run = run_holding(Path(source))
    short = _short_name_of(source)
    return short if run is None else f"{run.path.resolve().name}-{short}"


def _short_name_of(source: str) -> str:
    known = source.startswith("timm:") and not source.startswith("timm:local-dir:")
    return source.removeprefix("timm:") if known else Path(source).stem


@dataclass(frozen=True)
class Subject:
    """A model under evaluation.

    Attributes:
        asked: The model as it was asked for.
        loaded: The encoder and where its weights come from.
        images: What it is evaluated on; the evaluator opens the splits that it needs.
        out: The run directory that takes the results; it need not exist yet.
        tapped_layer: The block that the add-on taps, or None.
        command: The command line, recorded in a new run directory.
    """

    asked: Asked
    loaded: LoadedEncoder
    images: Images
    out: Path
    tapped_layer: int | None
    command: tuple[str, ...]

    def save(
        self,
        result: Result,
        arrays: Mapping[str, NDArray[Any]],
        *,
        beside: Callable[[RunDir], object] | None = None,
    ) -> RunDir:
        """Write a result and what belongs to it; the directory is made if there is none.

        See `save`.

        Returns:
            The run directory.
        """
        owner = self.asked.owner
        return save(self.out, result, arrays, owner=owner, command=self.command, beside=beside)


def save(
    path: Path,
    result: Result,
    arrays: Mapping[str, NDArray[Any]],
    *,
    owner: str,
    command: Sequence[str],
    beside: Callable[[RunDir], object] | None = None,
) -> RunDir:
    """Write a result and, before it, what belongs to it: where there is a result, all is there.

    An earlier result of another rule, or of all images where this is a trial, is kept.

    Args:
        path: The run directory; see `open_or_create`.
        result: What was measured.
        arrays: Its predictions, by name.
        owner: The model.
        command: What was typed.
        beside: Writes a head, figures.
    """
    run = open_or_create(path, owner=owner, command=command)
    result = replace(result, command=tuple(command))
    run.keep_earlier(result)
    if arrays:
        path = run.predictions(result.name)
        write_atomic(
            path,
            lambda file: np.savez_compressed(file, **arrays),  # type: ignore[arg-type]
        )
        result = replace(result, predictions_sha256=file_sha256(path))
    if beside is not None:
        beside(run)
    run.write_result(result)
    return run


def resolve(
    asked: Asked,
    *,
    command: Sequence[str],
    data: str | None = None,
    classes: str | None = None,
    out: Path | None = None,
    image_size: int | None = None,
) -> Subject:
    """Find out what is to be evaluated, on which images, and where results go; write nothing.

    Args:
        asked: The model.
        command: What was typed, for run.json of a directory that only collects results.
        data: What `open_source` takes; None: what the run was trained on.
        classes: See `images_of`.
        out: Run directory for the results; None: see `destination`.
        image_size: Side in pixels at which the embedded world is rendered; None: the model's.

    Raises:
        UserError: Any of these cannot be used.
    """
    from sercli.encoders.loading import read_encoder

    target = destination(asked, out)
    facts = facts_of(asked.source)
    loaded = read_encoder(
        asked.source,
        teacher=asked.teacher,
        random_init=asked.random_init,
        **asdict(asked.hints),
    )
    size = image_size or loaded.image_size
    images = images_of(facts, asked.source, data=data, image_size=size, classes=classes)
    images.has("train")  # a wrong path is told now, not after minutes
    return Subject(asked, loaded, images, target, facts.tapped_layer, tuple(command))


def destination(asked: Asked, out: Path | None) -> Path:
    """Where results go: `out`, or `Asked.place`.

    Raises:
        UserError: The place is taken by something that is no run directory, or holds the
            results of another model.
    """
    target = asked.place() if out is None else out
    require_place(target, "--out")
    if target.exists():
        _require_for(asked, RunDir.open(target))
    return target


def require_writable(target: Path) -> None:
    """Find out before the hours are spent that results could not be written; clear what is left.

    Args:
        target: What `destination` gave.

    Raises:
        UserError: It cannot be written.
        RunFailed: The disk is full.
    """
    run = RunDir(target)
    run.require_writable()
    if run.run.is_file():
        run.sweep()


def open_or_create(path: Path, *, owner: str, command: Sequence[str]) -> RunDir:
    """The run directory at `path`; a new one only collects results of the model `owner`.

    Raises:
        RunFailed: It is the model's own, and has vanished.
    """
    if path.exists():
        return RunDir.open(path)
    if str(path) == owner:
        RunDir(path).require_there()
    run = {"status": "done", "command": list(command), "evaluates": owner}
    return RunDir.create(path, recipe=None, run=run)


def _is_of(asked: Asked, run: RunDir) -> bool:
    """Whether the model is a run itself, or one of its files."""
    source = Path(asked.source)
    own = RunDir(source) if source.is_dir() else run_holding(source)
    return own is not None and own.path.resolve() == run.path.resolve()


def _require_for(asked: Asked, run: RunDir) -> None:
    """Two models must not share a directory: the second's results would replace the first's."""
    owner = run.read_run().get("evaluates")
    if owner is None and run.recipe.is_file() and not _is_of(asked, run):
        raise UserError(
            f"{run.path} is a training run of its own, and {asked.source} is not of it",
            "a run directory holds the results of one model",
            "name another with --out",
        )
    if owner is not None and not asked.has_made(run):
        raise UserError(
            f"{run.path} holds the results of {owner}, not of {asked.owner}",
            "a run directory holds the results of one model",
            "name another with --out",
        )
