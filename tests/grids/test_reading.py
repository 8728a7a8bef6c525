"""A grid says what it is, or is refused in a line that names the nearest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sercli.commands.grid_words import read_words
from sercli.errors import UserError
from sercli.families import resolve
from sercli.grids.jobs import Places, plan_jobs
from sercli.grids.reading import find_grid, grid_names, read_grid, restricted, tables_of
from sercli.grids.schema import Grid
from sercli.protocols import PROTOCOLS
from sercli.recipe.files import recipe_names
from sercli.report.compare.papers_tables import ALL, PAPERS_TABLES

RUNS = "runs: {none: shapes/moco-none}\n"


def test_a_short_form_is_the_long_one(write: Callable[[str], Path]) -> None:
    short = read_grid(write("runs: {a: r}\nevaluations: {b: knn}\nprepare: {c: data shapes}\n"))
    long = read_grid(
        write(
            "runs: {a: {recipe: r}}\nevaluations: {b: {command: knn}}\n"
            "prepare: {c: {command: data shapes}}\n"
        )
    )
    assert short == long
    assert (short.seeds_of("a"), short.runs_of("b")) == ([0], ["a"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{RUNS}sedes: [1]", "unknown key sedes; .* did you mean seeds"),
        ("runs: {none: {recpe: x}}", "unknown key runs.none.recpe; .* did you mean recipe"),
        (f"{RUNS}evaluations: {{a: {{command: knn, result: [x]}}}}", "did you mean results"),
        (
            f"{RUNS}claims: {{a: {{text: t, comparisons: "
            "[{metric: knn/top1, off: none, above: none}]}}",
            "did you mean of",
        ),
        ("seeds: [0]", "runs is missing"),
        ("runs: {}", "runs = {}"),
        (f"{RUNS}seeds: [1, 1]", "seeds = .* stands twice"),
        (f"{RUNS}seeds: [-1]", "seeds.0 = -1"),
        (f"{RUNS}seeds: ['1']", "seeds.0 = '1'"),
        ("runs: {../x: shapes/moco-none}", r"runs\.\.\./x = '\.\./x': letters, digits"),
        (f"{RUNS}evaluations: {{a: ''}}", "a command is needed"),
        (f"{RUNS}evaluations: {{a: 'knn \"'}}", "no command line"),
        (f"{RUNS}evaluations: {{a: {{command: knn, runs: [non]}}}}", "did you mean none"),
        (f"{RUNS}prepare: {{out: data shapes}}", "stands for something else"),
        (
            f"{RUNS}claims: {{a: {{text: t, comparisons: [{{metric: knn/top1, of: none}}]}}}}",
            "either `above:` or `below:`",
        ),
        (
            f"{RUNS}claims: {{a: {{text: t, comparisons: "
            "[{metric: top1, of: none, above: none}]}}",
            "RESULT/METRIC",
        ),
        (
            f"{RUNS}claims: {{a: {{text: t, comparisons: "
            "[{metric: kn/top1, of: none, above: b}]}}",
            "no run has that name",
        ),
        (f"{RUNS}tables: [mian]", "tables names 'mian'; no table .* did you mean main"),
        ("runs: {none: {recipe: x, tables: [coast]}}", "did you mean cost"),
        (
            f"{RUNS}evaluations: {{a: {{command: knn, encodes: {{trian: 1}}}}}}",
            "evaluations.a.encodes.trian = 'trian': input should be 'train', 'val' or 'more'",
        ),
        ("- a list", "holds list"),
        ("runs: !!python/object:os.system {}", "no valid YAML"),
    ],
)
def test_what_is_wrong_is_named(write: Callable[[str], Path], text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        read_grid(write(text))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("kn/top1", "names 'kn/top1'; no evaluator has that name; did you mean knn"),
        ("knn/topp1", "names 'knn/topp1'; ser knn measures no such thing"),
        ("robustness--imagenet-a/mce", "ser robustness measures no such thing"),
    ],
)
def test_a_claim_about_what_nothing_measures_is_refused(
    write: Callable[[str], Path], metric: str, message: str
) -> None:
    text = "runs: {a: x, b: x}\nclaims: {c: {text: t, comparisons: [{metric: M, of: a, above: b}]}}"
    read_grid(write(text.replace("M", "knn/top1")))
    with pytest.raises(UserError, match=message):
        read_grid(write(text.replace("M", metric)))


def test_a_grid_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean shapes-quick"):
        find_grid("shapes-quik")


def test_a_table_takes_what_is_marked_for_it_or_for_none(grid: Grid) -> None:
    assert tables_of(grid) == ["ablation", "main"]
    main = restricted(grid, "main")
    assert list(main.runs) == ["none"]  # ser is for the ablation only
    assert list(main.evaluations) == ["knn", "probe", "shifted"]
    assert main.tables == ["main"]
    ablation = restricted(grid, "ablation")
    assert list(ablation.runs) == ["none", "ser"]
    assert list(ablation.evaluations) == ["probe", "shifted"]
    with pytest.raises(UserError, match="did you mean main"):
        restricted(grid, "mian")


def test_grids_are_no_recipes() -> None:
    assert {"shapes", "shapes-quick", "imagenet"} <= set(grid_names())
    assert not [name for name in recipe_names() if name.startswith("grids")]


@pytest.mark.parametrize("name", grid_names())
def test_grids_that_come_with_ser_can_be_done(name: str, tmp_path: Path) -> None:
    grid = read_grid(find_grid(name))
    for folder in ("imagenet-c", "imagenet-p", "imagenet-r", "sketch", "imagenet-v2"):
        (tmp_path / folder).mkdir()
    places = Places(tmp_path / "out", data="D", coco="C", robustness=(str(tmp_path),))
    plan = plan_jobs(grid, places)
    assert not plan.notes
    assert len({job.name for job in plan.jobs}) == len(plan.jobs)
    for job in plan.jobs:
        if job.is_training:
            assert resolve(job.recipe, job.settings, {"seed": job.seed}).recipe.seed == job.seed
        else:
            read_words(job.words)  # refuses what no command takes
    for one in grid.claims.values():
        for comparison in one.comparisons:
            result, _, metric = comparison.metric.partition("/")
            protocol, _, variant = result.partition("--")
            assert PROTOCOLS[protocol].measures(metric, variant), comparison.metric
            assert protocol in {part.words[0] for part in grid.evaluations.values()}
    named = {table for one in grid.runs.values() for table in one.tables}
    assert named <= set(PAPERS_TABLES)
    assert set(grid.tables) <= {*PAPERS_TABLES, ALL}


def test_the_miniature_is_what_it_is_said_to_be(tmp_path: Path) -> None:
    def trainings(name: str) -> list[str]:
        plan = plan_jobs(read_grid(find_grid(name)), Places(tmp_path))
        return [job.recipe.rpartition("/")[2] for job in plan.jobs if job.is_training]

    assert len(trainings("shapes")) == 51
    assert len(set(trainings("shapes"))) == 17
    assert trainings("shapes-quick") == [
        "moco-none", "moco-ser-weight0", "moco-ser", "moco-ser-layer9", "moco-ser-layer12",
    ]  # fmt: skip
