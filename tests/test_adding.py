"""What it takes to add something, as a table in sercli/README.md says: on a copy of the package.

Each test adds what its row says, in files and lines, and uses it from the command line. Kinds of
data are in data/test_registry.py, methods and add-ons (no file of the package) in families/.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.support.paths import RECIPES, ROOT

pytestmark = pytest.mark.run

EVALUATOR = '''"""Toy: how often the most frequent class is right."""

from sercli.evals.common import Outcome, commonest_share
from sercli.protocols.chance import PROTOCOL
from sercli.runs.result import Result
from sercli.statistics import wilson_interval


def evaluate(loaded, images):
    percent = commonest_share(images.labels, known=images.labels)
    ends = wilson_interval(round(percent * len(images) / 100), len(images))
    rule = {"name": PROTOCOL.name, "variant": None, "version": 1, "settings": {}}
    data = {"path": images.name, "n": len(images), "partial": False}
    metrics = {"top1": percent, "top1/low": 100 * ends.low, "top1/high": 100 * ends.high}
    metrics["lucky"] = 7.0
    return Outcome(Result(rule, loaded.describe(), data, metrics), {})
'''
CONTRACT = '''"""Toy."""

from sercli.protocols.contract import Protocol, Quantity

PROTOCOL = Protocol(
    name="chance", title="chance", explanation="The most frequent class; percent.", place=9,
    heading="Chance {quantity}",
    quantities=(
        Quantity("top1", "top-1", default=True, interval="stored"),
    ),
)
'''
COMMAND = '''"""Toy: `ser chance`."""

import typer

from sercli.commands.evaluation import require_subject, resolve_subject
from sercli.commands.options import ImageOptions, ModelOptions, RunOptions, option_objects


@option_objects
def chance(images: ImageOptions, run: RunOptions, model: ModelOptions) -> None:
    """How often the most frequent class is right."""
    require_subject(model, run, images.place)
    from sercli.evals.chance import evaluate

    subject = resolve_subject(model, run, data=images.place, image_size=images.image_size)
    outcome = evaluate(subject.loaded, subject.images.open("val"))
    typer.echo(f"wrote {subject.save(outcome.result, outcome.arrays).path}")
'''

CORRUPTION = '''def stripes(task: Task) -> Levels:
    """Every so many columns are black."""
    levels = task.levels
    levels[:, :: task.pick(16, 12, 8, 4, 2)] = 0
    return levels


'''

FORMAT = '''"""Toy: the rows' labels, and nothing else."""


def labels(table):
    return "".join(f"- {row.label}\\n" for row in table.rows)
'''


class Copy:
    """A copy of the package, to be changed and run."""

    def __init__(self, place):
        self.place, self.package = place, place / "sercli"
        shutil.copytree(ROOT / "sercli", self.package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(RECIPES, place / "recipes")

    def write(self, name, text):
        (self.package / name).write_text(text)

    def add_line(self, name, *, after, line):
        """One line more in a file of ours, below the one that begins so."""
        lines = (self.package / name).read_text().splitlines(keepends=True)
        (place,) = [number for number, text in enumerate(lines) if text.startswith(after)]
        lines.insert(place + 1, f"{line}\n")
        (self.package / name).write_text("".join(lines))

    def insert(self, name, *, before, text):
        """Lines more in a file of ours, above the one that begins so."""
        old = (self.package / name).read_text()
        assert old.count(f"\n{before}") == 1
        (self.package / name).write_text(old.replace(f"\n{before}", f"\n{text}{before}"))

    def ser(self, *arguments):
        done = subprocess.run(
            [sys.executable, "-m", "sercli", *arguments],
            cwd=self.place,
            env={**os.environ, "PYTHONPATH": str(self.place)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path)


def test_a_recipe_key_is_one_line(copy):
    copy.add_line(
        "recipe/training.py",
        after="    epochs: Positive = 100",
        line='    patience: Count = Field(7, description="epochs without progress")',
    )
    assert "train.patience" in copy.ser("recipe", "show", "shapes/moco-ser")
    shown = copy.ser("recipe", "show", "shapes/moco-ser", "--set", "train.patience=3")
    (row,) = [line.split() for line in shown.splitlines() if "train.patience" in line]
    assert row == ["train.patience", "3", "--set"]
    assert "epochs without progress" in copy.ser("recipe", "schema")


def test_a_backbone_size_is_one_line(copy):
    copy.add_line(
        "encoders/sizes.py", after='    "vit_micro"', line='    "vit_nano": Size(32, 4, 2),'
    )
    checked = copy.ser("recipe", "check", "shapes/moco-none", "--set", "model.name=vit_nano")
    assert checked.startswith("ok shapes/moco-none")
    assert checked != copy.ser("recipe", "check", "shapes/moco-none")


def test_a_corruption_is_one_entry_and_its_function(copy):
    catalogue = "data/corruptions/catalogue.py"
    copy.insert(catalogue, before="def pixelate(", text=CORRUPTION)
    copy.add_line(
        catalogue, after="    # Others, by their function alone.", line="    Corruption(stripes),"
    )
    model = ("timm:vit_tiny_patch16_224", "--random-init", "--out", "run")
    quick = ("--image-size", "32", "--epochs", "1", "--limit", "40")
    copy.ser("linear-eval", *model, "--data", "shapes", *quick)
    shown = copy.ser("robustness", *model, "--data", "shapes", "--imagenet-c-otf", "--limit", "2")
    (row,) = [line.split() for line in shown.splitlines() if "stripes" in line]
    assert row[-1] == "-"  # no CE, as AlexNet was not measured on it
    (result,) = copy.place.glob("run/results/robustness--imagenet-c-otf.json")
    stored = json.loads(result.read_text())
    assert stored["protocol"]["settings"]["own_corruptions"] == ["stripes"]
    assert stored["metrics"]["ce/stripes"] is None
    assert stored["metrics"]["mce"] is not None


def test_a_protocol_is_its_evaluator_its_contract_and_its_command(copy):
    copy.write("evals/chance.py", EVALUATOR)
    copy.write("protocols/chance.py", CONTRACT)
    copy.write("commands/chance.py", COMMAND)
    copy.add_line("cli.py", after="from sercli.commands import (", line="    chance,")
    copy.add_line("cli.py", after='app.command("knn")', line='app.command("chance")(chance.chance)')
    model = ("timm:vit_tiny_patch16_224", "--random-init", "--data", "shapes", "--out", "run")
    assert "How often the most frequent class is right" in copy.ser("chance", "--help")
    copy.ser("chance", *model, "--image-size", "32")
    table = copy.ser("compare", "run", "--format", "markdown")
    assert "Chance top-1 ↑" in table
    assert " ± " in table
    assert "lucky" not in table
    # A column more is one line of the contract.
    line = '        Quantity("lucky", "if lucky", default=True),'
    copy.add_line("protocols/chance.py", after='        Quantity("top1"', line=line)
    assert "Chance if lucky ↑" in copy.ser("compare", "run", "--format", "markdown")
    # A format more is one file, and one line in the table of formats.
    copy.write("report/formats/labels.py", FORMAT)
    copy.add_line(
        "report/formats/renderers.py",
        after='    "json": _of(',
        line='    "labels": _of("labels", "labels"),',
    )
    assert "labels" in copy.ser("compare", "--help")
    assert copy.ser("compare", "run", "--format", "labels").startswith("- ")
