"""Optional TensorBoard logs of what stands in metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sercli.errors import UserError
from sercli.runs.run_dir import RunDir


class Tracker:
    """Writes the numbers of each logged row; does nothing where tracking is off.

    Args:
        run: The run whose tensorboard/ is written.
        wanted: Whether to write TensorBoard logs.
        first_step: Where the run (re)starts: later points of a former attempt are dropped.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, run: RunDir, *, wanted: bool, first_step: int) -> None:
        self.writer = None
        if wanted:
            require_tensorboard()
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(run.tensorboard), purge_step=first_step + 1)

    def row(self, row: Mapping[str, Any]) -> None:
        """Log the numbers of a row under its step."""
        if self.writer is None:
            return
        for name, value in row.items():
            if isinstance(value, int | float) and name not in ("step", "skipped"):
                self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def require_tensorboard() -> None:
    """Raise a UserError unless TensorBoard can be imported."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError(
            "train.tensorboard = true, but TensorBoard is not installed",
            "it comes with an extra",
            "pip install 'sercli[track]'",
        ) from error
