"""Small training runs in this process: started, trained, interrupted, and what they left."""

import pytest
import torch

from sercli.engine import pretraining
from sercli.engine.progress import TrainingProgress
from sercli.engine.runtime import runtime_for
from sercli.engine.trainer import Trainer
from sercli.errors import Preempted
from sercli.families import resolve
from sercli.signals import StopRequest

TINY = (
    "data.image_size=16", "data.num_train=96", "data.num_val=16", "data.workers=0",
    "model.patch_size=4", "model.width=16", "model.depth=4", "model.num_heads=2",
    "method.hidden_width=16", "method.output_width=8",
    "train.batch_size=12", "train.epochs=3", "train.warmup_epochs=0.5", "train.log_steps=1",
    "train.checkpoint_epochs=0.5",
)  # fmt: skip
SER = (*TINY, "addon.projector_width=8")


TIMES = (
    "images_per_s", "data_wait", "data_read", "data_decode", "data_crop", "data_idle",
    "peak_memory_gib",
)  # fmt: skip
MONITORED = ("knn_top1", "embedding_std", "effective_rank")  # by the command line alone


def no_monitor(*_arguments):
    return lambda _encoder: {}


def start(path, settings=SER, recipe="shapes/moco-ser", *, plugins=(), **flags):
    resolved = resolve(recipe, tuple(settings), flags, plugins=plugins)
    return pretraining.prepare(resolved, out=path).run


def train(run):
    pretraining.train(run, device=torch.device("cpu"), make_monitor=no_monitor)


def losses(run, left_out=(*TIMES, *MONITORED)):
    return [{k: v for k, v in row.items() if k not in left_out} for row in run.read_metrics()]


def interrupt_after(run, step):
    """Train `step` steps in this process, then stop as SIGTERM would."""
    recipe = pretraining.read_recipe(run)
    source = pretraining.training_source(recipe)
    trainer = Trainer(run, recipe, source, runtime_for(torch.device("cpu")), monitor=lambda _: {})
    request = StopRequest()
    train_step = trainer._train_step

    def stepping(number, *arguments):
        request.preempted = number >= step - 2  # honoured one step later
        return train_step(number, *arguments)

    trainer._train_step = stepping
    trainer.resume(pytest.fail)
    with TrainingProgress(24, quiet=True) as progress, pytest.raises(Preempted):
        trainer.train(request, progress)


def weights(run):
    from safetensors.torch import load_file

    return torch.cat([t.flatten() for _, t in sorted(load_file(run.encoder).items())])
