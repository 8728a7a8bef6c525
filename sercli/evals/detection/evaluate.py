"""Detection on a frozen encoder: train Mask R-CNN's pyramid and heads, score them as COCO does.

There is no standard protocol for frozen ViTs, so only differences within one engine and one preset
mean anything; both are part of the protocol that is hashed.
"""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch.optim import Optimizer

from sercli import distributed
from sercli.data.loading import default_workers, load_batches
from sercli.encoders.files import safetensors_bytes
from sercli.engine.pace import Pace
from sercli.engine.preemption import Stopping
from sercli.engine.progress import TrainingProgress
from sercli.engine.runtime import Runtime, decided_by_first
from sercli.engine.state import ModuleState
from sercli.engine.stepper import Stepper
from sercli.errors import RunFailed
from sercli.evals.common import Metrics, Outcome, Progress, model_of
from sercli.evals.detection.backbone import FrozenEncoder, GridCache
from sercli.evals.detection.detector import Detections, Detector, make_optimiser
from sercli.evals.detection.images import DetectionImages
from sercli.evals.detection.scores import KINDS, coco_scores, metrics_of
from sercli.evals.detection.task import Task
from sercli.evals.detection.training import Grids, detect
from sercli.evals.detection.training import train as train_on_core
from sercli.randomness import seeded
from sercli.runs.files import write_atomic
from sercli.runs.result import Result, protocol_id
from sercli.runs.run_dir import RunDir
from sercli.signals import StopRequest
from sercli.visible import counted

if TYPE_CHECKING:
    from sercli.evals.detection.detectron2 import Evaluator

_PICTURED = 4
SAVE_SECONDS = 600.0  # between checkpoints


@dataclass(frozen=True)
class DetectionOutcome(Outcome):
    """What was found.

    Arrays are image_ids [M]; of every detection image_id, category_id, box (x, y, width, height),
    score, and the run lengths of its mask, one after the other, with their ends.

    Attributes:
        pictured: Index in val → detections in pixels.
        head: Bytes of a safetensors file of the trained pyramid and heads.
    """

    pictured: dict[int, Detections]
    head: bytes


def evaluate(
    task: Task,
    run: RunDir,
    *,
    runtime: Runtime,
    request: StopRequest,
    restart: bool = False,
    workers: int | None = None,
    training: TrainingProgress,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> DetectionOutcome:
    """Train (or go on), detect, score. Every rank gets the same outcome.

    Args:
        task: All that was decided, as `prepare` gives it.
        run: The run directory: takes checkpoints, metrics and cached grids.
        runtime: Device and precision of the encoder; heads are float32.
        request: Set by signal handlers.
        restart: Drop what an earlier training left.
        workers: Loader processes; None: by the number of cores.
        training: Shows steps.
        progress: Called with what is done, how much of it, and all of it.
        say: Shows a line to a person.

    Raises:
        Preempted, Interrupted: As asked for; what is trained is kept.
        RunFailed: The loss is not finite, the encoder changed, or the disk is too small.
    """
    workers = default_workers(runtime.ranks_here) if workers is None else workers
    frozen = FrozenEncoder(task.loaded, task.canvas, runtime)
    detector = make_detector(task, frozen)
    session = _session(task, run, frozen, detector, restart=restart)
    session.stepper.attend(request, training)
    stopping = Stopping(request, runtime.device)
    first = session.stepper.resume(training.message)
    if first:
        say(f"goes on after step {first} of {task.schedule.total_steps}")
    if first < task.schedule.total_steps:
        _require_readable(task, workers, stopping, progress)  # now, not after days of training
        features = _training_features(task, run, frozen, workers, stopping, progress, say)
        with training:
            _train(task, detector, session, *features, workers=workers)
    second = _second_opinion(task)
    found, pictured = detect(
        detector,
        frozen.grids_of,
        DetectionImages(task.val, task.canvas),
        task.scored,
        batch_size=task.options.at_once,
        workers=workers,
        stopping=stopping,
        progress=progress,
        keep=pictured_images(task),
        take=None if second is None else second.take,
    )
    frozen.require_unchanged()
    metrics = _metrics(task, found, say, stopping.check_alone)
    result = _result(task, frozen, metrics, _how(task, detector, session, second))
    return DetectionOutcome(result, _arrays(task, found), pictured, _head(task, session, frozen))


@dataclass(frozen=True)
class _Session:
    """A training that can be gone on with: its steps, what they change, and what is kept."""

    stepper: Stepper
    state: ModuleState
    optimiser: Optimizer


def _session(
    task: Task, run: RunDir, frozen: FrozenEncoder, detector: Detector, *, restart: bool
) -> _Session:
    """In a directory of its own, named by what it is of; emptied to start anew."""
    identity = _identity(task, frozen)
    place = run.detection(f"{task.options.engine}-{protocol_id(identity)}")
    if restart and distributed.rank() == 0:
        shutil.rmtree(place.path, ignore_errors=True)
    distributed.barrier()
    optimiser = make_optimiser(detector)
    state = ModuleState(place, detector, optimiser, identity=identity)
    guard = run.require_there
    stepper = Stepper(_pace(task), state, run=place, optimiser=optimiser, guard=guard)
    return _Session(stepper, state, optimiser)


def _train(
    task: Task,
    detector: Detector,
    session: _Session,
    grids_of: Grids,
    images: DetectionImages,
    *,
    workers: int,
) -> None:
    """From the session's step to its end, on the engine asked for."""
    train = train_on_core if task.options.engine == "torchvision" else _detectron2().train
    train(
        detector,
        grids_of,
        images,
        task.order,
        session.stepper,
        optimiser=session.optimiser,
        seed=task.options.seed,
        workers=workers,
    )


def _how(
    task: Task, detector: Detector, session: _Session, second: Evaluator | None
) -> dict[str, Any]:
    """How the detector was made and scored, for the result."""
    how: dict[str, Any] = {
        "seed": task.options.seed,
        "metric": task.options.metric,
        "train_seconds": session.stepper.train_seconds,
        "versions": detector.versions(),
    }
    if second is not None:
        how["detectron2_evaluator"] = second.scores()
    return how


def _result(task: Task, frozen: FrozenEncoder, metrics: Metrics, how: dict[str, Any]) -> Result:
    return Result(
        protocol=task.protocol,
        model=model_of(task.loaded, frozen.runtime) | {"sha256": frozen.sha256, "detector": how},
        data={
            "path": task.val.name,
            "n": len(task.scored),
            "train": len(task.order.indices),
            "partial": task.partial,
        },
        metrics=metrics,
    )


def _pace(task: Task) -> Pace:
    """The schedule's steps; checkpoints go by time."""
    batch_size, num_images = task.order.batch_size, len(task.order.indices)
    return Pace(
        total_steps=task.schedule.total_steps,
        batch_size=batch_size,
        epoch_at=lambda step: step * batch_size / num_images,
        lr_at=task.schedule.lr_at,
        save_seconds=SAVE_SECONDS,
    )


def _require_readable(
    task: Task, workers: int, stopping: Stopping, progress: Progress | None
) -> None:
    """Read this rank's share of the images that will be scored.

    Raises:
        UnreadableImage: One is damaged.
    """
    images = DetectionImages(task.val, task.canvas)
    rank, world, size = distributed.rank(), distributed.world_size(), task.options.at_once
    everything = [(int(index), None) for index in task.scored]
    rounds = [everything[at : at + size * world] for at in range(0, len(everything), size * world)]
    loaded = load_batches(images, [one[rank::world] for one in rounds], workers=workers)
    done = 0
    for one, _ in zip(rounds, loaded, strict=True):
        done += len(one)
        if progress is not None:
            progress("reading val", done, len(everything))
        stopping.check()


def _metrics(
    task: Task,
    found: Sequence[Mapping[str, Any]],
    say: Callable[[str], None],
    check: Callable[[], object],
) -> Metrics:
    """Scores by the first rank, for all."""
    if distributed.rank() == 0:
        say(f"scoring {counted(len(found), 'detection')} in {counted(len(task.scored), 'image')}")

    def score() -> Metrics:
        truth, metric = task.val.ground_truth(task.scored.tolist()), task.options.metric
        scores = {
            kind: coco_scores(truth, found, kind=kind, metric=metric, check=check) for kind in KINDS
        }
        return metrics_of(scores, check=check)

    return decided_by_first(score)


def _second_opinion(task: Task) -> Evaluator | None:
    """detectron2's own evaluator beside ours, with its engine."""
    if task.options.engine != "detectron2":
        return None
    second: Evaluator = _detectron2().Evaluator(task.val, task.scored.tolist())
    return second


def make_detector(task: Task, frozen: FrozenEncoder) -> Detector:
    """The detector of the engine asked for, its weights drawn from the seed."""
    classes = len(task.train.categories)
    with seeded(task.options.seed, "coco-detect", "heads"):
        if task.options.engine == "torchvision":
            from sercli.evals.detection.torchvision import TorchvisionDetector

            return TorchvisionDetector(frozen.dim, classes, task.heads).to(frozen.runtime.device)
        detector: Detector = _detectron2().Detectron2Detector(frozen, classes, task.heads)
        return detector


def _detectron2() -> ModuleType:
    """The module of that engine, without warnings of what it still calls of torch."""
    warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return importlib.import_module("sercli.evals.detection.detectron2")


def _identity(task: Task, frozen: FrozenEncoder) -> dict[str, Any]:
    """What a training is of; another one must not go on from its checkpoints."""
    return {
        "protocol": protocol_id(task.protocol),
        "encoder": frozen.sha256,
        "precision": frozen.runtime.precision,
        "images": task.train.fingerprint(task.order.indices.tolist()),
        "seed": task.options.seed,
        "world_size": distributed.world_size(),
    }


def _training_features(
    task: Task,
    run: RunDir,
    frozen: FrozenEncoder,
    workers: int,
    stopping: Stopping,
    progress: Progress | None,
    say: Callable[[str], None],
) -> tuple[Grids, DetectionImages]:
    """Features of training samples: encoded as they come, or once for all."""
    options = task.options
    if not options.cache_features:
        images = DetectionImages(task.train, task.canvas, seed=options.seed, flip=task.flips)
        return frozen.grids_of, images
    indices = task.order.indices
    what = {
        "encoder": frozen.sha256,
        "images": task.train.fingerprint(indices.tolist()),
        "image_size": task.canvas.size,
        "mixed": frozen.mixed,
    }
    path = run.grid_cache(protocol_id(what))

    def write() -> None:
        if path.is_file():
            if GridCache.is_whole(path, len(indices), frozen):
                return
            say(f"{path} is not what was written: it is made again")
        needed = len(indices) * frozen.dim * task.canvas.grid**2 * (2 if frozen.mixed else 4)
        free = shutil.disk_usage(run.path).free
        say(
            f"features of {counted(len(indices), 'image')} take {needed / 2**20:,.1f} MiB in {path}"
        )
        if needed > free:
            raise RunFailed(
                f"features would take {needed / 2**30:,.1f} GiB, {free / 2**30:,.1f} GiB are free; "
                "leave --cache-features out, or name another disk with --out"
            )
        with distributed.alone():  # the other ranks wait
            GridCache.write(
                path,
                task.train,
                indices,
                frozen,
                batch_size=options.at_once,
                workers=workers,
                progress=progress,
                check=stopping.check,
            )

    decided_by_first(write)
    cache = GridCache(path, indices)
    device = frozen.runtime.device
    images = DetectionImages(task.train, task.canvas, seed=options.seed, with_images=False)
    return (lambda samples: cache.grids_of(samples, device)), images


def pictured_images(task: Task) -> list[int]:
    """Indices of a few images of val, evenly spaced among those scored."""
    places = np.linspace(0, len(task.scored) - 1, min(_PICTURED, len(task.scored)))
    return [int(task.scored[int(place)]) for place in places.round()]


def _arrays(task: Task, found: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
    counts = [one["segmentation"]["counts"] for one in found]
    return {
        "image_ids": task.val.image_ids[task.scored],
        "image_id": np.array([one["image_id"] for one in found], np.int64),
        "category_id": np.array([one["category_id"] for one in found], np.int64),
        "box": np.array([one["bbox"] for one in found], np.float64).reshape(-1, 4),
        "score": np.array([one["score"] for one in found], np.float64),
        "mask_size": np.array([one["segmentation"]["size"] for one in found], np.int64).reshape(
            -1, 2
        ),
        "mask_counts": np.frombuffer(b"".join(counts), np.uint8),
        "mask_ends": np.cumsum([len(one) for one in counts], dtype=np.int64),
    }


def _head(task: Task, session: _Session, frozen: FrozenEncoder) -> bytes:
    header = {
        "format": "ser-detector",
        "engine": task.options.engine,
        "protocol_id": protocol_id(task.protocol),
        "encoder_sha256": frozen.sha256,
        "heads": json.dumps(asdict(task.heads)),
        "image_size": str(task.canvas.size),
        "categories": json.dumps([asdict(one) for one in task.train.categories]),
    }
    return safetensors_bytes(session.state.trained, header)


def save_head(outcome: DetectionOutcome, run: RunDir) -> None:
    """Write the trained pyramid and heads beside the results."""
    write_atomic(run.head(outcome.result.name), lambda file: file.write(outcome.head))
