"""What the CPU hands to the device: one block, and constants."""

import torch

from sercli import transfer

META = torch.device("meta")
TENSORS = {
    "flags": torch.tensor([True, False, True]),
    "numbers": torch.arange(6, dtype=torch.float64).view(2, 3) / 7,
    "none": torch.zeros(0, 4),
    "codes": torch.tensor([5, 2**40, -1]),
    "shares": torch.tensor([[0.25], [0.5]]).expand(2, 3),
    "one": torch.tensor(3.5),
}


def test_a_block_holds_every_tensor_as_it_was():
    """As it is cut on a device; on the CPU nothing is copied at all."""
    size = sum(map(transfer._padded, TENSORS.values()))
    block = torch.zeros(size, dtype=torch.uint8)
    for _, place, tensor in transfer._cut(block, TENSORS):
        place.copy_(tensor)
    for name, place, tensor in transfer._cut(block.clone(), TENSORS):
        assert (place.dtype, place.shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(place, tensor), name
    assert size == 16 + 48 + 0 + 32 + 32 + 16
    here = transfer.send(TENSORS, torch.device("cpu"))
    assert all(here[name] is tensor for name, tensor in TENSORS.items())


def test_shapes_alone_have_no_block():
    sent = transfer.send(TENSORS, META)
    assert {name: t.shape for name, t in sent.items()} == {n: t.shape for n, t in TENSORS.items()}
    assert all(tensor.device == META for tensor in sent.values())


def test_a_constant_is_made_once_for_each_device_and_dtype():
    with torch.inference_mode():
        first = transfer.constant((0.5, 2.0), torch.device("cpu"))
    assert first is transfer.constant((0.5, 2.0), torch.device("cpu"))
    assert first.tolist() == [0.5, 2.0]
    wide = transfer.constant((0.5, 2.0), torch.device("cpu"), torch.float64)
    assert (wide.dtype, first.dtype) == (torch.float64, torch.float32)
    assert transfer.constant((0.5, 2.0), META).device == META
    weight = torch.ones(2, requires_grad=True)
    (weight * first).sum().backward()  # not of inference mode, which could not be saved
    assert weight.grad.tolist() == [0.5, 2.0]
