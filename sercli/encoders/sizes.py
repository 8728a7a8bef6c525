"""How large a ViT is by its name, and after which block [CLS] joins; without torch.

A size of one's own is one line of `SIZES`.
"""

from __future__ import annotations

from dataclasses import dataclass

from sercli.errors import UserError
from sercli.recipe.schema import Model


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


def size_of(model: Model) -> Size:
    """The size that a recipe's model has by its name, but for what the recipe says itself.

    Raises:
        UserError: There is no size of that name, or heads do not divide the width.
    """
    if model.name not in SIZES:
        raise UserError(f"model.name {model.name!r}", f"known: {', '.join(SIZES)}")
    usual = SIZES[model.name]
    width, heads = model.width or usual.width, model.num_heads or usual.num_heads
    if width % heads or width % 4:
        raise UserError(
            f"model.width {width} with {heads} heads", "the width must be a multiple of heads and 4"
        )
    return Size(width, model.depth or usual.depth, heads)


def cls_after_of(model: Model, *, layer: int | None, taps_cls: bool) -> int:
    """Where [CLS] joins: it follows the tapped layer, except where it has to be there already.

    Args:
        model: `cls_after` set there wins.
        layer: The tapped layer, or None.
        taps_cls: The add-on takes [CLS] of that layer.

    Raises:
        UserError: [CLS] of the tapped layer is needed, but joins later.
    """
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
