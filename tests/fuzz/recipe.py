"""Recipes as YAML: as given with --recipe, and as recipe.yaml of a run that is compared."""

from __future__ import annotations

import re
from pathlib import Path

from sercli import compare_runs
from sercli.families.resolving import resolve
from sercli.recipe.files import recipes_root
from sercli.runs.text import dump_yaml
from tests.fuzz import run_json
from tests.support.fuzzing import put


def corpus() -> list[bytes]:
    root = recipes_root()
    names = ("shapes/moco-none", "shapes/moco-ser", "imagenet/moco-ser")
    files = [root / f"{name}.yaml" for name in names]
    whole = resolve("shapes/moco-ser", (), {}).recipe.model_dump(mode="json")
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    return [
        *(_absolute(file) for file in files),
        dump_yaml(whole).encode(),
        bomb.encode(),
        b"a: &a [*a]\n",
        b"a: " + b"[" * 5000 + b"]" * 5000,
        b"".join(b"k%d: 1\n" % i for i in range(20_000)),
        b"extends: fuzzed.yaml\n",
        "seed: 1\n".encode("utf-16"),
        b"\xef\xbb\xbfseed: 1\n",
    ]


def _absolute(file: Path) -> bytes:
    """A recipe that extends another beside it, wherever it lies."""
    text = file.read_text(encoding="utf-8")
    return re.sub("^extends: ", f"extends: {file.parent}/", text, flags=re.MULTILINE).encode()


def target(data: bytes) -> None:
    recipe = put("recipes/fuzzed.yaml", data)
    run = put("run/recipe.yaml", data).parent
    put("run/run.json", run_json.corpus()[0])
    compare_runs([run])
    resolve(str(recipe), (), {})
