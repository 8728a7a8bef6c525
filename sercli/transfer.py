"""What goes from the CPU to the device: one page-locked block at a time, and constants that stay.

A copy from ordinary memory makes the host wait until the device has come to it. So what the CPU
draws for a step is packed into one block of page-locked memory, copied in one go without waiting,
and cut into tensors there; what never changes is copied once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

_Name = TypeVar("_Name", bound=Hashable)

_ALIGNMENT = 16  # bytes; more than any element takes
_constants: dict[tuple[tuple[float, ...], torch.device, torch.dtype], Tensor] = {}


def send(tensors: Mapping[_Name, Tensor], device: torch.device) -> dict[_Name, Tensor]:
    """Copy tensors from the CPU to a device in one block, without waiting.

    Args:
        tensors: name → any shape and dtype, on the CPU. They may be changed afterwards.
        device: Where they go. On the CPU itself they are returned as they are.

    Returns:
        The same names, with tensors on the device that share one block of its memory.
    """
    if device.type in ("cpu", "meta"):
        return {name: tensor.to(device) for name, tensor in tensors.items()}
    size = 0
    for tensor in tensors.values():
        size += _padded(tensor)
    # From torch's cache of page-locked memory, which gives a block out again when it was copied.
    block = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for _, place, tensor in _cut(block, tensors):
        place.copy_(tensor)
    there = block.to(device, non_blocking=True)
    return {name: place for name, place, _ in _cut(there, tensors)}


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """One tensor on a device, without waiting; one that is there already stays as it is."""
    return tensor if tensor.is_cuda else send({0: tensor}, device)[0]


def send_all(
    parcels: Mapping[str, Mapping[str, Tensor]], device: torch.device
) -> dict[str, Mapping[str, Tensor]]:
    """Copy several mappings of tensors in one block; see `send`."""
    block = {(key, name): t for key, parcel in parcels.items() for name, t in parcel.items()}
    sent = send(block, device)
    return {key: {name: sent[key, name] for name in parcel} for key, parcel in parcels.items()}


def _padded(tensor: Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT


def _cut(block: Tensor, tensors: Mapping[_Name, Tensor]) -> Iterator[tuple[_Name, Tensor, Tensor]]:
    """Each tensor with its name and its place in the block."""
    start = 0
    for name, tensor in tensors.items():
        stop = start + tensor.numel() * tensor.element_size()
        yield name, block[start:stop].view(tensor.dtype).view(tensor.shape), tensor
        start += _padded(tensor)


def constant(
    values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A vector of numbers on a device, copied there when first asked for; not to be changed."""
    key = (tuple(values), device, dtype)
    found = _constants.get(key)
    if found is None:
        # Evaluators ask within inference mode, whose tensors no later step could differentiate by.
        with torch.inference_mode(mode=False):
            found = _constants[key] = torch.tensor(key[0], dtype=dtype, device=device)
    return found
