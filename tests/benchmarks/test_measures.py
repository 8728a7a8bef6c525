"""The patch loss keeps its promise of memory and speed, measured beside the full matrix."""

import dataclasses

import pytest
import torch

from sercli.benchmarks import augment, loss
from sercli.benchmarks.loss import full_matrix_loss, prepare
from sercli.benchmarks.measure import Measured
from sercli.benchmarks.record import Machine
from sercli.benchmarks.step import matmul_flops_per_s, measure_steps
from sercli.engine.runtime import runtime_for
from sercli.losses import patch_nt_xent
from tests.support.recipes import recipe_of


def test_the_reference_is_the_same_loss():
    torch.manual_seed(0)
    anchors, keys = torch.randn(2, 4, 6, 8, dtype=torch.float64).requires_grad_().unbind()
    ours = patch_nt_xent(anchors, keys, temperature=0.4)
    theirs = full_matrix_loss(anchors, keys, temperature=0.4)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.run
def test_memory_is_that_of_the_measured_process():
    with Measured(prepare, "tiled", 4, device="cpu", threads=1, first=(None,)) as measured:
        assert measured(None) > 0
        assert 5 < measured.value < 8  # the log of 784 tokens and some


def exits(_device):
    raise SystemExit(7)


@pytest.mark.run
def test_a_measured_process_that_ends_is_told_of():
    with pytest.raises(MemoryError, match="ended with status 7"):
        Measured(exits, device="cpu", threads=1)


class Fake:
    """A measured function that takes 1 s, and 2 s a tile of 5."""

    def __init__(self, _prepare, variant, images, *, first, **_):
        self.value, self.peak_bytes, self.full = 6.5, 1000 * images, variant == "full matrix"
        self.first = first

    def __call__(self, tiles):
        return 100.0 if self.full else 1 + 2.0 * (5 if tiles is None else tiles)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def table_of_loss(monkeypatch, tiles):
    monkeypatch.setattr(loss, "Measured", Fake)
    monkeypatch.setattr(loss, "rows_of_tile", lambda width, *_: width / 5)
    machine = Machine(runtime_for(torch.device("cpu")), 1)
    rows = loss.run(
        [784, 3136], full_up_to=784, machine=machine, rounds=6, tiles=tiles, tell=lambda _: None
    )
    return loss.tabled(rows, machine=machine)


@pytest.mark.parametrize("tiles", [None, 5, 2])
def test_the_first_tiles_stand_for_all_and_the_table_says_so(monkeypatch, tiles):
    table = table_of_loss(monkeypatch, tiles)
    rows = {(row["variant"], row["tokens"]): row for row in table.to_json()["rows"]}
    small, large = rows["tiled", 784], rows["tiled", 3136]
    assert small["seconds"] == large["seconds"] == pytest.approx(11)
    assert small["speed"]["value"] == pytest.approx(100 / 11)
    assert large["speed"] is None
    assert large["per_square"]["value"] == pytest.approx(1 / 16)
    some = tiles == 2
    assert (small["loss"], small["tiles_run"]) == ((None, 2) if some else (6.5, 5))
    assert any("extrapolated" in note for note in table.notes) == some
    assert rows["full matrix", 784]["loss"] == 6.5
    assert ["784", "tiled", "11.000", "2 of 5" if some else "all"] == table.cells[1][:4]


def test_the_first_tiles_are_the_work_of_a_part_of_the_anchors():
    call = prepare("tiled", 4, "cpu")
    whole = call(None)
    assert call(1000) == whole
    assert call(0) == 0


def test_steps_are_timed_and_their_work_is_counted():
    cpu = torch.device("cpu")
    recipe = recipe_of("moco", "ser", 2, depth=4)
    speed = measure_steps(recipe, runtime_for(cpu), steps=2, warmup=1)
    assert speed.images_per_s * speed.seconds == pytest.approx(8)
    # The encoder's linear maps alone (weights × tokens × 2) are some of the work, not all.
    weights, tokens = 4 * 12 * 16**2, 8 * 2 * 17
    least = 2 * weights * tokens * 4  # student: forward, twice that backward; teacher: forward
    assert least < speed.flops < 10 * least
    assert speed.flops_per_s == speed.flops / speed.seconds
    assert speed.peak_bytes is None


def test_the_ceiling_is_that_of_products():
    rate = matmul_flops_per_s(torch.device("cpu"), side=64, repeats=2)
    assert 1e6 < rate < 1e15


@pytest.mark.slow
def test_memory_and_speed_at_12544_tokens():
    with (
        Measured(prepare, "tiled", 64, device="cpu", threads=1, first=(None,)) as tiled,
        Measured(prepare, "full matrix", 64, device="cpu", threads=1, first=(None,)) as full,
    ):
        assert tiled.peak_bytes < 400e6 < full.peak_bytes
        assert tiled(None) < full(None)
        assert tiled.value == pytest.approx(full.value, rel=1e-5)


def test_views_are_timed_and_compared_with_torchvisions():
    """On 3 images of the embedded world's size; kornia has a test of its own where it is."""
    given = augment.subject("shapes/moco-none", 3)
    machine = Machine(runtime_for(torch.device("cpu")), 1)
    rows = augment.run(given, machine=machine, rounds=2, tell=lambda _: None)
    table = augment.tabled(rows, subject=given, machine=machine).to_json()
    found = {row["variant"]: row for row in table["rows"]}
    assert set(found) - {"kornia, a batch"} == {
        "ser", "torchvision v2, an image at a time", "Pillow, an image at a time",
    }  # fmt: skip
    ours = found["ser"]
    assert ours["speed"]["value"] == 1
    assert ours["images_per_s"] == pytest.approx(1 / ours["seconds"])
    assert 0 < found["torchvision v2, an image at a time"]["difference"] < 1e-5
    assert found["Pillow, an image at a time"]["difference"] is None


@pytest.mark.parametrize("kind", ["tensor", "picture"])
def test_what_ours_are_compared_with_makes_the_same_views(kind):
    """The same work for all: Pillow's images have 256 levels, and its blur is of boxes."""
    given = augment.subject("shapes/moco-none", 4)
    plain = given.config.model_copy(
        update={
            name: getattr(given.config, name).model_copy(update={"blur_p": 0.0})
            for name in ("view1", "view2")
        }
    )
    given = dataclasses.replace(given, config=plain)
    cpu = torch.device("cpu")
    ours = augment._ours(given, cpu)().standard
    theirs = augment._one_by_one(given, getattr(augment, f"_{kind}"))()
    for view, others in zip(ours, theirs, strict=True):
        difference = (view - torch.stack(others)).abs()
        assert difference.mean() < (1e-5 if kind == "tensor" else 0.05)
