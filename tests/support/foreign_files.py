"""timm's ViT, and checkpoints of it as other people's trainers write them."""

import argparse

import numpy as np
import safetensors.torch
import torch
from timm.models.vision_transformer import VisionTransformer

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}


def scrambled(model):
    """Weights so large that every one of them, and the number of heads, matters."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 2:
                value.copy_(torch.randn_like(value) * 1.5 * value.shape[1] ** -0.5)
            elif name.endswith(("norm1.weight", "norm2.weight", "norm.weight")):
                value.copy_(1 + 0.2 * torch.randn_like(value))
            else:
                value.copy_(0.3 * torch.randn_like(value))
    return model.eval()


def vit(seed=0, **options):
    """timm's ViT."""
    torch.manual_seed(seed)
    return scrambled(VisionTransformer(**{**SIZES, "num_classes": 0, **options}))


def sincos(side, width, *, rows_first):
    """MoCo-v3's or MAE's fixed embedding with a zero for [CLS], in NumPy, patch by patch."""
    omega = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    rows = []
    for row in range(side):
        for column in range(side):
            first, second = (row, column) if rows_first else (column, row)
            parts = [f(place * omega) for place in (first, second) for f in (np.sin, np.cos)]
            rows.append(np.concatenate(parts))
    return torch.from_numpy(np.stack([np.zeros(width), *rows]))[None].float()


def named(model, prefix=""):
    return {prefix + key: value.detach().clone() for key, value in model.state_dict().items()}


def projector(prefix, width=32):
    return {
        f"{prefix}0.weight": torch.randn(8, width),
        f"{prefix}1.weight": torch.randn(8),
        f"{prefix}1.running_mean": torch.randn(8),
        f"{prefix}1.num_batches_tracked": torch.tensor(3),
    }


def saved(tmp_path, state, name="theirs.pth"):
    path = tmp_path / name
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return path


def dino(student, teacher):
    head = {"mlp.0.weight": torch.randn(4, 32), "last_layer.weight_g": torch.randn(4, 1)}
    return {
        "student": {
            **named(student, "module.backbone."),
            **{f"module.head.{key}": value for key, value in head.items()},
        },
        "teacher": {
            **named(teacher, "backbone."),
            **{f"head.{key}": value for key, value in head.items()},
        },
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", patch_size=8, local_crops_scale=[0.05, 0.4]),
        "dino_loss": {"center": torch.randn(1, 4)},
    }
