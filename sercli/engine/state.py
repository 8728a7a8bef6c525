"""What trainings go on from, in checkpoints/ of a run directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sercli.encoders.files import require_finite
from sercli.encoders.loading import encoder_metadata, write_encoder
from sercli.engine import checkpoint
from sercli.engine.stepper import Position
from sercli.errors import UserError
from sercli.objective import Objective
from sercli.recipe.schema import Recipe
from sercli.runs.run_dir import RunDir


class PretrainingState:
    """Of a pretraining: the whole objective and its optimiser; the encoder is written beside them.

    Args:
        run: Where checkpoints/ and encoder.safetensors are written.
        recipe: Resolved.
        objective: What is trained: encoder, heads and teacher are saved together.
        optimiser: With its moments.
        keep_steps: Checkpoints at multiples of so many steps are never dropped; 0: any may be.
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
        """Take up the last checkpoint that verifies.

        Args:
            say: Shows a line: which checkpoints are damaged.

        Returns:
            Where it was taken; None without one.

        Raises:
            UserError: It does not fit the recipe, or holds what is not finite.
        """
        state = checkpoint.load_latest(self.run, say)
        if state is None:
            return None
        try:
            require_finite(_tensors_of(state), str(self.run.checkpoints))
            self.objective.load_state_dict(state["objective"])
            self.optimiser.load_state_dict(state["optimiser"])
            return Position(int(state["step"]), float(state["train_seconds"]))
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"the checkpoint in {self.run.checkpoints} does not fit recipe.yaml",
                str(error).splitlines()[0],
                "the recipe of a run must not be edited",
            ) from error

    def save(self, position: Position) -> None:
        """Write a checkpoint and the encoder."""
        encoder = self.objective.encoder
        metadata = encoder_metadata(self.recipe.model, encoder, step=position.step)
        state = {
            "step": position.step,
            "train_seconds": position.train_seconds,
            "encoder": metadata,
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        checkpoint.save(self.run, position.step, state, keep_steps=self.keep_steps)
        teacher = self.objective.teacher
        keep = teacher is not None and self.objective.method.evaluates_teacher
        write_encoder(
            self.run.encoder,
            metadata,
            student=encoder,
            teacher=teacher.encoder if keep and teacher is not None else None,
        )


def _tensors_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a training checkpoint goes on from: parameters, buffers and the optimiser's moments."""
    moments = {
        f"the optimiser's {name} of parameter {index}": value
        for index, values in state["optimiser"]["state"].items()
        for name, value in values.items()
    }
    return {**state["objective"], **moments}


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
            Where it was taken; None without one.

        Raises:
            UserError: It is of another training.
        """
        state = checkpoint.load_latest(self.run, say)
        if state is None:
            return None
        if state.get("identity") != self.identity:
            raise UserError(
                f"{self.run.checkpoints} holds another training",
                "only the same model, data and settings can go on",
                "use --restart to begin anew",
            )
        with torch.no_grad():
            for name, value in state["trained"].items():
                self.trained[name].copy_(value)
        self.optimiser.load_state_dict(state["optimiser"])
        return Position(int(state["step"]), float(state["train_seconds"]))

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
