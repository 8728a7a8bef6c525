"""One protocol a column: a mixture is refused, or each protocol gets its own column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from sercli.errors import UserError
from sercli.report.compare.columns import Spec
from sercli.report.compare.runs import Run, flat


def by_protocol(specs: Sequence[Spec], runs: Sequence[Run], *, allow_mixed: bool) -> list[Spec]:
    """One protocol a column: refuse a mixture, or give each protocol its own column.

    Raises:
        UserError: Two runs measured one column by different rules and `allow_mixed` is not set;
            the line names the settings and the runs.
    """
    separated: list[Spec] = []
    for spec in specs:
        holders = {} if spec.of_run is not None else _holders(spec, runs)
        if len(holders) > 1 and not allow_mixed:
            raise UserError(
                f"{spec.column.heading!r} mixes {len(holders)} protocols: "
                + "; ".join(_differences(spec.source, holders)),
                "results of different protocols are not comparable",
                f"repeat {_to_repeat(spec.source, holders)}, choose other --columns, or pass "
                "--allow-mixed for a column each",
            )
        if len(holders) < 2:
            column = replace(spec.column, protocol_id=next(iter(holders), None))
            separated.append(replace(spec, column=column))
        else:
            separated += [_of_protocol(spec, identity, runs) for identity in holders]
    return separated


def _to_repeat(source: str, holders: Mapping[str, Sequence[Run]]) -> str:
    """Whose evaluation is of an earlier version of its protocol; "one evaluation" if none is."""
    versions = [
        (version, run.path)
        for group in holders.values()
        for run in group
        if isinstance(version := run.results[source].protocol.get("version"), int)
    ]
    newest = max((version for version, _ in versions), default=0)
    older = [path for version, path in versions if version < newest]
    return f"that of {', '.join(older)} (an earlier version's)" if older else "one evaluation"


def _of_protocol(spec: Spec, identity: str, runs: Sequence[Run]) -> Spec:
    # The letter is the result's, so that top-1 and top-5 of one protocol share it.
    letter = chr(ord("A") + list(_sharing(spec.source, runs)).index(identity))
    column = replace(
        spec.column,
        key=f"{spec.column.key}@{identity}",
        heading=f"{spec.column.heading} [{letter}]",
        protocol_id=identity,
    )
    return replace(spec, column=column)


def _sharing(source: str, runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs that have a result, by its protocol."""
    sharing: dict[str, list[Run]] = {}
    for run in runs:
        if source in run.results:
            sharing.setdefault(run.results[source].protocol_id, []).append(run)
    return sharing


def _holders(spec: Spec, runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs that have a metric, by the protocol of its result."""
    return _sharing(
        spec.source,
        [
            run
            for run in runs
            if spec.source in run.results and spec.metric in run.results[spec.source].metrics
        ],
    )


def mixed_protocols(specs: Sequence[Spec], runs: Sequence[Run]) -> list[str]:
    """What the letters of separated columns stand for: one sentence a result."""
    sources = dict.fromkeys(spec.source for spec in specs if "@" in spec.column.key)
    sentences = []
    for source in sources:
        sharing = _sharing(source, runs)
        letters = ", ".join(
            f"[{chr(ord('A') + index)}] is protocol {identity}"
            for index, identity in enumerate(sharing)
        )
        sentences.append(
            f"{source}: different protocols are not comparable, hence a column each; {letters}; "
            f"{'; '.join(_differences(source, sharing))}."
        )
    return sentences


def _differences(source: str, holders: Mapping[str, Sequence[Run]]) -> list[str]:
    """Where protocols differ, as `settings.resize: 256 (runs/a) vs 224 (runs/b)`."""
    told = [flat(group[0].results[source].protocol) for group in holders.values()]
    named = [", ".join(run.path for run in group) for group in holders.values()]
    lines = []
    for key in sorted({key for settings in told for key in settings}):
        values = [settings.get(key, "absent") for settings in told]
        if len({repr(value) for value in values}) > 1:
            pairs = (f"{value} ({who})" for value, who in zip(values, named, strict=True))
            lines.append(f"{key}: {' vs '.join(pairs)}")
    return lines
