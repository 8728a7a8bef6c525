"""Which columns a comparison can have: the catalogue of quantities, and the choice."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from sercli.errors import UserError
from sercli.protocols import PROTOCOLS, Protocol, Quantity, Reading, contract_of
from sercli.protocols.contract import is_end
from sercli.report.compare.runs import Run
from sercli.report.compare.tables import Column
from sercli.report.compare.values import OF_RUN, RUN_QUANTITIES, RunQuantity


@dataclass(frozen=True)
class Spec:
    """A column and where its numbers come from.

    Attributes:
        column: How the table shows it: key, heading, unit, arrow.
        source: Result name, or "run".
        reading: The metric and what it is.
        protocol: The contract of the result; None for quantities of the run itself.
        where: What runs must be to have a number in it: fields and their values.
        of_run: Of which the column is, where it is of the run itself.
        default: Shown without being asked for.
    """

    column: Column
    source: str
    reading: Reading
    protocol: Protocol | None = None
    default: bool = True
    of_run: RunQuantity | None = None
    where: tuple[tuple[str, Any], ...] = ()

    @property
    def metric(self) -> str:
        return self.reading.metric

    @property
    def quantity(self) -> Quantity:
        return self.reading.quantity

    @property
    def open_key(self) -> str:
        """The key, with the block left open where it is of one."""
        if self.reading.block is None:
            return self.column.key
        return f"{self.source}/{self.reading.of_any_block}"


def catalogue(runs: Sequence[Run], block: int | None) -> list[Spec]:
    """Every quantity that some run has, in the order of the paper's tables."""
    protocols = {
        name: contract_of(str(result.protocol["name"]))
        for run in runs
        for name, result in run.results.items()
    }

    def place(name: str) -> tuple[int, int, str]:
        return protocols[name].place, protocols[name].rank(_variant(name)), name

    specs: list[Spec] = []
    for name in sorted(protocols, key=place):
        specs += _result_specs(runs, name, protocols[name], block)
    specs += [
        run_spec(one) for one in RUN_QUANTITIES if any(one.of(run) is not None for run in runs)
    ]
    return specs


def run_spec(one: RunQuantity) -> Spec:
    """The column of a quantity of runs themselves."""
    reading = Reading(one.quantity, one.quantity.pattern, {})
    column = _column(one.key, reading.heading, one.quantity, one.quantity.explanation or "")
    return Spec(column, OF_RUN, reading, default=one.quantity.default, of_run=one)


def _result_specs(
    runs: Sequence[Run], name: str, protocol: Protocol, block: int | None
) -> Iterator[Spec]:
    """The columns of a result that some run has; default ones are of `block`, or of none."""
    results = [run.results[name] for run in runs if name in run.results]
    for metric in dict.fromkeys(chain.from_iterable(result.metrics for result in results)):
        if is_end(metric):
            continue
        spec = result_spec(protocol, name, metric)
        wanted = spec.reading.block is None or spec.reading.block == block
        measured = any(result.metrics.get(metric) is not None for result in results)
        tells = measured or spec.quantity.undefined
        yield replace(spec, default=spec.default and wanted and tells)


def result_spec(protocol: Protocol, name: str, metric: str) -> Spec:
    """A column of a result, as the contract of its protocol has it.

    Args:
        protocol: What the result's protocol says of its metrics.
        name: Of the result, `<protocol>[--<variant>]`.
        metric: One of the result's.
    """
    variant = _variant(name)
    reading = protocol.read(metric, variant)
    quantity = reading.quantity
    heading = protocol.title_of(reading.heading, variant)
    own = quantity.explanation
    column = _column(
        f"{name}/{metric}", heading, quantity, protocol.explanation if own is None else own
    )
    return Spec(column, name, reading, protocol, quantity.default)


def _column(key: str, heading: str, quantity: Quantity, explanation: str) -> Column:
    return Column(
        key=key,
        heading=heading,
        kind=quantity.unit,
        direction=quantity.better or "none",
        explanation=explanation,
        ranked=quantity.better is not None,
    )


def _variant(name: str) -> str:
    return name.partition("--")[2]


def has_number(run: Run, spec: Spec) -> bool:
    """Whether a run has something in a column, if only that it is undefined."""
    if spec.of_run is not None:
        return spec.of_run.of(run) is not None
    return spec.source in run.results and spec.metric in run.results[spec.source].metrics


def compared_block(runs: Sequence[Run], block: int | None) -> int | None:
    """The block whose columns are shown: `block`, else the protocol's, else the only one there is.

    Returns:
        None where no run has numbers of blocks and none was asked for, or where the choice
        is open (then the default table has no such column and says so).

    Raises:
        UserError: `block` was asked for and no run has it.
    """
    usual = dict(_blocks(runs))
    blocks = sorted(usual)
    if block is not None and block not in blocks:
        listed = f"blocks scored are {', '.join(map(str, blocks))}" if blocks else "none is scored"
        commands = " or ".join(f"`ser {one.name}`" for one in PROTOCOLS.values() if one.has_blocks)
        raise UserError(f"--block {block}", listed, f"run {commands} or name another block")
    if block is not None:
        return block
    preferred = [number for number in blocks if number == usual[number]]
    if preferred:
        return preferred[0]
    return blocks[0] if len(blocks) == 1 else None


def _blocks(runs: Sequence[Run]) -> Iterator[tuple[int, int | None]]:
    """The blocks that runs have default columns of, each with its protocol's usual one."""
    metrics: dict[tuple[str, str], set[str]] = {}  # runs have mostly the same
    for run in runs:
        for name, result in run.results.items():
            protocol = str(result.protocol["name"])
            if contract_of(protocol).has_blocks:
                metrics.setdefault((protocol, name), set()).update(result.metrics)
    for (protocol, name), found in metrics.items():
        contract = contract_of(protocol)
        for metric in found:
            reading = contract.read(metric, _variant(name))
            if reading.quantity.default and reading.block is not None:
                yield reading.block, contract.default_block


def choose(specs: Sequence[Spec], patterns: Sequence[str]) -> list[Spec]:
    """The columns asked for, in that order; without patterns, the default ones.

    A pattern is a whole key (`<result>/top1`), a key's beginning (`<result>`: the default columns
    of it, or all where none is default), or holds wildcards (`<result>/*`: all of it).

    Raises:
        UserError: A pattern fits nothing.
    """
    if not patterns:
        return [spec for spec in specs if spec.default]
    chosen: dict[str, Spec] = {}
    for pattern in patterns:
        fitting = _fitting(specs, pattern)
        if not fitting:
            available = ", ".join(spec.column.key for spec in specs if spec.default)
            raise UserError(
                f"--columns {pattern!r} fits no column",
                f"columns of these runs are {available}, and more with wildcards",
            )
        chosen.update({spec.column.key: spec for spec in fitting})
    return list(chosen.values())


def _fitting(specs: Sequence[Spec], pattern: str) -> list[Spec]:
    exact = [spec for spec in specs if spec.column.key == pattern]
    if exact:
        return exact
    if any(sign in pattern for sign in "*?["):
        return [spec for spec in specs if fnmatch.fnmatchcase(spec.column.key, pattern)]
    starting = [spec for spec in specs if re.match(rf"{re.escape(pattern)}(/|--)", spec.column.key)]
    return [spec for spec in starting if spec.default] or starting
