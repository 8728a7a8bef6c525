"""The README.md of a folder for the Hub: what a model is, how it loads, what was measured."""

from __future__ import annotations

from collections.abc import Mapping

from sercli import __version__
from sercli.encoders.export.subject import Subject
from sercli.encoders.export.timm_naming import OURS, TimmModel
from sercli.encoders.foreign import EXPORT_LAYOUT
from sercli.encoders.sizes import size_of
from sercli.visible import visible

_FRONT = """---
library_name: timm
pipeline_tag: image-feature-extraction
tags:
- image-feature-extraction
- timm
- self-supervised
- vision-transformer
# license: yours to choose; the Hub shows none until this line names one
# datasets: their names on the Hub, a line each
---"""
_WORDS = {  # of a header: what a person calls it
    "recipe": "recipe",
    "method": "objective",
    "addon": "equivariance add-on",
    "addon_layer": "its block",
    "addon_weight": "its weight λ",
    "views": "views",
    "epochs": "epochs",
    "max_steps": "steps",
    "seed": "seed",
    "status": "how the run ended",
}
_PAPER = """@inproceedings{ser2026,
  title     = {Soft Equivariance Regularization for Invariant Self-Supervised Learning},
  booktitle = {International Conference on Learning Representations},
  year      = {2026},
  note      = {arXiv:2603.06693}
}"""


def card(subject: Subject, timms: TimmModel, *, python: str) -> str:
    """The model card, in Markdown with the front matter that the Hub reads.

    Args:
        subject: What is exported.
        timms: Which model of timm's it is.
        python: The line that loads it, of a folder called DIR.
    """
    header = subject.header
    trained = header.get("method")
    title = " + ".join(
        part for part in (trained, header.get("addon")) if part and part not in ("none", "None")
    )
    parts = [
        _FRONT,
        f"# {_plain(title) or 'A vision transformer'}, {_size(subject)}",
        _about(subject, timms),
        "## How it loads",
        f"```python\n{_usage(subject, python)}\n```",
        "## What it is",
        _table(_facts(subject)),
    ]
    settings = {
        words: header[key]
        for key, words in _WORDS.items()
        if key in header and header[key] not in ("none", "None")
    }
    if settings:
        if "data" in header:  # the last part of a path: the rest is of the machine it was on
            settings["trained on"] = header["data"].rstrip("/").rpartition("/")[2]
        parts += ["## How it was trained", _table(settings)]
    parts += ["## What was measured", subject.results.strip() or "Nothing yet."]
    parts += ["## Citation", _citation(header, subject.loaded.layout)]
    return "\n\n".join(parts) + "\n"


def _size(subject: Subject) -> str:
    model, size = subject.model, size_of(subject.model)
    return f"ViT {size.width} wide, {size.depth} blocks, patch {model.patch_size}"


def _about(subject: Subject, timms: TimmModel) -> str:
    lines = ["Features of images; there is no classifier."]
    if timms.name == OURS:
        lines.append(
            f"timm's own ViTs do not have {timms.reason}: this is `ser_vit`, which `import sercli` "
            "adds to timm."
        )
    if subject.cls_after:
        lines.append(
            f"[CLS] joins the patch tokens after block {subject.cls_after}: the blocks before see "
            "patches alone."
        )
    return " ".join(lines)


def _usage(subject: Subject, python: str) -> str:
    side = subject.loaded.image_size
    imports, _, creation = python.partition("; ")
    return "\n".join(
        [
            imports,
            "",
            f"{creation}.eval()  # DIR: this folder",
            "config = timm.data.resolve_model_data_config(model)",
            "transform = timm.data.create_transform(**config, is_training=False)",
            f"# float [B, 3, {side}, {side}] → [B, {subject.encoder.dim}]",
            "features = model(transform(image)[None])",
        ]
    )


def _facts(subject: Subject) -> dict[str, str]:
    loaded, encoder = subject.loaded, subject.encoder
    number = sum(parameter.numel() for parameter in encoder.parameters())
    colours = [", ".join(f"{value:g}" for value in three) for three in (loaded.mean, loaded.std)]
    return {
        "parameters": f"{number / 1e6:.2f} M",
        "images": f"{loaded.image_size} × {loaded.image_size} pixels, RGB",
        "mean": colours[0],
        "std": colours[1],
        "[CLS] joins after block": "none: there is no [CLS]"
        if encoder.cls_after is None
        else str(encoder.cls_after),
        "an image is": "the mean of its patch tokens" if encoder.pools_mean else "its [CLS]",
        "positions at another size": encoder.pos_resize if encoder.pos_embed is not None else "",
        "which weights": loaded.key,
    }


def _citation(header: Mapping[str, str], layout: str) -> str:
    tool = f"@misc{{sercli,\n  title = {{ser (sercli) {__version__}}},\n  year  = {{2026}}\n}}"
    entries = [_PAPER, tool] if header.get("addon") == "ser" else [tool]
    text = "```bibtex\n" + "\n".join(entries) + "\n```"
    if layout not in ("ser", EXPORT_LAYOUT):
        return f"The weights are others': cite their authors. They were converted by\n\n{text}"
    return text


def _table(rows: Mapping[str, str]) -> str:
    lines = [f"| {_plain(name)} | {_plain(value)} |" for name, value in rows.items() if value]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _plain(text: str) -> str:
    """Text from outside as Markdown shows it, in one line: no markup, no HTML."""
    shown = visible(text).replace("\n", " ")
    for sign in "\\`*_{}[]<>|#!~":
        shown = shown.replace(sign, f"\\{sign}" if sign not in "<>" else f"&#{ord(sign)};")
    return shown
