"""Narrow recipes of every method and add-on."""

from typing import Any

from sercli.families import addon_configs, method_configs
from sercli.recipe.files import from_mapping

# Without blur: its convolution in float32 depends on the number of rows.
COLOURS = {"jitter_p": 1, "grey_p": 0, "blur_p": 0}
# A narrow recipe of every method and add-on.
METHODS: dict[str, dict[str, Any]] = {
    "moco": {"hidden_width": 16, "output_width": 8},
    "dino": {"prototypes": 32, "hidden_width": 16, "bottleneck_width": 8},
    "barlow-twins": {"hidden_width": 16, "output_width": 8},
}
ADDONS: dict[str, dict[str, Any]] = {
    "ser": {"fraction": 0.5, "projector_width": 16},
    "augself": {"hidden_width": 16},
    "stl": {"transformation_width": 8, "hidden_width": 16, "output_width": 8},
    "equimod": {"output_width": 8},
    "essl": {"hidden_width": 8},
    "none": {},
}
SETTINGS = {"equimod": "3", "essl": "2+4-rotations"}  # the others: two views


def narrow(
    method: str, addon: str, setting: str | None = None, *, depth: int = 4, **options: Any
) -> dict[str, dict[str, Any]]:
    """Sections of a recipe on images of 4 × 4 patches; `options` are the add-on's."""
    setting = setting or SETTINGS.get(addon, "2")
    views = {"setting": setting, "view1": COLOURS, "view2": COLOURS}
    if setting.startswith("2+4-"):
        views["local"] = {"colours": COLOURS}
    return {
        "data": {"image_size": 32},
        "model": {
            "name": "vit_micro", "width": 16, "depth": depth, "num_heads": 2, "patch_size": 8,
        },
        "method": {"name": method, **METHODS[method]},
        "addon": {"name": addon, **ADDONS[addon], **options},
        "views": views,
    }  # fmt: skip


DEPTH, BATCH = 12, 8


def recipe_of(method, addon, layer=None, *, setting=None, depth=DEPTH, model=None, **options):
    if layer is not None:
        options["layer"] = layer
    tree = narrow(method, addon, setting, depth=depth, **options)
    tree["model"] |= model or {}
    tree["data"]["workers"] = 0
    # An epoch is one step, so that DINO's prototypes are held in the first and not in the second.
    tree["train"] = {
        "batch_size": BATCH, "epochs": 2, "lr": 0.03, "warmup_epochs": 0, "clip_norm": 1.0,
        "log_steps": 1, "checkpoint_epochs": 2, "monitor_epochs": 0,
    }  # fmt: skip
    return from_mapping(tree, methods=method_configs(), addons=addon_configs()).recipe
