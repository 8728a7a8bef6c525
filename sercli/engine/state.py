"""What trainings go on from, in checkpoints/ of a run directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from sercli.encoders.files import is_plain, require_finite
from sercli.encoders.loading import encoder_metadata, write_encoder
from sercli.engine import checkpoint
from sercli.engine.momentum import Momentum
from sercli.engine.optimiser import MOMENTS
from sercli.engine.runtime import decided_by_first
from sercli.engine.stepper import Position
from sercli.engine.weights import begin
from sercli.errors import UserError
from sercli.objective import Objective
from sercli.recipe.schema import Recipe
from sercli.runs.files import write_json
from sercli.runs.reading import is_finite, shown
from sercli.runs.run_dir import RunDir
from sercli.runs.stored import Stored, require

_EARLIER = "remove it, with its .sha256, to go on from the one before"


class _Optimiser(Stored):
    state: dict[Annotated[int, Field(ge=0)], dict[str, Any]]
    param_groups: list[dict[str, Any]]


class _Checkpoint(Stored):
    """What every training's checkpoint holds."""

    step: Annotated[int, Field(ge=0)]
    train_seconds: Annotated[float, Field(ge=0)]
    optimiser: _Optimiser

    @property
    def position(self) -> Position:
        return Position(self.step, self.train_seconds)


class _Pretraining(_Checkpoint):
    objective: dict[str, Any]


class _Module(_Checkpoint):
    identity: dict[str, Any]
    trained: dict[str, Any]


class PretrainingState:
    """Of a pretraining: the whole objective and its optimiser; the encoder is written beside them.

    Args:
        run: Where checkpoints/ and encoder.safetensors are written.
        recipe: Resolved.
        objective: What is trained: encoder, heads and teacher are saved together.
        optimiser: With its moments.
        keep_steps: Checkpoints at multiples of so many steps are milestones, which stay; 0: none.
    """

    def __init__(
        self,
        run: RunDir,
        recipe: Recipe,
        objective: Objective,
        optimiser: torch.optim.Optimizer,
        *,
        keep_steps: int = 0,
    ) -> None:
        self.run, self.recipe, self.keep_steps = run, recipe, keep_steps
        self.objective, self.optimiser = objective, optimiser

    def load(self, say: Callable[[str], None]) -> Position | None:
        """Take up the last checkpoint that verifies; without one, the weights of the recipe.

        Args:
            say: Shows a line: which checkpoints are damaged.

        Returns:
            Where it was taken; None where none was written yet.

        Raises:
            UserError: It does not fit the recipe, or holds what is not finite; or there were
                checkpoints, and none of them can be used.
        """
        state = checkpoint.load_latest(self.run, say)
        if state is None:
            decided_by_first(lambda: _require_none_yet(self.run, say))
            begin(self.objective, self.recipe)
            return None
        name = str(self.run.checkpoints)
        typed = require(_Pretraining, state, name, _EARLIER)
        moments = _require_optimiser(typed.optimiser, self.optimiser, name)
        require_finite({**_require_tensors(typed.objective, name), **moments}, name)
        try:
            self.objective.load_state_dict(state["objective"])
            _take_up(self.optimiser, state["optimiser"])
            return typed.position
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"the checkpoint in {self.run.checkpoints} does not fit recipe.yaml",
                str(error).splitlines()[0],
                "the recipe of a run must not be edited",
            ) from error

    def save(self, position: Position) -> None:
        """Write a checkpoint and the encoder."""
        encoder = self.objective.encoder
        data = self.recipe.data
        metadata = encoder_metadata(
            self.recipe.model, encoder, step=position.step, mean=data.mean, std=data.std
        )
        state = {
            "step": position.step,
            "train_seconds": position.train_seconds,
            "encoder": metadata,
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        kept = self._milestones(position.step)
        checkpoint.save(self.run, position.step, state, kept=kept)
        self.run.update_run(saved_step=position.step)
        teacher = self.objective.teacher
        keep = teacher is not None and self.objective.method.evaluates_teacher
        write_encoder(
            self.run.encoder,
            metadata,
            student=encoder,
            teacher=teacher.encoder if keep and teacher is not None else None,
        )

    def _milestones(self, step: int) -> tuple[int, ...]:
        """Those of the run, `step` included where it is one: noted first, lest a kill forget it.

        They are not multiples of today's `keep_steps` alone: a run that goes on with another
        recipe keeps those of before.
        """
        steps = set(self.run.read_run().get("milestones") or ())
        if self.keep_steps and step % self.keep_steps == 0 and step not in steps:
            steps.add(step)
            self.run.update_run(milestones=sorted(steps))
        return tuple(steps)


def _require_none_yet(run: RunDir, say: Callable[[str], None]) -> None:
    """Refuse to begin anew where there is something to go on with, or was.

    Raises:
        UserError: A checkpoint was written, and there is none that could be used.
    """
    record = run.read_run()
    rows = [row.get("step", 0) for row in run.read_metrics()]
    saved = record.get("saved_step")
    if saved is None and "recipe_sha256" not in record:  # an earlier version did not note it
        stopped = record.get("status") == "preempted" and rows
        there = run.encoder.exists() or any(run.checkpoints.glob("step-*"))
        saved = max(rows, default=0) if stopped or there else None
    if saved is not None:
        raise UserError(
            f"no checkpoint of {run.path} can be used: it was saved at step {saved}, and what is "
            f"in {run.checkpoints} is damaged, incomplete or gone",
            "a run goes on from a checkpoint; nothing was changed",
            f"bring one back with its .sha256, or start anew: ser pretrain --recipe {run.recipe}",
        )
    if record.get("world_size") is not None:  # it has trained before
        lost = f", and the {max(rows)} steps that were logged are lost" if rows else ""
        say(f"note: {run.path} was stopped before its first checkpoint: it begins at step 0{lost}")


def _require_tensors(values: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The values, if all of them are plain tensors.

    Raises:
        UserError: One is not.
    """
    for key, value in values.items():
        if not is_plain(value):
            raise _unfit(name, f"{shown(key)} is {shown(value)}, no tensor of real numbers")
    return dict(values)


def _require_optimiser(
    saved: _Optimiser, optimiser: torch.optim.Optimizer, name: str
) -> dict[str, Tensor]:
    """The moments that an optimiser is to go on with, if it can: torch looks at their number alone.

    Raises:
        UserError: They are of other parameters, or no tensors or settings as this optimiser has.
    """
    moments = optimiser.moments if isinstance(optimiser, Momentum) else MOMENTS["adamw"]
    # AdamW keeps the `step` that they were taken at, too.
    kept = {*moments, *(() if isinstance(optimiser, Momentum) else ("step",))}
    theirs = {key for values in saved.state.values() for key in values}
    if theirs and not theirs & kept:
        raise _unfit(name, f"its moments, {shown(sorted(theirs))}, are of another optimiser")
    groups = optimiser.state_dict()["param_groups"]
    there = [group.get("params") for group in saved.param_groups]
    if there != [group["params"] for group in groups]:
        raise _unfit(name, "its optimiser moves other parameters")
    for group, own in zip(saved.param_groups, groups, strict=True):
        for key, value in own.items():
            if key not in group and _is_flag(value) and key in optimiser.defaults:
                continue  # of an earlier torch, which sets it itself
            if key not in group or not _is_such(group[key], value):
                raise _unfit(name, f"its optimiser's {key} is {shown(group.get(key))}")
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    found: dict[str, Tensor] = {}
    for index, values in saved.state.items():
        if index >= len(parameters) or values.keys() != kept:
            raise _unfit(name, f"its optimiser's moments of parameter {index} are others")
        for key, value in _require_tensors(values, name).items():
            what = f"the optimiser's {key} of parameter {index}"
            if value.shape != (parameters[index].shape if key in moments else ()):
                raise _unfit(name, f"{what} is of another shape")
            found[what] = value
    return found


def _take_up(optimiser: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Go on with saved moments, by the optimiser's own settings: those are the recipe's."""
    own = [{k: v for k, v in g.items() if k != "params"} for g in optimiser.param_groups]
    optimiser.load_state_dict(saved)
    for group, settings in zip(optimiser.param_groups, own, strict=True):
        group.update(settings)


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _is_such(value: object, own: object) -> bool:
    """Whether a setting is as the optimiser's own: the same flag, a number, as many of them."""
    if isinstance(own, bool):
        return value is own  # torch's kernels take no None for one
    if own is None:
        return value is None or value is False
    if isinstance(own, list | tuple):
        return (
            isinstance(value, list | tuple)
            and len(value) == len(own)
            and all(_is_such(one, other) for one, other in zip(value, own, strict=True))
        )
    return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)


def _unfit(name: str, what: str) -> UserError:
    return UserError(
        f"the checkpoint in {name} cannot be gone on from: {what}",
        "it must hold what ser wrote for this recipe",
        _EARLIER,
    )


class ModuleState:
    """Of any module on a frozen encoder: the parameters that are trained, and their optimiser.

    Args:
        run: Takes checkpoints/.
        module: What is trained; parameters without gradient are neither saved nor changed.
        optimiser: With its moments.
        identity: What the training is of: a checkpoint of another is refused.

    Attributes:
        trained: The parameters that are trained, by name.
    """

    def __init__(
        self,
        run: RunDir,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
        *,
        identity: Mapping[str, Any],
    ) -> None:
        self.run, self.optimiser, self.identity = run, optimiser, dict(identity)
        self.trained = {n: p for n, p in module.named_parameters() if p.requires_grad}

    def load(self, say: Callable[[str], None]) -> Position | None:
        """Take up the last checkpoint that verifies.

        Args:
            say: Shows a line: which checkpoints are damaged.

        Returns:
            Where it was taken; None where none was written yet.

        Raises:
            UserError: It is of another training; or there were checkpoints, and none of them can
                be used.
        """
        state = checkpoint.load_latest(self.run, say)
        if state is None:
            decided_by_first(lambda: self._require_none_yet(say))
            return None
        name = str(self.run.checkpoints)
        typed = require(_Module, state, name, "use --restart to begin anew")
        if typed.identity != self.identity:
            raise UserError(
                f"{self.run.checkpoints} holds another training",
                "only the same model, data and settings can go on",
                "use --restart to begin anew",
            )
        tensors = _require_tensors(typed.trained, name)
        if {k: v.shape for k, v in tensors.items()} != {
            k: v.shape for k, v in self.trained.items()
        }:
            raise _unfit(name, "its parameters are others, or of other shapes")
        moments = _require_optimiser(typed.optimiser, self.optimiser, name)
        require_finite({**tensors, **moments}, name)
        with torch.no_grad():
            for key, value in tensors.items():
                self.trained[key].copy_(value)
        _take_up(self.optimiser, state["optimiser"])
        return typed.position

    def _require_none_yet(self, say: Callable[[str], None]) -> None:
        hashed = any(self.run.checkpoint_hash(s).exists() for s in self.run.checkpoint_steps())
        if self.run.saved.exists() or hashed:
            raise UserError(
                f"no checkpoint in {self.run.checkpoints} can be used",
                "there was one, and it is damaged, incomplete or gone; nothing was changed",
                "use --restart to begin anew",
            )
        if self.run.metrics.is_file():
            say(f"note: {self.run.path} was stopped before its first checkpoint: it begins anew")

    def save(self, position: Position) -> None:
        """Write a checkpoint."""
        state = {
            "step": position.step,
            "train_seconds": position.train_seconds,
            "identity": self.identity,
            "trained": {name: p.detach() for name, p in self.trained.items()},
            "optimiser": self.optimiser.state_dict(),
        }
        checkpoint.save(self.run, position.step, state)
        write_json(self.run.saved, {"step": position.step})
