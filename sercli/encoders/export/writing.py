"""One way for all forms: build, write a draft, read it back by the other library, compare, keep."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from sercli.encoders.export.asked import SUFFIXES, require_free
from sercli.encoders.export.subject import Opened, Prepared, Subject, at_its_size, outputs_of
from sercli.encoders.loading import LoadedEncoder
from sercli.encoders.vit import Encoder
from sercli.errors import RunFailed
from sercli.runs.files import replacing_directory, replacing_file

TOLERANCE = 1e-5
_BATCHES = (2, 1)  # images; of two sizes, as no form may depend on it


@dataclass(frozen=True)
class Exported:
    """What was written and checked.

    Attributes:
        path: Where it is now.
        difference: Largest difference between the other library's output and ours, over all
            tokens; of numbers above 1 relative to them.
        reader: Who read it.
        code: Python that loads it.
        remarks: What a person should know, a line each.
    """

    path: Path
    difference: float
    reader: str
    code: str
    remarks: tuple[str, ...]


def export(
    loaded: LoadedEncoder,
    path: Path,
    *,
    form: str = "timm",
    header: Mapping[str, str] | None = None,
    results: str = "",
    force: bool = False,
) -> Exported:
    """Write an encoder in a form, read it back, and compare the outputs.

    Args:
        loaded: The encoder as loaded, with where it is from; its positions are resampled for
            images of `image_size` by its own way.
        path: Where it goes.
        form: One of `SUFFIXES`.
        header: What the run was, by name.
        results: What was measured, in Markdown, for a model card.
        force: Replace what is there; it stays if the new one is not right.

    Raises:
        UserError: The place is taken, or the form cannot hold the encoder.
        RunFailed: The other library's output differs from ours by more than 1e-5; nothing is
            written.
    """
    require_free(path, form, force=force)
    subject = Subject(at_its_size(loaded), header or {}, results)
    prepared = prepare(subject, form)
    with _replacing(path, form, force=force) as draft:
        prepared.write(draft)
        difference = difference_of(subject.encoder, prepared.opened(draft), loaded.image_size)
        if not difference <= TOLERANCE:
            raise RunFailed(
                f"{prepared.reader}'s output of {path} differs from ours by {difference:.2g}; "
                f"at most {TOLERANCE:g} is allowed; nothing is written"
            )
    return Exported(path, difference, prepared.reader, prepared.code(path), prepared.remarks)


def prepare(subject: Subject, form: str) -> Prepared:
    """An encoder in a form, by its file of `formats/`.

    Raises:
        UserError: It cannot hold it, or needs a package that is not there.
    """
    module = importlib.import_module(f"sercli.encoders.export.formats.{form}")
    prepared: Prepared = module.prepare(subject)
    return prepared


@contextmanager
def _replacing(path: Path, form: str, *, force: bool) -> Iterator[Path]:
    """A draft that takes the place of `path` if the block succeeds."""
    if SUFFIXES[form]:
        with replacing_file(path) as draft:
            yield draft
    else:
        with replacing_directory(path, what="an export", replace=force) as draft:
            yield draft


@torch.no_grad()
def difference_of(encoder: Encoder, opened: Opened, image_size: int) -> float:
    """Largest difference between another's outputs and ours, on random images.

    |theirs − ours| / max(1, |ours|): tokens of some models have numbers in the hundreds, of which
    float32 keeps seven digits.
    """
    draws = torch.Generator().manual_seed(0)
    largest = torch.zeros(())
    training = encoder.training
    encoder.eval()
    for number in _BATCHES:
        images = torch.randn(number, 3, image_size, image_size, generator=draws)
        for ours, theirs in zip(outputs_of(encoder, images), opened(images), strict=True):
            if ours.shape != theirs.shape:
                raise RunFailed(f"outputs of shape {[*theirs.shape]} instead of {[*ours.shape]}")
            # A NaN stays one, and is not below any bound.
            largest = torch.maximum(
                largest, ((theirs - ours).abs() / ours.abs().clamp(min=1)).max()
            )
    encoder.train(training)
    return float(largest)
