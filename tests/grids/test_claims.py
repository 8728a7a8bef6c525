"""What runs say of claims: planted numbers, against SciPy's paired t test and Holm by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from sercli.grids.claims import Decided, decide
from sercli.grids.jobs import Places
from sercli.grids.outcome import in_words, names_in_tables, runs_there, write_outcome, write_tables
from sercli.grids.reading import read_grid
from sercli.report.compare.papers_tables import PAPERS_TABLES
from sercli.report.page.claims import claims_of
from sercli.runs.files import file_sha256
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir
from tests.grids.conftest import measured

Plant = Callable[[Mapping[str, Sequence[float | None]]], Callable[[str, int], Path]]


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Runs with a kNN accuracy for each seed."""

    def planted(values: Mapping[str, Sequence[float | None]]) -> Callable[[str, int], Path]:
        def directory(run: str, seed: int) -> Path:
            return tmp_path / f"{run}-seed{seed}"

        for name, numbers in values.items():
            for seed, number in enumerate(numbers):
                run = RunDir.create(directory(name, seed), recipe=None, run={"status": "done"})
                if number is not None:
                    measured(run, "knn", {"top1": number})
        return directory

    return planted


@pytest.fixture
def claims(write: Callable[[str], Path]) -> Callable[..., list[Decided]]:
    def decided(
        directory: Callable[[str, int], Path], *given: str, seeds: int = 3
    ) -> list[Decided]:
        """Each claim: comparisons like "a above b", separated by commas."""
        lines = [f"seeds: {list(range(seeds))}", "runs: {a: x, b: x, c: x}", "claims:"]
        for number, claim in enumerate(given):
            lines += [f"  claim{number}:", f"    text: Claim {number}", "    comparisons:"]
            for comparison in claim.split(", "):
                of, how, other = comparison.split()
                lines.append(f"    - {{metric: knn/top1, of: {of}, {how}: {other}}}")
        return decide(read_grid(write("\n".join(lines))), directory)

    return decided


A, B, C = [60.0, 61.0, 62.5], [50.1, 50.9, 52.4], [60.5, 60.2, 63.1]


def test_planted_claims_are_confirmed_refuted_or_open(
    plant: Plant, claims: Callable[..., list[Decided]]
) -> None:
    runs = plant({"a": A, "b": B, "c": C})
    found = claims(runs, "a above b", "a below b", "a above c")
    assert [one.verdict for one in found] == ["confirmed", "refuted", "open"]


def test_p_values_are_those_of_the_paired_t_test_corrected_by_holm(
    plant: Plant, claims: Callable[..., list[Decided]]
) -> None:
    runs = plant({"a": A, "b": B, "c": C})
    found = claims(runs, "a above b", "c above a", "c above b")
    expected = [ttest_rel(A, B).pvalue, ttest_rel(C, A).pvalue, ttest_rel(C, B).pvalue]
    assert [one.p_value for one in found] == pytest.approx(expected, rel=1e-9)
    first, second, last = np.argsort(expected)
    holm = [0.0] * 3
    holm[first] = 3 * expected[first]
    holm[second] = max(holm[first], 2 * expected[second])
    holm[last] = max(holm[second], expected[last])
    assert [one.adjusted_p for one in found] == pytest.approx(holm, rel=1e-9)
    compared = found[0].compared[0]
    interval = ttest_rel(A, B).confidence_interval(0.95)
    assert compared.difference == pytest.approx(np.mean(np.subtract(A, B)))
    assert (compared.interval.low, compared.interval.high) == pytest.approx(tuple(interval))


def test_what_only_the_correction_leaves_open_says_so(
    plant: Plant, claims: Callable[..., list[Decided]], tmp_path: Path
) -> None:
    runs = plant({"a": [60.0, 61.0, 62.5], "b": [57.0, 58.7, 59.0], "c": [60.5, 60.2, 63.1]})
    alone = claims(runs, "a above b")[0]
    first, *_ = found = claims(runs, "a above b", *["a above c"] * 3)
    assert alone.verdict == "confirmed"
    assert (first.verdict, first.tested) == ("open", 4)
    assert first.p_value is not None
    words = f"p = {first.p_value:.2g} by itself, {4 * first.p_value:.2g} corrected for 4 claims"
    assert in_words(found)[0] == f"Claim 0: open ({words})"
    assert found[1].level == "corrected p = 1"
    file = write_outcome(Places(tmp_path / "out"), found)[-1]
    assert [one.level for one in claims_of(file).claims] == [one.level for one in found]


def test_runs_are_told_by_the_names_that_tables_have(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    text = (
        "seeds: [0, 1]\nruns: {a: x, b: x}\nclaims:\n  one:\n    text: One\n    comparisons:\n"
        "    - {metric: knn/top1, of: a, above: b}"
    )
    grid, places = read_grid(write(text)), Places(tmp_path / "out")
    settings = {"a": {"name": "ser", "layer": 3}, "b": {"name": "none"}}
    for name, addon in settings.items():
        for seed in (0, 1):
            recipe = {"seed": seed, "method": {"name": "moco"}, "addon": addon}
            text = json.dumps(recipe)
            RunDir.create(places.run(name, seed), recipe=text, run={"status": "done"})
    decided = decide(grid, places.run)
    names = names_in_tables(grid, places, decided, runs_there(grid, places))
    assert names == {"a": "MoCo-v3 + SER (layer 3)", "b": "MoCo-v3"}
    told = "In tables a is MoCo-v3 + SER (layer 3); b is MoCo-v3. Tests: "
    assert in_words(decided, names)[-1].startswith(told)
    page, data = write_outcome(places, decided, names)
    assert told in page.read_text()
    assert claims_of(data).rule == in_words(decided, names)[-1]


def test_of_several_comparisons_all_must_hold(
    plant: Plant, claims: Callable[..., list[Decided]]
) -> None:
    runs = plant({"a": A, "b": B, "c": C})
    both, half, one_wrong = (
        claims(runs, text)[0]
        for text in ("a above b, c above b", "a above b, c above a", "a above b, a below b")
    )
    assert both.verdict == "confirmed"
    assert both.p_value == pytest.approx(max(ttest_rel(A, B).pvalue, ttest_rel(C, B).pvalue))
    assert half.verdict == "open"
    assert one_wrong.verdict == "refuted"  # the one against is significant by itself
    assert one_wrong.p_value == pytest.approx(ttest_rel(A, B).pvalue)
    two_wrong = claims(runs, "a below b, c below b")[0]
    smallest = min(ttest_rel(A, B).pvalue, ttest_rel(C, B).pvalue)
    assert two_wrong.p_value == pytest.approx(2 * smallest)


def test_a_claim_of_which_a_part_cannot_be_tested_is_open(
    plant: Plant, claims: Callable[..., list[Decided]]
) -> None:
    runs = plant({"a": A, "b": B})
    half, against = claims(runs, "a above b, a above c", "a below b, a above c")
    assert (half.verdict, half.p_value, half.adjusted_p) == ("open", None, None)
    assert against.verdict == "refuted"  # whatever the other part is


def test_five_percent_is_where_a_claim_is_decided(
    plant: Plant, claims: Callable[..., list[Decided]]
) -> None:
    # Differences of 1, 2 and 3: t = 2 √3 with two degrees of freedom, p = 0.074; of 2, 3, 4: 0.037.
    runs = plant({"a": [51.0, 52.0, 53.0], "b": [50.0] * 3, "c": [49.0] * 3})
    assert [claims(runs, text)[0].verdict for text in ("a above b", "a above c")] == [
        *("open", "confirmed")
    ]


def test_a_seed_that_is_missing_is_said_and_the_others_are_paired(
    plant: Plant, claims: Callable[..., list[Decided]]
) -> None:
    runs = plant({"a": A, "b": [50.1, None, 52.4], "c": C})
    (found,) = claims(runs, "a above b")
    assert found.p_value == pytest.approx(ttest_rel(A[::2], B[::2]).pvalue)
    assert str(found).endswith("over 2 seeds (b: 1 seed not measured).")


def test_runs_that_lack_a_number_say_why(
    plant: Plant, claims: Callable[..., list[Decided]]
) -> None:
    runs = plant({"a": A, "b": [50.1, None, None]})
    RunDir(runs("b", 1)).update_run(status="failed")
    RunDir(runs("b", 2)).update_run(status="running")
    several, never = claims(runs, "a above b", "a above c")
    assert "over one seed (no test: nothing tells how seeds vary; " in str(several)
    assert "b: 1 seed failed, 1 seed not trained to the end)" in str(several)
    assert "(c: 3 seeds not trained)" in str(never)


def test_a_run_of_another_recipe_says_nothing(plant: Plant, write: Callable[[str], Path]) -> None:
    runs = plant({"a": A, "b": B})
    text = "seeds: [0, 1, 2]\nruns: {a: x, b: x}\nclaims: {c: {text: t, comparisons: "
    grid = read_grid(write(text + "[{metric: knn/top1, of: a, above: b}]}}"))
    (found,) = decide(grid, runs, foreign=[runs("b", 2)])
    assert found.p_value == pytest.approx(ttest_rel(A[:2], B[:2]).pvalue)
    assert str(found).endswith("over 2 seeds (b: 1 seed of another recipe).")
    places = Places(runs("a", 0).parent)
    (places.out / "runs").symlink_to(places.out)
    there = runs_there(grid, places, foreign=[places.run("b", 2)])
    assert there == [places.run(name, seed) for name in "ab" for seed in range(3)][:-1]


def test_what_cannot_be_tested_is_open(plant: Plant, claims: Callable[..., list[Decided]]) -> None:
    runs = plant({"a": [60.0, 61.0, 62.0], "b": [50.0, 51.0, 52.0], "c": [None] * 3})
    level, nothing = claims(runs, "a above b", "a above c")
    assert (level.verdict, level.p_value) == ("open", None)
    assert "the differences do not vary" in str(level)
    assert str(nothing) == (
        "Claim 1: open (not tested). "
        "kNN top-1 in %: a and c not compared (c: 3 seeds not measured)."
    )
    measured(RunDir(runs("b", 0)), "knn", {"top1": 50.5}, rule=2)
    assert "measured by different rules" in str(claims(runs, "a above b")[0])
    measured(RunDir(runs("b", 0)), "knn", {"top1": 50.5}, partial=True)
    assert "over 2 seeds" in str(claims(runs, "a above b")[0])


def test_no_claim_is_decided_by_chance_more_often_than_said(
    claims: Callable[..., list[Decided]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of equal runs at most one in twenty claims is decided, two comparisons a claim or one."""
    from sercli.grids import claims as module

    draw = np.random.default_rng(0)
    numbers: dict[tuple[Path, str], float] = {}

    def result(path: Path, _name: str) -> Result:
        value = numbers.setdefault((path, ""), float(draw.normal(50, 1)))
        return Result({"name": "knn"}, {}, {}, {"top1": value}, created="x")

    monkeypatch.setattr(module, "_result", result)
    decided = 0
    for _ in range(400):
        numbers.clear()
        found = claims(lambda run, seed: Path(f"{run}{seed}"), "a above b", "b below c, a below c")
        decided += any(one.verdict != "open" for one in found)
    assert decided <= 400 * 0.05 + 3 * (400 * 0.05 * 0.95) ** 0.5


def test_one_seed_is_tested_over_images_if_there_are_predictions(
    plant: Plant, claims: Callable[..., list[Decided]]
) -> None:
    runs = plant({"a": [], "b": [], "c": []})
    right = {"a": 120, "b": 60, "c": 119}  # of 128; the first so many
    for name, number in right.items():
        run = RunDir.create(runs(name, 0), recipe=None, run={"status": "done"})
        labels = np.zeros(128, dtype=np.int64)
        predictions = np.where(np.arange(128) < number, 0, 1)
        run.results.mkdir()
        path = run.predictions("knn")
        np.savez(path, image_ids=np.arange(128), labels=labels, predictions=predictions)
        result = Result(
            {"name": "knn", "variant": None, "version": 1, "settings": {}},
            {"source": name, "key": "student"},
            {"path": "folder", "n": 128, "partial": False},
            {"top1": 100 * number / 128},
            predictions_sha256=file_sha256(path),
        )
        run.write_result(result)
    sure, unsure = claims(runs, "a above b", "a above c", seeds=1)
    assert (sure.verdict, unsure.verdict) == ("confirmed", "open")
    # 60 discordant images, all one way: of the mid-p test, half of 2 x 0.5^60.
    assert sure.p_value == pytest.approx(0.5**60, rel=1e-9, abs=0)
    assert "over 128 images of one seed" in str(sure)
    (compared,) = sure.compared
    assert compared.difference == pytest.approx(100 * 60 / 128)
    assert compared.interval is not None
    assert 0 < compared.interval.low < 100 * 60 / 128 < compared.interval.high  # as signed
    runs("a", 0).joinpath("results", "knn.npz").unlink()
    (without,) = claims(runs, "a above b", seeds=1)
    assert (without.verdict, without.p_value) == ("open", None)
    assert "one seed" in str(without)


def test_one_seed_of_a_ratio_of_sums_is_tested_over_images_as_well(
    plant: Plant, write: Callable[[str], Path]
) -> None:
    """ES of 64 images: of b as of a but for noise, of c higher in each."""
    runs = plant({"a": [], "b": [], "c": []})
    draws = np.random.default_rng(0)
    observed = draws.gamma(3, 1, (1, 64))
    for name, gain in (("a", 0.0), ("b", 0.0), ("c", 0.05)):
        run = RunDir.create(runs(name, 0), recipe=None, run={"status": "done"})
        product = observed * (0.7 + gain + 0.05 * draws.standard_normal(observed.shape))
        run.results.mkdir()
        path = run.predictions("equiv-score")
        np.savez(
            path,
            image_ids=np.arange(64),
            layers=np.array([3]),
            transformations=np.array(["hflip"]),
            observed=observed,
            moved=observed[..., None],
            product=product[..., None],
        )
        result = Result(
            {"name": "equiv-score", "variant": None, "version": 2, "settings": {}},
            {"source": name, "key": "student"},
            {"path": "folder", "n": 64, "partial": False},
            {"es/block03/hflip": float(product.sum() / observed.sum())},
            predictions_sha256=file_sha256(path),
        )
        run.write_result(result)
    lines = ["runs: {a: x, b: x, c: x}", "claims:"]
    for of in ("c", "b"):
        comparison = f"{{metric: equiv-score/es/block03/hflip, of: {of}, above: a}}"
        lines += [f"  {of}:", f"    text: {of} is above", f"    comparisons: [{comparison}]"]
    grid = read_grid(write("\n".join(lines)))
    sure, unsure = decide(grid, runs)
    assert (sure.verdict, unsure.verdict) == ("confirmed", "open")
    assert sure.p_value is not None
    assert sure.p_value < 1e-4
    assert unsure.p_value is not None
    assert str(sure).endswith("over 64 images of one seed.")
    runs("a", 0).joinpath("results", "equiv-score.npz").write_bytes(b"cut off")
    (damaged, _) = decide(grid, runs)
    assert (damaged.verdict, damaged.p_value) == ("open", None)
    assert "over one seed (no test: " in str(damaged)
    assert "is damaged" in str(damaged)
    assert "\n" not in str(damaged)


def test_the_outcome_is_written_in_words_and_as_data(
    plant: Plant, claims: Callable[..., list[Decided]], tmp_path: Path
) -> None:
    found = claims(plant({"a": A, "b": B, "c": C}), "a above b")
    page, data = write_outcome(Places(tmp_path / "out"), found)
    text = page.read_text()
    assert text.startswith("# Outcome\n\n- Claim 0: confirmed (corrected p = ")
    numbers = "kNN top-1 in %: a 61.17, b 51.13, difference +10.03 [+9.75, +10.32], p = "
    assert numbers in text
    assert "over 3 seeds." in text
    assert "Holm over all claims that could be tested (1 of 1)" in in_words(found)[-1]
    assert '"verdict": "confirmed"' in data.read_text()
    on_page = claims_of(data)
    assert (on_page.claims[0].text, on_page.claims[0].verdict) == ("Claim 0", "confirmed")
    assert on_page.claims[0].numbers[0].startswith(numbers)
    assert on_page.rule == in_words(found)[-1]
    assert in_words([]) == []
    assert write_outcome(Places(tmp_path), []) == []


def test_tables_have_a_file_each_and_what_runs_took_apart(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    places = Places(tmp_path / "out")
    grid = read_grid(write("runs: {a: x, b: x}"))
    for name, seconds in (("a", 1.5), ("b", 2.5)):
        places.runs.mkdir(parents=True, exist_ok=True)
        run = RunDir.create(
            places.run(name, 0), recipe=None,
            run={"status": "done", "timings": {"train_seconds": seconds}},
        )  # fmt: skip
        measured(run, "knn", {"top1": 50.0})
    made = {one.name: one for one in write_tables(grid, places, runs_there(grid, places))}
    assert list(made) == list(PAPERS_TABLES)
    assert made["transfer"].why.startswith("transfer, of which no run has a number: ")
    written = {file.name for file in (places.out / "tables").iterdir()}
    tables = {name for name, one in made.items() if one.table is not None}
    assert {"main", "cost"} <= tables
    assert written == {
        *(f"{name}.{suffix}" for name in tables for suffix in ("md", "tex")),
        *("results.csv", "costs.csv"),
    }
    clock = [file.name for file in (places.out / "tables").iterdir() if "2.5" in file.read_text()]
    assert clock == ["costs.csv"]
    assert "train_seconds" not in (places.out / "tables/results.csv").read_text()
