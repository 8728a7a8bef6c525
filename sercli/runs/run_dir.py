"""The run directory: every file name in it, and how files are written so that none is half there.

```
recipe.yaml  run.json  metrics.jsonl  encoder.safetensors
lease.json: whose it is while it is trained
trace.json.gz: a few steps of it, if a profile was asked for
plugins/NAME.py: what the recipe needs that does not come with ser
checkpoints/step-00000100.pt (+ .sha256)
results/<protocol>[--<variant>].json (+ .npz); earlier/: what another rule or a trial replaced
heads/<result>.safetensors (+ .unfinished, while a probe is not done)
features/<split>.npz: of `ser features`
cache/features-<split>.safetensors, cache/grids-<what>.npy
detection/<engine>-<what>/metrics.jsonl, checkpoints/, saved.json: the training of a detector
figures/
```
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from sercli.errors import RunFailed, UserError, from_os_error
from sercli.runs.files import (
    hash_of,
    read_json,
    replacing_directory,
    require_writable,
    sweep,
    verifies,
    write_atomic,
    write_json,
    write_text,
)
from sercli.runs.places import require_place
from sercli.runs.reading import rows, shown
from sercli.runs.result import SCHEMA, Result, now

KEPT_CHECKPOINTS = 2  # the last ones that verify: should one turn out damaged, there is another


@dataclass(frozen=True)
class RunDir:
    """A run directory and its file names.

    Attributes:
        path: Where it is.
        outer: The run directory that it is a part of; None: it is one itself.
    """

    # Of ours: no run of its own lies in one of them.
    FOLDERS: ClassVar = frozenset(
        {"plugins", "checkpoints", "detection", "heads", "cache", "results"}
        | {"figures", "features", "tensorboard"}
    )

    path: Path
    outer: Path | None = None

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def run(self) -> Path:
        return self.path / "run.json"

    @property
    def lease(self) -> Path:
        """Whose the directory is, while a process trains it."""
        return self.path / "lease.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def trace(self) -> Path:
        """Of a profile of its training."""
        return self.path / "trace.json.gz"

    @property
    def encoder(self) -> Path:
        return self.path / "encoder.safetensors"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def results(self) -> Path:
        return self.path / "results"

    @property
    def heads(self) -> Path:
        return self.path / "heads"

    def head(self, name: str) -> Path:
        """The trained head of a probe whose result has this name."""
        return self.heads / f"{name}.safetensors"

    def unfinished_head(self, name: str) -> Path:
        """What an interrupted probe goes on from; `*` for the name: a pattern of all of them."""
        return self.heads / f"{name}.unfinished"

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    def feature_cache(self, split: str) -> Path:
        """Features of a split, kept between probes; may be removed at any time."""
        return self.cache / f"features-{split}.safetensors"

    def grid_cache(self, what: str) -> Path:
        """Token grids of images, kept between detectors; may be removed at any time."""
        return self.cache / f"grids-{what}.npy"

    def detection(self, what: str) -> RunDir:
        """Where the training of a detector keeps its metrics and checkpoints."""
        return RunDir(self.path / "detection" / what, self.path)

    def detections(self) -> Iterator[RunDir]:
        """Those that there are."""
        paths = sorted((self.path / "detection").glob("*"))
        return (RunDir(path, self.path) for path in paths)

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def plugins(self) -> Path:
        """Copies of the files that its method or add-on is from."""
        return self.path / "plugins"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def saved(self) -> Path:
        """Of a detector's training: its last checkpoint (of a run's, run.json says which)."""
        return self.path / "saved.json"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint taken after `step` optimiser steps."""
        return self.checkpoints / f"step-{step:08d}.pt"

    def checkpoint_hash(self, step: int) -> Path:
        """Its SHA-256, in the format of `sha256sum -c`."""
        return hash_of(self.checkpoint(step))

    def checkpoint_verifies(self, step: int) -> bool:
        """Whether a checkpoint is there and its bytes are those that were written."""
        return verifies(self.checkpoint(step))

    def checkpoint_steps(self) -> list[int]:
        """Steps that have a checkpoint file, oldest first (not verified)."""
        numbers = (file.stem.removeprefix("step-") for file in self.checkpoints.glob("step-*.pt"))
        return sorted(int(number) for number in numbers if number.isdecimal())

    def result(self, name: str) -> Path:
        return self.results / f"{name}.json"

    def predictions(self, name: str) -> Path:
        """Per-image predictions beside the result, for paired statistics."""
        return self.results / f"{name}.npz"

    def features(self, split: str) -> Path:
        """Features for people, of one split."""
        return self.path / "features" / f"{split}.npz"

    # -- life cycle ---------------------------------------------------------------------------

    @classmethod
    def open(cls, path: str | Path) -> RunDir:
        """An existing run directory.

        Raises:
            UserError: `path` is missing or holds no run.json.
        """
        require_place(path, "a run directory:")
        run_dir = cls(Path(path))
        if not run_dir.run.is_file():
            missing = "is a file" if run_dir.path.exists() else "does not exist"
            what = "has no run.json" if run_dir.path.is_dir() else missing
            raise UserError(
                f"{path} {what}",
                "a run directory made by ser is needed",
                "see `ser pretrain --help`",
            )
        return run_dir

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        recipe: str | None,
        run: Mapping[str, Any],
        plugins: Mapping[str, bytes] | None = None,
    ) -> RunDir:
        """Make a run directory in one rename: a reader sees all of it or nothing.

        Args:
            path: Where it is made; it must not exist.
            recipe: Text of recipe.yaml (None for a directory that only collects results).
            run: First content of run.json; `schema` and `created` are added.
            plugins: Name → content of the files that the recipe names under plugins/.

        Raises:
            UserError: `path` exists or its parent cannot be written.
        """
        with replacing_directory(path, what="a new run") as draft:
            inside = cls(draft)
            if recipe is not None:
                write_text(inside.recipe, recipe)
            for name, content in (plugins or {}).items():
                write_atomic(inside.plugins / name, partial(_write, content))
            write_json(inside.run, {"schema": SCHEMA, "created": now(), **run})
        return cls(path)

    def read_run(self) -> dict[str, Any]:
        """What run.json holds, after `RunRecord` has looked at it.

        Raises:
            UserError: It cannot be read, is of another schema, or has a key of another type.
        """
        from sercli.runs.stored import RunRecord, require  # pydantic takes a while to import

        value = read_json(self.run)
        if value.get("schema") != SCHEMA:
            raise UserError(
                f"{self.run} has schema {shown(value.get('schema'))}",
                f"this ser reads schema {SCHEMA}",
            )
        require(RunRecord, value, str(self.run), "take it from a copy of the run")
        return value

    def update_run(self, **fields: Any) -> None:
        """Merge `fields` into run.json."""
        write_json(self.run, {**self.read_run(), **fields})

    def require_there(self) -> None:
        """Find out that the run directory is gone: what is written now would be half of one.

        Raises:
            RunFailed: It was removed, or its disk is no longer mounted.
        """
        whole = RunDir(self.outer or self.path)
        if not whole.run.exists():
            raise RunFailed(
                f"{whole.path} has vanished: it was removed, or its disk is gone; nothing can be "
                "written there any more, and no half of it is made anew"
            )

    def require_writable(self) -> None:
        """Find out now that nothing could be written at the end.

        The directory need not exist yet.

        Raises:
            UserError: It, or a directory in it, cannot be written.
            RunFailed: The disk is full.
        """
        require_writable(self.path)
        for inside in (self.results, self.heads, self.figures, self.checkpoints):
            if os.path.lexists(inside):
                require_writable(inside)

    def sweep(self) -> None:
        """Remove what killed processes left anywhere in the directory."""
        for folder, _, _ in os.walk(self.path):
            sweep(Path(folder))

    def sweep_checkpoints(self) -> None:
        """Remove halves of checkpoints; only for the one process that writes them.

        Those of earlier versions do not say whose they are.
        """
        for hash_file in self.checkpoints.glob("step-*.pt.sha256"):
            if not hash_file.with_suffix("").exists():
                hash_file.unlink(missing_ok=True)
        written = {self.recipe, self.run, self.metrics, self.encoder}
        names = "|".join([*(re.escape(one.name) for one in written), r"step-\d+\.pt(\.sha256)?"])
        for folder in (self.path, self.checkpoints):
            for path in folder.glob(".*"):
                if re.fullmatch(rf"\.({names})\.[a-z0-9_]{{8}}", path.name):
                    path.unlink(missing_ok=True)

    # -- metrics ------------------------------------------------------------------------------

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one object to metrics.jsonl (one write, so a reader sees whole lines)."""
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise from_os_error(error, f"cannot write {self.metrics}") from error

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """The logged steps: objects of plain values with a whole `step`.

        What is no such line is passed over: one cut short by a kill, or whatever a full disk or a
        power cut left there. No number of ours depends on them.

        Raises:
            UserError: The file cannot be read.
        """
        if not self.metrics.exists():
            return
        for row in rows(self.metrics):
            step = row.get("step")
            if isinstance(step, int) and not isinstance(step, bool) and step >= 0:
                yield row

    def logged(self, key: str) -> list[float]:
        """The numbers that rows have under a key, in order.

        Raises:
            UserError: The file cannot be read.
        """
        values = (row.get(key) for row in self.read_metrics())
        return [value for value in values if isinstance(value, float | int)]

    def truncate_metrics(self, step: int) -> int:
        """Keep the rows up to and including `step`, as the run resumes from there.

        Returns:
            How many lines were no rows, but for a last one, which a kill may have cut short.
        """
        if not self.metrics.exists():
            return 0
        there = list(self.read_metrics())
        text = self.metrics.read_bytes() if there or self.metrics.exists() else b"\n"
        lines = [line for line in text.splitlines() if line.strip()]
        kept = [row for row in there if row["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))
        return max(0, len(lines) - len(there) - (not text.endswith(b"\n")))

    # -- results ------------------------------------------------------------------------------

    def keep_earlier(self, result: Result) -> None:
        """Move the result that `result` replaces to results/earlier/, if more than a repetition.

        One of another rule, other images, other weights (a teacher's) or another precision of the
        encoder, or one of all images that a trial replaces, is kept, with its predictions and the
        head that was trained for it.
        """
        path = self.result(result.name)
        if not path.is_file():
            return
        earlier = Result.from_file(path)

        def of(one: Result) -> tuple[Any, ...]:
            told = (one.data.get("path"), one.model.get("key"), one.model.get("precision"))
            return (one.protocol_id, *told)

        same = of(earlier) == of(result)
        if same and not (result.data.get("partial") and not earlier.data.get("partial")):
            return
        stem = f"{result.name}--{earlier.created.replace(':', '')}"
        place = self.results / "earlier"
        try:
            place.mkdir(exist_ok=True)
            for file in (path, self.predictions(result.name), self.head(result.name)):
                if file.is_file():
                    file.replace(place / f"{stem}{file.suffix}")
        except OSError as error:
            raise from_os_error(error, f"cannot move {path} to {place}") from error

    def write_result(self, result: Result) -> Path:
        path = self.result(result.name)
        write_json(path, result.to_json())
        return path

    def read_results(self) -> list[Result]:
        """All results, ordered by file name."""
        return [Result.of_run(file) for file in sorted(self.results.glob("*.json"))]


def _write(content: bytes, file: BinaryIO) -> None:
    file.write(content)
