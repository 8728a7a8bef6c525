"""Results read as they are laid out, against the reader of any JSON: equal, or left to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sercli.errors import UserError
from sercli.runs import result as results
from sercli.runs.layout import laid_out
from sercli.runs.result import Result, content_sha256

METRICS = {"top1": 50.0, "top1/low": 1e-300, "b": 7, "a!": -0.5, "a": None, "z/1": 1.5e300}


def written(path: Path, metrics: dict[str, Any], **data: Any) -> Path:
    protocol = {"name": "knn", "variant": None, "version": 1, "settings": {"k": 20}}
    model, of = {"source": "r\u00fcn", "key": "student"}, {"path": "shapes", "n": 40, **data}
    result = Result(protocol=protocol, model=model, data=of, metrics=metrics)
    path.write_text(json.dumps(result.to_json(), indent=1))
    return path


def changed(path: Path, before: str, after: str, *, signed: bool = True) -> Path:
    """The same with other text; `signed`: with the hash that is right for it, as a forger would."""
    text = path.read_text()
    assert before in text
    text = text.replace(before, after, 1)
    if signed:
        value = json.loads(text)
        text = text.replace(value["content_sha256"], content_sha256(value))
    path.write_text(text)
    return path


def test_numbers_of_lines_are_those_of_json(tmp_path: Path, monkeypatch: Any) -> None:
    path = written(tmp_path / "knn.json", METRICS)
    laid = laid_out(path.read_text())
    assert laid is not None
    assert laid.metrics == METRICS
    assert list(laid.metrics) == list(METRICS)
    assert {**json.loads(laid.rest), "metrics": METRICS} == json.loads(path.read_text())
    assert f"{{{laid.canonical}}}" == json.dumps(METRICS, sort_keys=True, separators=(",", ":"))
    own = Result.from_file(path)
    monkeypatch.setattr(results, "laid_out", lambda _: None)
    assert Result.from_file(path) == own


def test_results_with_the_same_keys_share_them(tmp_path: Path) -> None:
    one, two = (Result.from_file(written(tmp_path / f"{i}.json", METRICS)) for i in range(2))
    assert all(a is b for a, b in zip(one.metrics, two.metrics, strict=True))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"top1": 50.0', '"top1": "50.0"'),
        ('"top1": 50.0', '"top1": true'),
        ('"top1": 50.0', '"top1": {"x": 1}'),
        ('"top1": 50.0', '"top1": [1.0]'),
        ('"top1": 50.0', '"top1": 1e999'),
        ('"top1": 50.0', f'"top1": 1{"0" * 400}'),
        ('"top1": 50.0', '"\\ud800": 50.0'),
        ('"top1": 50.0', '"b": 50.0'),
        ('"top1": 50.0', '"b": 50.0, "c": 1'),
        ('"metrics": {', '"metrics": {},\n "metrics": {'),
    ],
)
def test_what_is_not_plain_is_refused_as_before(
    tmp_path: Path, monkeypatch: Any, before: str, after: str
) -> None:
    path = changed(written(tmp_path / "knn.json", METRICS), before, after, signed=False)
    with pytest.raises(UserError) as own:
        Result.from_file(path)
    monkeypatch.setattr(results, "laid_out", lambda _: None)
    with pytest.raises(UserError) as plain:
        Result.from_file(path)
    assert str(own.value) == str(plain.value)


def test_one_digit_that_is_another_is_damage(tmp_path: Path) -> None:
    path = changed(written(tmp_path / "a.json", METRICS), "50.0", "51.0", signed=False)
    with pytest.raises(UserError, match="not what was written"):
        Result.from_file(path)
    path = changed(written(tmp_path / "b.json", METRICS), '"n": 40', '"n": 41', signed=False)
    with pytest.raises(UserError, match="not what was written"):
        Result.from_file(path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (': 50.0,\n  "', ':50.0, "'),  # another layout of the same
        ('"top1"', '"t\\u006fp1"'),
        ('"top1"', '"tôp1"'),
    ],
)
def test_another_layout_is_read_and_hashed_by_its_values(
    tmp_path: Path, before: str, after: str
) -> None:
    path = changed(written(tmp_path / "knn.json", METRICS), before, after)
    assert Result.from_file(path).metrics == json.loads(path.read_text())["metrics"]


def test_numbers_of_an_inner_mapping_are_not_the_result_s(tmp_path: Path) -> None:
    path = written(tmp_path / "knn.json", {}, inner=1)
    inner = '"inner": {\n "metrics": {\n  "top1": 5.0\n }}'
    assert Result.from_file(changed(path, '"inner": 1', inner)).metrics == {}
