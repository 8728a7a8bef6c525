"""Training the heads of a linear probe: the order of images, the step, and what is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, Json
from torch import Tensor

from sercli import distributed
from sercli.encoders.files import read_safetensors, safetensors_bytes
from sercli.engine.pace import Pace
from sercli.engine.stepper import Position, Stepper
from sercli.errors import RunFailed, SerError, UserError
from sercli.evals.common import Progress
from sercli.evals.linear.classifiers import HeadRow
from sercli.evals.linear.features import FeaturePlan
from sercli.randomness import numpy_generator
from sercli.runs.files import write_atomic
from sercli.runs.stored import Stored, require
from sercli.signals import StopRequest
from sercli.transfer import to_device

SAVE_SECONDS = 60.0  # least time between two checkpoints that nobody asked for


class UnfinishedHeader(Stored):
    """What stands beside the heads of a probe that is not done."""

    model_config = ConfigDict(strict=False)  # numbers are written as text

    step: Annotated[int, Field(ge=0)]
    identity: Json[dict[str, Any]]


@dataclass(frozen=True)
class Order:
    """Which images each step takes: every image once an epoch, in an order f(seed, epoch).

    Attributes:
        num_images: N; positions are 0…N−1.
        batch_size: Images a step; the last step of an epoch takes what is left.
        epochs: How often all images are seen.
        seed: What the order is drawn from, with the epoch.
    """

    num_images: int
    batch_size: int
    epochs: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_images / self.batch_size)

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def factor(self, step: int) -> float:
        """What learning rates are multiplied by: a cosine from 1 to 0."""
        return 0.5 * (1 + math.cos(math.pi * step / self.total_steps))

    def batches(self, first: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Epoch and positions of each step from `first` on."""
        order, of_epoch = np.zeros(0, dtype=np.int64), -1
        for step in range(first, self.total_steps):
            epoch, within = divmod(step, self.steps_per_epoch)
            if epoch != of_epoch:
                random = numpy_generator(self.seed, "linear-eval", "order", epoch)
                order, of_epoch = random.permutation(self.num_images), epoch
            yield epoch, order[within * self.batch_size : (within + 1) * self.batch_size]


@dataclass(frozen=True)
class HeldOut:
    """The images that heads are chosen on, which no step sees.

    Attributes:
        features: Feature set → [N, D].
        labels: int64 [N].
    """

    features: Mapping[str, Tensor]
    labels: Tensor


# -- Checkpoints ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unfinished:
    """The heads, in the file that an unfinished probe goes on from.

    Attributes:
        path: Where it is, if it is there.
        identity: What it has to agree with: protocol, encoder and images.
        rows: The heads by feature set.
    """

    path: Path
    identity: Mapping[str, Any]
    rows: Mapping[str, HeadRow]

    def save(self, position: Position) -> None:
        """Write the heads.

        Raises:
            RunFailed: The run directory is gone.
        """
        if not self.path.parent.parent.is_dir():
            raise RunFailed(f"{self.path.parent.parent} has vanished; no half of it is made anew")
        tensors = {
            f"{name}/{key}": value.detach().cpu()
            for name, row in self.rows.items()
            for key, value in row.state_dict().items()
        }
        header = {"step": str(position.step), "identity": json.dumps(self.identity)}
        data = safetensors_bytes(tensors, header)
        write_atomic(self.path, lambda file: file.write(data))

    def load(self, say: Callable[[str], None]) -> Position | None:
        """Take up the heads that are there.

        Args:
            say: Shows a line: where the probe goes on.

        Returns:
            Where that was; None without a file.

        Raises:
            UserError: The file is of another protocol, encoder or set of images, or is damaged.
        """
        if not distributed.broadcast_object(self.path.is_file()):
            return None
        try:
            header, tensors = read_safetensors(self.path)
            stored = require(UnfinishedHeader, header, "its header")
        except SerError as error:
            raise UserError(
                f"{self.path} of an unfinished probe cannot be read ({error})",
                "it is damaged, and nothing was changed",
                "add --restart to begin anew",
            ) from error
        identity, step = stored.identity, stored.step
        different = [key for key, value in self.identity.items() if identity.get(key) != value]
        if different:
            raise UserError(
                f"{self.path} is of an unfinished probe with another {different[0]}",
                "only the same command goes on with it",
                "add --restart to drop it",
            )
        for name, row in self.rows.items():
            prefix = f"{name}/"
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            try:
                row.load_state_dict(state)
            except (KeyError, RuntimeError) as error:
                raise UserError(
                    f"{self.path} does not hold the heads of {name}", "", "add --restart to drop it"
                ) from error
        say(f"going on after step {step}")
        return Position(step)


# -- The step -------------------------------------------------------------------------------------


def train_heads(
    rows: Mapping[str, HeadRow],
    features: Callable[[int], Iterator[Tensor]],
    *,
    plan: FeaturePlan,
    labels: Tensor,
    order: Order,
    held: HeldOut,
    request: StopRequest,
    unfinished: Unfinished | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None],
) -> Stepper:
    """Train all heads to the end of the schedule; measure them on the hold-out every epoch.

    Args:
        rows: The heads by feature set.
        features: Given the first step, the parts [n, P, D] of the images of each step from it on.
        plan: Which parts make which feature set.
        labels: int64 [N] of the images that `order` orders.
        order: Which images each step takes.
        held: What heads are measured on.
        request: Set by signal handlers.
        unfinished: Where to go on from, and what to write on the way.
        progress: Called with "probe", the steps done, and all of them.
        say: Shows a line.

    Returns:
        What saved the heads on the way, and can do so again.

    Raises:
        Interrupted, Preempted: As asked for; the heads are written.
        UserError: `unfinished` is of another probe.
    """
    device = next(iter(rows.values())).bias.device
    stepper = _stepper(order, unfinished, device)
    stepper.attend(request)
    first = stepper.resume(say)
    steps = zip(order.batches(first), features(first), strict=True)
    for (epoch, positions), parts in stepper.waiting(steps):
        own = to_device(labels[torch.from_numpy(positions)], device)
        parts = to_device(parts, device)
        for name, row in rows.items():
            joined = plan.join(name, parts).to(row.bias.dtype)
            row.step(joined, own, factor=order.factor(stepper.step))
        if (stepper.step + 1) % order.steps_per_epoch == 0:
            for name, row in rows.items():
                row.measure(held.features[name], held.labels, epoch=epoch + 1)
        if progress is not None:
            progress("probe", stepper.step + 1, order.total_steps)
        # Without losses: a head that diverges is no reason to skip a step of the others.
        stepper.agree({})
        stepper.done()
    return stepper


def _stepper(order: Order, unfinished: Unfinished | None, device: torch.device) -> Stepper:
    """Heads are saved at ends of epochs, by time; the last one only if the test is interrupted."""
    pace = Pace(
        total_steps=order.total_steps,
        batch_size=order.batch_size,
        epoch_at=lambda step: step / order.steps_per_epoch,
        lr_at=order.factor,
        log_steps=None,
        save_seconds=SAVE_SECONDS,
        save_unit=order.steps_per_epoch,
        save_at_end=False,
    )
    end = "starts anew" if unfinished is None else "goes on from there"
    return Stepper(pace, unfinished, device=device, how_to_go_on=f"the same command {end}")
