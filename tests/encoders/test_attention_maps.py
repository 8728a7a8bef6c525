"""What [CLS] attends to, against softmax(q·kᵀ/√d) in float64 NumPy from the weights."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from sercli.encoders.vit import Encoder
from sercli.errors import UserError
from sercli.recipe.schema import Model

MODEL = Model(name="vit_micro", patch_size=8, width=24, depth=3, num_heads=2)


def encoder(cls_after: int = 1) -> Encoder:
    made = Encoder.from_model(MODEL, image_size=32, cls_after=cls_after).initialise(3).eval()
    with torch.no_grad():  # drawn ones attend to everything nearly alike
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def by_hand(made: Encoder, layer: int, cls: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """[n, H, N], of [CLS] to patches, from what goes into a block: [n, D] and [n, N, D]."""
    block = made.blocks[layer - 1]
    values = {name: p.detach().numpy().astype(np.float64) for name, p in block.named_parameters()}
    tokens = np.concatenate([cls[:, None], patches], axis=1).astype(np.float64)
    centred = tokens - tokens.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    normed = normed * values["norm1.weight"] + values["norm1.bias"]
    packed = normed @ values["attn.qkv.weight"].T + values["attn.qkv.bias"]
    n, length, _ = tokens.shape
    q, k, _ = packed.reshape(n, length, 3, 2, 12).transpose(2, 0, 3, 1, 4)
    logits = np.einsum("nhd,nhtd->nht", q[:, :, 0], k) / np.sqrt(12)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True))[:, :, 1:]


@pytest.mark.parametrize("layer", [2, 3])
def test_attention_is_softmax_of_queries_and_keys(layer: int) -> None:
    made = encoder()
    images = torch.randn(2, 3, 32, 48)  # wider than it was made for
    with torch.no_grad():
        found = made(images, layers=(1, 2), attention=[layer])
        plain = made(images, layers=(1, 2))
    assert torch.equal(found.cls, plain.cls)  # looking changes nothing
    grid = found.grids[layer - 1].flatten(2).transpose(1, 2).numpy()
    cls = found.cls_tokens[2].numpy() if layer == 3 else made.cls_token[0].expand(2, -1).detach()
    expected = by_hand(made, layer, np.asarray(cls), grid)
    np.testing.assert_allclose(found.attention[layer].flatten(2), expected, atol=2e-6)
    assert found.attention[layer].shape == (2, 2, 4, 6)
    assert expected.std() > 0.01


def test_each_view_of_a_pass_has_its_own() -> None:
    made = encoder()
    views = [torch.randn(2, 3, 32, 32), torch.randn(1, 3, 16, 24)]
    with torch.no_grad():
        together = made.encode(views, (), attention=[3])
        alone = [made(view, attention=[3]) for view in views]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.attention[3], other.attention[3])


def test_a_block_before_cls_joins_has_none() -> None:
    made = encoder(cls_after=2)
    with pytest.raises(UserError, match=r"attention in blocks \[2\]; \[CLS\] is in blocks 3…3"):
        made(torch.zeros(1, 3, 32, 32), attention=[2])


def test_of_timms_model_with_registers() -> None:
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, reg_tokens=3, embed_dim=24, num_heads=2
    )
    made = Encoder.from_timm(vit).eval()
    with torch.no_grad():
        weights = made(torch.randn(1, 3, 32, 32), attention=[1, 2]).attention
    assert weights[1].shape == (1, 2, 2, 2)
    # [CLS] and three registers get their part of what eight tokens share nearly alike.
    assert 0.3 < float(weights[1].sum(dim=(2, 3)).mean()) < 0.7
