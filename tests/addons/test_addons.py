"""The add-ons' losses in closed form, from the tapped vectors and the recorded parameters."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sercli.addons.augself import model as augself
from sercli.addons.equimod import model as equimod
from sercli.data.loading import image_to_tensor
from sercli.errors import UserError
from sercli.families import addon_configs, method_configs
from sercli.heads import BatchNorm
from sercli.methods.dino import model as dino
from sercli.methods.moco import model as moco
from sercli.objective import Objective
from sercli.recipe.files import from_mapping
from sercli.recipe.schema import Photometrics
from sercli.views import colours as photometrics
from sercli.views.colours import PhotometricParameters
from sercli.views.making import ViewMaker, ViewParameters
from sercli.views.plan import partition
from sercli.views.reading import TrainingImages, batches
from tests.support import workers
from tests.support.pictures import Pictures, normalised
from tests.support.reading import read_all

BLOCKS, LAYER, WIDTH = 4, 2, 16
METHODS = {
    "moco": {"hidden_width": 16, "output_width": 8},
    "dino": {"prototypes": 12, "hidden_width": 16, "bottleneck_width": 8},
    "barlow-twins": {"hidden_width": 16, "output_width": 8},
}
ADDONS = {
    "augself": {"hidden_width": 12},
    "stl": {"hidden_width": 12, "transformation_width": 6, "output_width": 5},
    "equimod": {"hidden_width": 12, "output_width": 5},
    "essl": {"hidden_width": 10},
}
SETTINGS = {"equimod": "3", "essl": "2+4-rotations"}
ALL_TARGETS = {"crop": 0.5, "colour": 0.25, "flip": 2.0, "blur": 1.0, "rotation": 0.75}
EVERY_COLOUR = {"grey_p": 0.5, "blur_p": 0.5, "solarise_p": 0.5}


def recipe_of(addon, settings=(), *, method="moco", model=(), views=()):
    tree = {
        "data": {"image_size": 32},
        "model": {
            "name": "vit_micro", "width": WIDTH, "depth": BLOCKS, "num_heads": 2, "patch_size": 8,
            **dict(model),
        },
        "method": {"name": method, **METHODS[method]},
        "addon": {"name": addon, "layer": LAYER, **ADDONS[addon], **dict(settings)},
        "views": {
            "setting": SETTINGS.get(addon, "2"), "rot90_p": 0.5,
            "view1": EVERY_COLOUR, "view2": EVERY_COLOUR, **dict(views),
        },
    }  # fmt: skip
    return from_mapping(tree, methods=method_configs(), addons=addon_configs()).recipe


def build(addon, settings=(), **options):
    """An objective in float64 whose heads and norms are not as they start."""
    objective = Objective(recipe_of(addon, settings, **options)).double()
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        objective.encoder.cls_token.normal_(std=0.5, generator=draws)
        for p in (*objective.addon.parameters(), *objective.method.parameters()):
            p.add_(0.2 * torch.randn(p.shape, generator=draws, dtype=p.dtype))
        if objective.teacher is not None:
            for p in objective.teacher.parameters():
                p.mul_(1.1)
    return objective


def views_of(objective, *, count=6, seed=0):
    return workers.make_views(objective.plan, count, seed=seed)


def read(recipe, plan, *, count=6, step=0, source=None):
    """Views of one step as a run makes them; the plan comes from the objective."""
    source = source or Pictures(24, sizes=((41, 31), (33, 65), (51, 51), (97, 40)))
    part = partition(count, plan.paired, group=plan.request.group)
    steps = range(step, step + 1)
    (tickets,) = batches(len(source), part, batch_size=count, seed=recipe.seed, steps=steps)
    images = TrainingImages(source, recipe.views, plan, seed=recipe.seed)
    make = ViewMaker(recipe.views, plan, part, seed=recipe.seed)
    return make(read_all(images, tickets), step, torch.device("cpu")), tickets


# -- NumPy ----------------------------------------------------------------------------------------


def norm_rows(rows, eps, scale=None, shift=None):
    """Layer norm."""
    rows = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + eps)
    return rows if scale is None else rows * scale + shift


def norm_columns(rows, scale=None, shift=None):
    """Batch norm."""
    rows = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
    return rows if scale is None else rows * scale + shift


def values(module):
    return [p.detach().numpy() for p in module.parameters()]


def through(rows, head):
    """A head, layer by layer."""
    for module in head:
        match module:
            case nn.Linear():
                rows = rows @ module.weight.detach().numpy().T
                if module.bias is not None:
                    rows = rows + module.bias.detach().numpy()
            case BatchNorm():
                rows = norm_columns(rows, *values(module))
            case nn.LayerNorm():
                rows = norm_rows(rows, 1e-5, *values(module))
            case nn.ReLU():
                rows = np.maximum(rows, 0)
            case _:
                raise TypeError(module)
    return rows


def layers_of(head):
    """What a head is made of, in short: 4>8 a linear map, +b with a bias, bn, bn*, ln, relu."""
    parts = []
    for module in head:
        match module:
            case nn.Linear():
                bias = "+b" * (module.bias is not None)
                parts.append(f"{module.in_features}>{module.out_features}{bias}")
            case BatchNorm():
                parts.append("bn" + "*" * (module.weight is not None))
            case nn.LayerNorm():
                parts.append("ln")
            case nn.ReLU():
                parts.append("relu")
            case _:
                raise TypeError(module)
    return " ".join(parts)


def softmax_error(logits, labels):
    logits = logits - logits.max(1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -log_p[np.arange(len(labels)), labels].mean()


def numpy_nt_xent(first, second, temperature):
    """Each of the 2n rows against all others; its twin is the positive."""
    rows = np.concatenate([first, second])
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similar = np.exp(rows @ rows.T / temperature)
    count, total = len(first), 0.0
    for i in range(2 * count):
        twin = (i + count) % (2 * count)
        total -= math.log(similar[i, twin] / (similar[i].sum() - similar[i, i]))
    return total / (2 * count)


def tapped(objective, view):
    """The tapped vector of each image after the add-on's LayerNorm, from the raw tokens."""
    tap = objective.addon.tap
    with torch.no_grad():
        features = objective.encoder(view, (tap.config.layer,))
    if tap.config.tap == "cls":
        vectors = features.cls_tokens[tap.config.layer].numpy()
    else:
        vectors = features.grids[tap.config.layer].numpy().mean((2, 3))
    return norm_rows(vectors, 1e-6, *values(tap.norm))


# -- records made by hand -------------------------------------------------------------------------


def colours_of(rows):
    """Rows of (jitter, factors, order, grey, sigma, solarise, spans)."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    jitter, factors, order, grey, sigma, solarise, spans = columns
    return PhotometricParameters(
        jitter=torch.tensor(jitter),
        factors=torch.tensor(factors),
        order=torch.tensor(order),
        grey=torch.tensor(grey),
        blur_sigma=torch.tensor(sigma),
        solarise=torch.tensor(solarise),
        spans=torch.tensor(spans),
    )


def record(boxes, hflip, rot90, colours):
    return ViewParameters(
        torch.tensor(boxes), torch.tensor(hflip), torch.tensor(rot90), colours_of(colours)
    )


# Dyadic numbers, so that the expected values are exact in float32. Strengths of jitter 0.5, 0.25,
# 0.5, 0.125: widths 1, 0.5, 1, 0.25. The second view's contrast has strength 0: nothing to compare.
SPANS, OTHER_SPANS = (1.0, 0.5, 1.0, 0.25, 4.0), (1.0, 0.0, 1.0, 0.25, 1.0)
ONE = record(
    [(0.125, 0.25, 0.5, 0.5), (0.125, 0.25, 0.5, 0.5), (0.0, 0.0, 1.0, 1.0)],
    [False, True, False],
    [3, 0, 1],
    [
        (True, (1.25, 0.875, 1.5, 0.0625), (2, 0, 3, 1), True, 1.5, False, SPANS),
        (False, (0.5, 0.75, 0.5, 0.125), (3, 2, 1, 0), False, 0.0, True, SPANS),
        (True, (0.5, 1.25, 1.0, -0.125), (0, 1, 2, 3), False, 0.5, False, SPANS),
    ],
)
TWO = record(
    [(0.5, 0.0, 0.25, 0.75), (0.5, 0.0, 0.25, 0.75), (0.25, 0.5, 0.5, 0.25)],
    [False, False, True],
    [1, 1, 1],
    [
        (True, (0.75, 1.0, 1.25, -0.0625), (0, 1, 2, 3), False, 0.0, False, OTHER_SPANS),
        (False, (1.5, 1.0, 0.5, 0.125), (3, 2, 1, 0), True, 1.0, False, OTHER_SPANS),
        (False, (0.5, 1.0, 0.5, 0.125), (1, 0, 2, 3), False, 0.0, True, OTHER_SPANS),
    ],
)


# -- AugSelf --------------------------------------------------------------------------------------


def test_augselfs_targets_by_hand():
    # Centres (y, x) of the boxes: (0.5, 0.375) and (0.375, 0.625); (0.5, 0.5) and (0.625, 0.5).
    forth, back = (augself.crop_target(*pair) for pair in ((ONE, TWO), (TWO, ONE)))
    assert forth.tolist() == [
        [0.125, -0.25, -0.25, 0.25],
        [0.125, 0.25, -0.25, 0.25],  # the first view is mirrored: left is right
        [-0.125, 0.0, 0.75, 0.5],
    ]
    assert back.tolist() == [
        [-0.125, 0.25, 0.25, -0.25],
        [-0.125, 0.25, 0.25, -0.25],  # now the mirrored one is the second
        [0.125, 0.0, -0.75, -0.5],
    ]
    forth, back = (augself.colour_target(*pair) for pair in ((ONE, TWO), (TWO, ONE)))
    assert forth.tolist() == [
        [0.5, -0.25, 0.25, 0.5],
        [0.0, 0.0, 0.0, 0.0],  # neither is jittered, whatever the factors drawn
        [-0.5, 0.5, 0.0, -0.5],  # only the first is
    ]
    assert torch.equal(back, -forth)
    assert augself.flip_target(ONE, TWO).tolist() == [[1.0], [0.0], [0.0]]
    assert augself.flip_target(TWO, ONE).tolist() == [[1.0], [0.0], [0.0]]
    forth, back = (augself.blur_target(*pair) for pair in ((ONE, TWO), (TWO, ONE)))
    assert forth.tolist() == [[0.375], [-0.25], [0.125]]
    assert torch.equal(back, -forth)
    assert augself.rotation_target(ONE, TWO).tolist() == [2, 3, 0]
    assert augself.rotation_target(TWO, ONE).tolist() == [2, 1, 0]


def test_augselfs_colours_with_a_strength_of_zero():
    uniforms = torch.rand(5, photometrics.NUM_UNIFORMS, generator=torch.Generator().manual_seed(0))
    strengths = Photometrics(jitter=(0.4, 0.0, 1.5, 0.0), jitter_p=1)
    colours = photometrics.draw(uniforms, strengths)
    one = dataclasses.replace(ONE, colours=colours)
    none = dataclasses.replace(ONE, colours=photometrics.draw(uniforms, None))
    target = augself.colour_target(one, none).numpy()
    assert (target[:, [1, 3]] == 0).all()
    # Uniform in 1 ± 0.4, and in 0 … 2.5, as a factor is never negative.
    np.testing.assert_allclose(target[:, 0], uniforms[:, 1] - 0.5, atol=1e-6)
    np.testing.assert_allclose(target[:, 2], uniforms[:, 3] - 0.4, atol=1e-6)


def test_a_target_of_weight_0_has_no_head():
    heads = build("augself").addon.heads
    assert set(heads) == {"crop", "colour"}
    assert layers_of(heads["crop"]) == "32>12 bn* relu 12>12 bn* relu 12>4+b"
    heads = build("augself", {"crop": 0, "colour": 0, "flip": 1, "rotation": 1}).addon.heads
    assert set(heads) == {"flip", "rotation"}
    assert layers_of(heads["flip"]) == "32>12 bn* relu 12>12 bn* relu 12>1+b"
    assert layers_of(heads["rotation"]) == "32>12 bn* relu 12>12 bn* relu 12>4+b"


def augself_errors(objective, views, one, two):
    """The error of each target, in both orders: what the first shows relative to the second."""
    first, second = (tapped(objective, views.standard[view]) for view in range(2))
    pairs = np.concatenate([np.concatenate([first, second], 1), np.concatenate([second, first], 1)])
    errors = {}
    for name, head in objective.addon.heads.items():
        target = np.concatenate(
            [augself.TARGETS[name](*order).numpy() for order in ((one, two), (two, one))]
        )
        said = through(pairs, head)
        if name == "rotation":
            errors[name] = softmax_error(said, target)
        elif name == "flip":
            right = np.where(target == 1, said, -said)
            errors[name] = np.log1p(np.exp(-right)).mean()
        else:
            errors[name] = ((np.tanh(said) - target) ** 2).mean()
    return errors


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tap", ["cls", "pooled"])
def test_augselfs_loss_in_closed_form(method, tap):
    objective = build("augself", {**ALL_TARGETS, "tap": tap, "weight": 0.7}, method=method)
    views = dataclasses.replace(views_of(objective, count=3), parameters=(ONE, TWO))
    errors = augself_errors(objective, views, ONE, TWO)
    expected = sum(ALL_TARGETS[name] * error for name, error in errors.items())
    losses = objective(views)
    assert set(errors) == set(ALL_TARGETS)
    assert losses.equivariance.item() == pytest.approx(expected, rel=1e-10)
    total = losses.invariance.item() + 0.7 * losses.equivariance.item()
    assert losses.total.item() == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("name", ALL_TARGETS)
def test_augselfs_weights_are_the_targets(name):
    only = {key: 3.0 * (key == name) for key in ALL_TARGETS}
    objective = build("augself", only)
    views = dataclasses.replace(views_of(objective, count=3), parameters=(ONE, TWO))
    errors = augself_errors(objective, views, ONE, TWO)
    assert set(errors) == {name}
    assert objective(views).equivariance.item() == pytest.approx(3 * errors[name], rel=1e-10)


@pytest.mark.parametrize("addon", ["augself", "stl"])
def test_small_views_are_the_invariance_losss_alone(addon):
    """With 2+4-crops the add-on compares the two global views, as it does without."""
    few = build(addon)
    more = build(addon, views={"setting": "2+4-crops"})
    more.load_state_dict(few.state_dict())
    views = views_of(more)
    assert len(views.standard) == 6
    assert more.plan.num_invariant == 6
    cut = dataclasses.replace(views, standard=views.standard[:2], parameters=views.parameters[:2])
    ours, gold = more(views), few(cut)
    assert ours.equivariance.item() == pytest.approx(gold.equivariance.item(), rel=1e-10)
    assert abs(ours.invariance.item() - gold.invariance.item()) > 1e-3


# -- STL ------------------------------------------------------------------------------------------


def explicit(addon, vectors, transformations):
    """W(t) = reshape(H t), a D×D matrix for each image, times its vector."""
    weights = addon.hypernetwork.weight.detach().numpy()
    maps = (transformations @ weights.T).reshape(len(vectors), WIDTH, WIDTH)
    return np.stack([w @ y for w, y in zip(maps, vectors, strict=True)])


def test_stls_hypernetwork_makes_a_matrix_of_each_transformation():
    addon = build("stl").addon
    vectors, transformations = (
        torch.randn(4, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        for n in (WIDTH, 6)
    )
    with torch.no_grad():
        ours = addon.carry(vectors, transformations).numpy()
    gold = explicit(addon, vectors.numpy(), transformations.numpy())
    np.testing.assert_allclose(ours, gold, rtol=1e-12, atol=1e-13)


def test_stls_heads():
    addon = build("stl").addon
    assert layers_of(addon.transformation) == "32>6 bn* relu 6>6"
    assert layers_of([addon.hypernetwork]) == "6>256"
    assert layers_of(addon.projector) == "16>12 bn* relu 12>5"
    assert layers_of(addon.transformation_projector) == "6>6 bn* relu 6>5"


def stl_loss(objective, views, *, whose):
    """`whose`[i]: the image whose transformation carries image i."""
    addon, temperature = objective.addon, objective.addon.config.temperature
    first, second = (tapped(objective, views.standard[view]) for view in range(2))
    forth = through(np.concatenate([first, second], 1), addon.transformation)
    back = through(np.concatenate([second, first], 1), addon.transformation)
    real = np.concatenate([through(y, addon.projector) for y in (second, first)])
    carried = np.concatenate(
        [
            through(explicit(addon, first, forth[whose]), addon.projector),
            through(explicit(addon, second, back[whose]), addon.projector),
        ]
    )
    said = [through(t, addon.transformation_projector) for t in (forth, back)]
    even, odd = (np.concatenate([t[start::2] for t in said]) for start in (0, 1))
    return numpy_nt_xent(real, carried, temperature), numpy_nt_xent(even, odd, temperature)


@pytest.mark.parametrize("tap", ["cls", "pooled"])
@pytest.mark.parametrize("method", METHODS)
def test_stls_loss_in_closed_form(method, tap):
    settings = {"tap": tap, "temperature": 0.3, "transformation_weight": 0.4}
    objective = build("stl", settings, method=method)
    views = views_of(objective)
    partners = np.array([1, 0, 3, 2, 5, 4])
    carrying, telling = stl_loss(objective, views, whose=partners)
    ours = objective(views).equivariance.item()
    assert ours == pytest.approx(carrying + 0.4 * telling, rel=1e-9)
    own, _ = stl_loss(objective, views, whose=np.arange(6))
    assert abs(own - carrying) > 1e-3


def test_stls_partners_go_through_the_same_augmentations():
    recipe = recipe_of("stl", views={"hflip_p": 0.5})
    plan = Objective(recipe).plan
    unequal = 0
    source = Pictures(24, sizes=((410, 31), (33, 65), (51, 51), (970, 401)))
    for step in range(3):
        views, tickets = read(recipe, plan, count=8, step=step, source=source)
        sides = np.array([source.load(t.index).size for t in tickets])
        unequal += int((sides[0::2] != sides[1::2]).any(1).sum())
        assert len({ticket.index for ticket in tickets}) == 8
        for parameters in views.parameters:
            boxes = parameters.box.numpy()
            # A side of s pixels is cut to whole pixels: each of two images may be half of one off.
            off = 0.51 / sides[0::2] + 0.51 / sides[1::2]
            difference = np.abs(boxes[0::2] - boxes[1::2]).reshape(4, 2, 2)
            assert (difference[:, 0] <= off).all()
            assert (difference[:, 1] <= 2 * off).all()  # the right edge is limited to the image
            assert (np.abs(boxes[0::2] - np.roll(boxes[0::2], 1, 0)).max(1) > 0.02).all()
            for field in dataclasses.fields(PhotometricParameters):
                column = getattr(parameters.colours, field.name)
                assert torch.equal(column[0::2], column[1::2]), field.name
            assert torch.equal(parameters.hflip[0::2], parameters.hflip[1::2])
            assert torch.equal(parameters.rot90[0::2], parameters.rot90[1::2])
            factors = parameters.colours.factors[0::2]
            assert len(factors.unique(dim=0)) == 4
        one, two = views.parameters
        assert not torch.allclose(one.box, two.box, atol=0.01)
        assert not torch.equal(one.colours.factors, two.colours.factors)
    assert unequal > 6  # pairs of images of unequal sizes
    mirrored = torch.stack([p.hflip[0::2] for p in views.parameters]).flatten().tolist()
    assert set(mirrored) == {True, False}


# -- EquiMod --------------------------------------------------------------------------------------


def test_equimods_parameter_vectors_by_hand():
    vectors = equimod.parameter_vectors(ONE).numpy()
    assert vectors.shape == (3, equimod.NUM_PARAMETERS)
    # crop | mirrored | cosine, sine | jittered, order, factors | grey | blurred, sigma | solarised
    expected = [
        [0.125, 0.25, 0.5, 0.5, 0, 0, -1, 1, 2, 0, 3, 1, 1.25, 0.875, 1.5, 0.0625, 1, 1, 1.5, 0],
        [0.125, 0.25, 0.5, 0.5, 1, 1, 0, 0, 0, 1, 2, 3, 1, 1, 1, 0, 0, 0, 0, 1],
        [0, 0, 1, 1, 0, 0, 1, 1, 0, 1, 2, 3, 0.5, 1.25, 1, -0.125, 0, 1, 0.5, 0],
    ]
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-7)


def equimod_loss(objective, views):
    addon = objective.addon
    rows = np.concatenate([tapped(objective, view) for view in views.standard])
    count = len(rows) // 3
    embedded = through(rows, addon.projector)
    vectors = [equimod.parameter_vectors(p).double().numpy() for p in views.parameters[:2]]
    augmentation = norm_columns(np.concatenate(vectors))
    augmentation = through(augmentation, addon.parameters_projector)
    source = np.concatenate([embedded[2 * count :]] * 2)
    predicted = through(np.concatenate([source, augmentation], 1), addon.predictor)
    return numpy_nt_xent(embedded[: 2 * count], predicted, addon.config.temperature)


@pytest.mark.parametrize("tap", ["cls", "pooled"])
@pytest.mark.parametrize("method", METHODS)
def test_equimods_loss_in_closed_form(method, tap):
    objective = build("equimod", {"tap": tap, "temperature": 0.3}, method=method)
    addon = objective.addon
    assert layers_of(addon.projector) == "16>12 bn* relu 12>12 bn* relu 12>5 bn"
    assert layers_of(addon.parameters_projector) == "20>5 bn"
    assert layers_of(addon.predictor) == "10>5 bn"
    views = views_of(objective)
    expected = equimod_loss(objective, views)
    assert objective(views).equivariance.item() == pytest.approx(expected, rel=1e-9)


def test_equimods_projector_is_as_wide_as_the_model():
    objective = build("equimod", {"hidden_width": None, "output_width": 128})
    widths = "16>16 bn* relu 16>16 bn* relu 16>128 bn"
    assert layers_of(objective.addon.projector) == widths


def test_equimods_third_view_is_the_plain_central_square():
    recipe = recipe_of("equimod", views={"hflip_p": 1.0, "rot90_p": 1.0})
    plan = Objective(recipe).plan
    source = Pictures(24, sizes=((41, 31), (33, 65), (51, 51), (97, 40)))
    views, tickets = read(recipe, plan, source=source)
    assert len(views.standard) == 3
    plain = views.parameters[2]
    assert not plain.hflip.any()
    assert not plain.rot90.any()
    assert views.parameters[0].hflip.all()
    assert views.parameters[0].rot90.all()
    colours = plain.colours
    changed = colours.jitter | colours.grey | colours.solarise | (colours.blur_sigma > 0)
    assert not changed.any()
    for row, ticket in enumerate(tickets):
        picture = source.load(ticket.index)
        width, height = picture.size
        side = min(picture.size)
        left, top = (width - side) // 2, (height - side) // 2
        square = picture.crop((left, top, left + side, top + side)).resize((32, 32), Image.BILINEAR)
        expected = normalised(image_to_tensor(square)).float()
        torch.testing.assert_close(views.standard[2][row], expected, rtol=0, atol=1e-6)
        box = plain.box[row].tolist()
        assert box == pytest.approx([left / width, top / height, side / width, side / height])


@pytest.mark.parametrize("method", METHODS)
def test_equimods_third_view_is_not_in_the_invariance_loss(method):
    objective = build("equimod", method=method).eval()
    views = views_of(objective)
    blank = torch.zeros_like(views.standard[2])
    other = dataclasses.replace(views, standard=(*views.standard[:2], blank))
    ours, gold = objective(other), objective(views)
    assert ours.invariance.item() == gold.invariance.item()
    assert abs(ours.equivariance.item() - gold.equivariance.item()) > 1e-3


# -- E-SSL ----------------------------------------------------------------------------------------


def essl_loss(objective, views):
    count = len(views.standard[0])
    rows = np.concatenate([tapped(objective, view) for view in views.standard[2:]])
    labels = np.repeat([0, 1, 2, 3], count)
    return softmax_error(through(rows, objective.addon.head), labels)


@pytest.mark.parametrize("tap", ["cls", "pooled"])
@pytest.mark.parametrize(
    ("method", "form"),
    [*((method, "predict") for method in METHODS), ("moco", "predict-and-views")],
)
def test_essls_loss_in_closed_form(method, form, tap):
    objective = build("essl", {"tap": tap, "form": form}, method=method)
    assert layers_of(objective.addon.head) == "16>16+b ln relu 16>10+b ln 10>4+b"
    views = views_of(objective)
    assert len(views.standard) == 6
    expected = essl_loss(objective, views)
    assert objective(views).equivariance.item() == pytest.approx(expected, rel=1e-10)


def test_essls_views_are_one_crop_in_four_quarter_turns():
    recipe = recipe_of("essl")
    plan = Objective(recipe).plan
    views, _ = read(recipe, plan, count=8)
    turned = [view.numpy() for view in views.standard[2:]]
    assert [view.shape for view in turned] == [(8, 3, 16, 16)] * 4
    for turns, view in enumerate(turned):
        assert np.array_equal(view, np.rot90(turned[0], turns, axes=(2, 3)))
        parameters = views.parameters[2 + turns]
        assert (parameters.rot90 == turns).all()
        assert torch.equal(parameters.box, views.parameters[2].box)
        assert torch.equal(parameters.hflip, views.parameters[2].hflip)
        assert torch.equal(parameters.colours.factors, views.parameters[2].colours.factors)
    assert 0 < views.parameters[2].hflip.sum() < 8
    assert not np.array_equal(turned[1], turned[3])
    area = views.parameters[2].box[:, 2:].prod(1)
    # 0.05 … 0.14 of the image, in whole pixels of 31 and more.
    assert 0.04 < area.min() < area.max() < 0.16


def counted(objective):
    """Images that pass each block of the student."""
    rows = [0] * BLOCKS

    def count(block):
        def hook(_module, arguments):
            rows[block] += arguments[1].num_images

        return hook

    for number, block in enumerate(objective.encoder.blocks):
        block.register_forward_pre_hook(count(number))
    return rows


@pytest.mark.parametrize(
    ("addon", "settings", "expected"),
    [
        # 6 images: 2 global views to the end, 4 turned ones (1 plain one) as far as block 2.
        ("essl", {"form": "predict"}, [36, 36, 12, 12]),
        ("essl", {"form": "predict-and-views"}, [36, 36, 36, 36]),
        ("equimod", {}, [18, 18, 12, 12]),
        ("augself", {}, [12, 12, 12, 12]),
        ("stl", {}, [12, 12, 12, 12]),
    ],
)
def test_views_of_the_addon_alone_go_no_further_than_its_layer(addon, settings, expected):
    objective = build(addon, settings)
    rows = counted(objective)
    objective(views_of(objective)).total.backward()
    assert rows == expected


@pytest.mark.parametrize(("form", "terms"), [("predict", 2), ("predict-and-views", 10)])
def test_essls_turned_views_enter_mocos_loss_or_not(monkeypatch, form, terms):
    objective = build("essl", {"form": form})
    calls = []
    loss = moco.info_nce
    monkeypatch.setattr(moco, "info_nce", lambda *a, **o: calls.append(loss(*a, **o)) or calls[-1])
    views = views_of(objective)
    invariance = objective(views).invariance.item()
    assert len(calls) == terms
    # Each of the views is a query against the keys of both global views but its own.
    with torch.no_grad():
        project, predict = objective.method.projector, objective.method.predictor
        q = [
            through(through(objective.encoder(view).cls.numpy(), project), predict)
            for view in views.standard[: objective.plan.num_invariant]
        ]
        k = [
            through(objective.teacher.encoder(view).cls.numpy(), objective.teacher.method)
            for view in views.standard[:2]
        ]
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)  # noqa: E731
    expected = [
        2 * 0.2 * softmax_error(unit(queries) @ unit(keys).T / 0.2, np.arange(6))
        for v, queries in enumerate(q)
        for t, keys in enumerate(k)
        if t != v
    ]
    assert len(expected) == terms
    assert invariance == pytest.approx(2 * np.mean(expected), rel=1e-9)


@pytest.mark.parametrize(("form", "count"), [("predict", 2), ("predict-and-views", 6)])
def test_essls_turned_views_enter_dinos_loss_or_not(monkeypatch, form, count):
    objective = build("essl", {"form": form}, method="dino")
    seen = []
    loss = dino.dino_cross_entropy

    def spy(students, targets, **options):
        seen.append((len(students), len(targets)))
        return loss(students, targets, **options)

    monkeypatch.setattr(dino, "dino_cross_entropy", spy)
    objective(views_of(objective))
    assert seen == [(count, 2)]


def test_the_weight_of_essl_follows_the_method():
    found = {method: build("essl", method=method).weight for method in METHODS}
    assert found == {"moco": 1.0, "dino": 1.0, "barlow-twins": 8.0}
    assert build("essl", {"weight": 0.3}, method="barlow-twins").weight == 0.3


# -- the tap --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [1, LAYER, BLOCKS])
@pytest.mark.parametrize("addon", ADDONS)
def test_where_the_vector_is_tapped(addon, layer):
    """[CLS] is there from the start, or follows the layer whose patch tokens are averaged."""
    for tap, cls_after in (("cls", 0), ("pooled", layer if layer < BLOCKS else 0)):
        objective = build(addon, {"tap": tap, "layer": layer})
        assert objective.encoder.cls_after == cls_after
        view = views_of(objective).standard[0]
        with torch.no_grad():
            features = objective.encoder(view, (layer,))
            ours = objective.addon.tap(features).numpy()
        tokens = {}
        hook = objective.encoder.blocks[layer - 1].register_forward_hook(
            lambda _module, _arguments, out, found=tokens: found.update(out=out.detach().numpy())
        )
        objective.encoder(view)
        hook.remove()
        prefix = int(cls_after == 0)
        out = tokens["out"].reshape(6, 16 + prefix, WIDTH)
        gold = out[:, 0] if tap == "cls" else out[:, prefix:].mean(1)
        gold = norm_rows(gold, 1e-6, *values(objective.addon.tap.norm))
        np.testing.assert_allclose(ours, gold, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("addon", ADDONS)
def test_a_tapped_cls_must_have_joined(addon):
    for cls_after in (LAYER, LAYER + 1):
        with pytest.raises(UserError, match="pooled"):
            build(addon, model={"cls_after": cls_after})
    assert build(addon, model={"cls_after": LAYER - 1}).encoder.cls_after == LAYER - 1
    pooled = build(addon, {"tap": "pooled"}, model={"cls_after": 3})
    assert pooled.encoder.cls_after == 3


@pytest.mark.parametrize("tap", ["cls", "pooled"])
@pytest.mark.parametrize("addon", ADDONS)
def test_the_addon_trains_blocks_up_to_its_layer_and_nothing_beyond(monkeypatch, addon, tap):
    objective = build(addon, {"tap": tap})
    monkeypatch.setattr(objective.method, "loss", lambda given: given.students[0].new_zeros(()))
    objective(views_of(objective)).total.backward()
    for name, p in objective.student.named_parameters():
        block = int(name.split(".")[2]) + 1 if name.startswith("encoder.blocks.") else None
        early = name.startswith(("encoder.patch_embed", "encoder.pos_embed", "addon."))
        early = early or (name == "encoder.cls_token" and tap == "cls")
        norm = None if p.grad is None else p.grad.norm().item()
        if name == "addon.tap.norm.bias" and addon in ("augself", "equimod"):
            assert norm < 1e-9  # the batch norm behind it removes any common shift
        elif early or (block is not None and block <= LAYER):
            assert norm is not None, name
            assert norm > 1e-9, name
        else:
            assert norm in (None, 0.0), name


@pytest.mark.parametrize("addon", ADDONS)
def test_gradient_goes_through_every_view_that_the_addon_takes(monkeypatch, addon):
    """The gradient of the pixels of each view against differences of the loss."""
    objective = build(addon)
    monkeypatch.setattr(objective.method, "loss", lambda given: given.students[0].new_zeros(()))
    views = views_of(objective)
    pixels = [view.clone().requires_grad_() for view in views.standard]
    objective(dataclasses.replace(views, standard=tuple(pixels))).total.backward()
    draws = torch.Generator().manual_seed(0)
    taken = range(2, 6) if addon == "essl" else range(len(pixels))
    for number, view in enumerate(pixels):
        if number not in taken:
            assert view.grad is None or not view.grad.any()
            continue
        assert (view.grad.flatten(1).norm(dim=1) > 1e-9).all()
        direction = torch.randn(view.shape, generator=draws, dtype=view.dtype)
        moved = []
        for sign in (1, -1):
            standard = list(views.standard)
            standard[number] = standard[number] + sign * 1e-4 * direction
            with torch.no_grad():
                moved.append(objective(dataclasses.replace(views, standard=tuple(standard))).total)
        slope = (moved[0] - moved[1]).item() / 2e-4
        assert (view.grad * direction).sum().item() == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("addon", ADDONS)
def test_a_weight_of_0_watches_and_touches_nothing(monkeypatch, addon):
    watched, trained, without = (build(addon, {"weight": weight}) for weight in (0, 1, 0))
    monkeypatch.setattr(without.addon, "loss", lambda _: torch.zeros((), dtype=torch.float64))
    assert not any(p.requires_grad for p in watched.addon.parameters())
    views = views_of(watched)
    ours, gold = watched(views), trained(views)
    assert ours.equivariance.item() == pytest.approx(gold.equivariance.item(), rel=1e-12)
    assert ours.total.item() == ours.invariance.item() == gold.invariance.item()
    ours.total.backward()
    without(views).total.backward()
    for one, other in zip(watched.parameters(), without.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)
    gold.total.backward()
    assert not torch.allclose(watched.encoder.pos_embed.grad, trained.encoder.pos_embed.grad)
