"""SER's action and loss as the authors' functions have them: what the arrays say."""

import torch

from sercli.actions import GeometricAction
from tests.support.paths import GOLDEN

CASES = sorted(GOLDEN.glob("ser_case*.npz"))


def golden_action(arrays, view):
    turn = int(arrays[f"view{view}_rot90_k"])
    grid = tuple(int(n) for n in arrays[f"view{view}_grid_before_rot90"])
    return GeometricAction(
        torch.from_numpy(arrays[f"view{view}_hflip"]),
        turn + 2 * torch.from_numpy(arrays[f"view{view}_rot180"]).long(),
        grid[::-1] if turn % 2 else grid,
    )
