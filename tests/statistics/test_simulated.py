"""How often intervals hold and tests reject, where the true value is known.

Each check allows what 95 % may be off by (one point) and four standard errors of the simulation, so
that one in 15,000 fails by chance; draws are seeded. `-m slow` repeats them with 10,000 sets each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats

from sercli.evals.common import RESAMPLES
from sercli.statistics import (
    MeanRatio,
    difference_interval,
    jackknife_interval,
    mcnemar_p_value,
    mean_interval,
    median_interval,
    paired_ratios,
    paired_seeds,
    power_of_paired_test,
    resampled_ends,
    smallest_difference,
    wilson_interval,
)

FEW, MANY = 2000, 10_000
often = pytest.mark.parametrize("sets", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])


def assert_near(count: int, sets: int, expected: float = 0.95, within: float = 0.01) -> None:
    allowed = within + 4 * math.sqrt(expected * (1 - expected) / sets)
    assert abs(count / sets - expected) <= allowed, f"{count / sets:.4f}"


@often
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_means_over_seeds(seeds: int, sets: int) -> None:
    """Accuracies of seeds: a normal spread of 0.6 points, and 1,024 images each."""
    draws = np.random.default_rng(seeds)
    truth = 0.7 + 0.006 * draws.standard_normal((sets, seeds))
    values = draws.binomial(1024, truth) / 1024
    intervals = [mean_interval(row) for row in values.tolist()]
    assert_near(sum(one is not None and one.low <= 0.7 <= one.high for one in intervals), sets)


@often
@pytest.mark.parametrize("seeds", [3, 5])
def test_seeds_that_do_not_differ_are_rejected_in_five_percent(seeds: int, sets: int) -> None:
    draws = np.random.default_rng(10 + seeds)
    worlds = draws.normal(60, 3, (sets, seeds))
    first, second = (worlds + draws.normal(0, 0.6, worlds.shape) for _ in range(2))
    found = [paired_seeds(*pair) for pair in zip(first.tolist(), second.tolist(), strict=True)]
    assert_near(sum(one.p_value is not None and one.p_value < 0.05 for one in found), sets, 0.05)


@often
@pytest.mark.parametrize("images", [20, 64, 512])
def test_ratios_of_sums(images: int, sets: int) -> None:
    """As ES has them: of maps of unequal length, more alike in some images than in others."""
    draws = np.random.default_rng(images)
    weights = draws.multinomial(images, np.full(images, 1 / images), size=RESAMPLES)

    def maps(count: int) -> tuple[np.ndarray, np.ndarray]:
        length = np.exp(0.3 * draws.standard_normal(count))
        return length * stats.logistic.cdf(0.8 + 0.8 * draws.standard_normal(count)), length

    many = maps(2_000_000)
    truth, held = many[0].sum() / many[1].sum(), 0
    sets = sets // 4 if images > 100 else sets  # products of 2,000 by 512
    for _ in range(sets):
        above, below = maps(images)
        low, high = resampled_ends((weights @ above) / (weights @ below), images=images)
        held += bool(low <= truth <= high)
    assert_near(held, sets)


@often
@pytest.mark.parametrize("gain", [0.0, 0.2])
@pytest.mark.parametrize("images", [64, 256, 512])
def test_differences_of_ratios_of_sums(images: int, gain: float, sets: int) -> None:
    """As ES over three turns, of two encoders: what one finds hard the other does, more or less."""
    draws = np.random.default_rng([images, 7])

    def pair(count: int) -> list[MeanRatio]:
        shared, length = draws.standard_normal(count), draws.standard_normal(count)
        made = []
        for more in (0.0, gain):
            below = np.exp(0.3 * length + 0.1 * draws.standard_normal((3, count)))
            ease = 0.8 + more + 0.6 * shared + 0.5 * draws.standard_normal((3, count))
            made.append(MeanRatio(below * stats.logistic.cdf(ease), below))
        return made

    one, two = pair(1_000_000)
    truth = two.value - one.value if gain else 0.0
    found = [paired_ratios(*pair(images)) for _ in range(sets if sets == MANY else sets // 2)]
    ends = [one.interval for one in found if one.interval is not None]
    assert_near(sum(one.low <= truth <= one.high for one in ends), len(found))
    if not gain:
        rejected = sum(one.p_value is not None and one.p_value < 0.05 for one in found)
        assert_near(rejected, len(found), 0.05)


# How many classes, in which share of images the rarest is, images, and how far off it may be.
WORLDS = [
    (4, 0.3, 64, 0.01), (4, 0.3, 256, 0.01), (4, 0.3, 512, 0.01),
    (9, 0.2, 64, 0.01), (9, 0.2, 256, 0.01), (9, 0.2, 512, 0.01),
    (21, 0.03, 64, 0.025), (21, 0.03, 256, 0.01), (21, 0.03, 512, 0.01),
    (21, 0.01, 64, 0.025), (21, 0.01, 256, 0.015), (21, 0.01, 512, 0.01),
]  # fmt: skip


@often
@pytest.mark.parametrize(("classes", "rarest", "images", "within"), WORLDS)
def test_differences_of_mean_iou(
    classes: int, rarest: float, images: int, within: float, sets: int
) -> None:
    """Two segmenters that are equally good: a background, and classes that fewer images have."""
    draws = np.random.default_rng([classes, images])
    occurs = np.array([1, *np.geomspace(max(0.3, rarest), rarest, classes - 1)])

    def counted(area: np.ndarray, ease: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        right = draws.binomial(area, 0.6 * ease + 0.4 * draws.beta(4, 2, area.shape))
        there = area.sum(0) > 0
        unions = area + np.roll(area - right, 1, axis=1)
        return right[:, there].T.astype(float), unions[:, there].T.astype(float)

    found = []
    for _ in range(sets // 5 if sets == MANY else sets // 20):
        area = np.rint(draws.gamma(3, 60, (images, classes))).astype(int)
        area *= draws.random(area.shape) < occurs
        ease = draws.beta(4, 2, (images, 1))
        pair = [MeanRatio(*counted(area, ease)) for _ in range(2)]
        found.append(paired_ratios(*pair).p_value)
    rejected = sum(value is not None and value < 0.05 for value in found)
    assert_near(rejected, len(found), 0.05, within=within)


@often
def test_what_a_set_has_as_a_whole(sets: int) -> None:
    """A correlation, of 64 groups: no mean, as AP is none."""
    draws, held = np.random.default_rng(5), 0
    for _ in range(sets // 4):
        one = draws.standard_normal(256)
        other = 0.5 * one + math.sqrt(0.75) * draws.standard_normal(256)
        group = np.arange(256) % 64
        parts = [float(np.corrcoef(one[group != g], other[group != g])[0, 1]) for g in range(64)]
        interval = jackknife_interval(float(np.corrcoef(one, other)[0, 1]), parts)
        held += interval.low <= 0.5 <= interval.high
    assert_near(held, sets // 4)


@pytest.mark.parametrize("noise", ["normal", "t3", "lognormal"])
@pytest.mark.parametrize("rounds", [3, 5, 6, 7, 9, 15])
def test_medians_of_rounds(rounds: int, noise: str) -> None:
    draws = np.random.default_rng(rounds)
    shape = (FEW, rounds)
    drawn = {
        "normal": draws.standard_normal(shape),
        "t3": draws.standard_t(3, shape),
        "lognormal": np.exp(0.5 * draws.standard_normal(shape)) - 1,
    }[noise]
    found = [median_interval(row) for row in drawn.tolist()]
    confidence = {one.confidence for one in found if one}.pop()
    assert confidence == (0.95 if rounds > 5 else 1 - 2 ** (1 - rounds))
    held = sum(one is not None and one.low <= 0 <= one.high for one in found)
    assert_near(held, FEW, confidence)


@pytest.mark.parametrize(("images", "share"), [(256, 0.45), (1024, 0.3), (1024, 0.9), (5000, 0.99)])
def test_shares_of_images_exactly(images: int, share: float) -> None:
    """Summed over all counts instead of drawn."""
    counts = np.arange(images + 1)
    likely = stats.binom.pmf(counts, images, share)
    seen = counts[likely > 1e-12]
    ends = [wilson_interval(int(count), images) for count in seen]
    held = sum(likely[count] for count, one in zip(seen, ends, strict=True)
               if one.low <= share <= one.high)  # fmt: skip
    assert held == pytest.approx(0.95, abs=0.01)


def tables(images: int, discordant: float, difference: float, sets: int) -> Iterator[list[int]]:
    shares = [(discordant - difference) / 2, (discordant + difference) / 2, 1 - discordant]
    draws = np.random.default_rng([images, round(1000 * discordant)])
    yield from draws.multinomial(images, shares, size=sets)[:, :2].tolist()


@pytest.mark.parametrize("discordant", [0.02, 0.05, 0.15])
@pytest.mark.parametrize("images", [1024, 50_000])
def test_differences_on_the_same_images(images: int, discordant: float) -> None:
    for difference in (0.0, discordant / 4):
        held = 0
        for b, c in tables(images, discordant, difference, FEW):
            interval = difference_interval(b, c, images=images)
            held += interval.low <= difference <= interval.high
        assert_near(held, FEW)


@pytest.mark.parametrize("discordant", [0.02, 0.05, 0.15])
def test_a_planted_zero_is_rejected_in_five_percent(discordant: float) -> None:
    rejected = sum(mcnemar_p_value(b, c) < 0.05 for b, c in tables(1024, discordant, 0, FEW))
    assert_near(rejected, FEW, 0.05)
    for images in (1024, 50_000):
        size = power_of_paired_test(0.0, discordant=discordant, images=images)
        assert size == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("discordant", [0.02, 0.05, 0.15])
@pytest.mark.parametrize("images", [1024, 50_000])
def test_power_is_as_its_formula_says(images: int, discordant: float) -> None:
    for power in (0.5, 0.8):
        difference = smallest_difference(discordant=discordant, images=images, power=power)
        assert difference is not None
        exact = power_of_paired_test(difference, discordant=discordant, images=images)
        assert exact == pytest.approx(power, abs=0.005)
        found = tables(images, discordant, difference, 1000)
        assert_near(sum(mcnemar_p_value(b, c) < 0.05 for b, c in found), 1000, exact, within=0)
        z = stats.norm.ppf(0.975) * math.sqrt(discordant)  # Connor (1987)
        spread = math.sqrt(discordant - difference**2)
        normal = stats.norm.cdf((difference * math.sqrt(images) - z) / spread)
        assert exact == pytest.approx(normal, abs=0.03)


def test_what_cannot_be_found() -> None:
    assert smallest_difference(discordant=0.02, images=100) is None  # two images
    assert smallest_difference(discordant=0.0, images=100) is None
    with pytest.raises(ValueError, match="difference"):
        power_of_paired_test(0.3, discordant=0.2, images=100)
    with pytest.raises(ValueError, match="discordant"):
        smallest_difference(discordant=1.2, images=100)
