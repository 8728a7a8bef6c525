"""How large a ViT is by its name, and after which block [CLS] joins; without torch.

A size of one's own is one line of `SIZES`.
"""

from __future__ import annotations

from dataclasses import dataclass

from sercli.errors import UserError
from sercli.recipe.model import TIMM, Model
from sercli.runs.reading import shown


@dataclass(frozen=True)
class Size:
    """How large a ViT is.

    Attributes:
        width: Numbers in a token, D.
        depth: How many blocks there are.
        num_heads: Attention heads of a block.
    """

    width: int
    depth: int
    num_heads: int


SIZES = {
    "vit_micro": Size(64, 12, 2),
    "vit_tiny": Size(192, 12, 3),
    "vit_small": Size(384, 12, 6),
    "vit_base": Size(768, 12, 12),
    "vit_large": Size(1024, 24, 16),
}
OTHER = "vit"  # of a size that has no name


def size_of(model: Model) -> Size:
    """The size that a recipe's model has by its name, but for what the recipe says itself.

    Raises:
        UserError: There is no size of that name, or heads do not divide the width.
    """
    usual = SIZES.get(model.name)
    if usual is None and (model.name == OTHER or model.name.startswith(TIMM)):
        usual = Size(model.width or 0, model.depth or 0, model.num_heads or 0)
    if usual is None:
        known = f"known: {', '.join([*SIZES, 'timm:NAME'])}"
        raise UserError(f"model.name {shown(model.name)}", known)
    size = Size(
        model.width or usual.width, model.depth or usual.depth, model.num_heads or usual.num_heads
    )
    if not size.width or not size.depth or not size.num_heads:
        raise UserError(
            f"model.name {shown(model.name)} without model.width, depth and num_heads",
            "it has no size of its own",
        )
    if size.width % size.num_heads or size.width % 4:
        raise UserError(
            f"model.width {size.width} with {size.num_heads} heads",
            "the width must be a multiple of heads and 4",
        )
    if model.rope is not None and size.width // size.num_heads % 4:
        raise UserError(
            f"model.rope {model.rope} with heads {size.width // size.num_heads} wide",
            "rotary positions turn pairs of numbers, for rows and columns: a multiple of 4",
        )
    return size


def mlp_width_of(model: Model, width: int) -> int:
    """How wide the MLPs of a ViT are inside; of SwiGLU, what is multiplied by its gate."""
    if model.mlp_width is not None:
        return model.mlp_width
    # DINOv2's: two thirds of the usual, as there are three matrices, in whole 8.
    return 4 * width if model.mlp != "swiglu" else (width * 8 // 3 + 7) // 8 * 8


def rope_base_of(model: Model) -> float:
    """The longest period of rotary positions over the shortest, as the authors of each have it."""
    return model.rope_base or (100.0 if model.rope == "dinov3" else 10000.0)


def cls_after_of(model: Model, *, layer: int | None, taps_cls: bool) -> int:
    """Where [CLS] joins: it follows the tapped layer, except where it has to be there already.

    Args:
        model: `cls_after` set there wins.
        layer: The tapped layer, or None.
        taps_cls: The add-on takes [CLS] of that layer.

    Raises:
        UserError: [CLS] of the tapped layer is needed, but joins later.
    """
    if not model.has_cls:
        if taps_cls:
            raise UserError(
                "an add-on that takes [CLS] with model.pool mean",
                "there is no [CLS]",
                "use addon.tap=pooled, or model.cls_token=true",
            )
        return 0
    if model.cls_after is not None:
        if taps_cls and layer is not None and model.cls_after >= layer:
            raise UserError(
                f"model.cls_after {model.cls_after} with addon.layer {layer}",
                "the add-on takes [CLS] of that layer, which must have joined before it",
                "leave model.cls_after out, or use addon.tap=pooled",
            )
        return model.cls_after
    if layer is None or taps_cls or layer >= size_of(model).depth:
        return 0
    return layer
