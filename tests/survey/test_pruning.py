"""What prune would remove, and above all what it never does."""

from __future__ import annotations

import os
import time
from hashlib import sha256
from pathlib import Path

import pytest

from sercli.runs.lease import leased
from sercli.runs.run_dir import RunDir
from sercli.survey.pruning import carry_out, drafts_in, plan_for, remove_all
from sercli.survey.standing import standing_of
from tests.support.run_grid import make_run

LONG_AGO = time.time() - 3 * 24 * 3600


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(make_run(tmp_path / "runs" / "run", images=40, rows=5, milestones=[10]))
    for step in (10, 20, 30, 40, 50):
        checkpoint(made, step)
    return made


def checkpoint(run: RunDir, step: int, *, damaged: bool = False) -> None:
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    content = f"step {step}".encode()
    digest = sha256(b"another" if damaged else content).hexdigest()
    run.checkpoint(step).write_bytes(content)
    run.checkpoint_hash(step).write_text(f"{digest}  {run.checkpoint(step).name}\n")


def names(run: RunDir) -> set[str]:
    return {str(one.path.relative_to(run.path)) for one in plan_for(standing_of(run)).waste}


def files(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


def test_checkpoints_older_than_two_that_verify_go_but_for_milestones(run: RunDir) -> None:
    assert names(run) == {"checkpoints/step-00000020.pt", "checkpoints/step-00000030.pt"}
    checkpoint(run, 50, damaged=True)
    assert names(run) == {"checkpoints/step-00000020.pt"}
    for step in (20, 30):
        checkpoint(run, step, damaged=True)
    checkpoint(run, 40, damaged=True)
    assert names(run) == set()
    assert "of 4 checkpoints none verifies: all stay" in plan_for(standing_of(run)).notes[0]


def test_what_goes_is_what_was_said_and_nothing_else(run: RunDir) -> None:
    before = files(run.path)
    plan = plan_for(standing_of(run))
    freed, problems = carry_out(plan)
    gone = {
        f"checkpoints/step-000000{step}.pt{end}" for step in (20, 30) for end in ("", ".sha256")
    }
    assert before - files(run.path) == gone
    assert files(run.path) < before
    assert (freed, problems) == (plan.size, [])
    assert plan_for(standing_of(run)).waste == ()


def test_a_run_that_is_written_is_left_alone(run: RunDir) -> None:
    run.feature_cache("train").parent.mkdir()
    run.feature_cache("train").write_bytes(b"x")
    plan = plan_for(standing_of(run))
    with leased(run):
        written = plan_for(standing_of(run))
        assert written.waste == ()
        assert "is being written by process" in written.notes[0]
        before = files(run.path)
        freed, problems = carry_out(plan)  # it was resumed since it was looked at
        assert (freed, files(run.path)) == (0, before)
        assert "is being trained by" in problems[0]


def test_caches_and_old_halves_of_probes_go_and_young_ones_stay(run: RunDir) -> None:
    for path in (run.feature_cache("train"), run.grid_cache("x")):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"cache")
    run.heads.mkdir()
    for name, when in (("old", LONG_AGO), ("young", time.time())):
        run.unfinished_head(name).write_bytes(b"half")
        os.utime(run.unfinished_head(name), (when, when))
    run.head("old").write_bytes(b"whole")
    found = names(run) - {"checkpoints/step-00000020.pt", "checkpoints/step-00000030.pt"}
    assert found == {
        "cache/features-train.safetensors",
        "cache/grids-x.npy",
        "heads/old.unfinished",
    }
    assert "young.unfinished stays" in plan_for(standing_of(run)).notes[0]


def test_what_killed_processes_left_goes_and_what_living_ones_write_stays(run: RunDir) -> None:
    from sercli.runs.files import temporary
    from sercli.runs.owner import Owner

    descriptor, living = temporary(run.run)
    os.close(descriptor)
    dead = f".run.json.{Owner.here().machine}-999999999-1.abcd1234"
    (run.results / dead).write_bytes(b"half")
    (run.path.parent / dead).mkdir()
    (run.path.parent / ".git").mkdir()
    assert f"results/{dead}" in names(run)
    assert not any(Path(living).name in name for name in names(run))
    drafts = drafts_in(run.path.parent)
    assert [one.path.name for one in drafts] == [dead]
    assert remove_all(drafts) == (drafts[0].size, [])
    assert (run.path.parent / ".git").is_dir()


def test_links_lead_nowhere_that_is_pruned(run: RunDir, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "features-train.safetensors").write_bytes(b"x")
    run.cache.symlink_to(other)
    assert not any(name.startswith("cache") for name in names(run))


def test_a_detectors_old_checkpoints_go_once_it_is_quiet(run: RunDir) -> None:
    detector = run.detection("torchvision-x")
    for step in (1, 2, 3):
        checkpoint(detector, step)
    assert not any("detection" in name for name in names(run))
    for file in detector.path.rglob("*"):
        os.utime(file, (LONG_AGO, LONG_AGO))
    assert "detection/torchvision-x/checkpoints/step-00000001.pt" in names(run)
