"""An ONNX file: images of one size, in any number, to the two outputs of an encoder."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sercli import __version__
from sercli.encoders.export.subject import Opened, Outputs, Prepared, Subject
from sercli.encoders.vit import Encoder
from sercli.errors import RunFailed, UserError
from sercli.runs.files import write_atomic

_NEEDED = ("onnx", "onnxscript")
_OPSET = 18  # what torch's exporter writes in every release that ser runs with
_LARGEST = 2**31 - 1  # bytes, of a message of protobuf


def prepare(subject: Subject) -> OnnxFile:
    """The encoder as a graph.

    Raises:
        UserError: What makes one is not installed, or it is too large for one file.
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"--format onnx without {' and '.join(missing)}",
            "the extra `onnx` has what it needs",
            "pip install 'sercli[onnx]'",
        )
    size = sum(t.numel() * t.element_size() for t in subject.encoder.state_dict().values())
    if size > _LARGEST:
        raise UserError(
            f"{subject.loaded.source} has {size / 2**30:.1f} GiB of weights",
            "an ONNX file holds 2 GiB",
            "take --format timm or hf",
        )
    return OnnxFile(subject)


class _Graph(nn.Module):
    """What is traced: the encoder's own pass."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder(images, (self.encoder.depth,))
        patches = features.grids[self.encoder.depth].flatten(2).transpose(1, 2)
        return features.cls, self.encoder.norm(patches)


class OnnxFile(Prepared):
    """A graph with the input `images` [batch, 3, H, W] and two outputs.

    These are `cls` [batch, D] (`pooled` where there is no [CLS], or a mean stands for an image) and
    `patches` [batch, N, D]. Its metadata has the size, mean and std of images.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.runs = importlib.util.find_spec("onnxruntime") is not None
        self.outputs = ("pooled" if subject.encoder.pools_mean else "cls", "patches")

    @property
    def reader(self) -> str:
        return "onnxruntime" if self.runs else "ONNX's reference"

    @property
    def remarks(self) -> tuple[str, ...]:
        side = self.subject.loaded.image_size
        return (
            f"It takes images [batch, 3, {side}, {side}], normalised by the mean and std in its "
            f"metadata, and gives {self.outputs[0]} and patches.",
        )

    def write(self, draft: Path) -> None:
        proto = _exported(self.subject, self.outputs)
        data = proto.SerializeToString()
        write_atomic(draft, lambda file: file.write(data))

    def opened(self, draft: Path) -> Opened:
        run = _session(draft) if self.runs else _reference(draft)

        def outputs(images: Tensor) -> Outputs:
            return Outputs(*(torch.as_tensor(array) for array in run(images.numpy())))

        return outputs

    def code(self, path: Path) -> str:
        return f"import onnxruntime; session = onnxruntime.InferenceSession({str(path)!r})"


def _exported(subject: Subject, outputs: tuple[str, str]) -> Any:
    """The graph, with what is known of it in its metadata."""
    side, encoder = subject.loaded.image_size, subject.encoder
    images = torch.zeros(2, 3, side, side)
    training = encoder.training
    try:
        with _silence(), torch.no_grad():
            program = torch.onnx.export(
                _Graph(encoder.eval()),
                (images,),
                dynamo=True,
                input_names=["images"],
                output_names=list(outputs),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=_OPSET,
                verbose=False,
            )
    except Exception as error:  # the exporter's own, of a dozen kinds
        reason = " ".join(str(error).split())[:200]
        raise RunFailed(
            f"torch {torch.__version__} cannot export {subject.loaded.source} to ONNX "
            f"({type(error).__name__}: {reason}); nothing is written"
        ) from error
    finally:
        encoder.train(training)
    assert program is not None
    proto: Any = program.model_proto
    proto.producer_name, proto.producer_version = "ser", __version__
    loaded = subject.loaded
    facts = {
        **subject.header,
        "image_size": str(side),
        "mean": str(list(loaded.mean)),
        "std": str(list(loaded.std)),
        "cls_after": str(subject.cls_after),
        "weights": loaded.key,
    }
    del proto.metadata_props[:]
    for key, value in sorted(facts.items()):
        proto.metadata_props.add(key=key, value=value)
    for node in proto.graph.node:  # names of files and lines of this machine
        del node.metadata_props[:]
        node.doc_string = ""
    return proto


def _session(draft: Path) -> Any:
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        session = runtime.InferenceSession(str(draft), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(
            f"onnxruntime {runtime.__version__} does not take the graph ({str(error)[:200]})"
        ) from error
    return lambda images: session.run(None, {"images": images})


def _reference(draft: Path) -> Any:
    evaluator: Any = importlib.import_module("onnx.reference").ReferenceEvaluator(str(draft))
    return lambda images: evaluator.run(None, {"images": images})


@contextlib.contextmanager
def _silence() -> Any:
    """Without what exporters print, log and warn of while they work."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
