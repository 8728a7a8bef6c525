"""The search for neighbours at a size where the whole matrix of cosines would be too large."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from sercli.evals import neighbours
from sercli.evals.neighbours import NEIGHBOURS, nearest, vote

BANK, QUERIES, DIM, CLASSES = 40_000, 500, 64, 10
TILE, BLOCK = 4096, 64


@pytest.fixture
def _small_tiles(monkeypatch):
    monkeypatch.setattr(neighbours, "_BANK_AT_ONCE", TILE)
    monkeypatch.setattr(neighbours, "_QUERIES_AT_ONCE", BLOCK)


def features(count, seed):
    """With many equal rows: a quarter of the bank stands in it twice."""
    draws = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, DIM, generator=draws)
    rows[count // 2 : 3 * count // 4] = rows[: count // 4]
    return rows, torch.randint(CLASSES, (count,), generator=draws)


def peak_bytes(run):
    """The most that was held at once of what `run` asked torch for."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        run()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in events]).max())


@pytest.mark.usefixtures("_small_tiles")
def test_memory_is_a_tile_and_what_is_found():
    bank, bank_labels = features(BANK, 0)
    queries, labels = features(QUERIES, 1)
    most = max(NEIGHBOURS)
    # Of a tile: cosines, which of them are tied, and its rows of the bank. Of each query: itself
    # and twice (once joined) its neighbours, a value and a place each.
    tile = BLOCK * TILE * (4 + 4 + 1) + TILE * DIM * 4
    found = QUERIES * (DIM * 4 + 2 * most * (4 + 8))
    peak = peak_bytes(lambda: vote(bank, bank_labels, queries, labels, num_classes=CLASSES))
    assert peak < 1.5 * (tile + found)
    assert peak < bank.nbytes  # not even a normalised copy of the bank
    assert peak < BANK * QUERIES * 4 / 8  # the whole matrix of cosines


@pytest.mark.usefixtures("_small_tiles")
def test_tiles_find_what_a_sort_of_the_whole_row_finds():
    """Of equal cosines the first of the bank, bit by bit as the products of the tiles are."""
    bank, _ = features(10_000, 0)
    queries, _ = features(130, 1)
    similarity, index = nearest(bank, queries, 50)
    units = F.normalize(bank, dim=1)
    for start in range(0, len(queries), BLOCK):
        block = F.normalize(queries, dim=1)[start : start + BLOCK]
        cosines = torch.cat(
            [block @ units[at : at + TILE].T for at in range(0, len(bank), TILE)], 1
        )
        whole = np.argsort(-cosines.numpy(), axis=1, kind="stable")[:, :50]
        rows = slice(start, start + BLOCK)
        assert (index[rows].numpy() == whole).all()
        assert similarity[rows].equal(cosines.gather(1, torch.from_numpy(whole)))
