"""`ser bench all`: every benchmark in order of what it tells, small enough for one sitting."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sercli.benchmarks import addons, augment, data, loss, probe, steps
from sercli.benchmarks.record import Machine, Tell
from sercli.benchmarks.table import Table
from sercli.data.loading import default_workers
from sercli.methods import DEFAULT

_TWO_OF_16 = ("addon.fraction=0.125",)
Benchmark = Callable[[Machine, Tell], Sequence[Table]]


def _step(machine: Machine, tell: Tell) -> list[Table]:
    cuda = machine.device.type == "cuda"
    names = ["imagenet/moco-none", "imagenet/moco-ser"] if cuda else [
        "shapes/moco-none", "shapes/moco-ser",
    ]  # fmt: skip
    settings = () if cuda else (steps.PAPER_FRACTION,)
    return [steps.measure(names, machine=machine, rounds=7, tell=tell, settings=settings)]


def _count(machine: Machine, tell: Tell) -> list[Table]:
    """ViT-S/16's steps, whatever the machine: seconds of a CPU, so few images."""
    names = ["imagenet/moco-none", "imagenet/moco-ser"]
    table = steps.measure(
        names,
        machine=machine,
        rounds=0,
        tell=tell,
        modes="eager",
        batch_size=16,
        settings=_TWO_OF_16,
    )
    return [table]


def _data(machine: Machine, tell: Tell) -> Sequence[Table]:
    return data.run(
        machine=machine, files=32, batch_sizes=[256], workers=default_workers(), rounds=3, tell=tell
    )


def _augment(machine: Machine, tell: Tell) -> list[Table]:
    subject = augment.subject("imagenet/moco-none", 16)
    rows = augment.run(subject, machine=machine, rounds=3, tell=tell)
    return [augment.tabled(rows, subject=subject, machine=machine)]


def _loss(machine: Machine, tell: Tell) -> list[Table]:
    rows = loss.run(
        [3136, 12544, 50176], full_up_to=3136, machine=machine, rounds=3, tiles=3, tell=tell
    )
    return [loss.tabled(rows, machine=machine)]


def _addons(machine: Machine, tell: Tell) -> list[Table]:
    recipes = addons.recipes_of(DEFAULT, 3, batch_size=256, fraction=0.01)
    rows = addons.run(recipes, machine=machine, rounds=3, tell=tell)
    title = f"One step of {DEFAULT} with each add-on at layer 3: batch 256, {machine.title}"
    return [addons.tabled(rows, title=title)]


def _probe(machine: Machine, tell: Tell) -> list[Table]:
    subject = probe.subject("shapes/moco-ser", None, machine=machine)
    rows = probe.run(subject, batch_size=256, machine=machine, rounds=3, tell=tell)
    return [probe.tabled(rows, subject=subject, batch_size=256, machine=machine)]


BENCHMARKS: dict[str, Benchmark] = {
    "step": _step,
    "count": _count,
    "data": _data,
    "augment": _augment,
    "loss": _loss,
    "addons": _addons,
    "probe": _probe,
}
