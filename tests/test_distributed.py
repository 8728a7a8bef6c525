"""Two and three processes give the values and gradients of one on the joined batch (float64)."""

import dataclasses
import functools

import pytest
import torch
import torch.distributed as dist

from sercli import distributed
from sercli.heads import BatchNorm
from sercli.losses import patch_nt_xent
from tests.support import recipes, workers
from tests.support.processes import run_ranks

CLOSE = dict(rtol=1e-9, atol=1e-11)
QUICK = [case for case in workers.cases(2) if case.quick]
WORLDS = [2, pytest.param(3, marks=pytest.mark.run)]
SHARES = [
    pytest.param(world, counts, marks=pytest.mark.run if world > 2 else ())
    for world in (2, 3)
    for counts in workers.SHARES[world]
]


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """(world, cases) → what each rank found; a group is started once for what is asked of it."""

    @functools.cache
    def found(world, names):
        folder = tmp_path_factory.mktemp("ranks")
        run_ranks(workers.main, str(folder), world, names, count=world)
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]

    return found


@pytest.fixture(scope="module")
def found(launch):
    """world → what each rank found of single collectives, and of the quick cases of two ranks."""
    return lambda world: launch(world, names_of(world))


def names_of(world, *, quick=True):
    return tuple(case.name for case in workers.cases(world) if world > 2 or case.quick == quick)


@pytest.mark.parametrize(("world", "counts"), SHARES)
def test_rows_are_gathered_with_gradient(found, world, counts):
    rows = torch.cat(workers.rows_of(counts)).requires_grad_()
    sum(workers.gather_loss(rows, rank) for rank in range(world)).backward()
    for ours, gradient in zip(found(world), rows.grad.split(counts), strict=True):
        ours = ours[f"gather {counts}"]
        assert torch.equal(ours["value"], rows.detach())
        assert torch.equal(ours["plain"], rows.detach())
        assert not ours["plain_requires_grad"]
        assert ours["refused"]
        torch.testing.assert_close(ours["gradient"], gradient, **CLOSE)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("world", "counts"), SHARES)
def test_batch_norm_has_the_statistics_of_all_ranks(found, world, counts, affine):
    norm = BatchNorm(3, affine=affine).double()
    workers.shape_norm(norm)
    rows = (5 + 2 * torch.cat(workers.rows_of(counts))).requires_grad_()
    value = workers.reference_batch_norm(rows, norm)
    workers.norm_loss(value, 0).backward()
    parts = zip(found(world), value.detach().split(counts), rows.grad.split(counts), strict=True)
    totals = [torch.zeros(3, dtype=torch.float64) for _ in norm.parameters()]
    for ours, expected, gradient in parts:
        ours = ours[f"norm {counts} {affine}"]
        torch.testing.assert_close(ours["value"], expected, **CLOSE)
        torch.testing.assert_close(ours["gradient"], gradient, **CLOSE)
        for total, part in zip(totals, ours["parameters"], strict=True):
            total += part
    for parameter, total in zip(norm.parameters(), totals, strict=True):
        torch.testing.assert_close(total, parameter.grad, **CLOSE)


@pytest.mark.parametrize("negatives", workers.FORMS)
@pytest.mark.parametrize(("world", "counts"), SHARES)
def test_the_patch_loss_alone_with_gradient_to_all_tokens(found, world, counts, negatives):
    anchors, keys = (m.clone().requires_grad_() for m in workers.token_maps(counts))
    loss = patch_nt_xent(anchors, keys, temperature=0.3, negatives=negatives, grid=(2, 3))
    loss.backward()
    shares = [rank[f"patch {counts} {negatives}"] for rank in found(world)]
    assert sum(share["loss"] for share in shares) == pytest.approx(loss.item(), rel=1e-9)
    for name, whole in (("anchors", anchors), ("keys", keys)):
        ours = torch.cat([share[name] for share in shares])
        torch.testing.assert_close(ours, whole.grad, **CLOSE)


CASES = [
    pytest.param(
        world,
        case,
        id=f"{world} ranks, {case.name}",
        marks=() if world == 2 and case.quick else pytest.mark.run,
    )
    for world in (2, 3)
    for case in workers.cases(world)
]


@pytest.mark.parametrize(("world", "case"), CASES)
def test_the_whole_objective_through_ddp(launch, world, case):
    """DDP averages what the ranks find; a buffer (DINO's centre) is the same on all."""
    expected = workers.run_objective(case)
    found = launch(world, names_of(world, quick=case.quick))
    shares = [rank[case.name] for rank in found]
    assert sum(shares[0]["paired_counts"]) == sum(expected["paired_counts"])
    for which, value in enumerate(expected["losses"]):
        mean = sum(share["losses"][which] for share in shares) / world
        assert mean == pytest.approx(value, rel=1e-9)
    # DDP gives every trained parameter a gradient, where one process may leave None for zero.
    for share in shares:
        assert expected["gradients"].keys() == share["gradients"].keys()
        for name, gradient in expected["gradients"].items():
            torch.testing.assert_close(
                share["gradients"][name],
                gradient,
                rtol=1e-8,
                atol=1e-10,
                msg=lambda m, n=name: f"{n}: {m}",
            )
        assert expected["buffers"].keys() == share["buffers"].keys()
        for name, buffer in expected["buffers"].items():
            torch.testing.assert_close(share["buffers"][name], buffer, **CLOSE)
            assert torch.equal(share["buffers"][name], shares[0]["buffers"][name])
    total = sum(g.abs().sum() for g in expected["gradients"].values())
    assert total > 1


@pytest.mark.parametrize("world", WORLDS)
def test_a_rank_holds_whole_groups_of_images(found, world):
    """Position p is on rank ⌊p / group⌋ mod W; a group is two images for STL, else one."""
    groups = set()
    for case in workers.cases(world) if world > 2 else QUICK:
        shares = [rank[case.name] for rank in found(world)]
        groups.add(shares[0]["group"])
        for rank, share in enumerate(shares):
            group, everything = share["group"], range(case.batch_size)
            assert share["positions"] == [p for p in everything if p // group % world == rank]
    assert groups == {1, 2}


def test_stochastic_depth_shows():
    case = workers.Case(8, 0.375, method="dino")
    plain = workers.run_objective(case)["losses"]
    dropped = workers.run_objective(dataclasses.replace(case, drop_path=0.2))["losses"]
    assert all(abs(a - b) > 1e-6 for a, b in zip(plain, dropped, strict=True))


@pytest.mark.parametrize("world", WORLDS)
def test_the_cases_cover_unequal_shares_and_a_rank_without_any(found, world):
    cases = workers.cases(world) if world > 2 else QUICK
    seen = {found(world)[0][case.name]["paired_counts"] for case in cases}
    if world == 2:
        assert any(a == b > 0 for a, b in seen)
        assert any(a != b for a, b in seen)
    else:
        assert any(0 in counts and sum(counts) >= 2 for counts in seen)


@pytest.mark.parametrize("world", WORLDS)
def test_small_collectives(found, world):
    total = sum(range(1, world + 1))
    for rank, ours in enumerate(found(world)):
        ours = ours["small"]
        assert (ours["rank"], ours["world"]) == (rank, world)
        assert ours["sum"] == total
        assert ours["sum_gradient"] == total  # every rank's loss depends on every rank's value
        assert ours["any"] == 1
        assert ours["none"] == 0
        assert ours["object"] == {"from": 0}
        expected = [[len(range(r, 7, world)) for r in range(world)]]
        expected += [[sum(p % world == r for p in range(5, 9)) for r in range(world)]]
        assert ours["rows"] == expected
        assert ours["alone"] == (False, 0, 1)
        assert ours["alone_rows"] == 1


def test_older_names_are_called_where_torch_has_no_newer(monkeypatch):
    """torch 2.10 has only these; that 2.14 warns of none of ours, `support/strict` sees."""
    called = []
    monkeypatch.delattr(dist, "all_gather_single", raising=False)
    monkeypatch.setattr(dist, "all_gather_into_tensor", lambda *_tensors: called.append("older"))
    distributed._gather(torch.ones(2), torch.ones(1))
    assert called == ["older"]

    class Older:
        def __init__(self, module, *, broadcast_buffers=True, gradient_as_bucket_view=False):
            self.given = (module, broadcast_buffers, gradient_as_bucket_view)

    monkeypatch.setattr(distributed, "DistributedDataParallel", Older)
    assert distributed.data_parallel("module", gradient_as_bucket_view=True).given == (
        "module",
        False,
        True,
    )


def test_one_process_needs_no_group():
    from sercli import distributed

    rows = torch.randn(3, 2)
    assert distributed.gather_rows(rows, (3,)) is rows
    assert distributed.sum_over_ranks(rows) is rows
    assert distributed.rows_of_rank(5) == [5]
    assert distributed.any_rank(3, torch.device("cpu")) == 3
    assert distributed.broadcast_object("x") == "x"
    distributed.barrier()


@pytest.mark.parametrize("method", list(recipes.METHODS))
def test_a_group_of_one_counts_where_it_is_asked_for_and_changes_nothing(method):
    case = workers.Case(8, 0.375, (("negatives", "both-views"),), method=method)
    alone = workers.run_objective(case)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert not distributed.active()
        with distributed.even_of_one():
            assert distributed.active()
            assert (distributed.rank(), distributed.world_size()) == (0, 1)
            with distributed.alone():
                assert not distributed.active()
            grouped = workers.run_objective(case)
        assert not distributed.active()
    finally:
        dist.destroy_process_group()
    assert grouped["losses"] == pytest.approx(alone["losses"], rel=1e-12)
    assert grouped["gradients"].keys() == alone["gradients"].keys()
    for name, gradient in alone["gradients"].items():
        torch.testing.assert_close(grouped["gradients"][name], gradient, rtol=1e-9, atol=1e-12)
