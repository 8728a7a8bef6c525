"""`ser_vit` among timm's models: what `import sercli` adds to timm, without the rest of ser.

`sercli/__init__.py` imports this as soon as timm is imported, by whomever and in whatever order, so
that it holds no more than the entry; the model is in `timm_vit.py`.
"""

from __future__ import annotations

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

default_cfgs = generate_default_cfgs(
    {
        "ser_vit": {
            "num_classes": 0,
            "input_size": (3, 224, 224),
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
    }
)


def ser_vit(pretrained: bool = False, **options: Any) -> Any:
    """ViT-S/16 with 6 heads unless told otherwise; `cls_after`, and the settings of recipes."""
    from sercli.encoders.timm_vit import SerVit

    return build_model_with_cfg(
        SerVit,
        "ser_vit",
        pretrained,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **options,
    )


register_model(ser_vit)
