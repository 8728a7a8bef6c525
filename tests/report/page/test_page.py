"""`ser report`: what is on the page and beside it, of whole runs and of broken ones."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from scipy import stats

from sercli.report.compare.comparison import Options
from sercli.report.compare.entries import single_entries
from sercli.report.page import building
from sercli.report.page.building import write_report
from sercli.report.page.gathering import Problem, gather
from sercli.report.page.pictures import find_pictures, shown
from tests.support.command_line import run_in_process
from tests.support.html_page import Page
from tests.support.refusals import refused
from tests.support.run_dirs import CORRUPTIONS, add, bare_run, picture, scores, whole_run


def rows_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"), newline="")))


# -- What is there ---------------------------------------------------------------------------------


def test_every_section_is_there_and_the_contents_lead_to_it(page: Page) -> None:
    (nav,) = page.all("nav")
    links = [one.attributes["href"] for one in page.all("a") if "nav" in one.inside]
    assert links == [
        *("#runs", "#table-1", "#table-2", "#table-3", "#table-4", "#table-5", "#table-6"),
        *("#training", "#blocks", "#trade-off", "#grids", "#pictures", "#recipes"),
    ]
    assert {link.removeprefix("#") for link in links} <= page.ids
    assert "Recipes" in nav.text
    assert page.all("h1")[0].text == page.all("title")[0].text == "A < B"


def test_headings_go_down_by_one(page: Page) -> None:
    levels = [int(one.tag[1]) for one in page.elements if re.fullmatch("h[1-6]", one.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_tables_charts_and_pictures_are_named_for_who_cannot_see_them(page: Page) -> None:
    for table in page.all("table"):
        assert table.text.strip()
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(one.attributes.get("scope") in {"col", "row", "colgroup"} for one in page.all("th"))
    for chart in page.all("svg"):
        assert chart.attributes["role"] == "img"
        assert set(chart.attributes["aria-labelledby"].split()) <= page.ids
    assert all(one.text.strip() for tag in ("title", "desc") for one in page.all(tag))
    alts = [one.attributes["alt"] for one in page.all("img")]
    assert 'Tokens of "none" & <others>' in alts
    assert all(alts)
    assert page.all("a")[0].attributes == {"class": "skip", "href": "#content"}
    assert all(one.attributes["aria-label"] for one in page.all("div", role="group"))


def test_a_box_scrolls_by_keyboard_and_holds_every_table_and_chart(page: Page) -> None:
    boxes = page.all("div", role="group")
    assert {one.attributes["class"] for one in boxes} == {"wide"}
    assert {one.attributes["tabindex"] for one in boxes} == {"0"}
    assert len(boxes) == len(page.all("table")) + len(page.all("svg"))


def test_pictures_are_those_that_are_no_chart(page: Page) -> None:
    headings = [one.text for one in page.all("h3")]
    for heading in ("Token maps", "Detections", "Where the last block attends"):
        assert heading in headings
    assert len(page.all("img")) == 3
    image = page.all("img")[0].attributes
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as opened:
        assert opened.size == (int(image["width"]), int(image["height"]))


def test_the_runs_and_how_they_stand(page: Page) -> None:
    assert "5 runs: " in page.text
    assert "1 dead, as no process runs it" in page.text
    assert "Started 2026-01-02." in page.text


def test_a_training_of_days_is_told_in_hours(tmp_path: Path) -> None:
    run = bare_run(tmp_path / "run", timings={"train_seconds": 360_000.0, "steps": 3})
    write_report([run.path], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert ("100.0 h" in text, "6000.0 min" in text) == (True, False)


def test_what_differs_between_the_recipes(written: Path, page: Page) -> None:
    section = written.read_text(encoding="utf-8").partition('id="recipes"')[2]
    keys = re.findall(r'scope="row">([\w.]+)<', section.partition("</table>")[0])
    assert keys == ["addon.name", "addon.layer", "addon.weight"]
    assert "9 settings that all share are left out." in page.text


def test_what_is_missing_says_which_command_makes_it(tmp_path: Path) -> None:
    run = bare_run(tmp_path / "run", timings={}, flops={})
    write_report([run.path], tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    told = [one.text for one in page.all("code")]
    for command in ("pretrain", "knn RUN", "equiv-score RUN", "robustness RUN", "look RUN"):
        assert any(f"ser {command}" in one for one in told), command
    assert not page.all("svg")
    assert not page.all("img")
    assert not (tmp_path / "page-figures").exists()


# -- The numbers -----------------------------------------------------------------------------------


def test_every_figure_lies_beside_the_page_in_three_kinds(written: Path) -> None:
    folder = written.with_name("page-figures")
    files = {file.name for file in folder.iterdir()} - {"figures.json"}
    assert files == set(json.loads((folder / "figures.json").read_text())["files"])
    stems = {name.rpartition(".")[0] for name in files}
    for stem in stems:
        kinds = {"png", "svg"} if stem.startswith("picture") else {"png", "svg", "csv"}
        assert {f"{stem}.{kind}" for kind in kinds} <= files
    assert len([stem for stem in stems if stem.startswith("training-")]) == 6
    assert len([stem for stem in stems if stem.startswith("blocks-")]) == 4
    with Image.open(folder / "training-loss.png") as image:
        assert "Last values: MoCo-v3 0.7906" in image.info["Description"]


def test_curves_are_what_was_logged(written: Path) -> None:
    rows = rows_of(written.with_name("page-figures") / "training-loss-inv.csv")
    own = [row for row in rows if row["label"] == "MoCo-v3"]
    assert [int(row["step"]) for row in own] == list(range(1, 41))
    assert float(own[8]["loss_inv"]) == 4 / 3
    monitored = rows_of(written.with_name("page-figures") / "training-knn-top1.csv")
    assert {row["step"] for row in monitored} == {"10", "20", "30", "40"}


def test_scores_by_block_are_the_stored_ones(written: Path) -> None:
    rows = rows_of(written.with_name("page-figures") / "blocks-1-es-rotation.csv")
    stored = scores(0.6 + 9 / 100)
    for row in (row for row in rows if "layer 9" in row["label"]):
        place = f"block{int(row['block']):02d}/rotation"
        assert float(row["value"]) == stored[f"es/{place}"]
        assert float(row["low"]) == stored[f"es/{place}/low"]
        assert float(row["random_twin"]) == 0.5
    assert len(rows) == 4 * 4


def test_the_trade_off_is_read_at_each_tapped_block(tmp_path: Path) -> None:
    paths = []
    for addon, layer in (("none", 3), ("ser", 1), ("ser", 2), ("ser", 3)):
        run = bare_run(tmp_path / f"{addon}-{layer}", addon=addon, layer=layer)
        depth = layer if addon == "ser" else 0
        add(run, "knn", {"top1": 60.0 - depth}, n=400)
        add(run, "equiv-score", scores(0.5 + depth / 10))
        paths.append(run.path)
    write_report(paths, tmp_path / "page.html")
    rows = rows_of(tmp_path / "page-figures" / "trade-off-1-knn-top-1.csv")
    places = {
        (row["label"], int(row["block"])): (float(row["equivariance"]), float(row["accuracy"]))
        for row in rows
    }
    # Without an add-on a point for each block that another taps.
    assert places == {
        ("MoCo-v3", 1): (0.52, 60.0),
        ("MoCo-v3", 2): (0.54, 60.0),
        ("MoCo-v3", 3): (0.56, 60.0),
        ("MoCo-v3 + SER (layer 1)", 1): pytest.approx((0.62, 59.0)),
        ("MoCo-v3 + SER (layer 2)", 2): pytest.approx((0.74, 58.0)),
        ("MoCo-v3 + SER (layer 3)", 3): pytest.approx((0.86, 57.0)),
    }
    low, high = stats.binomtest(236, 400).proportion_ci(method="wilson")
    one = next(row for row in rows if row["accuracy"] == "59.0")
    assert float(one["accuracy_low"]) == pytest.approx(100 * low)
    assert float(one["accuracy_high"]) == pytest.approx(100 * high)


def test_of_more_rows_than_can_be_told_apart_the_first_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_MOST_DRAWN", 2)
    paths = [whole_run(tmp_path / str(seed), seed=seed).path for seed in (0, 1, 2)]
    write_report(paths, tmp_path / "page.html")
    drawn = {row["run"] for row in rows_of(tmp_path / "page-figures" / "training-loss.csv")}
    assert drawn == {str(path) for path in paths[:2]}
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Tables have all 3 rows; figures, pictures and recipes are of the first 2, " in text
    assert text.count(f"{paths[2]}</") > 0
    write_report(paths[:2], tmp_path / "page.html")
    assert "Tables have all" not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_seeds_of_a_row_are_their_mean_with_students_interval(tmp_path: Path) -> None:
    paths = [whole_run(tmp_path / str(seed), seed=seed).path for seed in (0, 1, 2)]
    write_report(paths, tmp_path / "page.html", Options(group_seeds=True))
    rows = rows_of(tmp_path / "page-figures" / "blocks-1-es-rotation.csv")
    values = [0.6 + seed / 1000 for seed in (0, 1, 2)]
    half = stats.t.ppf(0.975, 2) * statistics.stdev(values) / 3**0.5
    assert float(rows[0]["value"]) == pytest.approx(statistics.mean(values))
    assert float(rows[0]["high"]) == pytest.approx(statistics.mean(values) + half)
    # One line each in the log, one label for all.
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    chart = re.search(r'<svg[^>]*aria-labelledby="figure-training-loss-title.*?</svg>', text)
    assert chart is not None
    assert len(re.findall(r"<text[^>]*>MoCo-v3</text>", chart[0])) == 1


def test_a_row_of_one_seed_has_no_interval_beside_means_over_seeds(tmp_path: Path) -> None:
    runs = [bare_run(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    runs.append(bare_run(tmp_path / "ser", addon="ser"))
    for number, run in enumerate(runs):
        add(run, "equiv-score", scores(0.6 + number / 100))
    paths = [run.path for run in runs]
    for over, known in ((True, [True, False]), (False, [True, True, True])):
        write_report(paths, tmp_path / "page.html", Options(group_seeds=over))
        rows = rows_of(tmp_path / "page-figures" / "blocks-1-es-rotation.csv")
        assert [row["low"] != "" for row in rows[::4]] == known  # four blocks each


def test_numbers_by_another_rule_are_another_chart(tmp_path: Path) -> None:
    one, other = (bare_run(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    add(one, "equiv-score", scores(0.6))
    add(other, "equiv-score", scores(0.9), version=2)
    write_report([one.path, other.path], tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    titles = [h.text for h in page.all("h3") if h.text.startswith("ES rotation by block (protocol")]
    assert len(titles) == 2


def test_a_heat_map_has_each_cell_and_its_mean(written: Path, page: Page) -> None:
    heads = [one.text for one in page.all("th", scope="colgroup")]
    assert heads == ["severity"] * 4
    (first, *_) = rows_of(written.with_name("page-figures") / "grid-1.csv")
    assert first == {
        "corruption": "gaussian noise",
        **{f"severity {severity}": str(50.0 - 2 * severity) for severity in range(1, 6)},
        "mean": "44.0",
    }
    shown = [
        cell for cell in page.all("td") if re.fullmatch(r"h\d", cell.attributes.get("class") or "")
    ]
    assert len(shown) == 4 * len(CORRUPTIONS) * 6
    assert shown[0].attributes["class"] == "h4"
    assert shown[0].text == "48.0"


# -- Runs as they are ------------------------------------------------------------------------------


def test_damaged_and_foreign_pieces_are_left_out_and_said(tmp_path: Path) -> None:
    good = whole_run(tmp_path / "good")
    (good.results / "foreign.json").write_text('{"a": 1}')
    (good.results / "half.json").write_text('{"schema": 1, "protoc')
    good.figures.mkdir()
    (good.figures / "look-tokens.png").write_bytes(b"no picture")
    with open(good.metrics, "a") as file:
        file.write('null\n{"step": "x"}\n{"step": 41, "loss": null}\n{"step": 42, "lo')
    broken = whole_run(tmp_path / "broken", addon="ser")
    broken.run.write_text('{"schema": 1, "sta')
    old = whole_run(tmp_path / "old", addon="stl")
    old.run.write_text(json.dumps({"schema": 0, "status": "done"}))
    (tmp_path / "stray").mkdir()
    (tmp_path / "notes.txt").write_text("a note")
    written = write_report(sorted(tmp_path.iterdir()), tmp_path / "page.html")
    told = {(Path(one.path).name, one.text.partition(";")[0][-40:]) for one in written.problems}
    assert {name for name, _ in told} == {"good", "broken", "old", "stray", "notes.txt"}
    assert len(written.problems) == 7
    # A folder is all that is in it.
    assert len(gather([tmp_path]).runs) == len(gather(sorted(tmp_path.glob("[bgo]*"))).runs) == 3
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "What could not be read" in page.text
    assert "[unreadable]" in page.text  # in the tables, whose numbers are there
    rows = rows_of(tmp_path / "page-figures" / "training-loss.csv")
    assert [row["loss"] for row in rows if row["run"].endswith("good")][-2:] != ["", ""]


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused(lambda: write_report([tmp_path / "no"], tmp_path / "page.html"), "does not exist")
    (tmp_path / "stray").mkdir()
    refused(lambda: write_report([tmp_path / "stray"], tmp_path / "page.html"), "no run directory")
    assert not (tmp_path / "page.html").exists()


def test_equal_runs_make_equal_pages(runs: list[Path], written: Path, tmp_path: Path) -> None:
    write_report(runs, tmp_path / "page.html", title="A < B")
    assert (tmp_path / "page.html").read_bytes() == written.read_bytes()
    for file in written.with_name("page-figures").iterdir():
        assert (tmp_path / "page-figures" / file.name).read_bytes() == file.read_bytes(), file.name


def test_figures_of_an_earlier_page_go_and_other_files_stay(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    write_report([run.path], tmp_path / "page.html")
    folder = tmp_path / "page-figures"
    (folder / "mine.png").write_bytes(b"x")
    assert (folder / "grid-1.csv").is_file()
    listed = folder / "figures.json"
    listed.write_text(
        json.dumps({"files": [*json.loads(listed.read_text())["files"], "../run/run.json"]})
    )
    run.result("robustness--imagenet-c").unlink()
    write_report([run.path], tmp_path / "page.html")
    assert not (folder / "grid-1.csv").exists()
    assert (folder / "mine.png").exists()
    assert (tmp_path / "run" / "run.json").exists()


def test_pictures_share_what_room_there_is(tmp_path: Path) -> None:
    run = bare_run(tmp_path / "run")
    for number in range(6):
        picture(run, f"look-{number}", seed=number)
    problems: list[Problem] = []
    found = find_pictures(single_entries(gather([run.path]).runs), problems)
    sizes = []
    for budget in (3_000_000, 150_000, 20_000):
        made = shown(found, problems, budget)
        sizes.append(sum(len(one.uri) for one in made))
        assert sizes[-1] <= budget
        assert (len(made) == 6) == (budget > 20_000)
        assert len({one.width for one in made}) == 1
    assert sizes[0] > sizes[1] > sizes[2] > 0
    assert not problems


# -- The command -----------------------------------------------------------------------------------


def test_the_command_says_what_it_wrote(
    runs: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "r.html"
    status, told = run_in_process(["report", *runs[1:3], "--out", out], monkeypatch, capsys)
    assert status == 0
    assert f"wrote {out}" in told
    assert f"figures in {tmp_path / 'r-figures'}" in told
    assert "compared" in out.read_text(encoding="utf-8")
    status, told = run_in_process(
        ["report", *runs, "--out", tmp_path / "r.pdf"], monkeypatch, capsys
    )
    assert status == 2
    assert "must end in .html" in told


def test_no_torch_is_imported(runs: list[Path], tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path;"
        "from sercli.report.page.building import write_report;"
        f"write_report([Path(p) for p in sys.argv[1:]], Path({str(tmp_path / 'p.html')!r}));"
        "sys.exit('torch' in sys.modules)"
    )
    line = [sys.executable, "-c", code, *map(str, runs[:2])]
    assert subprocess.run(line, check=False).returncode == 0


def test_claims_are_at_the_top_with_their_rule_and_nothing_of_them_is_markup(
    runs: list[Path], tmp_path: Path
) -> None:
    file, out = tmp_path / "outcome.json", tmp_path / "page.html"
    numbers = [{"text": "top-1: ser 2, none 1"}, {"text": "ES: ser 4, none 3"}, "foreign"]
    claims = [
        {"text": "<b>More", "verdict": "confirmed", "adjusted_p": 0.0312, "comparisons": numbers},
        {"text": "Less", "verdict": "open", "adjusted_p": None},
    ]
    file.write_text(json.dumps({"claims": claims, "rule": "How & why"}))
    write_report(runs[:1], out, outcome=file)
    text = out.read_text(encoding="utf-8")
    assert re.findall(r'<h2 id="(\w+)"', text)[:2] == ["claims", "runs"]
    for said in (
        "&lt;b&gt;More",
        "0.031",
        "<li>top-1: ser 2, none 1</li>",
        "<li>ES: ser 4, none 3</li>",
        "not tested",
        "How &amp; why",
    ):
        assert said in text
    file.write_text('{"claims": 3}')
    refused(
        lambda: write_report(runs[:1], out, outcome=file), "outcome.json of ser reproduce is needed"
    )
