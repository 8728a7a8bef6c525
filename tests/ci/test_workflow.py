"""The workflow runs what people run, and templates ask for what a report needs."""

import os
import re

import yaml

from tests.support.paths import ROOT

GITHUB = ROOT / ".github"


def test_the_workflow_runs_what_people_run():
    text = (GITHUB / "workflows" / "ci.yml").read_text()
    (job,) = yaml.safe_load(text)["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    for step in job["steps"]:
        assert "uses" not in step or re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])
    assert "secrets" not in text


def test_templates_of_issues_have_what_their_list_shows():
    for template in (GITHUB / "ISSUE_TEMPLATE").glob("*.md"):
        _, head, body = template.read_text().split("---\n", 2)
        assert yaml.safe_load(head).keys() == {"name", "about"}
        assert body.strip()
    bug = (GITHUB / "ISSUE_TEMPLATE" / "bug.md").read_text().lower()
    assert all(word in bug for word in ("command", "run.json", "version", "device"))


def test_the_tests_that_contributors_are_told_of_are_marked_so():
    told = set(re.findall(r"-m '?([a-z]+)'?`", (GITHUB / "CONTRIBUTING.md").read_text()))
    marked = re.search(r"^markers = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert {"slow", "nullgpu"} <= told
    assert told <= set(re.findall(r"\"(\w+):", marked[1]))
