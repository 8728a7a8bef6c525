"""Equivariance scores against closed forms, maps of known equivariance, and whole runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn
from typer.testing import CliRunner

from sercli.commands.equiv_score import equiv_score
from sercli.data import ShapesSource
from sercli.encoders.loading import LoadedEncoder, encoder_metadata, read_encoder, write_encoder
from sercli.encoders.vit import Encoder, Features
from sercli.engine.runtime import Runtime
from sercli.errors import UserError
from sercli.evals.equivariance.evaluate import COLUMNS, evaluate, metrics, sample
from sercli.evals.equivariance.picture import picture
from sercli.evals.equivariance.sums import TRANSFORMATIONS, Sums, accumulate
from sercli.metrics import equivariance_score
from sercli.recipe.schema import Model
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir
from tests.support.per_image import remade

MODEL = Model(name="vit_micro", patch_size=4, width=16, depth=4, num_heads=2)
CPU = Runtime(torch.device("cpu"), None)
NAMES = [g.name for g in TRANSFORMATIONS]
D4 = NAMES[:4]


class Tokens(nn.Module):
    """An "encoder" whose one token map is `function` of the means of the patches, 4 pixels wide."""

    patch_size = 4

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor, layers: Iterable[int]) -> Features:
        tokens = self.function(F.avg_pool2d(images, 4))
        return Features(tokens.mean((2, 3)), dict.fromkeys(layers, tokens), {})

    def encode(self, views: Sequence[Tensor], layers: Iterable[int]) -> list[Features]:
        return [self(view, layers) for view in views]


def pixelwise(patches: Tensor) -> Tensor:
    """A non-linear map of each patch alone, without positions: equivariant by construction."""
    mixing = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    return torch.tanh(torch.einsum("dc,bchw->bdhw", mixing, patches)) + 3


def images(count: int, height: int = 20, width: int = 20, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def vit(cls_after: int = 0, seed: int = 1) -> Encoder:
    encoder = Encoder.from_model(MODEL, image_size=16, cls_after=cls_after).initialise(seed)
    with torch.no_grad():
        encoder.pos_embed.mul_(5)  # as after training: places differ
    return encoder.eval().requires_grad_(False)


def sums_of(encoder: nn.Module, batches: Sequence[Tensor], layers: Sequence[int] = (0,)) -> Sums:
    return accumulate([encoder], batches, layers, runtime=CPU)[0]  # type: ignore[list-item]


def scores_of(sums: Sums, layers: Sequence[int] = (0,)) -> dict[str, float | None]:
    return metrics(sums, sums, layers)


def loaded(encoder: Encoder, image_size: int = 16) -> LoadedEncoder:
    return LoadedEncoder(encoder, "somewhere", "student", 9, 9, image_size)


# -- Maps of known equivariance -------------------------------------------------------------------


@pytest.mark.parametrize("size", [(20, 20), (16, 24)])
def test_an_equivariant_map_scores_one_on_d4(size: tuple[int, int]) -> None:
    values = scores_of(sums_of(Tokens(pixelwise), [images(4, *size)]))
    for name in (*D4, "rotation"):
        assert values[f"es/block00/{name}"] == pytest.approx(1, abs=1e-9)
        assert values[f"cosine_raw/block00/{name}"] == pytest.approx(1, abs=1e-6)
    for name in ("scale0.75", "scale1.25"):
        assert 0.05 < (values[f"es/block00/{name}"] or 0) < 0.99  # noise does not survive scaling


def test_scaling_a_smooth_image_is_followed() -> None:
    coarse = images(6, 3, 3)
    smooth = F.interpolate(coarse, size=(48, 48), mode="bicubic", align_corners=True)
    values = scores_of(sums_of(Tokens(pixelwise), [smooth]))
    assert (values["es/block00/scale0.75"] or 0) > 0.9
    assert (values["es/block00/scale1.25"] or 0) > 0.9


def test_what_belongs_to_the_place_is_not_equivariant() -> None:
    ramp = torch.linspace(-1, 1, 5)[None, None, None, :]

    def by_column(patches: Tensor) -> Tensor:
        return (
            ramp.expand(len(patches), 2, patches.shape[2], 5)
            if patches.shape[3] == 5
            else (F.interpolate(ramp.expand(len(patches), 2, 1, 5), size=tuple(patches.shape[2:])))
        )

    values = scores_of(sums_of(Tokens(by_column), [images(3)]))
    assert values["es/block00/hflip"] == pytest.approx(-1)
    assert values["es/block00/rot180"] == pytest.approx(-1)
    assert values["es/block00/rot90"] == pytest.approx(0, abs=1e-9)
    # The same columns whatever the image: invariant, and equal to another image's tokens.
    assert values["es_identity/block00/rot90"] == pytest.approx(1)
    assert values["gain/block00/rot90"] == pytest.approx(-1)
    assert values["es_other_image/block00/rot180"] == pytest.approx(-1)


def test_nulls_are_about_zero_where_tokens_and_images_are_independent() -> None:
    values = scores_of(sums_of(Tokens(pixelwise), [images(60, 24, 24)]))
    for family in ("es_shuffled", "es_other_image", "es_identity"):
        for name in D4:
            assert abs(values[f"{family}/block00/{name}"] or 9) < 0.08, (family, name)


def test_quarter_turns_of_an_oblong_have_no_score_without_the_action() -> None:
    values = scores_of(sums_of(Tokens(pixelwise), [images(4, 16, 24)]))
    for name in ("rot90", "rot270", "rotation"):
        assert values[f"es_identity/block00/{name}"] is None
        assert values[f"gain/block00/{name}"] is None
    assert values["gain/block00/rot180"] is not None
    # 4×6 patches turned are 6×4: as many tokens, but at other places.
    assert "es_identity/block00/scale0.75" not in values


# -- Undefined ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "defined"), [(0.0, False), (1e-3, False), (0.1, True)], ids=["0", "1e-3", "0.1"]
)
def test_a_map_that_is_constant_over_each_image_is_undefined(share: float, defined: bool) -> None:
    def nearly_constant(patches: Tensor) -> Tensor:
        return patches.mean((2, 3), keepdim=True) + share * (patches - patches.mean((2, 3), True))

    inputs = images(20) + images(20, 1, 1, seed=1)
    values = scores_of(sums_of(Tokens(nearly_constant), [inputs[:7], inputs[7:]]))
    for family in ("es", "es_identity", "gain", "es_random", "es_shuffled", "es_other_image"):
        for end in ("rot90", "rotation"):
            assert (values[f"{family}/block00/{end}"] is not None) == defined, family
    assert (values["es/block00/mean/low"] is not None) == defined
    assert values["cosine_raw/block00/rot90"] == pytest.approx(1, abs=0.02)
    assert (values["energy/block00"] or 0) == pytest.approx(share**2 / 16, rel=0.6)


def test_rounding_of_a_constant_is_no_variance() -> None:
    def rounded(patches: Tensor) -> Tensor:
        return 1000 + 1e-4 * torch.sign(patches)

    values = scores_of(sums_of(Tokens(rounded), [images(5)]))
    assert values["energy/block00"] == 0
    assert values["es/block00/rot90"] is None


def test_undefined_is_null_in_the_result(tmp_path: Path) -> None:
    encoder = vit()
    for parameter in (encoder.patch_embed.proj.weight, encoder.pos_embed):
        parameter.data.zero_()
    source = ShapesSource("val", image_size=16, num_images=4)
    result = evaluate(loaded(encoder), source, runtime=CPU, layers=[0, 2]).result
    run = RunDir.create(tmp_path / "run", recipe=None, run={"status": "running"})
    stored = json.loads(run.write_result(result).read_text())["metrics"]
    for block in ("block00", "block02"):
        assert stored[f"es/{block}/rotation"] is None
        assert stored[f"es/{block}/mean/high"] is None
        assert stored[f"energy/{block}"] < 1e-4
    assert stored["es_random/block00/rotation"] > 0.1  # the twin is not constant


# -- Closed forms ---------------------------------------------------------------------------------


def numpy_sums(encoder: Encoder, inputs: Tensor, layer: int) -> dict[str, np.ndarray]:
    """F̃ and Ã [n, G, D, h, w] in NumPy, one image at a time."""

    def tokens(picture: Tensor) -> np.ndarray:
        return encoder(picture[None], (layer,)).grids[layer][0].numpy().astype(np.float64)

    rows: dict[str, list[list[np.ndarray]]] = {"f": [], "a": [], "g": []}
    for picture_ in inputs:
        f = tokens(picture_)
        a, g = [], []
        for turns in (1, 2, 3):
            seen = tokens(torch.from_numpy(np.rot90(picture_.numpy(), turns, (1, 2)).copy()))
            a.append(np.rot90(seen, -turns, (1, 2)))
            g.append(seen)
        seen = tokens(torch.from_numpy(picture_.numpy()[..., ::-1].copy()))
        a.append(seen[..., ::-1])
        g.append(seen)
        rows["f"].append([f])
        rows["a"].append(a)
        rows["g"].append(g)
    return {key: np.array(value) for key, value in rows.items()}


@pytest.mark.parametrize("cls_after", [0, 3])
def test_sums_and_scores_against_numpy(cls_after: int) -> None:
    encoder, layer = vit(cls_after), 3
    inputs = F.interpolate(images(7, 5, 5), size=(16, 16), mode="bicubic")
    sums = sums_of(encoder, [inputs[:3], inputs[3:]], [1, layer])
    maps = numpy_sums(encoder, inputs, layer)
    f, a = maps["f"], maps["a"]
    f0, a0 = f - f.mean((3, 4), keepdims=True), a - a.mean((3, 4), keepdims=True)
    over = (2, 3, 4)
    np.testing.assert_allclose(sums.observed[1], (f0**2).sum(over)[:, 0], rtol=1e-5)
    np.testing.assert_allclose(sums.moved[1][:, :4], (a0**2).sum(over), rtol=1e-5)
    np.testing.assert_allclose(sums.product[1][:, :4], (f0 * a0).sum(over), rtol=1e-4)
    np.testing.assert_allclose(sums.unmoved[1][:, :4], (f0 * maps["g"]).sum(over), rtol=1e-3)
    np.testing.assert_allclose(
        sums.other_image[1][1:, :4], (f0[:-1] * a0[1:]).sum(over), rtol=1e-3, atol=1e-3
    )
    assert np.isnan(sums.other_image[1][0]).all()
    assert np.isnan(sums.unmoved[1][:, 4:]).all()
    cosine = (f * a).sum(2) / np.sqrt((f**2).sum(2) * (a**2).sum(2))
    np.testing.assert_allclose(sums.cosine[1][:, :4], cosine.mean((2, 3)), rtol=1e-5)
    for index, maps_ in enumerate((f[:, 0], *a.swapaxes(0, 1))):
        centred = maps_ - maps_.mean((2, 3), keepdims=True)
        total = ((maps_ - maps_.mean((0, 2, 3), keepdims=True)) ** 2).sum()
        assert sums.energy[1, index] == pytest.approx((centred**2).sum() / total, rel=1e-5)

    values = scores_of(sums, [1, layer])
    ratio = 2 * (f0 * a0).sum((0, *over)) / ((f0**2).sum() + (a0**2).sum((0, *over)))
    still = 2 * (f0 * maps["g"]).sum((0, *over)) / ((f0**2).sum() + (a0**2).sum((0, *over)))
    for index, name in enumerate(D4):
        assert values[f"es/block03/{name}"] == pytest.approx(ratio[index], rel=1e-5)
        assert values[f"es_identity/block03/{name}"] == pytest.approx(still[index], rel=1e-4)
        assert values[f"gain/block03/{name}"] == pytest.approx(
            ratio[index] - still[index], abs=1e-5
        )
    assert values["es/block03/rotation"] == pytest.approx(ratio[:3].mean(), rel=1e-5)
    assert 0.05 < ratio.min() < ratio.max() < 0.95  # not a case that anything would pass


def test_scaled_maps_against_interpolation_written_out() -> None:
    encoder, inputs = vit(), images(3, 16, 24)
    sums = sums_of(encoder, [inputs], [2])
    observed = encoder(inputs, (2,)).grids[2].double()
    for column, grid in ((4, (3, 4)), (5, (5, 8))):  # 4×6 by 0.75 and 1.25; 4.5 rounds to even
        size = tuple(4 * side for side in grid)
        view = F.interpolate(inputs, size=size, mode="bicubic", antialias=True)
        seen = encoder(view, (2,)).grids[2].double()
        moved = F.interpolate(seen, size=(4, 6), mode="bicubic")
        expected = equivariance_score(moved.flatten(2).mT, observed.flatten(2).mT)
        np.testing.assert_allclose(sums.numerator[0, :, column], expected.numerator, rtol=1e-4)
        np.testing.assert_allclose(sums.denominator[0, :, column], expected.denominator, rtol=1e-4)


def test_sums_do_not_depend_on_the_batches() -> None:
    encoder, inputs = vit(2), images(9, 16, 16)
    one = sums_of(encoder, [inputs], [0, 4])
    many = sums_of(encoder, [inputs[:1], inputs[1:5], inputs[5:6], inputs[6:]], [0, 4])
    for name in vars(one):
        np.testing.assert_allclose(
            getattr(many, name), getattr(one, name), rtol=1e-4, atol=1e-4, err_msg=name
        )


def test_energy_survives_a_large_mean() -> None:
    offset = 300.0

    def shifted(patches: Tensor) -> Tensor:
        return patches + offset

    inputs = images(30) + images(30, 1, 1, seed=1)
    sums = sums_of(Tokens(shifted), [inputs[i : i + 4] for i in range(0, 30, 4)])
    maps = shifted(F.avg_pool2d(inputs, 4)).numpy().astype(np.float64)
    within = ((maps - maps.mean((2, 3), keepdims=True)) ** 2).sum()
    total = ((maps - maps.mean((0, 2, 3), keepdims=True)) ** 2).sum()
    assert sums.energy[0, 0] == pytest.approx(within / total, rel=1e-9)


def synthetic(numerator: np.ndarray, denominator: np.ndarray) -> Sums:
    """Sums of one layer whose scores are of these ratios, alike for every transformation."""
    count, width = len(numerator), len(TRANSFORMATIONS)

    def spread(values: np.ndarray) -> np.ndarray:
        return np.repeat(values[None, :, None], width, axis=2).astype(np.float64)

    return Sums(
        observed=denominator[None] / 2,
        moved=spread(denominator / 2),
        product=spread(numerator / 2),
        unmoved=spread(np.zeros(count)),
        other_image=spread(np.zeros(count)),
        shuffled=spread(np.zeros(count)),
        cosine=spread(np.zeros(count)),
        energy=np.ones((1, 1 + width)),
    )


def test_intervals_are_those_of_a_ratio_of_means() -> None:
    draws = np.random.default_rng(0)
    denominator = draws.gamma(4, size=600)
    numerator = denominator * np.clip(0.7 + 0.2 * draws.standard_normal(600), -1, 1)
    values = scores_of(synthetic(numerator, denominator))
    score = numerator.sum() / denominator.sum()
    # Delta method: Var(ΣN / ΣD) ≈ Σ(N − ES·D)² / (ΣD)².
    error = np.sqrt(((numerator - score * denominator) ** 2).sum()) / denominator.sum()
    for name in COLUMNS:
        low, high = (values[f"es/block00/{name}/{end}"] or 0 for end in ("low", "high"))
        assert values[f"es/block00/{name}"] == pytest.approx(score)
        assert score - low == pytest.approx(1.96 * error, rel=0.12)
        assert high - score == pytest.approx(1.96 * error, rel=0.12)


def test_every_transformation_and_encoder_sees_the_same_resamples() -> None:
    numerator, denominator = np.random.default_rng(1).random((2, 50)) + 0.1
    values = scores_of(synthetic(numerator, denominator))
    ends = [values[f"{f}/block00/{n}/low"] for f in ("es", "es_random") for n in NAMES]
    # As near as a threaded sum of products is to itself; other resamples are far from that.
    assert ends == pytest.approx([ends[0]] * len(ends), rel=1e-12)
    assert values == pytest.approx(scores_of(synthetic(numerator, denominator)), rel=1e-12)
    reordered = scores_of(synthetic(numerator[::-1], denominator[::-1]))
    assert abs(reordered["es/block00/rot90/low"] - ends[0]) > 1e-4  # type: ignore[operator]


def test_a_moved_map_alone_can_make_a_score_undefined() -> None:
    numerator, denominator = np.random.default_rng(1).random((2, 50)) + 0.1
    sums = synthetic(numerator, denominator)
    sums.energy[0, 1 + NAMES.index("rot180")] = 0.9e-4
    values = scores_of(sums)
    undefined = {name for name in COLUMNS if values[f"es/block00/{name}"] is None}
    assert undefined == {"rot180", "rotation", "mean"}
    assert undefined == {name for name in COLUMNS if values[f"es/block00/{name}/low"] is None}


def test_one_image_has_no_interval_and_no_neighbour() -> None:
    values = scores_of(sums_of(Tokens(pixelwise), [images(1)]))
    assert values["es/block00/rot90"] == pytest.approx(1)
    assert "es/block00/rot90/low" not in values
    assert values["es_other_image/block00/rot90"] is None


# -- The protocol ---------------------------------------------------------------------------------


def without_cls() -> Encoder:
    encoder = vit()
    encoder.cls_token, encoder.cls_after, encoder.pools_mean = None, None, True
    return encoder


@pytest.mark.parametrize(
    "make",
    [
        lambda: loaded(vit(0)),
        lambda: loaded(vit(3)),
        lambda: loaded(without_cls()),
        lambda: read_encoder("timm:vit_tiny_patch16_224", random_init=True),
    ],
    ids=["cls_after 0", "cls_after 3", "no cls", "timm"],
)
def test_every_kind_of_encoder_is_scored(make: Callable[[], LoadedEncoder]) -> None:
    subject = make()
    patch, depth = subject.encoder.patch_size, subject.encoder.depth
    source = ShapesSource("val", image_size=64, num_images=6)
    outcome = evaluate(
        subject, source, runtime=CPU, image_size=(3 * patch, 4 * patch), limit=2, batch_size=2
    )
    values = outcome.result.metrics
    assert outcome.arrays["layers"].tolist() == list(range(depth + 1))
    for layer in range(depth + 1):
        for name in NAMES:
            score = values[f"es/block{layer:02d}/{name}"]
            assert score is not None
            assert -1 < score < 1
    assert outcome.result.data == {
        "path": "shapes",
        "n": 2,
        "partial": True,
        "split": "val",
        "image_size": [3 * patch, 4 * patch],
    }


def test_evaluate_scores_the_seeded_sample_and_stores_what_repeats_it() -> None:
    subject = loaded(vit(3))
    source = ShapesSource("val", image_size=16, num_images=5)
    outcome = evaluate(subject, source, runtime=CPU, batch_size=2)
    assert not outcome.result.data["partial"]
    assert sorted(outcome.arrays["image_ids"].tolist()) == [f"val/{i}" for i in range(5)]
    product, observed, moved = (
        outcome.arrays[k][3, :, 1] if k != "observed" else outcome.arrays[k][3]
        for k in ("product", "observed", "moved")
    )
    again = 2 * product.sum() / (observed.sum() + moved.sum())
    assert outcome.result.metrics["es/block03/rot180"] == pytest.approx(again, rel=1e-12)
    assert outcome.arrays["random_product"].shape == outcome.arrays["product"].shape
    assert remade(outcome) == len(COLUMNS) * len(outcome.arrays["layers"])
    twin = sums_of(subject.encoder.random_twin(0).eval(), [images(2, 16, 16)])
    assert twin.energy.min() > 1e-3
    assert (
        outcome.result.metrics["es_random/block00/rot90"]
        != (outcome.result.metrics["es/block00/rot90"])
    )


def test_sample_is_512_images_in_a_fixed_mixed_order() -> None:
    source = ShapesSource("val", image_size=16, num_images=2000)
    chosen = sample(source)
    assert len(set(chosen)) == 512
    assert chosen == sample(source)
    assert chosen[:9] == sample(source, 9)
    neighbours = source.labels[chosen]
    assert np.mean(neighbours[1:] == neighbours[:-1]) < 0.2


def test_protocol_is_the_rule_not_the_model() -> None:
    source = ShapesSource("val", image_size=32, num_images=2)

    def scored(encoder: Encoder, **settings: object) -> Result:
        return evaluate(loaded(encoder), source, runtime=CPU, layers=[0], **settings).result  # type: ignore[arg-type]

    wide = Model(name="vit_micro", patch_size=4, width=32, depth=1, num_heads=1)
    other = Encoder.from_model(wide, image_size=16).initialise(0).eval()
    one = scored(vit())
    assert one.protocol_id == scored(other).protocol_id == scored(vit(), limit=1).protocol_id
    assert one.protocol_id != scored(vit(), image_size=(20, 20)).protocol_id
    assert one.protocol_id != (
        evaluate(
            loaded(vit()),
            ShapesSource("train", image_size=32, num_images=2),
            runtime=CPU,
            layers=[0],
        ).result.protocol_id
    )


def test_sizes_and_layers_that_do_not_fit_are_refused() -> None:
    source = ShapesSource("val", image_size=32, num_images=2)
    with pytest.raises(UserError, match=r"layers 0, 5; they must be in 0…4"):
        evaluate(loaded(vit()), source, runtime=CPU, layers=[5, 0])
    with pytest.raises(UserError, match="multiples of the patch"):
        evaluate(loaded(vit()), source, runtime=CPU, image_size=(18, 16))
    with pytest.raises(UserError, match="use --image-size 12 or more"):
        evaluate(loaded(vit()), source, runtime=CPU, image_size=(8, 16))


def test_picture_shows_what_is_compared() -> None:
    encoder = vit(2)
    source = ShapesSource("val", image_size=16, num_images=6)
    rows = picture(loaded(encoder), source, layer=1, runtime=CPU)
    assert [row.name for row in rows] == ["rot90", "hflip", "rot180", "scale0.75"]
    np.testing.assert_array_equal(rows[0].view, np.rot90(rows[0].image))
    np.testing.assert_array_equal(rows[0].seen, np.rot90(rows[0].moved))
    np.testing.assert_array_equal(rows[1].seen, rows[1].moved[:, ::-1])
    assert rows[3].seen.shape == (3, 3, 16)
    assert rows[3].moved.shape == rows[3].observed.shape == (4, 4, 16)
    assert 0 <= rows[0].image.min() < rows[0].image.max() <= 1


# -- The command ----------------------------------------------------------------------------------


def run_directory(path: Path, addon: str = "{name: ser, layer: 3}") -> RunDir:
    recipe = f"seed: 0\ndata: {{path: shapes, image_size: 16, num_val: 12}}\naddon: {addon}\n"
    encoder = vit(3)
    run = RunDir.create(path, recipe=recipe, run={"status": "done"})
    metadata = encoder_metadata(MODEL, encoder, step=1)
    write_encoder(run.encoder, metadata, student=encoder, teacher=None)
    return run


def invoke(*arguments: str | Path) -> str:
    """Standard output; errors are raised."""
    app = typer.Typer()
    app.command()(equiv_score)
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_command_writes_result_sums_figures_and_a_table(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    text = invoke(run.path, "--layers", "3,0", "--batch-size", "5")
    (result,) = run.read_results()
    assert (result.name, result.data["n"]) == ("equiv-score", 12)
    for family in ("es", "cosine_raw", "es_random", "es_identity"):
        assert result.metrics[f"{family}/block03/rotation"] is not None
    assert "\n3 *  " in text
    assert f"{result.metrics['es/block03/rotation']:.3f}" in text
    with np.load(run.predictions("equiv-score")) as stored:
        assert stored["product"].shape == (2, 12, 6)
    assert {file.name for file in run.figures.iterdir()} == {
        f"{name}.{suffix}" for name in ("equiv-score", "equiv-tokens") for suffix in ("png", "svg")
    }
    assert "block 3" not in (run.figures / "equiv-score.svg").read_text()
    assert "Tokens after block 3" in (run.figures / "equiv-tokens.svg").read_text()


def test_command_without_a_tap_and_with_other_sizes(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run", addon="{name: none}")
    text = invoke(run.path, "--layers=1", "--image-size=12x20", "--limit=3", "--picture-layer=2")
    assert "\n1 *" not in text
    assert "partial" in text
    assert run.read_results()[0].data["image_size"] == [12, 20]
    assert "Tokens after block 2" in (run.figures / "equiv-tokens.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "1,x"], "--layers 1,x; it takes block numbers"),
        (["--layers", "9"], "must be in 0…4"),
        (["--picture-layer", "9"], "must be in 0…4"),
        (["--image-size", "16x"], "--image-size 16x; it takes H or HxW"),
        (["--image-size", "18"], "multiples of the patch"),
        (["--random-init"], "goes with timm:NAME only"),
        (["--teacher"], "holds no"),
    ],
)
def test_command_refuses_and_writes_nothing(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    run = run_directory(tmp_path / "run")
    before = sorted(run.path.rglob("*"))
    with pytest.raises(UserError, match=message):
        invoke(run.path, *arguments)
    assert sorted(run.path.rglob("*")) == before
