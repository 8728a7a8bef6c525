"""What every evaluation starts from: the model, its images, and the run directory for its results.

Protocols do not import this: a command resolves its subject, hands the encoder and the images to
the protocol, and saves what comes back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sercli.data import ImageSource, has_split, open_source
from sercli.data.registry import rendering_kind
from sercli.encoders.asked import Hints
from sercli.errors import UserError
from sercli.runs.facts import RunFacts, facts_of
from sercli.runs.files import write_atomic
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir

if TYPE_CHECKING:
    from sercli.encoders.loading import LoadedEncoder

_RESULTS_ROOT = Path("runs")


@dataclass(frozen=True)
class Images:
    """A data set to evaluate on, not opened yet.

    Attributes:
        path: A directory, `shapes`, or what else `data.registry.open_source` opens.
        image_size: Side in pixels at which the embedded world is rendered.
        seed: Which embedded world is rendered.
        num_train, num_val: How many images of it each split has; None: the usual number.
    """

    path: str
    image_size: int
    seed: int = 0
    num_train: int | None = None
    num_val: int | None = None

    def has(self, split: str) -> bool:
        """Whether there is such a split.

        Raises:
            UserError: `path` is no data set.
        """
        return has_split(self.path, split)

    def open(self, split: str) -> ImageSource:
        """One split, "train" or "val".

        Raises:
            UserError: It is missing or no data set.
        """
        return open_source(
            self.path,
            split,
            image_size=self.image_size,
            num_images={"train": self.num_train, "val": self.num_val}[split],
            seed=self.seed,
        )

    def open_unseen(self) -> ImageSource:
        """The val split, or train where there is no val (`split` says which)."""
        return self.open("val" if self.has("val") else "train")


@dataclass(frozen=True)
class Subject:
    """A model under evaluation.

    Attributes:
        loaded: The encoder and where its weights come from.
        images: What it is evaluated on; the evaluator opens the splits that it needs.
        out: The run directory that takes the results; it need not exist yet.
        tapped_layer: The block that the add-on taps, or None.
        command: The command line, recorded in a new run directory.
    """

    loaded: LoadedEncoder
    images: Images
    out: Path
    tapped_layer: int | None
    command: tuple[str, ...]

    @property
    def owner(self) -> str:
        """What a run directory that only collects results says it is for."""
        return owner_of(self.loaded.source, random_init=self.loaded.key == "random")

    def save(self, result: Result, arrays: Mapping[str, NDArray[Any]]) -> RunDir:
        """Write a result and, beside it, its arrays; the directory is made if there is none.

        Returns:
            The run directory.
        """
        return save(self.out, result, arrays, owner=self.owner, command=self.command)


def save(
    path: Path,
    result: Result,
    arrays: Mapping[str, NDArray[Any]],
    *,
    owner: str,
    command: Sequence[str],
) -> RunDir:
    """Write a result and, beside it, its arrays, if any; see `open_or_create`.

    An earlier result of another rule, or of all images where this is a trial, is kept.
    """
    run = open_or_create(path, owner=owner, command=command)
    run.keep_earlier(result)
    if arrays:
        write_atomic(
            run.predictions(result.name),
            lambda file: np.savez_compressed(file, **arrays),  # type: ignore[arg-type]
        )
    run.write_result(result)
    return run


def resolve(
    model: str,
    *,
    command: Sequence[str],
    data: str | None = None,
    out: Path | None = None,
    teacher: bool = False,
    random_init: bool = False,
    hints: Hints | None = None,
    image_size: int | None = None,
) -> Subject:
    """Find out what is to be evaluated, on which images, and where results go; write nothing.

    Args:
        model: A run directory, a checkpoint file or `timm:NAME`.
        command: What was typed, for run.json of a directory that only collects results.
        data: What `open_source` takes; None: what the run was trained on.
        out: Run directory for the results; None: see `destination`.
        teacher: The momentum encoder instead of the student.
        random_init: Random weights for `timm:NAME`.
        hints: What a checkpoint file of another project does not say itself.
        image_size: Side in pixels at which the embedded world is rendered; None: the model's.

    Raises:
        UserError: Any of these cannot be used.
    """
    from sercli.encoders.loading import read_encoder

    target = destination(model, out, random_init=random_init)
    facts = facts_of(model)
    hints = hints or Hints()
    loaded = read_encoder(
        model,
        teacher=teacher,
        random_init=random_init,
        **asdict(hints),
    )
    images = images_of(facts, model, data=data, image_size=image_size or loaded.image_size)
    images.has("train")  # a wrong path is told now, not after minutes
    return Subject(loaded, images, target, facts.tapped_layer, tuple(command))


def images_of(facts: RunFacts, model: str, *, data: str | None, image_size: int) -> Images:
    """The images asked for, or those the run was trained on.

    The embedded world is the run's (its seed and sizes) wherever the run was trained on it.

    Raises:
        UserError: No data set is asked for and there is no recipe that names one.
    """
    own = facts.setting("data", "path")
    path = data or own
    if path is None:
        raise UserError(
            f"{model} has no recipe that names its images",
            "only a run directory knows what it was trained on",
            "add --data DIR, or --data shapes for the embedded world",
        )
    if rendering_kind(path) is None or own not in (None, path):
        return Images(path, image_size)
    return Images(
        path,
        image_size,
        facts.seed if isinstance(facts.seed, int) else 0,
        facts.setting("data", "num_train"),
        facts.setting("data", "num_val"),
    )


def destination(model: str, out: Path | None, *, random_init: bool = False) -> Path:
    """Where results go: `out`, the run directory itself, or `runs/<file stem or timm name>`.

    Raises:
        UserError: The place is taken by something that is no run directory, or holds the
            results of another model.
    """
    if out is None:
        if Path(model).is_dir():
            return Path(model)
        known = model.startswith("timm:") and not model.startswith("timm:local-dir:")
        out = _RESULTS_ROOT / (model.removeprefix("timm:") if known else Path(model).stem)
    if out.exists():
        _require_for(owner_of(model, random_init=random_init), RunDir.open(out))
    return out


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


def _require_for(model: str, run: RunDir) -> None:
    """Two files of one stem must not share a directory: the second would replace the first."""
    owner = run.read_run().get("evaluates")
    if owner is not None and owner != model:
        raise UserError(
            f"{run.path} holds the results of {owner}, not of {model}",
            "a run directory holds the results of one model",
            "name another with --out",
        )


def owner_of(model: str, *, random_init: bool) -> str:
    """What a run directory that only collects results of `model` says it is for."""
    name = model if model.startswith("timm:") else str(Path(model))
    return f"{name} with random weights" if random_init else name
