"""What a run was, read from its directory: the one answer to "what is this run".

Everything that only looks at a run (a table, an evaluation, an export) asks here. Plain values, not
the typed recipe: what a newer version added is missing then, and a run whose plug-in is not
installed can still be shown. Importing this does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from sercli.runs.places import joined
from sercli.runs.reading import is_finite, read_bytes
from sercli.runs.run_dir import RunDir
from sercli.runs.text import LARGEST, read_mapping

NO_ADDON = "none"


@dataclass(frozen=True)
class RunFacts:
    """What recipe.yaml and run.json say; a key that is missing is None, never an error.

    Attributes:
        directory: Where the run is.
        recipe: recipe.yaml; empty for a directory that only collects results.
        record: run.json.
    """

    directory: RunDir
    recipe: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def path(self) -> str:
        return str(self.directory.path)

    def setting(self, section: str, key: str) -> Any:
        """`recipe[section][key]`, or None."""
        values = self.recipe.get(section)
        return values.get(key) if isinstance(values, Mapping) else None

    @cached_property
    def data_path(self) -> str | None:
        """What the run was trained on, as one text (`places.joined`), or None."""
        path = self.setting("data", "path")
        if isinstance(path, list) and path:
            return joined([str(one) for one in path])
        return None if path is None else str(path)

    def name(self, section: str) -> str:
        """`recipe[section].name` in one spelling, or an empty string."""
        return str(self.setting(section, "name") or "").replace("_", "-")

    def title(self, section: str) -> str | None:
        """What run.json calls the method or add-on; runs of earlier versions do not say."""
        titles = self.record.get("titles")
        told = titles.get(section) if isinstance(titles, Mapping) else None
        return str(told) if told else None

    @cached_property
    def addon(self) -> str:
        """The add-on's name; `NO_ADDON` where there is none."""
        return self.name("addon") or NO_ADDON

    @cached_property
    def tapped_layer(self) -> int | None:
        """The block that the add-on taps, or None without an add-on."""
        layer = self.setting("addon", "layer")
        return layer if isinstance(layer, int) and self.addon != NO_ADDON else None

    @cached_property
    def weight(self) -> float | None:
        """λ, or None without an add-on."""
        return None if self.addon == NO_ADDON else as_number(self.setting("addon", "weight"))

    @cached_property
    def views(self) -> str:
        """The view setting, or an empty string."""
        return str(self.setting("views", "setting") or "")

    @property
    def seed(self) -> Any:
        """The seed of the run, from either file."""
        return self.recipe.get("seed", self.record.get("seed"))

    @property
    def status(self) -> str:
        """How the run stands: running, preempted, interrupted, done or failed."""
        return str(self.record.get("status", "done"))

    @property
    def changes(self) -> tuple[str, ...]:
        """What `--allow-changed` made another of since its start, a phrase for each time."""
        return tuple(map(_change, self.record.get("changed") or ()))

    def quantity(self, section: str, key: str) -> float | None:
        """A number of run.json, such as `timings.train_seconds`, or None."""
        values = self.record.get(section)
        return as_number(values.get(key)) if isinstance(values, Mapping) else None


def _change(told: Mapping[str, Any]) -> str:
    what = told.get("what")
    phrases = "; ".join(map(str, what)) if isinstance(what, list) else str(what)
    return f"from step {told.get('step')} on, {phrases}"


def as_number(value: object) -> float | None:
    """A value that is a finite number, as float; None for any other."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_finite(value):
        return None
    return float(value)


def read_facts(directory: RunDir) -> RunFacts:
    """The facts of a run directory.

    Raises:
        UserError: It has no run.json, or one of its files is damaged or of another version.
    """
    record = directory.read_run()
    recipe = recipe_of(directory.recipe, record) if directory.recipe.is_file() else {}
    return RunFacts(directory, recipe, record)


def recipe_of(file: Path, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What recipe.yaml says; run.json says the same as JSON, which is read in no time.

    It is believed of the very bytes that it was written with.

    Raises:
        UserError: The file cannot be read, or is no mapping.
    """
    told = record.get("recipe")
    if isinstance(told, Mapping):
        data = read_bytes(file, limit=LARGEST)
        if sha256(data).hexdigest() == record.get("recipe_sha256"):
            return told
    return read_mapping(file)


def facts_of(model: str) -> RunFacts:
    """The facts of a MODEL: none are known of a checkpoint file or a model of timm's.

    Raises:
        UserError: A file of the run directory is damaged or of another version.
    """
    directory = RunDir(Path(model))
    return read_facts(directory) if directory.run.is_file() else RunFacts(directory)


def run_holding(file: Path) -> RunDir | None:
    """The run that a checkpoint or an encoder.safetensors is of; None for any other file."""
    for run in (RunDir(file.parent), RunDir(file.parent.parent)):
        own = file == run.encoder or file.parent == run.checkpoints
        if own and file.is_file() and run.run.is_file():
            return run
    return None
