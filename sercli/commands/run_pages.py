"""What `ser runs` shows of runs: a row, a page of one, what can go; as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sercli.commands.printing import aligned
from sercli.visible import counted

if TYPE_CHECKING:
    from sercli.survey.details import Details, Measured
    from sercli.survey.pruning import Plan, Waste
    from sercli.survey.standing import Standing

_COUNTED_STATES = ("running", "unseen", "dead", "preempted", "interrupted", "failed", "done")


def summary(found: Sequence[Standing], root: Path | None) -> str:
    states = [one.state for one in found]
    named = [f"{states.count(state)} {state}" for state in _COUNTED_STATES if state in states]
    where = "" if root is None else f" in {root}"
    parts = [*named, _bytes(sum(one.size for one in found))]
    return f"{counted(len(found), 'run')}{where}: {', '.join(parts)}"


def row_of(one: Standing, root: Path | None) -> tuple[str, ...]:
    progress = one.progress
    step = "" if progress.step is None else f"{progress.step}"
    if progress.total is not None:
        step = f"{step or 0}/{progress.total}"
    return (
        _name(one, root),
        one.state,
        step,
        "" if progress.loss is None else f"{progress.loss:.3f}",
        "" if progress.knn is None else f"{progress.knn:.1f}",
        _left(one),
        _bytes(one.size),
    )


def _left(one: Standing) -> str:
    """The time left of a run that runs; of one that does not, what it would take."""
    seconds = one.progress.seconds_left
    if one.state not in ("running", "unseen") or seconds is None:
        return ""
    return _duration(seconds)


def _name(one: Standing, root: Path | None) -> str:
    """Below the one folder that was looked into, or as it was given."""
    path = one.facts.directory.path
    if root is not None and path != root and path.is_relative_to(root):
        return str(path.relative_to(root))
    return str(path)


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return (
                f"{seconds / size:.1f} {unit}"
                if seconds < 10 * size
                else f"{seconds / size:.0f} {unit}"
            )
    return f"{seconds:.0f} s"


def _bytes(size: int) -> str:
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1000 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return (
        f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 100 else f"{value:.1f} {units[0]}"
    )


def line_of(row: Sequence[str]) -> str:
    name, state, step, loss, knn, left, _ = row
    parts = [
        state,
        f"step {step}" if step else "",
        f"loss {loss}" if loss else "",
        f"kNN {knn} %" if knn else "",
        f"{left} left" if left else "",
    ]
    return f"{name}  {', '.join(part for part in parts if part)}"


# -- One run ---------------------------------------------------------------------------------------


def page(details: Details, plan: Plan) -> Iterator[str]:
    one = details.standing
    facts, progress = one.facts, one.progress
    yield f"{facts.path}: {one.state}{_holder_text(one)}"
    yield from aligned(list(_facts(one)))
    if progress.last:
        yield ""
        yield "last row of metrics.jsonl"
        numbers = {k: v for k, v in progress.last.items() if isinstance(v, int | float)}
        if progress.knn is not None:
            numbers |= {"knn_top1": progress.knn}
        yield from (f"  {line}" for line in aligned([(k, f"{v:.6g}") for k, v in numbers.items()]))
    if details.recipe_name is not None and details.differences is not None:
        yield ""
        yield from _recipe_lines(details)
    if details.measured:
        yield ""
        yield "results (95 % intervals)"
        yield from (f"  {line}" for line in aligned([_measured(m) for m in details.measured]))
    if details.checkpoints:
        yield ""
        yield "checkpoints"
        rows = [
            (str(c.path.relative_to(facts.directory.path)), _bytes(c.size), c.state)
            + (("milestone",) if c.milestone else ("",))
            for c in details.checkpoints
        ]
        yield from (f"  {line}" for line in aligned(rows, right=[1]))
    yield ""
    yield f"files, {_bytes(one.size)}"
    rows3 = [(name, str(n), _bytes(size)) for name, (n, size) in details.folders.items()]
    yield from (f"  {line}" for line in aligned(rows3, right=[1, 2]))
    if plan.waste:
        yield f"  of these `ser runs prune` would free {_bytes(plan.size)}"
    for note in (*details.notes, *plan.notes):
        yield f"note: {note}"


def _holder_text(one: Standing) -> str:
    if one.holder is None:
        return ""
    heard = (
        ""
        if one.holder.lives is not None
        else f", last heard of {_duration(one.holder.silent)} ago"
    )
    return f" ({one.holder.owner}{heard})"


def _facts(one: Standing) -> Iterator[tuple[str, str]]:
    facts, progress = one.facts, one.progress
    titles = [facts.title(section) for section in ("method", "addon")]
    if any(titles):
        layer = "" if facts.tapped_layer is None else f" (layer {facts.tapped_layer})"
        yield "  what", " + ".join(title for title in titles if title) + layer
    for label, value in (
        ("evaluates", facts.record.get("evaluates")),
        ("seed", facts.seed),
        ("created", facts.record.get("created")),
        ("device", facts.record.get("device")),
        ("command", facts.record.get("command")),
        ("commit", facts.record.get("git_commit")),
        ("error", facts.record.get("error")),
    ):
        if value is not None:
            yield f"  {label}", value if isinstance(value, str) else _plain(value)
    versions = facts.record.get("versions")
    if isinstance(versions, dict):
        yield "  versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    if progress.step is not None:
        of = "" if progress.total is None else f" of {progress.total}"
        rate = "" if progress.images_per_s is None else f", {progress.images_per_s:.0f} images/s"
        left = f", {_left(one)} left" if _left(one) else ""
        yield "  step", f"{progress.step}{of}{rate}{left}"


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _recipe_lines(details: Details) -> Iterator[str]:
    found = details.differences or ()
    if not found:
        yield f"recipe {details.recipe_name}, as it is"
        return
    yield f"recipe {details.recipe_name}, but for"
    rows = [
        (
            one.key,
            "–" if one.first is None else _plain(one.first.value),
            "→",
            "–" if one.second is None else _plain(one.second.value),
        )
        for one in found
    ]
    yield from (f"  {line}" for line in aligned(rows))


def _measured(one: Measured) -> tuple[str, str, str, str]:
    form = "{:.2f}" if one.unit == "percent" else "{:.3f}"
    value = "undefined" if one.value is None else form.format(one.value)
    ends = (
        ""
        if one.low is None or one.high is None
        else f"[{form.format(one.low)}, {form.format(one.high)}]"
    )
    images = "" if one.images is None else counted(one.images, "image")
    return one.heading, value, ends, f"{images}{', partial' if one.partial else ''}"


# -- What can go -----------------------------------------------------------------------------------


def plan_lines(plans: Sequence[Plan], drafts: Sequence[Waste], freed: int | None) -> Iterator[str]:
    """What can go, and what it comes to; or how much is free again where it was removed."""
    waste = [one for plan in plans for one in plan.waste] + list(drafts)
    if waste:
        yield from aligned(
            [(_bytes(one.size), one.what, str(one.path)) for one in waste], right=[0]
        )
    for plan in plans:
        yield from plan.notes
    if freed is not None:
        yield f"removed: {_bytes(freed)} are free again"
    elif waste:
        total = _bytes(sum(one.size for one in waste))
        yield f"{counted(len(waste), 'thing')} can go, {total}; nothing was removed (--yes does it)"
    else:
        yield "nothing can go"


# -- JSON ------------------------------------------------------------------------------------------


def standing_json(one: Standing, *, results: bool) -> dict[str, Any]:
    progress, facts = one.progress, one.facts
    tree = {
        "path": facts.path,
        "state": one.state,
        "recipe": facts.record.get("recipe_name"),
        "method": facts.name("method") or None,
        "addon": facts.addon if facts.recipe else None,
        "seed": facts.seed,
        "holder": None
        if one.holder is None
        else {**asdict(one.holder.owner), "silent": one.holder.silent},
        "step": progress.step,
        "total": progress.total,
        "images_per_s": progress.images_per_s,
        "seconds_left": progress.seconds_left,
        "loss": progress.loss,
        "knn_top1": progress.knn,
        "bytes": one.size,
    }
    return {**tree, "results": list(one.results)} if results else tree


def details_json(details: Details, plan: Plan) -> dict[str, Any]:
    return {
        **standing_json(details.standing, results=False),
        "last": dict(details.standing.progress.last),
        "differences": None
        if details.differences is None
        else {
            one.key: [None if side is None else side.value for side in (one.first, one.second)]
            for one in details.differences
        },
        "results": [asdict(one) for one in details.measured],
        "checkpoints": [{**asdict(one), "path": str(one.path)} for one in details.checkpoints],
        "files": {name: {"files": n, "bytes": size} for name, (n, size) in details.folders.items()},
        "prunable_bytes": plan.size,
        "notes": [*details.notes, *plan.notes],
    }


def plans_json(plans: Sequence[Plan], drafts: Sequence[Waste], freed: int | None) -> dict[str, Any]:
    waste = [(plan.run.path, one) for plan in plans for one in plan.waste]
    return {
        "waste": [
            {
                "run": None if run is None else str(run),
                "path": str(one.path),
                "what": one.what,
                "bytes": one.size,
            }
            for run, one in [*waste, *((None, one) for one in drafts)]
        ],
        "notes": [note for plan in plans for note in plan.notes],
        "freed": freed,
    }
