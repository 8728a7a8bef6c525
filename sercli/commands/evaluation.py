"""What the evaluators' commands share: their options made into a subject, or refused.

What can be refused is, before torch is imported; see `require_usable`.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from sercli.commands.options import MachineOptions, ModelOptions, RunOptions
from sercli.visible import say

if TYPE_CHECKING:
    import torch

    from sercli.commands.subject import Asked, Subject
    from sercli.encoders.asked import Hints
    from sercli.encoders.loading import LoadedEncoder


def command_line() -> list[str]:
    """The command as it was given, for run.json."""
    return ["ser", *sys.argv[1:]]


def say_to_stderr(*lines: str) -> None:
    """Lines on standard error, so that standard output holds only the result."""
    say(*lines, err=True)


def require_model(model: ModelOptions) -> None:
    """Refuse a MODEL that is not there, and options that it cannot be read with; torch-free.

    Raises:
        UserError: In these cases.
    """
    from sercli.encoders.asked import require_source

    require_source(
        model.source,
        teacher=model.teacher,
        random_init=model.random_init,
        hints=hints_of(model),
    )


def require_usable(model: ModelOptions, run: RunOptions | None) -> None:
    """Refuse a model as `require_model` does, or a place for its results that is not to be had.

    Args:
        model: The model.
        run: Says the place; None: nobody does.

    Raises:
        UserError: In these cases.
    """
    from sercli.commands.subject import destination, require_writable

    require_model(model)
    require_writable(destination(asked_for(model), None if run is None else run.out))


def require_images(
    model: ModelOptions, data: str | None, classes: str | None = None, *, labels_for: str = ""
) -> None:
    """Refuse images that nobody named, or that are not there; torch-free.

    Args:
        model: The run directory knows what it was trained on.
        data: As given; None: those.
        classes: As given; None: its own.
        labels_for: What needs their labels, as `require_labelled` takes it; "": nothing does.

    Raises:
        UserError: In these cases, or they have no labels.
    """
    from sercli.commands.images import images_of
    from sercli.data.registry import require_labelled
    from sercli.runs.facts import facts_of

    # Nothing is rendered or opened here: the size does not matter.
    facts = facts_of(model.source)
    images = images_of(facts, model.source, data=data, image_size=1, classes=classes)
    images.has("train")
    if labels_for or images.classes is not None:
        require_labelled(images.path, labels_for or "--classes")


def require_subject(
    model: ModelOptions,
    run: RunOptions,
    data: str | None,
    classes: str | None = None,
    *,
    labels_for: str = "",
) -> None:
    """Refuse what `require_usable` and `require_images` do: all that `resolve_subject` takes."""
    require_usable(model, run)
    require_images(model, data, classes, labels_for=labels_for)


def resolve_subject(
    model: ModelOptions,
    run: RunOptions,
    *,
    data: str | None,
    image_size: int | None,
    classes: str | None = None,
) -> Subject:
    """What is evaluated, on which images, and where results go; see `subject.resolve`."""
    from sercli.commands.subject import resolve

    return resolve(
        asked_for(model),
        command=command_line(),
        data=data,
        classes=classes,
        out=run.out,
        image_size=image_size,
    )


def asked_for(model: ModelOptions) -> Asked:
    """The model that the options ask for."""
    from sercli.commands.subject import Asked

    return Asked(model.source, model.teacher, model.random_init, hints_of(model))


def hints_of(model: ModelOptions) -> Hints:
    """What the user says of a file that does not say it itself."""
    from sercli.encoders.asked import Hints

    return Hints(
        model.num_heads,
        model.cls_after,
        model.key,
        model.positions,
        model.arch,
        model.activation,
    )


def read_model(model: ModelOptions) -> LoadedEncoder:
    """The encoder, as its options say."""
    from sercli.encoders.loading import read_encoder

    return read_encoder(
        model.source,
        teacher=model.teacher,
        random_init=model.random_init,
        **asdict(hints_of(model)),
    )


def say_what_was_read(loaded: LoadedEncoder) -> None:
    """A line on standard error about a file of another project."""
    if loaded.layout != "ser" and not loaded.source.startswith("timm:"):
        say_to_stderr(loaded.summary)


def loader_processes(run: MachineOptions, device: torch.device) -> int:
    """As many as asked for, or this process's share of the cores."""
    from sercli.data.loading import default_workers
    from sercli.engine.runtime import runtime_for

    if run.workers is not None:
        return run.workers
    return default_workers(runtime_for(device).ranks_here)
