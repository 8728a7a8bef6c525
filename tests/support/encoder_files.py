"""A small encoder of ours in files, and one of timm's."""

import timm
import torch

from sercli.encoders.loading import encoder_metadata
from sercli.encoders.vit import Encoder
from sercli.recipe.schema import Model

MODEL = Model(name="vit_micro", width=32, depth=3, num_heads=2, patch_size=8)


def small(seed, cls_after=2):
    return Encoder.from_model(MODEL, image_size=32, cls_after=cls_after).initialise(seed).eval()


def small_vit(**options):
    """A plain ViT of timm's with a head of three classes, for 24 pixels."""
    sizes = {"img_size": 24, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2}
    torch.manual_seed(0)
    vit = timm.models.VisionTransformer(**{**sizes, "num_classes": 3, **options})
    with torch.no_grad():
        vit.cls_token.normal_()
    return vit.eval()


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def checkpoint(objective, path, model):
    metadata = encoder_metadata(model, objective.encoder, step=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {"step": 3, "encoder": metadata, "objective": objective.state_dict(), "optimiser": {}}, path
    )
