"""Batches, crops and views: functions of (seed, epoch, index) and (seed, step, position) only."""

import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from sercli.data.crops import random_crop
from sercli.data.loading import IMAGENET_MEAN, IMAGENET_STD, load_rows
from sercli.errors import RunFailed, UserError
from sercli.recipe.schema import Photometrics
from sercli.recipe.schema import Views as ViewsConfig
from sercli.views.colours import NUM_UNIFORMS
from sercli.views.making import ViewMaker, draw_actions
from sercli.views.plan import PairedViews, ViewRequest, partition, plan_views
from sercli.views.reading import Samples, Ticket, TrainingImages, batches
from tests.data.images.test_native import photo
from tests.support.pictures import PLAIN, Pictures, normalised
from tests.support.reading import read_all, read_one

# -- partition ------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("batch_size", "fraction"), [(8, 0.5), (10, 0.3), (7, 0.3), (13, 0.4), (9, 1.0), (256, 0.01)]
)
def test_b2_is_the_last_positions_of_the_global_batch(ranks, world, batch_size, fraction):
    total = round(fraction * batch_size)
    everything, elements = [], []
    for rank in range(world):
        ranks(rank, world)
        part = partition(batch_size, PairedViews(fraction))
        standard = part.positions[: part.num_standard]
        paired = part.positions[part.num_standard :]
        assert all(position < batch_size - total for position in standard)
        assert all(position >= batch_size - total for position in paired)
        assert part.standard_counts[rank] == len(standard)
        assert part.paired_counts[rank] == len(paired)
        assert part.total_paired == total
        # The rows of the global b₂ are what its elements are drawn for.
        assert part.paired_rows.tolist() == [p - (batch_size - total) for p in paired]
        everything += part.positions
        elements += part.paired_rows.tolist()
    assert sorted(everything) == list(range(batch_size))
    assert sorted(elements) == list(range(total))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_without_an_addon_there_is_no_b2(ranks, world):
    held = []
    for rank in range(world):
        ranks(rank, world)
        part = partition(8, None)
        assert part.num_standard == len(part.positions)
        assert part.paired_counts == (0,) * world
        assert sum(part.standard_counts) == 8
        held += part.positions
    assert sorted(held) == list(range(8))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_shares_rounded_per_rank(ranks, world):
    """The authors': round(0.01 · 256) = 3 images on each rank."""
    rows = []
    for rank in range(world):
        ranks(rank, world)
        part = partition(256 * world, PairedViews(0.01, share="per-rank"))
        assert part.paired_counts == (3,) * world
        assert part.standard_counts == (253,) * world
        assert len(part.positions) == 256
        rows += part.paired_rows.tolist()
    assert rows == list(range(3 * world))


@pytest.mark.parametrize(("batch_size", "fraction"), [(64, 0.01), (4, 0.3), (2, 0.5), (100, 0.01)])
def test_fewer_than_two_paired_images_are_refused_with_a_remedy(batch_size, fraction):
    with pytest.raises(UserError, match="n₂") as caught:
        partition(batch_size, PairedViews(fraction))
    message = str(caught.value)
    assert "\n" not in message
    advice = float(message.split("addon.fraction=")[1].split()[0])
    assert partition(batch_size, PairedViews(advice)).total_paired >= 2


def test_a_batch_smaller_than_the_ranks_is_refused(ranks):
    ranks(0, 4)
    with pytest.raises(UserError, match="4 processes"):
        partition(3, None)


# -- batches --------------------------------------------------------------------------------------


def flat(tickets):
    return [[(t.index, t.epoch, t.paired) for t in step] for step in tickets]


def test_every_image_comes_once_an_epoch_in_an_order_of_seed_and_epoch():
    part = partition(5, PairedViews(0.4))
    run = lambda seed: flat(batches(23, part, batch_size=5, seed=seed, steps=range(12)))  # noqa: E731
    steps = run(0)
    assert len(steps) == 12
    epochs = [[t for step in steps[e * 4 : e * 4 + 4] for t in step] for e in range(3)]
    for epoch, tickets in enumerate(epochs):
        indices = [index for index, _, _ in tickets]
        assert len(set(indices)) == 20
        assert set(indices) <= set(range(23))
        assert {e for _, e, _ in tickets} == {epoch}
    assert epochs[0] != epochs[1]
    assert run(0) == steps
    assert run(1) != steps
    assert all([paired for _, _, paired in step] == [False] * 3 + [True] * 2 for step in steps)


@pytest.mark.parametrize("start", [1, 4, 7])
def test_a_resumed_run_sees_the_same_tickets(start):
    part = partition(5, PairedViews(0.4))
    whole = flat(batches(23, part, batch_size=5, seed=3, steps=range(10)))
    tail = flat(batches(23, part, batch_size=5, seed=3, steps=range(start, 10)))
    assert tail == whole[start:]


def test_ranks_share_the_batch_of_the_single_process(ranks):
    alone = flat(batches(23, partition(7, PairedViews(0.4)), batch_size=7, seed=3, steps=range(4)))
    together = [[] for _ in range(4)]
    for rank in range(3):
        ranks(rank, 3)
        part = partition(7, PairedViews(0.4))
        for step, tickets in enumerate(batches(23, part, batch_size=7, seed=3, steps=range(4))):
            together[step] += flat([tickets])[0]
    assert [sorted(step) for step in together] == [sorted(step) for step in alone]


# -- reading --------------------------------------------------------------------------------------


class Photos(Pictures):
    def load(self, index):
        return photo(*self.sizes[index % len(self.sizes)], seed=index)


def plan_of(config, paired=None, *, size=16):
    return plan_views(config, image_size=size, patch_size=4, request=ViewRequest(paired))


def images_of(source, *, base="crop", config=None, seed=0, size=16):
    config = config or ViewsConfig(view1=PLAIN, view2=PLAIN)
    plan = plan_of(config, PairedViews(0.5, base=base), size=size)
    return TrainingImages(source, config, plan, seed=seed)


def crop_of(width, height, config, draws):
    area, aspect = config.crop_area, config.crop_aspect
    return random_crop(width, height, area=area, aspect=aspect, draws=draws)


def same(a, b):
    return (
        all(torch.equal(x, y) for x, y in zip(a.crops, b.crops, strict=True))
        and torch.equal(a.uniforms, b.uniforms)
        and torch.equal(a.boxes, b.boxes)
        and (a.index, a.unreadable) == (b.index, b.unreadable)
    )


def test_a_ticket_is_a_sample_whatever_came_before():
    images = images_of(Pictures())
    tickets = [Ticket(i, e, p) for i in (0, 3, 7) for e in (0, 1) for p in (False, True)]
    first = [read_one(images, ticket) for ticket in tickets]
    np.random.seed(99)  # must not matter  # noqa: NPY002
    torch.manual_seed(99)
    again = [read_one(images_of(Pictures()), ticket) for ticket in reversed(tickets)][::-1]
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not same(read_one(images, Ticket(0, 0, False)), read_one(images, Ticket(0, 1, False)))
    assert not same(
        read_one(images, Ticket(0, 0, False)),
        read_one(images_of(Pictures(), seed=1), Ticket(0, 0, False)),
    )


@pytest.mark.parametrize("base", ["crop", "full"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_fast_decoder_draws_the_same_and_shows_it_to_a_level(base, interpolation):
    config = ViewsConfig(interpolation=interpolation, rot90_p=0.5)
    plan = plan_of(config, PairedViews(0.5, base=base))
    source, tickets = Photos(), [Ticket(i, 2, i > 5) for i in range(12)]
    pil, fast = (
        read_all(TrainingImages(source, config, plan, seed=3, decoder=decoder), tickets)
        for decoder in ("pil", "fast")
    )
    for name in ("uniforms", "boxes", "turns"):
        assert torch.equal(getattr(pil, name), getattr(fast, name))
    for one, two in zip(pil.crops, fast.crops, strict=True):
        assert one.shape == two.shape == (12, 3, 16, 16)
        assert one.float().std() > 10
        assert (one.int() - two.int()).abs().max() <= (1 if interpolation == "bilinear" else 2)


def test_loader_processes_read_what_this_process_reads():
    images = images_of(Pictures())
    tickets = [[Ticket(i, 0, i % 2 == 1) for i in range(k, k + 3)] for k in range(0, 9, 3)]
    here = [read_all(images, batch) for batch in tickets]
    there = load_rows(images, tickets, rows=3, workers=2)
    for ours, batch in zip(here, there, strict=True):
        theirs = Samples.of(batch)
        assert (ours.indices, ours.unreadable) == (theirs.indices, theirs.unreadable)
        for name in ("uniforms", "boxes", "turns"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
        assert all(torch.equal(x, y) for x, y in zip(ours.crops, theirs.crops, strict=True))


def test_b1_has_two_crops_and_b2_one_base():
    images = images_of(Pictures())
    standard, paired = read_one(images, Ticket(4, 0, False)), read_one(images, Ticket(4, 0, True))
    assert [crop.shape for crop in standard.crops] == [(3, 16, 16)] * 2
    assert all(crop.dtype == torch.uint8 for crop in standard.crops)
    assert not torch.equal(standard.boxes[0], standard.boxes[1])
    assert not torch.equal(standard.crops[0], standard.crops[1])
    assert torch.equal(paired.crops[0], paired.crops[1])
    assert torch.equal(paired.boxes[0], paired.boxes[1])
    for sample in (standard, paired):
        assert sample.uniforms.shape == (2, NUM_UNIFORMS + 1)
        assert sample.uniforms.min() >= 0
        assert sample.uniforms.max() < 1
        assert not torch.equal(sample.uniforms[0], sample.uniforms[1])
        assert sample.boxes.min() >= 0
        assert (sample.boxes[:, :2] + sample.boxes[:, 2:]).max() <= 1 + 1e-6


def test_crops_are_their_boxes():
    """A box cut out and resized by hand is the crop, but for the filter's reach at the border."""
    source = Pictures(sizes=((400, 300),))
    images = images_of(source, size=24)
    sample = read_one(images, Ticket(2, 0, False))
    picture = source.load(2).resize((400, 300))
    smooth = np.asarray(picture.resize((8, 6)).resize((400, 300)))
    source.load = lambda _: Image.fromarray(smooth)
    sample = read_one(images, Ticket(2, 0, False))
    for crop, box in zip(sample.crops, sample.boxes, strict=True):
        x, y, w, h = (box * torch.tensor([400, 300, 400, 300])).round().int().tolist()
        cut = Image.fromarray(smooth[y : y + h, x : x + w]).resize((24, 24), Image.BILINEAR)
        ours, gold = crop.permute(1, 2, 0).numpy().astype(int), np.asarray(cut).astype(int)
        assert np.abs(ours - gold)[2:-2, 2:-2].max() <= 1


def test_full_base_is_the_centre_of_the_whole_image():
    source = Pictures(sizes=((41, 30),))
    sample = read_one(images_of(source, base="full"), Ticket(5, 0, True))
    gold = np.asarray(source.load(5).crop((5, 0, 35, 30)).resize((16, 16), Image.BILINEAR))
    assert np.array_equal(sample.crops[0].permute(1, 2, 0).numpy(), gold)
    x, y, w, h = sample.boxes[0].tolist()
    assert w * 41 == pytest.approx(30, abs=1e-4)
    assert h == pytest.approx(1)
    assert x * 41 == pytest.approx(5, abs=1e-4)
    assert y == pytest.approx(0)
    # b₁ is cropped as ever.
    standard = read_one(images_of(source, base="full"), Ticket(5, 0, False))
    assert not torch.equal(standard.crops[0], standard.crops[1])


def crop_measures(crops, width, height):
    """Area, aspect and place of crops (x, y, w, h), each sorted."""
    x, y, w, h = crops.T
    return [np.sort(m) for m in (w * h / (width * height), w / h, x / width, y / height)]


def test_random_crops_are_distributed_as_torchvisions():
    config = ViewsConfig()
    for width, height in ((64, 48), (30, 90)):
        draws = np.random.default_rng(0)
        ours = np.array([crop_of(width, height, config, draws) for _ in range(4000)])
        torch.manual_seed(0)
        blank = torch.empty(1, height, width)
        gold = np.array(
            [RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
        )[:, [1, 0, 3, 2]]
        for a, b in zip(
            crop_measures(ours, width, height), crop_measures(gold, width, height), strict=True
        ):
            grid = np.union1d(a, b)
            distance = np.abs(
                np.searchsorted(a, grid, side="right") - np.searchsorted(b, grid, side="right")
            ).max()
            assert distance / 4000 < 1.95 * math.sqrt(2 / 4000)  # Kolmogorov-Smirnov, p = 0.001


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3), (300, 7)])
def test_tiny_and_long_images_are_cropped(size):
    draws = np.random.default_rng(0)
    for _ in range(50):
        x, y, w, h = crop_of(*size, ViewsConfig(), draws)
        assert w >= 1
        assert h >= 1
        assert 0 <= x <= size[0] - w
        assert 0 <= y <= size[1] - h
    for base in ("crop", "full"):
        for paired in (False, True):
            sample = read_one(images_of(Pictures(sizes=(size,)), base=base), Ticket(0, 0, paired))
            assert all(crop.shape == (3, 16, 16) for crop in sample.crops)


def test_where_no_crop_fits_the_centre_of_torchvision_is_taken():
    config = ViewsConfig(crop_area=(1.0, 1.0))
    for width, height in ((1000, 10), (10, 1000)):
        blank = torch.empty(1, height, width)
        top, left, h, w = RandomResizedCrop.get_params(blank, [1.0, 1.0], [3 / 4, 4 / 3])
        crop = crop_of(width, height, config, np.random.default_rng(0))
        assert crop == (left, top, w, h)


def test_a_narrow_aspect_on_a_low_image():
    config = ViewsConfig(crop_aspect=(0.1, 0.3))
    _, _, w, h = crop_of(100, 1, config, np.random.default_rng(0))
    assert w >= 1
    assert h >= 1


def test_an_unreadable_image_is_replaced_by_the_next_and_named():
    images = images_of(Pictures(10, broken=(4, 5, 9)))
    sample = read_one(images, Ticket(4, 0, False))
    assert sample.index == 6
    assert [("picture-4" in m, "picture-5" in m) for m in sample.unreadable] == [
        (True, False),
        (False, True),
    ]
    assert read_one(images, Ticket(9, 0, False)).index == 0
    assert read_one(images, Ticket(3, 0, False)).unreadable == ()


def test_twenty_unreadable_images_in_a_row_fail_the_run():
    images = images_of(Pictures(40, broken=range(20)))
    assert read_one(images, Ticket(1, 0, False)).index == 20
    with pytest.raises(RunFailed, match="picture-0") as caught:
        read_one(images, Ticket(0, 0, False))
    assert "\n" not in str(caught.value)


def test_unreadable_images_in_a_loader_process_give_the_same_one_line():
    images = images_of(Pictures(40, broken=range(40)))
    with pytest.raises(RunFailed, match="picture-0") as caught:
        list(load_rows(images, [[Ticket(0, 0, False)]], rows=1, workers=1))
    assert "\n" not in str(caught.value)


def test_images_travel_to_loader_processes():
    assert pickle.loads(pickle.dumps(images_of(Pictures()))).plan.specs[0].size == 16


# -- views ----------------------------------------------------------------------------------------


def maker(config, paired, part, *, seed=0):
    return ViewMaker(config, plan_of(config, paired), part, seed=seed)


def samples_of(images, part, *, batch_size, step=0, seed=0):
    (tickets,) = batches(24, part, batch_size=batch_size, seed=seed, steps=range(step, step + 1))
    return read_all(images, tickets)


def test_without_colours_b2_is_the_action_on_the_base_and_b1_its_crops():
    config = ViewsConfig(view1=PLAIN, view2=PLAIN, hflip_p=1.0)
    paired = PairedViews(0.5)
    part = partition(8, paired)
    samples = samples_of(images_of(Pictures(), config=config), part, batch_size=8)
    views = maker(config, paired, part)(samples, 5, torch.device("cpu"))
    assert len(views.standard) == len(views.paired) == len(views.actions) == 2
    assert views.part.counts == (8,)
    bases = normalised(samples.crops[0][4:])
    for view in range(2):
        action = views.actions[view]
        gold = action.on_image(bases, patch=4)  # not mirrored, although hflip_p is 1
        assert views.paired[view].shape == (4, 3, action.grid[0] * 4, action.grid[1] * 4)
        torch.testing.assert_close(views.paired[view].double(), gold, rtol=0, atol=1e-5)
        crops = normalised(samples.crops[view][:4])
        torch.testing.assert_close(views.standard[view].double(), crops.flip(-1), rtol=0, atol=1e-5)
    assert not torch.equal(views.standard[0], views.standard[1])


def test_mirroring_has_its_probability_and_colours_are_the_views():
    config = ViewsConfig(
        view1=PLAIN, view2=Photometrics(jitter_p=0, grey_p=1, blur_p=0), hflip_p=0.5
    )
    part = partition(24, None)
    images = images_of(Pictures(), config=config)
    flips = 0
    for step in range(8):
        samples = samples_of(images, part, batch_size=24, step=step)
        views = maker(config, None, part)(samples, step, torch.device("cpu"))
        crops = normalised(samples.crops[0]).float()
        plain = (views.standard[0] - crops).abs().amax((1, 2, 3)) < 1e-5
        mirrored = (views.standard[0] - crops.flip(-1)).abs().amax((1, 2, 3)) < 1e-5
        assert torch.equal(plain, ~mirrored)
        flips += int(mirrored.sum())
    assert 192 * 0.35 < flips < 192 * 0.65
    assert views.paired == ()
    assert views.actions == ()
    grey = views.standard[1] * torch.tensor(IMAGENET_STD).view(3, 1, 1)
    grey = grey + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    torch.testing.assert_close(grey[:, 0], grey[:, 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("elements", ["independent", "complementary"])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_draw_the_rows_of_the_single_process(ranks, elements, world):
    """Elements, grids, crops and colours (blur off: see test_photometrics) of world 1."""
    colours = Photometrics(blur_p=0, solarise_p=0.3)
    config = ViewsConfig(view1=colours, view2=colours)
    paired = PairedViews(0.4, elements=elements)
    images = images_of(Pictures(), config=config)
    part = partition(12, paired)
    alone = maker(config, paired, part)(
        samples_of(images, part, batch_size=12), 3, torch.device("cpu")
    )
    place = {position: row for row, position in enumerate(part.positions)}
    for rank in range(world):
        ranks(rank, world)
        part = partition(12, paired)
        views = maker(config, paired, part)(
            samples_of(images, part, batch_size=12), 3, torch.device("cpu")
        )
        standard = [place[p] for p in part.positions[: part.num_standard]]
        rows = part.paired_rows
        assert views.generator_seed == alone.generator_seed
        for view in range(2):
            ours, gold = views.actions[view], alone.actions[view]
            assert ours.grid == gold.grid
            assert torch.equal(ours.hflip, gold.hflip[rows])
            assert torch.equal(ours.rot90, gold.rot90[rows])
            close = dict(rtol=0, atol=1e-5)
            torch.testing.assert_close(
                views.standard[view], alone.standard[view][standard], **close
            )
            torch.testing.assert_close(views.paired[view], alone.paired[view][rows], **close)


def test_elements_follow_seed_and_step():
    part = partition(40, PairedViews(1.0))
    make = maker(ViewsConfig(), PairedViews(1.0), part)
    key = lambda actions: [(a.hflip.tolist(), a.rot90.tolist(), a.grid) for a in actions]  # noqa: E731
    assert key(make.actions(3)) == key(make.actions(3))
    assert key(make.actions(3)) != key(make.actions(4))
    other = maker(ViewsConfig(), PairedViews(1.0), part, seed=1)
    assert key(make.actions(3)) != key(other.actions(3))
    first, second = make.actions(3)
    assert key([first]) != key([second])


def test_independent_elements_are_uniform_over_d4():
    counts = torch.zeros(2, 8)
    for step in range(50):
        for view, action in enumerate(draw_actions(PairedViews(1), 64, (14, 14), 0, step)):
            counts[view] += torch.bincount(action.rot90 + 4 * action.hflip, minlength=8)
    assert counts.sum(1).tolist() == [3200, 3200]
    assert (counts - 400).abs().max() < 5 * math.sqrt(400)


def test_grids_have_the_asked_areas_and_aspects():
    paired = PairedViews(1, scale=(0.7, 1.3), aspect=(3 / 4, 4 / 3))
    drawn = [a.grid for step in range(400) for a in draw_actions(paired, 2, (56, 56), 0, step)]
    grids = np.array(drawn, dtype=float)
    area, aspect = grids.prod(1) / 56**2, grids[:, 1] / grids[:, 0]
    assert 0.68 < area.min() < 0.75
    assert 1.25 < area.max() < 1.32
    assert area.mean() == pytest.approx(1, abs=0.03)
    assert 0.74 < aspect.min() < 0.79
    assert 1.26 < aspect.max() < 1.36
    assert np.log(aspect).mean() == pytest.approx(0, abs=0.03)


def test_complementary_elements_differ_by_a_reflection_always():
    """As in the authors' code: complements of half turns and mirrors, one quarter turn a view."""
    quarters, relative = set(), set()
    for step in range(60):
        first, second = draw_actions(
            PairedViews(1, elements="complementary"), 16, (14, 14), 0, step
        )
        assert torch.equal(first.hflip, ~second.hflip)
        # Half turns are complements: they add up to one half turn beyond the view's quarter.
        for action in (first, second):
            assert len(set((action.rot90 % 2).tolist())) == 1
        assert len(set(((first.rot90 + second.rot90) % 4).tolist())) == 1
        half = first.rot90 // 2
        quarters.add((int(first.rot90[0] % 2), int(second.rot90[0] % 2)))
        moved = second.compose(first.inverse((14, 14)))
        assert moved.hflip.all()
        relative |= set(moved.rot90.tolist())
        assert 0 < half.sum() < 16
    assert len(quarters) == 4
    assert relative == {0, 1, 2, 3}
