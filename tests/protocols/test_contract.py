"""Contracts of protocols: how metrics are read by them, and that a report needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy import stats

import sercli.protocols
from sercli.errors import UserError
from sercli.protocols import PROTOCOLS, Protocol, Quantity, contract_of, find_protocols
from sercli.report.compare import published
from sercli.report.compare.comparison import Options, compare_runs
from sercli.report.compare.tables import Cell, Table
from sercli.report.formats.renderers import RENDERERS
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir

# Everything that a new protocol needs for `ser compare`.
TOY = '''
"""How far a probe's answers change when its input is jittered."""

from __future__ import annotations

from sercli.protocols.contract import Protocol, Quantity

PROTOCOL = Protocol(
    name="jitter-eval",
    title="jitter",
    explanation="Answers under jitter; percent.",
    heading="Jitter {variant} {quantity}",
    place=7,
    variants={"weak": "by 2 px"},
    default_block=1,
    untested="Differences under jitter are not tested.",
    quantities=(
        Quantity("error", "error", better="down", default=True, interval="wilson"),
        Quantity(
            "shift/block{block}/{direction}",
            "shift {direction} block {block}",
            unit="score",
            better="down",
            default=True,
            interval="stored",
            floor="shift_random/block{block}/{direction}",
        ),
        Quantity("shift_random/block{block}/{direction}", unit="score", better=None),
    ),
)
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Protocol:
    """A protocol whose only trace is a file in the folder of contracts."""
    assert len(TOY.strip().splitlines()) <= 40
    (tmp_path / "contracts").mkdir()
    (tmp_path / "contracts" / "jitter.py").write_text(TOY)
    folders = [*sercli.protocols.__path__, str(tmp_path / "contracts")]
    monkeypatch.setattr(sercli.protocols, "__path__", folders)
    found = find_protocols(folders)
    assert list(found) == [*PROTOCOLS, "jitter-eval"]
    monkeypatch.setitem(PROTOCOLS, "jitter-eval", found["jitter-eval"])
    return found["jitter-eval"]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, protocol: str, variant: str | None, metrics: dict[str, float]) -> Path:
        path = tmp_path / name
        run_dir = (
            RunDir(path)
            if path.is_dir()
            else RunDir.create(path, recipe=None, run={"status": "running"})
        )
        rule = {"name": protocol, "variant": variant, "version": 1, "settings": {}}
        data = {"path": "shapes", "n": 400, "partial": False}
        run_dir.write_result(Result(rule, {"source": name}, data, metrics))
        return path

    return make


def cell(table: Table, key: str) -> Cell:
    return table.rows[0].cells[key]


def test_a_protocol_of_one_file_is_compared(toy: Protocol, run: Callable[..., Path]) -> None:
    values = {"error": 20.0, "shift/block02/left": 0.3, "shift_random/block02/left": 0.8}
    ends = {"shift/block02/left/low": 0.2, "shift/block02/left/high": 0.4}
    first = run("first", toy.name, "weak", values | ends | {"shift/block01/left": 0.1})
    second = run("second", toy.name, "weak", values | {"error": 10.0})
    table = compare_runs([first, second], Options(baseline=first))
    headings = [column.title for column in table.columns]
    assert headings == ["Jitter by 2 px error ↓", "Jitter by 2 px shift left block 1 ↓"]
    error = cell(table, "jitter-eval--weak/error")
    wilson = stats.binomtest(80, 400).proportion_ci(method="wilson")
    assert (error.low, error.high) == pytest.approx((100 * wilson.low, 100 * wilson.high))
    assert table.rows[1].cells["jitter-eval--weak/error"].best
    assert "Differences under jitter are not tested." in [note.text for note in table.notes]
    chosen = compare_runs([first, second], Options(block=2))
    shift = cell(chosen, "jitter-eval--weak/shift/block02/left")
    assert (shift.value, shift.low, shift.high, shift.floor) == (0.3, 0.2, 0.4, 0.8)
    for name, render in RENDERERS.items():
        assert "jitter" in render(chosen).lower(), name
    with pytest.raises(UserError, match="`ser segment` or `ser equiv-score` or `ser jitter-eval`"):
        compare_runs([first], Options(block=7))
    run("first", "knn", None, {"top1": 50.0})
    with pytest.raises(
        UserError, match="no segmentation or equivariance or jitter column is chosen"
    ):
        compare_runs([first], Options(block=2, columns=("knn",)))


def test_a_protocol_without_contract_is_shown_by_name(run: Callable[..., Path]) -> None:
    path = run("a", "novel", None, {"thing": 0.5, "thing/low": 0.4, "thing/high": 0.6})
    run("a", "knn", None, {"top1": 50.0, "of_a_later_version": 1.0})
    table = compare_runs([path])
    assert [column.title for column in table.columns] == ["kNN top-1 ↑", "novel thing"]
    assert (cell(table, "novel/thing").low, cell(table, "novel/thing").best) == (0.4, False)
    (asked,) = compare_runs([path], Options(columns=("knn/of*",))).columns
    assert asked.title == "kNN of_a_later_version"
    assert not contract_of("knn").measures("of_a_later_version")


def test_slots_stand_for_a_part_for_the_rest_or_for_a_block() -> None:
    part, rest = Quantity("k{k}/top1"), Quantity("ap/{category*}", "AP {category}")
    assert part.read("k20/top1") is not None
    assert part.read("k20/x/top1") is part.read("top1") is part.read("k/top1") is None
    found = rest.read("ap/cup/saucer")
    assert found is not None
    assert found.heading == "AP cup/saucer"
    block = Quantity("es/block{block}/{action}", "ES {action} block {block}", floor="r{block}")
    reading = block.read("es/block03/rot90")
    assert reading is not None
    assert (reading.heading, reading.block, reading.floor) == ("ES rot90 block 3", 3, "r03")
    assert reading.of_any_block == "es/block{block}/rot90"
    assert block.read("es/blockx/rot90") is None
    assert Quantity("a.b").read("axb") is None  # a dot is a dot


def test_a_quantity_can_be_of_some_variants() -> None:
    robustness = PROTOCOLS["robustness"]
    assert robustness.read("top1", "imagenet-r").quantity.paired
    # 75 cells over the same images are no sample of n.
    assert robustness.read("top1", "imagenet-c-otf").quantity.interval is None
    assert not robustness.measures("mce", "imagenet-r")
    assert robustness.rank("imagenet-c") < robustness.rank("imagenet-r") < robustness.rank("new")


def test_published_keys_are_of_contracts() -> None:
    assert published.LINEAR == "linear-eval--ser/top1"
    for key in {key for row in published.ROWS for key in row.numbers}:
        name, _, metric = key.partition("/")
        if name != "run":
            protocol, _, variant = name.partition("--")
            assert PROTOCOLS[protocol].key(metric, variant) == key
    with pytest.raises(ValueError, match="'nonsense' of knn"):
        PROTOCOLS["knn"].key("nonsense")


def test_names_are_unique_and_places_too() -> None:
    assert [protocol.name for protocol in PROTOCOLS.values()] == list(PROTOCOLS)
    assert len({protocol.place for protocol in PROTOCOLS.values()}) == len(PROTOCOLS)
    for protocol in PROTOCOLS.values():
        quantities = protocol.quantities
        assert len({(one.pattern, one.variants) for one in quantities}) == len(quantities)
        assert any(one.default for one in quantities)


def test_a_report_names_no_protocol() -> None:
    names = {*PROTOCOLS, *(v for protocol in PROTOCOLS.values() for v in protocol.order)} - {"val"}
    root = Path(sercli.protocols.__path__[0]).parent / "report"
    # What the paper reports, and its tables, are of certain protocols.
    named = {"published.py", "papers_tables.py"}
    for file in root.rglob("*.py"):
        if file.name not in named:
            text = file.read_text().replace("rich.segment", "")  # rich's, of a line of text
            # As a word of its own: "segmentation" is one of the language.
            found = [n for n in names if re.search(rf"(?<![a-z]){re.escape(n)}(?![a-z])", text)]
            assert not found, file
