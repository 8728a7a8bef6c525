"""How long a training is, and how often it does what, whoever takes its steps; no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """How long a training is, and what it does how often on the way.

    Attributes:
        total_steps: How many steps the training has.
        batch_size: Images a step, of all ranks.
        epoch_at: Epochs that are done after so many steps.
        lr_at: Learning rate of step 0…total−1.
        log_steps: Steps between rows of metrics.jsonl; None: nothing is logged.
        measure_steps: Steps between measurements, which get a row of their own; 0: none.
        save_steps: Steps between checkpoints; None: they go by time.
        keep_steps: Steps between checkpoints that there are whatever the others go by; 0: none.
        save_seconds: Time between checkpoints, by the clock of rank 0; None: they go by steps.
        save_unit: Checkpoints that go by time wait for a multiple of so many steps.
        save_at_end: Whether the last step is saved. Where it is, a stop then changes nothing.
        late: Read what the ranks agreed on one step late, when it costs no wait for the device.
    """

    total_steps: int
    batch_size: int
    epoch_at: Callable[[int], float]
    lr_at: Callable[[int], float]
    log_steps: int | None = 20
    measure_steps: int = 0
    save_steps: int | None = None
    keep_steps: int = 0
    save_seconds: float | None = None
    save_unit: int = 1
    save_at_end: bool = True
    late: bool = False
