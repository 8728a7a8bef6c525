"""Files of other families against what the code of their authors gives.

`golden/encoders/*.npz` hold what it gives for weights that `weights` of test_positions.py draws:
names and shapes of all tensors as it saves them, those that are no draws (periods, masks, fixed
positions), and [CLS] and patch tokens after the final norm at two sizes, in float64. Where a family
has no [CLS], the mean of its tokens stands there. Made with the public code of
facebookresearch/dinov3, ijepa, mae and deit, openai/CLIP, mlfoundations/open_clip, baaivision/EVA
(xformers' and apex' parts written out) and transformers 5.24 (`hf_*`, as `save_pretrained` writes).
The codes that take one size only are given their positions resampled as their scripts do.
"""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from sercli.encoders.loading import read_encoder
from tests.encoders.foreign.test_positions import outputs, weights
from tests.support.paths import GOLDEN

NAMES = sorted(path.stem for path in (GOLDEN / "encoders").glob("*.npz"))
TWO_HEADS = {"num_heads": 2}


def tensors(name):
    """All that the authors' code saved, and its golden outputs."""
    golden = np.load(GOLDEN / "encoders" / f"{name}.npz")
    role = name.partition("ijepa_")[2] if name.startswith("ijepa_") else "encoder"
    spec = json.loads(str(golden["spec"]))
    state = {key: weights(key, tuple(shape), role) for key, shape in spec.items()}
    fixed = {k.removeprefix("fixed/"): k for k in golden.files if k.startswith("fixed/")}
    return {**state, **{key: torch.from_numpy(golden[k]) for key, k in fixed.items()}}, golden


def ijepa():
    """Its checkpoint: two encoders and a predictor, from DDP."""
    roles = ("encoder", "target_encoder")
    both = {role: tensors(f"ijepa_{role}")[0] for role in roles}
    wrapped = {
        role: {f"module.{key}": value for key, value in state.items()}
        for role, state in both.items()
    }
    predictor = {"module.predictor_blocks.0.norm1.weight": torch.ones(8)}
    return {**wrapped, "predictor": predictor, "opt": {}, "epoch": 3, "lr": 0.1}


# The file, by what is around the tensors, what has to be said, layout, way, heads known.
WRAPPED = {
    "mae": lambda state: {"model": state},
    "deit_iii": lambda state: {"model": state},
    "eva02_s": lambda state: {"module": state},
    "eva02_b": lambda state: {"model": state},
}
SAID = {
    "clip_openai": {"activation": "quick-gelu"},
    "clip_openclip": {"activation": "gelu"},
    "dinov3_7b": {},
    "dinov3": {},
    "dinov3_plus": {},
}
LAYOUT = {
    "clip_openai": "clip",
    "clip_openclip": "clip",
    "deit_iii": "deit-iii",
    "dinov3": "dinov3",
    "dinov3_7b": "dinov3",
    "dinov3_plus": "dinov3",
    "eva02_b": "eva02",
    "eva02_s": "eva02",
    "ijepa_encoder": "ijepa",
    "ijepa_target_encoder": "ijepa",
    "mae": "timm",
}


def authors_file(name, tmp_path):
    state, golden = tensors(name)
    if name.startswith("hf_"):
        path = tmp_path / "model.safetensors"
        safetensors.torch.save_file(state, path, metadata={"format": "pt"})
        config = json.loads(str(golden["facts"]))["config"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        return path, golden
    path = tmp_path / "theirs.pth"
    torch.save(ijepa() if name.startswith("ijepa") else WRAPPED.get(name, dict)(state), path)
    return path, golden


def options(name):
    if name.startswith("hf_"):
        return {}
    return {"teacher": name == "ijepa_target_encoder", **SAID.get(name, TWO_HEADS)} | (
        TWO_HEADS
        if "clip" in name
        else {"num_heads": 4}
        if name[:3] in ("ije", "mae", "dei")
        else {}
    )


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_the_authors_code(tmp_path, name):
    path, golden = authors_file(name, tmp_path)
    loaded = read_encoder(path, **options(name))
    assert loaded.layout == LAYOUT.get(name, "transformers")
    assert loaded.matched == loaded.expected == len(loaded.encoder.state_dict())
    sizes = [key.partition("/")[2] for key in golden.files if key.startswith("tokens/")]
    assert len(sizes) == (1 if name.startswith("ijepa") else 2)  # its code takes one size only
    for size in sizes:
        height, width = map(int, size.split("x"))
        cls, tokens = outputs(loaded.encoder, (height, width))
        for found, kind in ((cls, "cls"), (tokens, "tokens")):
            theirs = torch.from_numpy(golden[f"{kind}/{size}"]).double()
            torch.testing.assert_close(found, theirs, rtol=0, atol=1e-5)
