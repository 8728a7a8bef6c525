"""Windows of an image and the way back, against torch's interpolation and its definition."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from sercli.evals.segmentation.evaluate import predict
from sercli.evals.segmentation.frames import Frame, upsampling


@pytest.mark.parametrize(("of", "length"), [(6, 48), (14, 56), (14, 500), (7, 3), (1, 5), (5, 5)])
def test_upsampling_is_torchs(of, length):
    values = torch.rand(2, of, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = interpolate(values[None], size=length, mode="linear", align_corners=False)[0]
    got = values @ torch.from_numpy(upsampling(length, of)).T
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "resized", "starts"),
    [
        ((500, 500), (48, 48), (0,)),
        ((500, 375), (64, 48), (0, 16)),
        ((375, 500), (48, 64), (0, 16)),
        ((96, 48), (96, 48), (0, 32, 48)),
        ((10_000, 10), (192, 48), (0, 32, 64, 96, 128, 144)),  # squeezed to four sides
        ((1, 1), (48, 48), (0,)),
        ((501, 500), (48, 48), (0,)),
    ],
)
def test_windows_cover_the_image_and_nothing_else(size, resized, starts):
    frame = Frame(*size, 48)
    assert (frame.resized, frame.starts) == (resized, starts)
    covered = np.zeros(max(resized), bool)
    for start in starts:
        covered[start : start + 48] = True
    assert covered.all()


@pytest.mark.parametrize("size", [(70, 50), (50, 70), (48, 48), (30, 20), (9, 200), (400, 50)])
def test_logits_of_windows_are_upsampled_averaged_and_resized(size):
    """As mmsegmentation slides: each window to its pixels, means where they overlap, the mask."""
    width, height = size
    frame, grid = Frame(width, height, 48), 6
    draws = torch.Generator().manual_seed(1)
    maps = [torch.randn(5, grid, grid, generator=draws) for _ in frame.starts]
    total = torch.zeros(1, 5, *frame.resized[::-1])
    number = torch.zeros(1, 1, *frame.resized[::-1])
    for window, one in enumerate(maps):
        left, top = frame.corner(window)
        place = (..., slice(top, top + 48), slice(left, left + 48))
        total[place] += interpolate(one[None], size=(48, 48), mode="bilinear")
        number[place] += 1
    expected = interpolate(total / number, size=(height, width), mode="bilinear")[0]
    rows, columns = (torch.from_numpy(one) for one in frame.matrices(grid))
    got = rows @ torch.cat(maps, 1 if frame.upright else 2) @ columns.T
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    found = predict(maps, frame)
    assert found.shape == (height, width)
    best = expected.topk(2, dim=0)
    clear = (best.values[0] - best.values[1] > 1e-3).numpy()
    assert (found == best.indices[0].numpy())[clear].all()


def test_rows_in_pieces_are_the_same(monkeypatch):
    frame = Frame(90, 60, 48)
    maps = [torch.randn(4, 6, 6) for _ in frame.starts]
    whole = predict(maps, frame)
    monkeypatch.setattr("sercli.evals.segmentation.evaluate._VALUES_AT_ONCE", 4 * 90 * 7)
    assert (predict(maps, frame) == whole).all()


@pytest.mark.parametrize("size", [(96, 48), (48, 96), (30, 40), (300, 33)])
def test_targets_lie_where_the_pixels_do(size):
    """A mask painted as an image, cut as one, has its targets at the same places."""
    width, height = size
    mask = (np.arange(height)[:, None] * 2 // height * 2 + np.arange(width) * 2 // width) * 60
    mask = mask.astype(np.uint8)
    frame = Frame(width, height, 48)
    image = Image.fromarray(np.repeat(mask[:, :, None], 3, axis=2))
    for window in range(len(frame.starts)):
        pixels = frame.cut(image, window)
        targets = frame.targets(mask, window, 24)
        assert (pixels.shape, targets.shape) == ((3, 48, 48), (24, 24))
        squares = pixels[0].reshape(24, 2, 24, 2).astype(int)
        sure = squares.max((1, 3)) == squares.min((1, 3))  # not where two classes meet
        assert sure.mean() > 0.7
        assert (targets == squares.min((1, 3)))[sure].mean() > 0.97
