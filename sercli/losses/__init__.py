"""Losses: pure functions of tensors. Gathering over ranks happens outside, before the call.

- `patches.py`: SER's patch-wise NT-Xent; `tiles.py`: how it is computed without storing N² logits.
- `contrast.py`: InfoNCE of MoCo-v3, NT-Xent of SimCLR.
- `redundancy.py`: Barlow Twins. `distillation.py`: DINO.
- `checks.py`: what their arguments must be.
"""

from sercli.losses.contrast import info_nce as info_nce
from sercli.losses.contrast import nt_xent as nt_xent
from sercli.losses.distillation import dino_cross_entropy as dino_cross_entropy
from sercli.losses.patches import patch_nt_xent as patch_nt_xent
from sercli.losses.redundancy import barlow_twins as barlow_twins
from sercli.losses.redundancy import cross_correlation as cross_correlation
from sercli.negatives import Negatives as Negatives
