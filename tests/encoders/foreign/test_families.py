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
import timm
import torch

from sercli.encoders.describing import model_of
from sercli.encoders.loading import encoder_sha256, read_encoder
from tests.encoders.foreign.test_positions import images, outputs, weights
from tests.support.command_line import run_in_process
from tests.support.foreign_files import named, saved, scrambled
from tests.support.paths import GOLDEN
from tests.support.refusals import refused

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
    assert model_of(loaded.encoder).num_heads == loaded.num_heads  # it can be trained
    sizes = [key.partition("/")[2] for key in golden.files if key.startswith("tokens/")]
    assert len(sizes) == (1 if name.startswith("ijepa") else 2)  # its code takes one size only
    for size in sizes:
        height, width = map(int, size.split("x"))
        cls, tokens = outputs(loaded.encoder, (height, width))
        for found, kind in ((cls, "cls"), (tokens, "tokens")):
            theirs = torch.from_numpy(golden[f"{kind}/{size}"]).double()
            torch.testing.assert_close(found, theirs, rtol=0, atol=1e-5)


# -- timm's own files -----------------------------------------------------------------------------

SMALL = {"embed_dim": 96, "depth": 2, "num_heads": 2, "num_classes": 0, "dynamic_img_size": True}
EVERY = (
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_giant_patch14_dinov2",
    "vit_small_patch16_dinov3",
    "vit_small_plus_patch16_dinov3_qkvb",
    "vit_base_patch16_clip_quickgelu_224",
    "vit_base_patch16_clip_224",
    "deit3_small_patch16_224",
    "vit_base_patch16_siglip_224",
    "vit_base_patch32_siglip_256",
    "eva02_tiny_patch14_224",
    "eva02_base_patch14_224",
)


@pytest.fixture
def narrow(monkeypatch):
    """timm, of whose every model a narrow one is made; what else it knows of it stays."""
    create = timm.create_model

    def smaller(name, **more):
        own = {"num_heads": 2, **more}
        return create(name, **{**SMALL, "img_size": 4 * int(name.split("patch")[1][:2]), **own})

    monkeypatch.setattr(timm, "create_model", smaller)
    return lambda name: scrambled(smaller(name)).double()


@torch.no_grad()
def same_as_timms(loaded, model, sides):
    """Tokens after the final norm at several sizes, in float64."""
    for size in sides:
        found = outputs(loaded.encoder, size)[1]
        theirs = model.forward_features(images(size))[:, model.num_prefix_tokens :]
        torch.testing.assert_close(found, theirs, rtol=0, atol=2e-5)  # positions are float32 there
        if model.global_pool == "token":
            cls = model.forward_features(images(size))[:, 0]
            torch.testing.assert_close(outputs(loaded.encoder, size)[0], cls, rtol=0, atol=2e-5)
    return True


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("how", ["arch", "bare", "hub"])
def test_timms_models_as_they_are_saved(tmp_path, narrow, name, how):
    """By their name in a checkpoint, in a folder of the Hub, or said with --arch."""
    model = narrow(name)
    state = {key: value.float() for key, value in model.state_dict().items()}
    path = tmp_path / ("pytorch_model.bin" if how == "hub" else "theirs.pth")
    torch.save({"arch": name, "state_dict": state} if how == "arch" else state, path)
    if how == "hub":
        colours = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
        config = {"architecture": name, "pretrained_cfg": colours}
        (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = read_encoder(path, **({"arch": name} if how == "bare" else {}))
    patch = loaded.encoder.patch_size
    assert same_as_timms(loaded, model, [(4 * patch, 4 * patch), (5 * patch, 3 * patch)])
    assert loaded.matched == loaded.expected == len(loaded.encoder.state_dict())
    assert (loaded.layout, loaded.num_heads) == ("timm", 2)
    assert model_of(loaded.encoder).num_heads == 2  # it can be trained
    if how == "hub":
        assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    elif "clip" in name or "eva" in name:
        assert loaded.mean == (0.48145466, 0.4578275, 0.40821073)
    elif "siglip" in name:
        assert loaded.mean == (0.5, 0.5, 0.5)
        assert "pooling by attention is not taken" in loaded.summary


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_small_patch16_dinov3", ["no pos_embed", "--arch"]),
        ("vit_small_plus_patch16_dinov3_qkvb", ["no pos_embed", "--arch"]),
        ("vit_base_patch16_clip_224", ["CLIP", "--activation"]),
        ("vit_base_patch16_siglip_224", ["SigLIP", "--activation"]),
        ("eva_giant_patch14_224", ["EVA of another kind", "--arch"]),
        ("eva02_enormous_patch14_clip_224", ["EVA of another kind", "--arch"]),
    ],
)
def test_what_tensors_do_not_show_is_asked_for(tmp_path, narrow, name, words):
    path = saved(tmp_path, named(narrow(name).float()))
    refused(lambda: read_encoder(path, num_heads=2), *words)


def test_eva02_is_known_by_its_tensors(tmp_path, narrow):
    for name in ("eva02_tiny_patch14_224", "eva02_base_patch14_224"):
        model = narrow(name)
        path = saved(tmp_path, {k: v.float() for k, v in named(model).items()})
        loaded = read_encoder(path, num_heads=2)
        assert same_as_timms(loaded, model, [(56, 56), (70, 42)])
    refused(lambda: read_encoder(path, arch="eva02_enormous_patch14_clip_224"), "EvaBlockPostNorm")


@pytest.mark.usefixtures("narrow")
def test_siglip_by_its_name():
    """`timm:` too: tokens only."""
    loaded = read_encoder("timm:vit_base_patch16_siglip_224", random_init=True)
    assert loaded.encoder.pools_mean
    assert "pooling by attention is not taken" in loaded.summary


def test_open_clip_around_a_vit_of_timms(tmp_path, narrow):
    """Its folder names the model; without it, the activation is asked for."""
    model = narrow("vit_base_patch16_siglip_224")
    trunk = {f"visual.trunk.{k}": v.float() for k, v in named(model).items()}
    text = {
        "text.transformer.x": torch.ones(2),
        "logit_scale": torch.ones(()),
        "logit_bias": torch.ones(()),
    }
    path = saved(tmp_path, {**trunk, **text}, "open_clip_pytorch_model.bin")
    refused(lambda: read_encoder(path, num_heads=2), "--activation")
    assert same_as_timms(read_encoder(path, num_heads=2, activation="gelu"), model, [(64, 64)])
    tower = {"timm_model_name": "vit_base_patch16_siglip_224", "image_size": 224}
    config = {
        "model_cfg": {"vision_cfg": tower},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    loaded = read_encoder(path)
    assert same_as_timms(loaded, model, [(64, 64), (48, 80)])
    assert (loaded.layout, loaded.mean) == ("open_clip", (0.5, 0.5, 0.5))


# -- what is said beside CLIP's -------------------------------------------------------------------


@pytest.mark.parametrize(("name", "quick"), [("clip_openai", True), ("clip_openclip", False)])
def test_open_clips_folder_says_which_gelu(tmp_path, name, quick):
    state, golden = tensors(name)
    path = saved(tmp_path, state, "open_clip_pytorch_model.bin")
    tower = {"width": 128, "layers": 2, "head_width": 64, "patch_size": 8, "image_size": 32}
    config = {"model_cfg": {"vision_cfg": tower, "quick_gelu": quick}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    loaded = read_encoder(path)
    theirs = torch.from_numpy(golden["cls/32x32"]).double()
    torch.testing.assert_close(outputs(loaded.encoder, (32, 32))[0], theirs, rtol=0, atol=1e-5)
    assert ("quick-gelu" in loaded.summary) == quick
    other = "gelu" if quick else "quick-gelu"
    refused(lambda: read_encoder(path, activation=other), f"--activation {other}", "it says")
    hashes = {encoder_sha256(read_encoder(path).encoder)}
    path = saved(tmp_path, state)
    hashes |= {
        encoder_sha256(read_encoder(path, num_heads=2, activation=one).encoder)
        for one in ("gelu", "quick-gelu")
    }
    assert len(hashes) == 2


def test_openais_own_state_says_it(tmp_path):
    state, golden = tensors("clip_openai")
    jit = {key: torch.tensor(3) for key in ("input_resolution", "context_length", "vocab_size")}
    for known in ({**state, **jit}, {"arch": "ViT-B/16", "state_dict": state}):
        loaded = read_encoder(saved(tmp_path, known), num_heads=2)
        theirs = torch.from_numpy(golden["cls/32x32"]).double()
        torch.testing.assert_close(outputs(loaded.encoder, (32, 32))[0], theirs, rtol=0, atol=1e-5)
    half = {k: v.half() if v.ndim > 1 else v for k, v in state.items()}  # as CLIP.load leaves it
    loaded = read_encoder(saved(tmp_path, half), num_heads=2, activation="quick-gelu")
    assert {p.dtype for p in loaded.encoder.parameters()} == {torch.float32}


def test_satellites_have_their_own_colours(tmp_path):
    """DINOv3's ViT-L of satellites' images has a norm that the other has not."""
    state, _ = tensors("dinov3_plus")
    assert "local_cls_norm.weight" in state
    assert read_encoder(saved(tmp_path, state)).mean == (0.485, 0.456, 0.406)
    wide = DINOV3 | {
        "local_cls_norm.weight": torch.ones(1024),
        "local_cls_norm.bias": torch.ones(1024),
    }
    assert read_encoder(saved(tmp_path, wide)).mean == (0.430, 0.411, 0.296)
    assert read_encoder(saved(tmp_path, DINOV3)).mean == (0.485, 0.456, 0.406)


def _large():
    """A DINOv3 1024 wide, of one block."""
    spec, _ = tensors("dinov3")
    state = {}
    for key, value in spec.items():
        if key.startswith("blocks.1."):
            continue
        shape = [1024 * (n // 64) if n in (64, 192) else n for n in value.shape]
        if ".mlp." in key:
            shape = [8 if n == 128 else n for n in shape]
        state[key] = value if "periods" in key else torch.ones(shape)
    state["blocks.0.attn.qkv.bias_mask"] = torch.cat(
        [torch.ones(1024), torch.zeros(1024), torch.ones(1024)]
    )
    return state


DINOV3 = _large()


# -- files that are not right ---------------------------------------------------------------------


def without(state, *names):
    return {key: value for key, value in state.items() if not key.startswith(names)}


HOSTILE = [
    ("dinov3", lambda s: without(s, "blocks.0."), {}, ["blocks.0", "missing"]),
    ("dinov3", lambda s: without(s, "blocks.1.mlp.fc2.weight"), {}, ["fc2.weight is missing"]),
    ("dinov3", lambda s: {**s, "cls_norm.weight": torch.ones(64)}, {}, ["cls_norm", "no place"]),
    ("dinov3", lambda s: {**s, "norm.bias": torch.full((64,), torch.nan)}, {}, ["not finite"]),
    ("dinov3", lambda s: s, {"num_heads": 4}, ["--num-heads 4", "it says 2"]),
    ("dinov3", lambda s: {**s, "rope_embed.periods": torch.ones(5)}, {}, ["periods"]),
    ("dinov3", lambda s: {**s, "rope_embed.periods": torch.ones(2, 4)}, {}, ["periods"]),
    ("dinov3", lambda s: {**s, "rope_embed.periods": torch.zeros(8)}, {}, ["periods"]),
    ("dinov3", lambda s: without(s, "cls_token"), {}, ["no cls_token"]),
    ("dinov3_plus", lambda s: without(s, "blocks.0.mlp.w1.weight"), {}, ["mlp.value.weight"]),
    ("clip_openai", lambda s: without(s, "visual.ln_pre"), {}, ["no ln_pre"]),
    ("clip_openai", lambda s: {**s, "visual.attn_pool.query": torch.ones(3)}, {}, ["pools"]),
    ("clip_openai", lambda s: {**s, "strange.weight": torch.ones(3)}, {}, ["strange.weight"]),
    ("clip_openai", lambda s: without(s, "visual."), {}, ["no ViT"]),
    (
        "clip_openai",
        lambda s: {
            **without(s, "visual."),
            "visual.conv1.weight": torch.ones(3),
            "visual.layer1.0.conv1.weight": torch.ones(3),
        },
        {},
        ["ResNet", "ViT is needed"],
    ),
    (
        "clip_openai",
        lambda s: {k: (9 * v).to(torch.int8) for k, v in s.items()},
        {"num_heads": 2, "activation": "quick-gelu"},
        ["int8", "floating-point"],
    ),
    ("clip_openai", lambda s: s, {"activation": "relu"}, ["--activation relu", "quick-gelu"]),
    ("clip_openai", lambda s: s, {"arch": "no_such"}, ["no_such", "timm knows no"]),
    ("eva02_b", lambda s: without(s, "blocks.1.attn.q_bias"), {"num_heads": 2}, ["attn.v.bias"]),
    (
        "eva02_b",
        lambda s: {**s, "rope.freqs_cos": torch.ones(16, 32)},
        {"num_heads": 2},
        ["rotary positions of its own"],
    ),
    ("mae", lambda s: without(s, "cls_token"), {"num_heads": 4}, ["no cls_token"]),
    ("deit_iii", lambda s: without(s, "blocks.1.gamma_2"), {"num_heads": 4}, ["ls2.gamma"]),
]


@pytest.mark.parametrize(("name", "change", "said", "words"), HOSTILE)
def test_files_of_a_family_that_are_not_right_say_why(tmp_path, name, change, said, words):
    path = saved(tmp_path, change(tensors(name)[0]))
    message = refused(lambda: read_encoder(path, **said), *words)
    assert len(message) < 400


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("hf_vit", {"num_attention_heads": 5}, ["5 heads"]),
        ("hf_vit", {"hidden_size": 128}, ["width of 64", "128"]),
        ("hf_vit", {"num_hidden_layers": 12}, ["2 blocks", "12"]),
        ("hf_vit", {"hidden_act": "relu"}, ["activation", "relu"]),
        ("hf_vit", {"layer_norm_eps": "x"}, ["layer_norm_eps"]),
        ("hf_vit", {"layer_norm_eps": -1}, ["layer_norm_eps"]),
        ("hf_vit", {"model_type": "bert"}, ["model_type", "bert"]),
        ("hf_vit", {"model_type": ["vit"]}, ["model_type"]),
        ("hf_vit", {"patch_size": 16}, ["patches of 8 px", "16"]),
        ("hf_dinov3", {"num_attention_heads": 4}, []),
        ("hf_vit", None, ["config.json must lie beside it"]),
        ("hf_clip", {"vision_config": 3}, ["width of 64", "768"]),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, name, change, words):
    path, golden = authors_file(name, tmp_path)
    config = json.loads(str(golden["facts"]))["config"]
    if change is None:
        (tmp_path / "config.json").unlink()
    else:
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    if words:
        refused(lambda: read_encoder(path), *words)
    else:
        assert read_encoder(path).num_heads == 4
    (tmp_path / "config.json").write_text("{")
    refused(lambda: read_encoder(path), "config.json")


@pytest.mark.run
@pytest.mark.parametrize("name", ["dinov3", "clip_openai", "hf_siglip", "ijepa_encoder", "eva02_b"])
def test_evaluators_take_every_family(tmp_path, monkeypatch, capsys, name):
    path, _ = authors_file(name, tmp_path)
    said = options(name)
    asked = [
        f"--{key.replace('_', '-')}={value}" for key, value in said.items() if key != "teacher"
    ]
    commands = {"knn": ["--no-floor", "--limit", 8]}
    if name == "dinov3":
        commands |= {"equiv-score": ["--limit", 4], "look": []}
    for command, more in commands.items():
        line = [command, path, "--data", "shapes", "--device", "cpu", *more, *asked]
        status, error = run_in_process([*line, "--out", tmp_path / command], monkeypatch, capsys)
        assert status == 0, error


def hub_like(tmp_path, **told):
    """A small ViT of timm's as its saver writes it, with what it is told."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    vit = timm.create_model("vit_small_patch16_224", num_classes=0, **sizes).eval()
    safetensors.torch.save_file(vit.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "vit_small_patch16_224", "model_args": {**sizes, **told}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return vit, tmp_path / "model.safetensors"


def test_what_timm_is_told_beside_the_name_is_of_the_model(tmp_path):
    vit, path = hub_like(tmp_path)
    loaded = read_encoder(path)  # three heads, which no tensor shows
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.encoder(images).cls, vit(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("told", "what"),
    [({"depth": 10**9}, "1000000000"), ({"no_such": "[bold]\n"}, "no_such")],
)
def test_what_timm_cannot_be_told_is_one_line(tmp_path, told, what):
    _, path = hub_like(tmp_path, **told)
    refused(lambda: read_encoder(path), what)


def test_a_config_brings_no_weights_of_its_own(tmp_path):
    _, path = hub_like(tmp_path, pretrained=True, checkpoint_path="/nowhere/at/all.pth")
    read_encoder(path)
