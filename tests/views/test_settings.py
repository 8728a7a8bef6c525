"""The view settings: every record replays its view, small crops in pairs, and what they cost."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from sercli.actions import GeometricAction
from sercli.addons.base import AddonInput
from sercli.data.loading import IMAGENET_MEAN, IMAGENET_STD
from sercli.encoders.vit import Features
from sercli.engine.flops import count_flops
from sercli.errors import UserError
from sercli.families import addon_configs, method_configs
from sercli.objective import Objective
from sercli.recipe.files import from_mapping
from sercli.recipe.schema import Photometrics
from sercli.recipe.schema import Views as ViewsConfig
from sercli.views.making import ViewMaker, Views, replay
from sercli.views.plan import PairedViews, ViewPlan, ViewRequest, partition, plan_views
from sercli.views.reading import Ticket, TrainingImages, batches
from tests.support.pictures import PLAIN, Pictures
from tests.support.reading import read_all

SIZE, PATCH = 48, 8
SIZES = ((61, 47), (35, 83), (51, 51), (119, 64))  # odd, and smaller than a view
ALL_COLOURS = Photometrics(jitter_p=0.7, grey_p=0.3, blur_p=0.5, solarise_p=0.4)
UNBLURRED = Photometrics(jitter_p=0.7, grey_p=0.3, blur_p=0, solarise_p=0.4)
SETTINGS = ("2", "3", "2+4-crops", "2+4-rotations")
# What add-ons ask of the settings they can use.
REQUESTS = {
    "none": ViewRequest(),
    "groups": ViewRequest(group=2),
    "crop": ViewRequest(PairedViews(0.5)),
    "full": ViewRequest(PairedViews(0.5, base="full", elements="complementary")),
}
CASES = [
    *((setting, "none") for setting in SETTINGS),
    *((setting, kind) for setting in ("2", "2+4-crops") for kind in ("groups", "crop", "full")),
]


def config_of(setting, colours=ALL_COLOURS, **settings):
    local = {"local": {"colours": colours}} if setting.startswith("2+4") else {}
    return ViewsConfig(
        setting=setting, view1=colours, view2=colours, rot90_p=0.5, **local, **settings
    )


@dataclasses.dataclass
class Step:
    """One step as a run makes it."""

    plan: ViewPlan
    source: Pictures
    tickets: list[Ticket]
    views: Views

    @property
    def split(self):
        return len(self.views.standard[0])


def read(config, request, *, tickets=None, count=8, step=0, seed=0, sizes=SIZES):
    """`tickets` of any images, or those of a step; the last ones are of b₂."""
    plan = plan_views(config, image_size=SIZE, patch_size=PATCH, request=request)
    source = Pictures(24, sizes=sizes)
    part = partition(count if tickets is None else len(tickets), plan.paired, group=request.group)
    if tickets is None:
        steps = range(step, step + 1)
        (tickets,) = batches(24, part, batch_size=count, seed=seed, steps=steps)
    images = TrainingImages(source, config, plan, seed=seed)
    make = ViewMaker(config, plan, part, seed=seed)
    views = make(read_all(images, tickets), step, torch.device("cpu"))
    return Step(plan, source, tickets, views)


def shown(step, view):
    """(row, the view of that row, its grid or None in b₁)."""
    for row in range(len(step.tickets)):
        if row < step.split:
            yield row, step.views.standard[view][row], None
        else:
            action = step.views.actions[view]
            yield row, step.views.paired[view][row - step.split], action.grid


# -- the layout -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "num_views", "num_invariant", "pairs"),
    [
        ("2", 2, 2, ((0, 1),)),
        ("3", 3, 2, None),
        ("2+4-crops", 6, 6, ((0, 1), (2, 3), (4, 5))),
        ("2+4-rotations", 6, 2, None),
    ],
)
def test_the_views_of_each_setting(setting, num_views, num_invariant, pairs):
    config = config_of(setting)
    plan = plan_views(config, image_size=SIZE, patch_size=PATCH)
    assert (plan.num_views, plan.num_invariant) == (num_views, num_invariant)
    assert plan.pairs == ()
    if pairs is not None:
        paired = plan_views(config, image_size=SIZE, patch_size=PATCH, request=REQUESTS["crop"])
        assert paired.pairs == pairs
        assert paired.num_invariant == num_invariant
    asked = ViewRequest(turned_views_count=True)
    counting = plan_views(config, image_size=SIZE, patch_size=PATCH, request=asked)
    assert counting.num_invariant == (6 if setting.startswith("2+4") else 2)
    sizes = [spec.size for spec in plan.specs]
    assert sizes == [48, 48, *[48] * (setting == "3"), *[24] * 4 * setting.startswith("2+4")]
    assert [plan.grid(view) for view in range(num_views)] == [(s // 8, s // 8) for s in sizes]


@pytest.mark.parametrize(
    ("image", "patch", "local"),
    [(224, 16, 96), (224, 14, 98), (48, 8, 24), (64, 8, 24), (32, 8, 16), (16, 8, 16), (96, 4, 40)],
)
def test_small_views_are_three_sevenths_in_whole_patches(image, patch, local):
    for setting in ("2+4-crops", "2+4-rotations"):
        plan = plan_views(ViewsConfig(setting=setting), image_size=image, patch_size=patch)
        assert [spec.size for spec in plan.specs] == [image] * 2 + [local] * 4
        assert local % patch == 0
        nearest = [abs(n * patch - image * 3 / 7) for n in range(2, image // patch + 1)]
        assert abs(local - image * 3 / 7) == min(nearest)


def test_small_views_of_another_size():
    views = {"setting": "2+4-crops", "local": {"size": 32}}
    plan = plan_views(ViewsConfig(**views), image_size=SIZE, patch_size=PATCH)
    assert plan.specs[5].size == 32
    for size in (20, 8, 56):
        views["local"] = {"size": size}
        with pytest.raises(UserError, match=r"e\.g\. views\.local\.size="):
            plan_views(ViewsConfig(**views), image_size=SIZE, patch_size=PATCH)


def test_areas_of_the_crops_lie_in_their_ranges():
    large = ((401, 301), (301, 501))
    seen = {}
    for setting, kind in CASES:
        for number in range(2):
            step = read(config_of(setting), REQUESTS[kind], step=number, sizes=large)
            for spec, parameters in zip(step.plan.specs, step.views.parameters, strict=True):
                for row, ticket in enumerate(step.tickets):
                    if spec.kind == "plain" or (ticket.paired and spec.kind == "global"):
                        continue  # the whole image's centre, or b₂'s global base
                    area = float(parameters.box[row, 2] * parameters.box[row, 3])
                    seen.setdefault((spec.kind, spec.area), []).append(area)
    assert set(seen) == {
        ("global", (0.08, 1.0)), ("local", (0.05, 0.25)), ("turned", (0.05, 0.14)),
    }  # fmt: skip
    for (_, (low, high)), areas in seen.items():
        assert low - 0.002 <= min(areas)  # in whole pixels
        assert max(areas) <= high + 0.002
        assert max(areas) - min(areas) > 0.6 * (high - low)


# -- replaying ------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("setting", "kind"), CASES)
def test_every_record_replays_its_view(setting, kind, interpolation):
    config = config_of(setting, interpolation=interpolation)
    for number in (0, 5):
        step = read(config, REQUESTS[kind], step=number)
        for view, spec in enumerate(step.plan.specs):
            parameters = step.views.parameters[view]
            for row, pixels, grid in shown(step, view):
                again = replay(
                    step.source.load(step.tickets[row].index), parameters, row,
                    size=spec.size, patch=PATCH, interpolation=interpolation, grid=grid,
                )  # fmt: skip
                # The kernel of a batch's blur is as long as its largest needs, with zeros.
                blurred = parameters.colours.blur_sigma[row] > 0
                torch.testing.assert_close(again, pixels, rtol=0, atol=1e-5 if blurred else 1e-6)


def numpy_blur(image, sigma):
    """[H, W, 3], reflected at the border, the kernel ending at 3σ."""
    radius = min(math.ceil(3 * sigma), min(image.shape[:2]) - 1)
    places = np.arange(-radius, radius + 1)
    kernel = np.exp(-(places**2) / (2 * sigma**2)) * (np.abs(places) <= math.ceil(3 * sigma))
    kernel /= kernel.sum()
    for axis in (0, 1):
        margins = [(0, 0)] * 3
        margins[axis] = (radius, radius)
        padded = np.pad(image, margins, mode="reflect")
        length = image.shape[axis]
        image = sum(
            weight * padded.take(range(start, start + length), axis)
            for start, weight in enumerate(kernel)
        )
    return image


def bicubic_matrix(before, after):
    """Rows of weights of Keys' kernel with a = −0.75; beyond the border its last pixel is taken."""

    def keys(x, a=-0.75):
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    matrix = np.zeros((after, before))
    for row in range(after):
        place = (row + 0.5) * before / after - 0.5
        for neighbour in range(math.floor(place) - 1, math.floor(place) + 3):
            matrix[row, min(max(neighbour, 0), before - 1)] += keys(place - neighbour)
    return matrix


def by_torchvision(picture, parameters, row, *, size, interpolation, grid):
    """A view in 0…1, [H, W, 3], from its record and the picture alone."""
    left, top, width, height = (
        round(share * side)
        for share, side in zip(parameters.box[row].tolist(), picture.size * 2, strict=True)
    )
    mode = InterpolationMode(interpolation)
    crop = tv.resized_crop(picture, top, left, height, width, [size, size], mode)
    image = tv.to_tensor(crop)
    colours = parameters.colours
    if colours.jitter[row]:
        change = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
        for which in colours.order[row].tolist():
            image = change[which](image, colours.factors[row, which].item())
    if colours.grey[row]:
        image = tv.rgb_to_grayscale(image, 3)
    pixels = image.permute(1, 2, 0).double().numpy()
    if colours.blur_sigma[row] > 0:
        pixels = numpy_blur(pixels, colours.blur_sigma[row].item())
    if colours.solarise[row]:
        pixels = np.where(pixels >= 0.5, 1 - pixels, pixels)
    if parameters.hflip[row]:
        pixels = np.fliplr(pixels)
    pixels = np.rot90(pixels, int(parameters.rot90[row]))
    if grid is not None:
        rows, columns = (bicubic_matrix(size, n * PATCH) for n in grid)
        pixels = np.einsum("ab,bcd->acd", rows, pixels)
        pixels = np.einsum("ab,cbd->cad", columns, pixels)
    return pixels


@pytest.mark.parametrize(("setting", "kind"), CASES)
def test_every_record_replays_its_view_in_torchvision(setting, kind):
    for interpolation in ("bilinear", "bicubic"):
        config = config_of(setting, interpolation=interpolation)
        step = read(config, REQUESTS[kind], step=3)
        applied = set()
        for view, spec in enumerate(step.plan.specs):
            parameters = step.views.parameters[view]
            for row, pixels, grid in shown(step, view):
                gold = by_torchvision(
                    step.source.load(step.tickets[row].index), parameters, row,
                    size=spec.size, interpolation=interpolation, grid=grid,
                )  # fmt: skip
                ours = pixels.permute(1, 2, 0).double().numpy() * IMAGENET_STD + IMAGENET_MEAN
                np.testing.assert_allclose(ours, gold, rtol=0, atol=1e-4)
                colours = parameters.colours.take(slice(row, row + 1))
                applied |= {
                    name
                    for name, done in (
                        ("jitter", colours.jitter), ("grey", colours.grey),
                        ("blur", colours.blur_sigma > 0), ("solarise", colours.solarise),
                        ("mirror", parameters.hflip[row]), ("turn", parameters.rot90[row] > 0),
                    )
                    if done
                }  # fmt: skip
        assert applied == {"jitter", "grey", "blur", "solarise", "mirror", "turn"}


# -- what a view is a function of -----------------------------------------------------------------


def record_of(parameters, row):
    """Everything that is recorded of a view of one image."""
    colours = vars(parameters.colours)
    whole = {name: value for name, value in vars(parameters).items() if name != "colours"}
    return {name: value[row] for name, value in (whole | colours).items()}


def assert_same_row(one, row, other, at, *, atol=0.0):
    """All views of a row, and all of their records."""
    for view in range(one.plan.num_views):
        mine, theirs = ([pixels for _, pixels, _ in shown(step, view)] for step in (one, other))
        torch.testing.assert_close(mine[row], theirs[at], rtol=0, atol=atol)
        ours = record_of(one.views.parameters[view], row)
        gold = record_of(other.views.parameters[view], at)
        assert len(ours) == 10
        for name, value in ours.items():
            assert torch.equal(value, gold[name]), name


@pytest.mark.parametrize("setting", SETTINGS)
def test_views_of_b1_are_functions_of_seed_epoch_and_index(setting):
    config, request = config_of(setting, UNBLURRED), REQUESTS["none"]
    one = read(config, request, tickets=[Ticket(i, 1, False) for i in (5, 2, 9)], step=0)
    other = read(config, request, tickets=[Ticket(i, 1, False) for i in (7, 5)], step=11)
    assert_same_row(one, 0, other, 1)
    boxes = one.views.parameters[0].box
    for epoch, seed in ((2, 0), (1, 1)):
        changed = read(config, request, tickets=[Ticket(5, epoch, False)], seed=seed)
        assert not torch.equal(changed.views.parameters[0].box[0], boxes[0])


def test_what_happens_to_a_view_is_drawn_for_itself():
    """Each event has its probability, and knows nothing of the others, nor of the other views'."""
    config = config_of("2+4-crops", hflip_p=0.4)
    plan = plan_views(config, image_size=16, patch_size=8)
    images = TrainingImages(Pictures(24, sizes=SIZES), config, plan, seed=0)
    tickets = [Ticket(index, epoch, False) for epoch in range(25) for index in range(24)]
    make = ViewMaker(config, plan, partition(600, None), seed=0)
    views = make(read_all(images, tickets), 0, torch.device("cpu"))
    events = []
    for parameters in views.parameters:
        c, turns = parameters.colours, parameters.rot90
        happened = [parameters.hflip, turns > 0, c.jitter, c.grey, c.blur_sigma > 0, c.solarise]
        events += happened
        for event, p in zip(happened, (0.4, 0.5, 0.7, 0.3, 0.5, 0.4), strict=True):
            assert abs(event.float().mean() - p) < 4.5 * math.sqrt(p * (1 - p) / 600)
        counts = torch.bincount(turns, minlength=4)[1:]
        assert (counts - 100).abs().max() < 4.5 * math.sqrt(100)
        # Of 24 images, those of one epoch and those of the next.
        for event in (parameters.hflip, turns > 0, c.jitter):
            assert not torch.equal(event[:24], event[24:48])
    correlations = np.corrcoef(torch.stack(events).numpy()) - np.eye(36)
    assert np.abs(correlations).max() < 4.5 / math.sqrt(600)


@pytest.mark.parametrize("setting", ["2", "2+4-crops"])
def test_views_of_groups_are_functions_of_seed_epoch_and_their_first_image(setting):
    config, request = config_of(setting, UNBLURRED), REQUESTS["groups"]
    tickets = [Ticket(5, 1, False, leader=5), Ticket(2, 1, False, leader=5)]
    others = [Ticket(i, 1, False, leader=8) for i in (8, 3)]
    one = read(config, request, tickets=tickets, step=0)
    other = read(config, request, tickets=others + tickets, step=7)
    assert_same_row(one, 0, other, 2)
    assert_same_row(one, 1, other, 3)
    alone = read(config, request, tickets=[Ticket(i, 1, False, leader=2) for i in (2, 5)])
    assert not torch.equal(alone.views.parameters[0].box[0], one.views.parameters[0].box[1])


@pytest.mark.parametrize("kind", ["crop", "full"])
@pytest.mark.parametrize("setting", ["2", "2+4-crops"])
def test_views_of_b2_are_functions_of_the_image_and_of_step_and_position(setting, kind):
    config = config_of(setting, UNBLURRED)
    images = [Ticket(i, 1, i in (9, 4)) for i in (5, 2, 9, 4)]
    same_place = [Ticket(i, 1, i in (7, 4)) for i in (1, 0, 7, 4)]
    one = read(config, REQUESTS[kind], tickets=images, step=6)
    other = read(config, REQUESTS[kind], tickets=same_place, step=6)
    assert_same_row(one, 3, other, 3)
    later = read(config, REQUESTS[kind], tickets=images, step=7)
    elements = [
        [(a.hflip.tolist(), a.rot90.tolist(), a.grid) for a in step.views.actions]
        for step in (one, later)
    ]
    assert elements[0] != elements[1]
    for view in range(one.plan.num_views):
        ours, gold = (step.views.parameters[view] for step in (one, later))
        assert torch.equal(ours.box, gold.box)
        assert torch.equal(ours.colours.factors, gold.colours.factors)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(("setting", "kind"), CASES)
def test_ranks_make_the_rows_of_the_single_process(ranks, setting, kind, world):
    config, request = config_of(setting, UNBLURRED), REQUESTS[kind]
    alone = read(config, request, count=12, step=3)
    place = {position: row for row, position in enumerate(alone.views.part.positions)}
    made = 0
    for rank in range(world):
        ranks(rank, world)
        step = read(config, request, count=12, step=3)
        assert step.views.generator_seed == alone.views.generator_seed
        assert step.views.part.counts[rank] == len(step.tickets)
        for row, position in enumerate(step.views.part.positions):
            assert_same_row(step, row, alone, place[position], atol=1e-5)
            made += 1
        for view, action in enumerate(step.views.actions):
            gold = alone.views.actions[view].take(step.views.part.paired_rows)
            assert action.grid == gold.grid
            assert torch.equal(action.hflip, gold.hflip)
            assert torch.equal(action.rot90, gold.rot90)
        if request.group == 2:  # pairs stay together
            assert all(
                a // 2 == b // 2
                for a, b in torch.tensor(step.views.part.positions).view(-1, 2).tolist()
            )
            assert step.views.part.counts == tuple(4 if world == 3 else 6 for _ in range(world))
    assert made == 12


# -- pairs of small crops -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["crop", "full"])
def test_b2_shows_three_bases_in_pairs(kind):
    config, request = config_of("2+4-crops"), REQUESTS[kind]
    for number in range(2):
        step = read(config, request, count=8, step=number)
        views = step.views
        assert views.plan.pairs == ((0, 1), (2, 3), (4, 5))
        b2 = slice(step.split, None)
        boxes = [parameters.box[b2] for parameters in views.parameters]
        for first, second in views.plan.pairs:
            assert torch.equal(boxes[first], boxes[second])
            colours = [views.parameters[view].colours for view in (first, second)]
            assert not torch.equal(colours[0].factors[b2], colours[1].factors[b2])
        assert not torch.allclose(boxes[0], boxes[2])
        assert not torch.allclose(boxes[2], boxes[4])
        if kind == "full":
            for row, ticket in enumerate(step.tickets[step.split :]):
                width, height = step.source.load(ticket.index).size
                side = min(width, height)
                assert boxes[0][row, 2:].tolist() == pytest.approx([side / width, side / height])
        # In b₁ each view has a crop of its own.
        crops = [parameters.box[: step.split] for parameters in views.parameters]
        assert len({tuple(box.flatten().tolist()) for box in crops}) == 6
        for view, action in enumerate(views.actions):
            parameters = views.parameters[view]
            assert torch.equal(parameters.hflip[b2], action.hflip)
            assert torch.equal(parameters.rot90[b2], action.rot90)
            height, width = action.grid
            assert views.paired[view].shape == (4, 3, height * PATCH, width * PATCH)
        elements = {(tuple(a.hflip.tolist()), tuple(a.rot90.tolist())) for a in views.actions}
        assert len(elements) == 6


def test_each_view_of_a_pair_has_a_grid_of_its_own():
    plan = plan_views(
        config_of("2+4-crops"), image_size=224, patch_size=16, request=REQUESTS["crop"]
    )
    make = ViewMaker(config_of("2+4-crops"), plan, partition(8, plan.paired), seed=0)
    drawn = np.array([[a.grid for a in make.actions(step)] for step in range(200)], dtype=float)
    assert drawn.shape == (200, 6, 2)
    areas = drawn.prod(2) / [196, 196, 36, 36, 36, 36]
    np.testing.assert_allclose(areas.mean(0), 1, atol=0.05)
    assert (areas.min(0) < 0.8).all()
    assert (areas.max(0) > 1.2).all()
    # Rounded to whole patches; independent of the other views'.
    assert (np.abs(np.corrcoef(areas.T) - np.eye(6)) < 0.3).all()
    again = [a.grid for a in make.actions(7)]
    assert again == [tuple(grid) for grid in drawn[7].astype(int)]


def test_complementary_elements_are_so_in_every_pair():
    step = read(config_of("2+4-crops"), REQUESTS["full"], count=16)
    for first, second in step.views.plan.pairs:
        one, two = step.views.actions[first], step.views.actions[second]
        assert torch.equal(one.hflip, ~two.hflip)
        assert len(set(((one.rot90 + two.rot90) % 4).tolist())) == 1


# -- SER on pairs of small crops ------------------------------------------------------------------


def recipe_of(addon, *, setting="2+4-crops", method="moco", image_size=SIZE, width=16):
    heads = {
        "moco": {"hidden_width": 16, "output_width": 8},
        "dino": {"prototypes": 12, "hidden_width": 16, "bottleneck_width": 8},
    }
    tree = {
        "data": {"image_size": image_size},
        "model": {
            "name": "vit_micro", "width": width, "depth": 4, "num_heads": 2, "patch_size": PATCH,
        },
        "method": {"name": method, **heads[method]},
        "addon": {"layer": 2, **addon},
        "views": {"setting": setting},
        "train": {"batch_size": 8},
    }  # fmt: skip
    return from_mapping(tree, methods=method_configs(), addons=addon_configs()).recipe


def ser(**settings):
    """Settings of SER without a change of the grid."""
    still = {"scale": (1, 1), "aspect": (1, 1)}
    return {"name": "ser", "fraction": 0.5, "projector_width": 16, **still, **settings}


def perturbed(recipe):
    """In float64, with a teacher and a head that can be told apart from the student's."""
    objective = Objective(recipe).double()
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in objective.addon.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=draws, dtype=p.dtype))
        if objective.teacher is not None:
            for p in objective.teacher.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=draws, dtype=p.dtype))
    return objective


def doubled(views):
    return dataclasses.replace(
        views,
        standard=tuple(view.double() for view in views.standard),
        paired=tuple(view.double() for view in views.paired),
    )


def cells_shown(action, image, grid):
    """Cell of the base that each token of a view shows."""
    cells = np.arange(grid[0] * grid[1]).reshape(grid)
    if action.hflip[image]:
        cells = np.fliplr(cells)
    return np.rot90(cells, int(action.rot90[image])).reshape(-1)


def projected(encoder, head, view):
    """[B, N, D], with torch's functions and the head's tensors."""
    tokens = encoder(view, (2,)).grids[2].flatten(2).transpose(1, 2)
    tokens = F.layer_norm(tokens, (16,), head.norm.weight, head.norm.bias, 1e-6)
    return F.gelu(tokens @ head.expand.weight.T) @ head.project.weight.T


def over_all_anchors(anchors, keys, views, *, temperature, own_view):
    """Mean over the tokens of all six views of −log(positive / (positive + negatives)).

    One matrix of all anchors against all keys and all anchors; the masks say what they are to
    each other. `anchors`, `keys`: [n₂, N, D] for each view.
    """
    who = []  # (pair, view, image, cell) of each token
    for view, action in enumerate(views.actions):
        for image in range(len(action)):
            cells = cells_shown(action, image, action.grid)
            who += [(view // 2, view, image, int(cell)) for cell in cells]
    who = np.array(who)
    z, k = (F.normalize(torch.cat([v.flatten(0, 1) for v in x]), dim=1) for x in (anchors, keys))
    pair, view, image, cell = (who[:, None, i] == who[None, :, i] for i in range(4))
    positive = torch.from_numpy(pair & ~view & image & cell)
    cross = torch.from_numpy(pair & ~view & ~image)
    assert (positive.sum(1) == 1).all()
    s = (z @ k.T / temperature).exp()
    above = (s * positive).sum(1)
    below = above + (s * cross).sum(1)
    if own_view:
        below = below + ((z @ z.T / temperature).exp() * torch.from_numpy(view & ~image)).sum(1)
    return -(above / below).log().mean()


@pytest.mark.parametrize("negatives", ["cross-view", "both-views"])
@pytest.mark.parametrize("method", ["moco", "dino"])
@pytest.mark.parametrize("image_size", [SIZE, 16])
def test_sers_loss_is_the_mean_over_the_anchors_of_all_six_views(method, negatives, image_size):
    objective = perturbed(recipe_of(ser(negatives=negatives), method=method, image_size=image_size))
    config = ViewsConfig(setting="2+4-crops")
    plan = objective.plan
    part = partition(6, plan.paired)
    (tickets,) = batches(24, part, batch_size=6, seed=0, steps=range(1))
    images = TrainingImages(Pictures(24, sizes=SIZES), config, plan, seed=0)
    make = ViewMaker(config, plan, part, seed=0)
    views = doubled(make(read_all(images, tickets), 0, torch.device("cpu")))
    student, teacher = objective.student, objective.teacher
    anchors = [projected(student.encoder, student.addon.projector, v) for v in views.paired]
    with torch.no_grad():
        keys = [projected(teacher.encoder, teacher.addon, v) for v in views.paired]
    options = dict(
        temperature=objective.addon.config.temperature, own_view=negatives == "both-views"
    )
    expected = over_all_anchors(anchors, keys, views, **options)
    sides = (6, 3) if image_size == SIZE else (2, 2)
    assert [a.grid for a in views.actions] == [(sides[0],) * 2] * 2 + [(sides[1],) * 2] * 4
    losses = objective(views)
    assert losses.equivariance.item() == pytest.approx(expected.item(), rel=1e-9)
    weight = student.encoder.blocks[0].attn.qkv.weight
    (gold,) = torch.autograd.grad(expected, weight, retain_graph=True)
    # The term's own gradient: without the invariance loss.
    features = [student.encoder(v, (2,)) for v in views.paired]
    with torch.no_grad():
        others = [teacher.encoder(v, (2,)) for v in views.paired]
    given = AddonInput(features, others, teacher.addon, views)
    (ours,) = torch.autograd.grad(student.addon.loss(given), weight)
    torch.testing.assert_close(ours, gold, rtol=1e-8, atol=1e-12)
    # A token of another pair would have made a difference.
    mixed = [*keys[:2], *keys[4:], *keys[2:4]]
    assert abs(over_all_anchors(anchors, mixed, views, **options).item() - expected.item()) > 1e-4


class AsTheyAre(nn.Module):
    """Tokens without a projector."""

    def forward(self, grid):
        return grid.flatten(2).transpose(1, 2)

    def each(self, grids):
        return [self(grid) for grid in grids]


@pytest.mark.parametrize("temperature", [0.3, 1.0])
@pytest.mark.parametrize("negatives", ["cross-view", "both-views"])
def test_sers_loss_of_tokens_set_by_hand(negatives, temperature):
    """Global views of 4×4 tokens, small ones of 2×2, two images; all tokens of a pair orthogonal,
    but for one cell of the first small pair, where both images have the same token."""
    settings = ser(negatives=negatives, temperature=temperature)
    objective = perturbed(recipe_of(settings, image_size=32))
    objective.addon.projector = AsTheyAre()
    elements = [([0, 1], [1, 2]), ([1, 1], [0, 3]), ([0, 0], [3, 0]), ([1, 0], [1, 1]),
                ([0, 1], [2, 2]), ([1, 0], [0, 1])]  # fmt: skip
    features, actions = [], []
    for view, (hflip, rot90) in enumerate(elements):
        side = 4 if view < 2 else 2
        action = GeometricAction(torch.tensor(hflip), torch.tensor(rot90), (side, side))
        # [image, dimension, row, column]: token (image, cell) is a dimension of its own.
        base = np.eye(2 * side**2, 32).reshape(2, side, side, 32).transpose(0, 3, 1, 2).copy()
        if view in (2, 3):
            base[1, :, 0, 1] = 5 * base[0, :, 0, 1]  # lengths do not matter
        maps = []
        for image in range(2):
            tokens = base[image]
            tokens = np.flip(tokens, 2) if hflip[image] else tokens
            maps.append(np.rot90(tokens, rot90[image], (1, 2)))
        grid = torch.from_numpy(np.stack(maps).copy())
        features.append(Features(grid.mean((2, 3)), {2: grid}, {}))
        actions.append(action)
    blank = read(config_of("2+4-crops", PLAIN), REQUESTS["crop"], count=4).views
    views = dataclasses.replace(blank, actions=tuple(actions))
    ours = objective.addon.loss(AddonInput(features, None, None, views)).item()
    # s is 1/τ for the positive and 0 for a negative; e of it, over e of the positive:
    e, sides = math.exp(-1 / temperature), 1 if negatives == "cross-view" else 2
    wide, small = math.log(1 + sides * 16 * e), math.log(1 + sides * 4 * e)
    twin = math.log(1 + sides * (1 + 3 * e))  # one of four negatives is the positive's copy
    anchors = {"wide": 2 * 2 * 16, "small": 4 * 2 * 4 - 4, "twin": 2 * 2}
    expected = anchors["wide"] * wide + anchors["small"] * small + anchors["twin"] * twin
    assert sum(anchors.values()) == 96
    assert ours == pytest.approx(expected / 96, rel=1e-12)


# -- FLOPs ----------------------------------------------------------------------------------------

DIM, DEPTH, LAYER, BATCH = 96, 4, 2, 8
WIDE, SMALL = 36, 9  # patches of 48² and 24² pixels
HIDDEN, OUT = 16, 8  # of MoCo's heads


def block(tokens):
    """Forward, one image: qkv, projection and MLP are 3 + 1 + 8 maps of D×D; attention is two
    products of the tokens with the tokens."""
    return 24 * tokens * DIM**2 + 4 * tokens**2 * DIM


def blocks(patches, *, cls_after=0, until=DEPTH):
    return sum(block(patches + (number > cls_after)) for number in range(1, until + 1))


def embedding(patches):
    return 2 * patches * 3 * PATCH**2 * DIM


def mlp(*widths):
    return 2 * sum(a * b for a, b in itertools.pairwise(widths))


def student(patches, **options):
    """Backward costs twice the forward pass, but pixels get no gradient."""
    return 3 * blocks(patches, **options) + 2 * embedding(patches)


def teacher(patches, **options):
    return blocks(patches, **options) + embedding(patches)


def moco_heads(queries, terms):
    """`queries` views of BATCH images; keys of two; each term a product with the batch's keys."""
    projector, predictor = mlp(DIM, HIDDEN, HIDDEN, OUT), mlp(OUT, HIDDEN, OUT)
    logits = 2 * BATCH * BATCH * OUT
    return BATCH * (3 * queries * (projector + predictor) + 2 * projector) + 2 * terms * logits


def assert_counts(flops, *, step, none, weight0):
    # Nothing is left out: torch counts attention on shapes alone as two products each way.
    for ours, gold in ((flops.step, step), (flops.none, none), (flops.weight0, weight0)):
        assert ours == pytest.approx(gold, rel=1e-6)
    assert flops.ratio_none == pytest.approx(step / none, rel=1e-6)
    assert flops.ratio_weight0 == pytest.approx(step / weight0, rel=1e-6)


def test_flops_of_ser_with_small_crops():
    """n₂ = 2 of 8 images, whose teacher sees all six views."""
    addon = ser(fraction=0.25, projector_width=32)
    flops = count_flops(recipe_of(addon, width=DIM))
    both, four = 2 * BATCH, 4 * BATCH
    heads = moco_heads(6, terms=10)
    none = both * (student(WIDE) + teacher(WIDE)) + four * student(SMALL) + heads
    delayed = dict(cls_after=LAYER)
    weight0 = (
        both * (student(WIDE, **delayed) + teacher(WIDE, **delayed))
        + four * student(SMALL, **delayed)
        + 2 * 4 * teacher(SMALL, **delayed)
        + heads
    )
    tokens = 2 * (2 * WIDE + 4 * SMALL)
    term = 4 * tokens * mlp(DIM, 32, 32)
    for patches, views in ((WIDE, 2), (SMALL, 4)):
        # Of each view: logits with keys and own view, the anchors' gradient of both, and that of
        # the own view; the teacher's keys have none.
        term += views * 5 * 2 * (2 * patches) ** 2 * 32
    assert_counts(flops, step=weight0 + term, none=none, weight0=weight0)


@pytest.mark.parametrize("form", ["predict", "predict-and-views"])
def test_flops_of_essl(form):
    addon = {"name": "essl", "hidden_width": 32, "form": form}
    flops = count_flops(recipe_of(addon, setting="2+4-rotations", width=DIM))
    both, four = 2 * BATCH, 4 * BATCH
    plain = both * (student(WIDE) + teacher(WIDE))
    none = plain + moco_heads(2, terms=2)
    if form == "predict":  # without the term nobody looks at the turned views
        weight0, step = none, none + four * student(SMALL, until=LAYER)
    else:
        step = weight0 = plain + moco_heads(6, terms=10) + four * student(SMALL)
    step += 3 * four * mlp(DIM, DIM, 32, 4)
    assert_counts(flops, step=step, none=none, weight0=weight0)


def test_flops_of_equimod():
    addon = {"name": "equimod", "hidden_width": 32, "output_width": 16}
    flops = count_flops(recipe_of(addon, setting="3", width=DIM))
    none = 2 * BATCH * (student(WIDE) + teacher(WIDE)) + moco_heads(2, terms=2)
    rows = 2 * BATCH
    step = none + BATCH * student(WIDE, until=LAYER)
    step += 3 * (3 * BATCH * mlp(DIM, 32, 32, 16) + rows * mlp(32, 16))
    step += 2 * rows * mlp(20, 16) + 3 * mlp(16, 1) * (2 * rows) ** 2
    assert_counts(flops, step=step, none=none, weight0=none)
