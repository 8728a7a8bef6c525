"""A folder as the Hugging Face Hub has it: config.json, model.safetensors, README.md."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import timm
import torch
from timm.models._hub import save_config_for_hf

from sercli.encoders.export.card import card
from sercli.encoders.export.formats.timm import TimmFile, asked, created, modules
from sercli.encoders.export.subject import Opened, Subject
from sercli.errors import RunFailed
from sercli.runs.files import write_atomic, write_text


def prepare(subject: Subject) -> HubFolder:
    """The encoder as a folder."""
    return HubFolder(subject)


class HubFolder(TimmFile):
    """A folder that `timm.create_model("local-dir:…")` reads, and that can be uploaded as it is."""

    def write(self, draft: Path) -> None:
        data = self.file_bytes()
        write_atomic(draft / "model.safetensors", lambda file: file.write(data))
        options = {key: value for key, value in self.timms.options.items() if key != "num_classes"}
        config = {
            **self.subject.input_config,
            "architecture": self.timms.name,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        with torch.device("meta"):  # for what it says of itself
            model = timm.create_model(
                self.timms.name, pretrained_cfg=config, num_classes=0, **options
            )
        save_config_for_hf(model, draft / "config.json", model_args=options)
        text = card(self.subject, self.timms, python=self.code(Path("DIR")))
        write_text(draft / "README.md", text)

    def opened(self, draft: Path) -> Opened:
        before = huggingface_hub.constants.HF_HUB_OFFLINE
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        try:
            model = created(f"local-dir:{draft}", pretrained=True)
        finally:
            huggingface_hub.constants.HF_HUB_OFFLINE = before
        told = timm.data.resolve_model_data_config(model)
        for key, value in self.subject.input_config.items():
            if key in told and (list(told[key]) if isinstance(value, list) else told[key]) != value:
                raise RunFailed(
                    f"timm reads {key} {told[key]} of the folder, not {value}; nothing is written"
                )
        return asked(model)

    def code(self, path: Path) -> str:
        place = f"local-dir:{path}"
        return (
            f"import {modules(self.timms)}; model = timm.create_model({place!r}, pretrained=True)"
        )
