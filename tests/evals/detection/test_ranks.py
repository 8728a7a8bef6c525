"""Two processes detect what one detects, and train one detector together."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sercli.engine.progress import TrainingProgress
from sercli.evals.detection.evaluate import evaluate
from sercli.evals.detection.options import PRESETS, Preset
from sercli.evals.detection.task import Options, prepare
from sercli.runs.run_dir import RunDir
from sercli.signals import StopRequest
from tests.support import detection
from tests.support.processes import run_ranks

pytestmark = pytest.mark.run

ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]


def found(path, engine, schedule):
    preset = Preset(detection.HEADS, 64, 4, schedule, 1e-3)
    before, PRESETS["tiny"] = PRESETS["tiny"], preset
    try:
        return _found(RunDir(path), engine, int(schedule))
    finally:
        PRESETS["tiny"] = before


def _found(run, engine, steps):
    task = prepare(
        detection.small_encoder(),
        detection.world(num_images=8),
        detection.world("val", num_images=5),
        Options(engine=engine, preset="tiny"),
    )
    outcome = evaluate(
        task,
        run,
        runtime=detection.CPU,
        request=StopRequest(),
        workers=0,
        training=TrainingProgress(steps, quiet=True),
    )
    return {
        "metrics": outcome.result.metrics,
        "boxes": torch.from_numpy(outcome.arrays["box"]),
        "scores": torch.from_numpy(outcome.arrays["score"]),
        "head": outcome.head,
        "steps": [row["step"] for place in run.detections() for row in place.read_metrics()],
    }


def in_process(rank, folder, engine):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for schedule in ("0", "3"):
        torch.save(found(Path(folder) / "run", engine, schedule), f"{folder}/{schedule}-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_detect_what_one_does(engine, tmp_path):
    RunDir.create(tmp_path / "run", recipe=None, run={"status": "running"})
    RunDir.create(tmp_path / "one", recipe=None, run={"status": "running"})
    run_ranks(in_process, str(tmp_path), engine)

    def ranks(schedule):
        files = [tmp_path / f"{schedule}-{rank}.pt" for rank in (0, 1)]
        return [torch.load(file, weights_only=False) for file in files]

    one = found(tmp_path / "one", engine, "0")
    assert len(one["boxes"])
    for ours in ranks("0"):
        torch.testing.assert_close(ours["boxes"], one["boxes"], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(ours["scores"], one["scores"], atol=1e-5, rtol=1e-4)
        assert ours["metrics"] == pytest.approx(one["metrics"], abs=1e-3)
    first, second = ranks("3")
    assert first["metrics"] == second["metrics"]
    assert first["steps"] == [3]
    one, two = (detection.weights(ours["head"]) for ours in (first, second))
    assert all(torch.equal(one[name], two[name]) for name in one)
