"""In which dtype a step computes what, under mixed precision: the same on every device.

Autocast has lists of operators by device, and they differ: CUDA takes `interpolate`, `normalize`,
`sum`, `softmax` and `layer_norm` in float32, a CPU leaves them in bfloat16. So the lists are relied
on for products alone, where they agree, and everything else states its dtype:

    bfloat16            products of the encoder and the heads: linear maps, convolutions, attention;
                        what lies between two of them, value by value (GELU, ReLU); cosines of the
                        patch loss
    float32 at least    the residual stream, norms, pooling, unit vectors, softmax, losses, group
                        elements acting on images and token maps, positions at another size, the
                        teacher's average

`widened` is the step from the former to the latter. What is given in float64 stays in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_fp32(*tensors: Tensor) -> torch.dtype:
    """The dtype to compute in: float64 if any tensor has it, else float32."""
    wide = torch.float32
    for tensor in tensors:
        wide = torch.promote_types(wide, tensor.dtype)
    return wide


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float32 at least."""
    return tensor.to(at_least_fp32(tensor))


def of_products(tensor: Tensor) -> torch.dtype:
    """The dtype in which a linear map of the tensor is computed: autocast's, if it is on."""
    device = tensor.device.type
    there_is = torch.amp.is_autocast_available(device)  # not where there are shapes alone
    if there_is and tensor.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def without_autocast(like: Tensor) -> torch.autocast:
    """A context in which products, too, are taken in the dtypes of their operands."""
    return torch.autocast("cuda" if like.is_cuda else "cpu", enabled=False)
