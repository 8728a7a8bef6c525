"""Nothing of a page does anything, and everyone can read it."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sercli.report.figures.style import SERIES
from sercli.report.page import building
from sercli.report.page.building import write_report
from sercli.report.page.vectors import VARIABLES
from sercli.visible import visible
from tests.support.hostile import HOSTILE
from tests.support.html_page import Page, contrast, variables
from tests.support.run_dirs import add, bare_run, log, picture, scores, whole_run

TEMPLATES = Path(building.__file__).parent / "templates"
STYLE = (TEMPLATES / "style.css").read_text(encoding="utf-8")
UNSEEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


# -- Nothing of it does anything -------------------------------------------------------------------


def test_a_policy_allows_the_pages_own_style_and_script_only(written: Path, page: Page) -> None:
    text = written.read_text(encoding="utf-8")
    (policy,) = [
        one.attributes["content"]
        for one in page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag in ("style", "script"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    for one in page.elements:
        assert not {"style", "onclick", "onload"} & one.attributes.keys()
        for name in ("href", "src", "xlink:href"):
            assert one.attributes.get(name, "#").startswith(("#", "data:image/webp"))
    assert not re.findall(r"url\((?!#)", text)
    assert not re.findall(r"https?:", text)


NAMES = [*HOSTILE, "x" * 5000, '"><img src=x onerror=alert(1)>']


def test_hostile_names_stay_names_wherever_they_stand(tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        told = {"status": name[:100], "error": name, "recipe_name": name}
        titles = {"method": name, "addon": name}
        addon = "ser" if number % 2 else "none"
        run = bare_run(
            tmp_path / f"run{number}", addon=addon, device=name, titles=titles, seed=number, **told
        )
        log(run, steps=2, equivariance=False)
        add(run, "knn", {"top1": 50.0, f"ap/{name}": 1.0}, path=name, warnings=[name])
        add(run, "equiv-score", scores(0.6, range(2)))
        if number % 5 == 0:
            add(run, "robustness--imagenet-c", {f"top1/{name.replace('/', '')}/1": 3.0})
        own = json.dumps({f"own {name}": run.path.name}, ensure_ascii=True)[1:-1]
        run.recipe.write_text(f"{run.recipe.read_text()}{own}\n")
        said = name.encode(errors="replace").decode()
        picture(run, "equiv-tokens", size=(40, 30), description=said)
    out = tmp_path / "page.html"
    write_report(sorted(tmp_path.glob("run*")), out, title=NAMES[-1])
    text = out.read_bytes().decode()
    assert not UNSEEN.search(text)
    page = Page(text)
    for name in NAMES:
        assert visible(name)[:300] in page.text
    assert len(page.all("script")) == 1
    assert not any({"onerror", "style"} & one.attributes.keys() for one in page.elements)
    assert {one.attributes["src"][:10] for one in page.all("img")} == {"data:image"}
    assert len(page.all("img")) == len(NAMES)
    for file in (tmp_path / "page-figures").iterdir():
        assert re.fullmatch(r"[a-z0-9.-]+", file.name)
        if file.suffix == ".csv":
            cells = [
                cell for row in csv.reader(io.StringIO(file.read_bytes().decode())) for cell in row
            ]
            assert not [
                c for c in cells if c.startswith(("=", "@", "+", "-")) and not _is_number(c)
            ]


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?[\d.]+(e[-+]\d+)?", text) is not None


def test_an_svg_that_does_something_is_not_handed_on(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    picture(run, "look-tokens", size=(40, 30))
    (run.figures / "look-tokens.svg").write_text("<svg><script>alert(1)</script></svg>")
    write_report([run.path], tmp_path / "page.html")
    names = [file.name for file in (tmp_path / "page-figures").glob("picture-*")]
    assert [name.rpartition(".")[2] for name in names] == ["png"]


# -- Style -----------------------------------------------------------------------------------------


def schemes() -> dict[str, dict[str, str]]:
    light, dark = STYLE.split("@media screen and (prefers-color-scheme: dark)")
    return {"light": variables(light), "dark": variables(dark.partition("* {")[0])}


def test_both_schemes_have_every_colour_of_figures() -> None:
    names = {value.removeprefix("var(--").removesuffix(")") for value in VARIABLES.values()}
    for scheme in schemes().values():
        assert names <= scheme.keys()
    assert {schemes()["light"][f"series-{index}"]: index for index in range(len(SERIES))} == {
        colour: index for index, colour in enumerate(SERIES)
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_that_of_wcag_aa(scheme: str) -> None:
    colours = schemes()[scheme]
    for ground in ("paper", "band"):
        for name in ("ink", "soft", "link", "up", "down"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    for index in range(len(SERIES)):  # lines, not text
        assert contrast(colours[f"series-{index}"], colours["paper"]) >= 3, index


def test_numbers_in_heat_maps_can_be_read() -> None:
    found = re.findall(r"\.h(\d) \{ background: (#\w+); color: (#\w+); \}", STYLE)
    assert [place for place, _, _ in found] == list("0123456789")
    for _, ground, ink in found:
        assert contrast(ground, ink) >= 4.5


def test_style_and_script_end_neither_themselves_nor_load_anything() -> None:
    for name in ("style.css", "sort.js"):
        text = (TEMPLATES / name).read_text(encoding="utf-8")
        assert "</" not in text
        assert not re.search(r"https?:|@import|url\(|fetch\(|innerHTML|eval\(", text)
    for rule in ("prefers-reduced-motion", "@media print", ":focus-visible", ".skip:focus"):
        assert rule in STYLE


def test_the_page_is_valid_html(written: Path) -> None:
    checker = shutil.which("tidy")
    if checker is None:
        pytest.skip("tidy is not installed: only this package's own reader has looked at the page")
    told = subprocess.run(
        [checker, "-quiet", "-errors", "--show-warnings", "no", written],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode < 2, told.stderr[-2000:]
