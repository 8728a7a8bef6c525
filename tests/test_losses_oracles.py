"""Method losses against lightly's and against float64 closed forms in NumPy.

NumPy's gradients are complex steps, df/dx = Im f(x + ih) / h: exact to rounding for any h, and
independent of autograd.
"""

import os

# Some versions of lightly ask a server for their latest version on import, unless this is set.
os.environ["LIGHTLY_DID_VERSION_CHECK"] = "True"

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightly.loss.barlow_twins_loss import BarlowTwinsLoss
from lightly.loss.dino_loss import DINOLoss
from lightly.loss.ntx_ent_loss import NTXentLoss
from torch import ones

from sercli.heads import BatchNorm
from sercli.losses import barlow_twins, cross_correlation, dino_cross_entropy, info_nce, nt_xent

TEMPERATURES = [0.5, 0.07, 0.02]
PAPER_OFF_DIAGONAL = 5e-3


def leaves(*shapes, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()
        for shape in shapes
    ]


def assert_same(ours, expected, inputs, *, rtol=1e-11, atol=1e-11):
    """Values and gradients (those of a loss that does not reach an input are zero)."""
    torch.testing.assert_close(ours, expected, rtol=rtol, atol=atol)
    options = dict(allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, **options),
        torch.autograd.grad(expected, inputs, **options),
        rtol=rtol,
        atol=atol,
    )


def assert_closed_form(ours, form, inputs):
    """`form` is a function of NumPy arrays that is analytic in them."""
    arrays = [tensor.detach().numpy() for tensor in inputs]
    np.testing.assert_allclose(ours.item(), form(*arrays), rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(ours, inputs, allow_unused=True, materialize_grads=True)
    for position, gradient in enumerate(gradients):
        expected, step = np.zeros(gradient.shape), 1e-30
        for place in np.ndindex(*gradient.shape):
            moved = [array.astype(complex) for array in arrays]
            moved[position][place] += 1j * step
            expected[place] = form(*moved).imag / step
        np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-10, atol=1e-11)


def unit(rows):
    return rows / np.sqrt((rows * rows).sum(1, keepdims=True))


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


# InfoNCE of MoCo-v3


def numpy_info_nce(queries, keys, *, temperature, offset):
    logits = log_softmax(unit(queries) @ unit(keys).T / temperature)
    picked = [row[i + offset] for i, row in enumerate(logits)]
    return -2 * temperature * np.mean(picked)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(
    ("num_queries", "num_keys", "offset", "width"), [(2, 2, 0, 3), (3, 5, 2, 4), (1, 3, 1, 2)]
)
def test_info_nce_is_the_closed_form(num_queries, num_keys, offset, width, temperature):
    inputs = leaves((num_queries, width), (num_keys, width), seed=num_keys)
    ours = info_nce(*inputs, temperature=temperature, query_offset=offset)
    assert_closed_form(
        ours, lambda q, k: numpy_info_nce(q, k, temperature=temperature, offset=offset), inputs
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("num_queries", "num_keys", "offset"), [(4, 4, 0), (3, 7, 2)])
@pytest.mark.parametrize("seed", [0, 1])
def test_info_nce_is_lightlys(num_queries, num_keys, offset, temperature, seed):
    """lightly's loss with a memory bank: per query, the bank holds the other images' keys.

    lightly has no factor 2τ and lets no gradient through the bank, so only queries are compared.
    """
    queries, keys = leaves((num_queries, 6), (num_keys, 6), seed=seed)
    total = queries.new_zeros(())
    for i in range(num_queries):
        own = offset + i
        theirs = NTXentLoss(temperature=temperature, memory_bank_size=(num_keys - 1, 6)).double()
        others = torch.cat([keys[:own], keys[own + 1 :]]).detach()
        theirs.memory_bank.bank = F.normalize(others, dim=1)
        total = total + theirs(queries[i : i + 1], keys[own : own + 1].detach())
    ours = info_nce(queries, keys, temperature=temperature, query_offset=offset)
    assert_same(ours, 2 * temperature * total / num_queries, [queries])


# NT-Xent of SimCLR


def numpy_nt_xent(first, second, all_first, all_second, *, temperature, offset):
    columns = unit(np.concatenate([all_first, all_second]))
    total, rows = 0.0, len(all_first)
    for own, twin, view in ((0, rows, first), (rows, 0, second)):
        for i, anchor in enumerate(unit(view)):
            similarity = np.exp(columns @ anchor / temperature)
            rest = np.delete(similarity, own + offset + i).sum()
            total = total - np.log(similarity[twin + offset + i] / rest)
    return total / (2 * len(first))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("rows", "width"), [(2, 3), (3, 4), (4, 2)])
def test_nt_xent_is_the_closed_form(rows, width, temperature):
    inputs = leaves((rows, width), (rows, width), seed=rows)
    assert_closed_form(
        nt_xent(*inputs, temperature=temperature),
        lambda a, b: numpy_nt_xent(a, b, a, b, temperature=temperature, offset=0),
        inputs,
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("offset", [0, 1, 2])
def test_gathered_nt_xent_is_the_closed_form(offset, temperature):
    """Here the gathered rows are leaves of their own: gradient reaches all four."""
    inputs = leaves((2, 3), (2, 3), (4, 3), (4, 3), seed=offset)
    first, second, all_first, all_second = inputs
    ours = nt_xent(
        first, second, temperature=temperature,
        all_first=all_first, all_second=all_second, offset=offset)  # fmt: skip
    assert_closed_form(
        ours, lambda *a: numpy_nt_xent(*a, temperature=temperature, offset=offset), inputs
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("rows", "width"), [(2, 3), (5, 8), (16, 4)])
@pytest.mark.parametrize("seed", [0, 1])
def test_nt_xent_is_lightlys(rows, width, temperature, seed):
    inputs = leaves((rows, width), (rows, width), seed=seed, scale=3)
    theirs = NTXentLoss(temperature=temperature)(*inputs)
    assert_same(nt_xent(*inputs, temperature=temperature), theirs, inputs)


@pytest.mark.parametrize("counts", [[3, 2], [1, 4], [0, 5], [2, 0, 2, 1]])
def test_nt_xent_of_ranks_is_that_of_the_whole(counts):
    inputs = leaves((sum(counts), 4), (sum(counts), 4), seed=len(counts))
    first, second = inputs
    total, offset = first.new_zeros(()), 0
    for count in counts:
        share = nt_xent(
            first[offset : offset + count], second[offset : offset + count], temperature=0.2,
            all_first=first, all_second=second, offset=offset)  # fmt: skip
        total, offset = total + share * count / sum(counts), offset + count
    assert_same(total, nt_xent(first, second, temperature=0.2), inputs)


# Barlow Twins


def of_batch(first, second, *, off_diagonal=PAPER_OFF_DIAGONAL):
    norm = BatchNorm(first.shape[1], affine=False)
    correlation = cross_correlation(norm(first), norm(second)) / len(first)
    return barlow_twins(correlation, off_diagonal=off_diagonal)


def numpy_barlow_twins(first, second, *, off_diagonal):
    def normalised(rows):
        centred = rows - rows.mean(0)
        return centred / np.sqrt((centred * centred).mean(0) + 1e-5)

    correlation = normalised(first).T @ normalised(second) / len(first)
    total = 0.0
    for i, row in enumerate(correlation):
        for j, c in enumerate(row):
            total = total + ((1 - c) ** 2 if i == j else off_diagonal * c**2)
    return total


@pytest.mark.parametrize("off_diagonal", [0.0, PAPER_OFF_DIAGONAL, 0.7])
@pytest.mark.parametrize(("rows", "width"), [(2, 1), (3, 2), (5, 4)])
def test_barlow_twins_is_the_closed_form(rows, width, off_diagonal):
    inputs = leaves((rows, width), (rows, width), seed=rows)
    assert_closed_form(
        of_batch(*inputs, off_diagonal=off_diagonal),
        lambda a, b: numpy_barlow_twins(a, b, off_diagonal=off_diagonal),
        inputs,
    )


@pytest.mark.parametrize("off_diagonal", [PAPER_OFF_DIAGONAL, 0.7])
@pytest.mark.parametrize(("rows", "width"), [(3, 2), (8, 5), (4, 16)])
@pytest.mark.parametrize("seed", [0, 1])
def test_barlow_twins_is_lightlys(rows, width, off_diagonal, seed):
    inputs = leaves((rows, width), (rows, width), seed=seed, scale=3)
    theirs = BarlowTwinsLoss(lambda_param=off_diagonal)(*inputs)
    assert_same(of_batch(*inputs, off_diagonal=off_diagonal), theirs, inputs)


def test_correlations_of_ranks_add_up():
    inputs = leaves((5, 3), (5, 3), seed=0)
    first, second = inputs
    shares = [cross_correlation(first[p], second[p]) for p in (slice(0, 2), slice(2, 2))]
    shares.append(cross_correlation(first[2:], second[2:]))
    whole = barlow_twins(cross_correlation(first, second) / 5, off_diagonal=0.1)
    assert_same(barlow_twins(sum(shares) / 5, off_diagonal=0.1), whole, inputs)


def test_cross_correlation_has_features_of_the_first_as_rows():
    inputs = leaves((5, 3), (5, 3), seed=0)
    expected = torch.einsum("ni,nj->ij", *inputs)
    torch.testing.assert_close(cross_correlation(*inputs), expected)


def test_barlow_twins_is_zero_at_the_identity():
    assert barlow_twins(torch.eye(4), off_diagonal=1.0).item() == 0


# DINO


@pytest.mark.parametrize("temperature", [0.5, 0.1])
@pytest.mark.parametrize(("num_students", "num_targets"), [(2, 2), (4, 2), (3, 3), (3, 1)])
def test_dino_is_the_closed_form(num_students, num_targets, temperature):
    students = leaves(*[(3, 4)] * num_students, seed=num_students)
    targets = [F.softmax(t.detach(), dim=1) for t in leaves(*[(3, 4)] * num_targets, seed=9)]

    def form(*logits):
        terms = [
            -(target.numpy() * log_softmax(logits[v] / temperature)).sum(1).mean()
            for t, target in enumerate(targets)
            for v in range(num_students)
            if v != t
        ]
        return sum(terms) / len(terms)

    ours = dino_cross_entropy(students, targets, temperature=temperature)
    assert_closed_form(ours, form, students)


@pytest.mark.parametrize("num_students", [2, 6])  # two large views, and two large with four small
@pytest.mark.parametrize(("rows", "width"), [(1, 3), (5, 8)])
@pytest.mark.parametrize("sharpness", [0.04, 0.07])
@pytest.mark.parametrize("centre", [0.0, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_dino_is_lightlys(num_students, rows, width, sharpness, centre, seed):
    students = leaves(*[(rows, width)] * num_students, seed=seed, scale=0.5)
    teachers = [t.detach() for t in leaves(*[(rows, width)] * 2, seed=seed + 10, scale=0.2)]
    theirs = DINOLoss(width, student_temp=0.1).double()
    theirs.center = centre * torch.linspace(-0.3, 0.3, width, dtype=torch.float64).view(1, 1, -1)
    sharpness = torch.tensor(sharpness).item()  # lightly rounds it to fp32
    targets = [F.softmax((t - theirs.center[0]) / sharpness, dim=1) for t in teachers]
    expected = theirs(teachers, students, teacher_temp=sharpness)
    assert_same(dino_cross_entropy(students, targets, temperature=0.1), expected, students)


def test_dino_gives_targets_no_gradient():
    *students, target = leaves((2, 3), (2, 3), (2, 3), seed=0)
    dino_cross_entropy(students, [target], temperature=0.1).backward()
    assert target.grad is None
    assert students[1].grad.norm() > 0
    assert students[0].grad is None  # its only partner would be the target of its own view


# All of them


def dino_of_two(one, two, *, temperature=0.1):
    targets = [F.one_hot(x.argmax(1), x.shape[1]).to(x.dtype) for x in (one, two)]
    return dino_cross_entropy([one, two], targets, temperature=temperature)


LOSSES = {
    "info_nce": lambda a, b: info_nce(a, b, temperature=0.2),
    "nt_xent": lambda a, b: nt_xent(a, b, temperature=0.2),
    "barlow_twins": lambda a, b: barlow_twins(cross_correlation(a, b) / len(a), off_diagonal=0.1),
    "dino": dino_of_two,
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_computed_in_fp32_at_least(loss, dtype, autocast):
    inputs = [t.detach().to(dtype).requires_grad_() for t in leaves((6, 24), (6, 24), seed=0)]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, exact = loss(*inputs), loss(*doubles)
    assert ours.dtype == torch.float32
    assert exact.dtype == torch.float64
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=0)
    rounding = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 1e-5
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(exact, doubles), strict=True
    ):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), theirs, rtol=rounding, atol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [info_nce, nt_xent, lambda a, b, temperature: dino_of_two(a, b, temperature=temperature)],
    ids=["info_nce", "nt_xent", "dino"],
)
@pytest.mark.parametrize("temperature", [0.005, 1e-4, 1e-8])
def test_finite_at_any_temperature(loss, temperature):
    """Rows opposite to their twins: the positive's share of the softmax is no fp32 number."""
    (rows,) = leaves((6, 24), seed=0)
    inputs = [t.detach().float().requires_grad_() for t in (rows, -rows)]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    ours, exact = (loss(*given, temperature=temperature) for given in (inputs, doubles))
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=0)
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(exact, doubles), strict=True
    ):
        assert mine.abs().max() > 0
        torch.testing.assert_close(
            mine.double(), theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item()
        )


@pytest.mark.parametrize(
    "loss",
    [
        lambda none, rows: info_nce(none, rows, temperature=0.2, query_offset=3),
        lambda none, rows: nt_xent(
            none, none, temperature=0.2, all_first=rows, all_second=rows, offset=3
        ),
        lambda none, rows: cross_correlation(none, none).sum() + 0 * rows.sum(),
        lambda none, rows: (
            dino_cross_entropy([none, none], [none], temperature=0.2) + 0 * rows.sum()
        ),
    ],
    ids=["info_nce", "nt_xent", "cross_correlation", "dino"],
)
def test_a_rank_without_rows_keeps_its_place_in_the_graph(loss):
    none, rows = leaves((0, 4), (3, 4), seed=0)
    value = loss(none, rows)
    assert value.item() == 0
    to_none, to_rows = torch.autograd.grad(value, [none, rows])
    assert to_none.shape == (0, 4)
    assert to_rows.abs().max() == 0


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradient_goes_where_it_is_wanted(loss):
    for wanted in (0, 1):
        inputs = [t.detach() for t in leaves((4, 3), (4, 3), seed=0)]
        inputs[wanted].requires_grad_()
        loss(*inputs).backward()
        assert inputs[wanted].grad.norm() > 0
        assert inputs[1 - wanted].grad is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: info_nce(ones(1, 3), ones(1, 3), temperature=1), "1 row in keys"),
        (lambda: info_nce(ones(2, 3), ones(2, 4), temperature=1), r"keys \(2, 4\)"),
        (lambda: info_nce(ones(2, 3), ones(2, 3), temperature=0), "temperature 0: must be pos"),
        (
            lambda: info_nce(ones(2, 3), ones(3, 3), temperature=1, query_offset=2),
            "offset 2: 2 row",
        ),
        (lambda: nt_xent(ones(1, 3), ones(1, 3), temperature=1), "1 row.* at least 2"),
        (lambda: nt_xent(ones(2, 3), ones(3, 3), temperature=1), r"second \(3, 3\)"),
        (lambda: nt_xent(ones(2, 3, 1), ones(2, 3, 1), temperature=1), r"first \(2, 3, 1\)"),
        (lambda: nt_xent(ones(2, 3), ones(2, 3), temperature=-1.0), "temperature -1.0: must"),
        (
            lambda: nt_xent(ones(2, 3), ones(2, 3), temperature=1, all_first=ones(4, 3)),
            r"all_second \(2, 3\)",
        ),
        (lambda: nt_xent(ones(2, 3), ones(2, 3), temperature=1, offset=-1), "offset -1: 2 row"),
        (
            lambda: nt_xent(
                ones(2, 3), ones(2, 3), temperature=1, all_first=ones(4, 5), all_second=ones(4, 5)
            ),
            r"all_first \(4, 5\)",
        ),
        (lambda: cross_correlation(ones(2, 3), ones(2, 4)), r"second \(2, 4\)"),
        (lambda: barlow_twins(ones(2, 3), off_diagonal=1), r"correlation \(2, 3\): must be sq"),
        (lambda: barlow_twins(ones(0, 0), off_diagonal=1), "at least one feature"),
        (lambda: dino_cross_entropy([ones(2, 3)], [ones(2, 3)], temperature=1), "1 student view"),
        (lambda: dino_cross_entropy([ones(2, 3)] * 2, [], temperature=1), "0 target view"),
        (
            lambda: dino_cross_entropy([ones(2, 3)] * 2, [ones(2, 3)] * 3, temperature=1),
            "3 target view.* 1 to 2",
        ),
        (
            lambda: dino_cross_entropy([ones(2, 3)] * 2, [ones(2, 4)], temperature=1),
            r"targets\[0\] \(2, 4\)",
        ),
        (
            lambda: dino_cross_entropy([ones(2, 3), ones(1, 3)], [ones(2, 3)], temperature=1),
            r"students\[1\] \(1, 3\)",
        ),
        (
            lambda: dino_cross_entropy([ones(2, 3)] * 2, [ones(2, 3)], temperature=0.0),
            "temperature 0.0: must",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
