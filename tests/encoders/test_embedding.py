"""Patches of views in training and in evaluation."""

import torch
from torch import nn

from sercli.encoders.embedding import PatchEmbedding


def made(side, width):
    torch.manual_seed(0)
    projection = nn.Conv2d(3, width, side, stride=side)
    return projection, PatchEmbedding(projection)


def rows(convolved):
    return convolved.flatten(2).transpose(1, 2).flatten(0, 1)


def test_patches_in_evaluation_are_those_of_the_convolution_to_the_last_bit():
    projection, embedding = made(16, 192)
    embedding.eval()
    views = [torch.randn(count, 3, 224, 224) for count in (3, 2)]
    expected = torch.cat([rows(projection(view)) for view in views])
    assert torch.equal(embedding(views), expected)


def test_patches_in_training_are_those_of_convolutions_with_their_gradients():
    projection, embedding = made(8, 24)
    projection.double()
    views = [torch.randn(2, 3, h, w, dtype=torch.float64) for h, w in ((16, 24), (8, 8), (24, 8))]
    found = []
    for way in (embedding, lambda given: torch.cat([rows(projection(view)) for view in given])):
        given = [view.clone().requires_grad_() for view in views]
        projection.zero_grad()
        out = way(given)
        (out * torch.arange(out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        assert projection.weight.grad is not None
        found.append([out, projection.weight.grad.clone(), *(view.grad for view in given)])
    for ours, expected in zip(*found, strict=True):
        assert (ours - expected).abs().max() <= 1e-13 * expected.abs().max()
