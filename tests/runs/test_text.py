"""YAML that nobody writes is one line, whatever it would become."""

import pytest
import yaml

from sercli.recipe.files import read
from sercli.runs.text import LARGEST, parse_yaml, read_mapping
from tests.support.refusals import refused

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, ["10000 values"]),
        ("a: &a [*a]", ["inside of what it names"]),
        ("a: &a {b: *a}", ["inside of what it names"]),
        ("".join(f"k{i}: 1\n" for i in range(20_000)), ["10000 values"]),
        ("a: " + "[" * 5000 + "]" * 5000, ["32 levels"]),
        ("a: " + "{b: " * 3000 + "1" + "}" * 3000, ["32 levels"]),
        ("- " * 5000, ["32 levels"]),
        ("a: !!int x", ["tag"]),
        ('a: !!float ""', ["tag"]),
        ("a: !!bool x", ["tag"]),
        ("a: !!timestamp x", ["tag"]),
        ("a: !!python/object/apply:os.getcwd []", ["python/object"]),
        ("? [a]\n: b", ["key must be text"]),
        ("? {a: b}\n: b", ["key must be text"]),
        ("a: 1\nb: 2\na: 3", ["'a' stands twice", "line 3"]),
        ("a: " + "9" * 5000, ["tag"]),
        ("<<: {a: 1}", []),
        ("\x00", []),
        ("1: 2", ["keys are text"]),
        ("- 1", ["a mapping"]),
        ("x" * (LARGEST + 1), ["larger than 1 MiB"]),
    ],
)
def test_yaml_that_nobody_writes(tmp_path, text, words):
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    line = refused(lambda: read_mapping(tmp_path / "x.yaml"), "x.yaml", *words)
    assert len(line) < 700


def test_aliases_that_stand_for_little_are_read(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfa: &a [0.2, 1.0]\nb: *a\nc: [*a, *a]\n")
    value = read_mapping(tmp_path / "x.yaml")
    assert value == {"a": [0.2, 1.0], "b": [0.2, 1.0], "c": [[0.2, 1.0], [0.2, 1.0]]}


def test_text_in_another_encoding_is_one_line(tmp_path):
    (tmp_path / "x.yaml").write_bytes("seed: 1\n".encode("utf-16"))
    refused(lambda: read_mapping(tmp_path / "x.yaml"), "x.yaml", "utf-8")


def test_brackets_in_a_value_are_an_error_of_yaml():
    with pytest.raises(yaml.YAMLError):
        parse_yaml("[" * 3000)


@pytest.mark.parametrize("count", [31, 1500])
def test_recipes_extend_each_other_a_few_times(tmp_path, count):
    for number in range(count):
        (tmp_path / f"c{number}.yaml").write_text(f"extends: c{number + 1}\nseed: {number}\n")
    (tmp_path / f"c{count}.yaml").write_text("seed: 7\n")
    first = str(tmp_path / "c0.yaml")
    if count < 32:
        assert [file.values["seed"] for file in read(first)] == [7, *range(count - 1, -1, -1)]
    else:
        refused(lambda: read(first), "at most 32")
    (tmp_path / "c5.yaml").write_text("extends: c0\n")
    refused(lambda: read(first), "extends itself")
