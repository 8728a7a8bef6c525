"""Mean IoU and its interval: against scikit-learn, a confusion matrix, and a simulation."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from sercli.evals.common import RESAMPLES, resample_weights
from sercli.evals.segmentation.scores import Counts, mean, metrics
from sercli.statistics import resampled_ends

CLASSES = ("background", "a", "b", "never", "only called")


def images(number, seed=0):
    draws = np.random.default_rng(seed)
    for _ in range(number):
        mask = draws.choice([0, 0, 0, 1, 2, 255], size=(9, 7)).astype(np.uint8)
        wrong = draws.random((9, 7)) < 0.3
        called = np.where(wrong | (mask == 255), draws.choice([0, 1, 2, 4], size=(9, 7)), mask)
        yield mask, called.astype(np.uint8)


def joined(pairs):
    counts = [Counts.of_image(mask, called, len(CLASSES)) for mask, called in pairs]
    return Counts(*(np.concatenate([getattr(one, name) for one in counts])
                    for name in ("right", "called", "truth")))  # fmt: skip


def test_against_scikit_learn():
    pairs = list(images(12))
    counts = joined(pairs)
    values = metrics(counts, CLASSES, resample_weights("segment", 12))
    truth, called = (np.concatenate([one[k].ravel() for one in pairs]) for k in (0, 1))
    truth, called = truth[truth != 255], called[truth != 255]
    each = jaccard_score(truth, called, labels=[0, 1, 2], average=None)
    for name, expected in zip(CLASSES, each, strict=False):
        assert values[f"iou/{name}"] == pytest.approx(100 * expected)
    assert values["miou"] == pytest.approx(100 * each.mean())
    assert values["pixel_accuracy"] == pytest.approx(100 * accuracy_score(truth, called))
    # A class that does not occur has no IoU; what is called so counts against the others.
    assert values["iou/never"] is values["iou/only called"] is None
    assert values["iou/never/low"] is values["iou/never/high"] is None
    table = confusion_matrix(truth, called, labels=range(5))
    assert Counts.of_confusion(table).mean_iou() == pytest.approx(values["miou"])


def test_nothing_labelled_is_no_number():
    ignored = np.full((4, 4), 255, np.uint8)
    counts = Counts.of_image(ignored, np.zeros((4, 4), np.uint8), 5)
    assert counts.mean_iou() is None
    values = metrics(counts, CLASSES, np.ones((3, 1)))
    assert set(values.values()) == {None}


def test_the_interval_is_the_bootstrap_over_images():
    counts = joined(images(30))
    values = metrics(counts, CLASSES, resample_weights("segment", 30))
    draws = np.random.default_rng(5)
    found = []
    for _ in range(4000):  # images drawn one by one, and counted anew
        rows = draws.integers(30, size=30)
        right, union, truth = (
            one[rows].sum(0) for one in (counts.right, counts.unions, counts.truth)
        )
        found.append(100 * np.mean((right / np.maximum(union, 1))[truth > 0]))
    bias = np.mean(found) - values["miou"]
    low, high = np.quantile(found, [0.025, 0.975]) - 2 * bias
    spread = high - low
    assert values["miou/low"] == pytest.approx(low, abs=0.06 * spread)
    assert values["miou/high"] == pytest.approx(high, abs=0.06 * spread)
    assert values["miou/low"] < values["miou"] < values["miou/high"]
    weights = resample_weights("segment", 30)
    assert weights.shape == (RESAMPLES, 30)
    assert (weights.sum(1) == 30).all()


def test_the_interval_covers_what_is_true():
    """Images of unequal difficulty and size; truth is the ratio of expectations, class by class."""
    draws = np.random.default_rng(0)
    number, classes, trials = 150, 4, 400

    def sample(count):
        area = draws.integers(50, 400, size=(count, classes)) * (
            draws.random((count, classes)) < [1, 0.8, 0.5, 0.3]
        )
        ease = draws.beta(4, 2, size=(count, 1))
        right = draws.binomial(area, ease)
        wrong = area - right
        called = right + np.roll(wrong, 1, axis=1)
        return Counts(right, called, area)

    many = sample(200_000)
    true = mean(many.iou(np.ones((1, 200_000))))[0]
    weights = resample_weights("segment", number)[:500]
    inside = 0
    for _ in range(trials):
        drawn = mean(sample(number).iou(weights))
        low, high = resampled_ends(drawn, images=number)
        inside += low <= true <= high
    assert 0.915 <= inside / trials <= 0.975  # 95 % within three standard errors, or nearly


@pytest.mark.slow
def test_the_interval_holds_where_few_images_have_each_class():
    """A background and 20 classes in 3 to 30 % of 256 images: each ratio is a little low."""
    draws, trials = np.random.default_rng(4), 2000
    number, occurs = 256, np.array([1, *np.geomspace(0.3, 0.03, 20)])

    def sample(count):
        shape = (count, len(occurs))
        area = np.rint(draws.gamma(3, 60, shape)).astype(int) * (draws.random(shape) < occurs)
        ease = 0.6 * draws.beta(4, 2, (count, 1)) + 0.4 * draws.beta(4, 2, shape)
        right = draws.binomial(area, ease)
        return Counts(right, right + np.roll(area - right, 1, axis=1), area)

    many = [sample(20_000) for _ in range(10)]
    true = 100 * sum(c.right.sum(0) for c in many) / sum(c.unions.sum(0) for c in many)
    weights, inside = resample_weights("segment", number)[:1000], 0
    for _ in range(trials):
        counts = sample(number)
        values = metrics(counts, [str(label) for label in range(len(occurs))], weights)
        there = counts.truth.sum(0) > 0
        inside += values["miou/low"] <= true[there].mean() <= values["miou/high"]
    # Without the correction 0.90.
    assert inside / trials == pytest.approx(0.95, abs=0.01 + 4 * np.sqrt(0.95 * 0.05 / trials))


@pytest.mark.parametrize("occurs", [0.2, 0.03])
def test_the_interval_of_the_mean_has_its_bias_taken_off(occurs):
    """Where samples have all classes; where they lack one, it is the mean of others."""
    draws = np.random.default_rng(4)
    area = 200 * (draws.random((60, 20)) < occurs)
    right = draws.binomial(area, draws.beta(4, 2, size=(60, 1)))
    counts = Counts(right, right + np.roll(area - right, 1, axis=1), area)
    weights = resample_weights("segment", 60)
    values = metrics(counts, [str(label) for label in range(20)], weights)
    drawn = mean(counts.iou(weights))
    low, high = resampled_ends(drawn, images=60)
    back = values["miou"] - drawn.mean() if occurs == 0.2 else 0
    assert (back != 0) == (occurs == 0.2)
    assert values["miou/low"] == pytest.approx(low + 2 * back)
    assert values["miou/high"] == pytest.approx(high + 2 * back)


def test_an_interval_moved_back_by_its_bias_stays_a_percentage():
    """One image all right, the other all wrong: IoU 1/3; samples have 0, 1/3 or 1, and 0.42."""
    right, area = np.array([[100], [0]]), np.array([[100], [100]])
    values = metrics(Counts(right, area, area), ["a"], resample_weights("segment", 2))
    assert values["miou"] == pytest.approx(100 / 3)
    assert values["miou/low"] == 0  # not -17
    assert values["miou/high"] == pytest.approx(100 - 2 * (125 / 3 - 100 / 3), abs=3)
    alone = metrics(Counts(right[:1], area[:1], area[:1]), ["a"], resample_weights("segment", 1))
    assert (alone["miou"], alone["miou/low"], alone["miou/high"]) == (100, None, None)
