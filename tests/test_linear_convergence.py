"""When a linear probe is said not to have converged: heads that have, and heads that have not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from test_linear_heads import clusters

from sercli.evals.linear_convergence import FEW_STEPS, Training, companion_rates, doubt
from sercli.evals.linear_heads import HeadRow, choose
from sercli.evals.linear_protocol import GRID, STEPS_PER_EPOCH
from sercli.evals.linear_training import Order

LONG = Training(epochs=50, steps=FEW_STEPS, augmented=True)


def test_every_rate_has_one_below_it() -> None:
    assert companion_rates(GRID) == (0.0005,)
    assert companion_rates((3.0,)) == (1.5,)
    assert companion_rates((1.0, 1.2, 10.0)) == (0.5, 0.6, 5.0)
    assert companion_rates((1.0, 0.4)) == (0.2,)


@pytest.mark.parametrize("rates", [(0.2, 0.02), (0.2, 0.02, 0.01, 0.1)])
def test_companions_change_nothing_and_are_never_chosen(rates: tuple[float, ...]) -> None:
    features, labels = clusters(200)
    rows = [
        HeadRow("cls1", 6, learning_rates=rates[:2], companions=companions, num_classes=4, seed=0)
        for companions in ((), rates[2:])
    ]
    for row in rows:
        for _ in range(30):
            row.step(features, labels, factor=1.0)
        row.measure(features, labels, epoch=1)
    alone, beside = rows
    torch.testing.assert_close(beside.weight[:, :2], alone.weight)
    assert len(beside.best.correct) == len(rates)
    beside.best.correct[2:] = 200  # as if they were better
    assert choose({"cls1": beside}, best=True) == choose({"cls1": alone}, best=True)


def test_right_is_what_measure_counts() -> None:
    features, labels = clusters(300)
    row = HeadRow("cls1", 6, learning_rates=(0.1, 1e-9, 1e30), num_classes=4, seed=0)
    for _ in range(5):
        row.step(features, labels, factor=1.0)
    row.measure(features, labels, epoch=1)
    right = row.right(features, labels)
    assert (right.dtype, right.shape) == (torch.bool, (3, 300))
    assert right[:2].sum(1).tolist() == row.last.correct[:2].tolist()


def trained(rate: float, epochs: int) -> tuple[np.ndarray, float, list[float]]:
    """Heads of `rate` and half of it after whole schedules of 25 steps an epoch.

    Returns:
        Which of 2,000 unseen points they have right [2, N], how many percent scikit-learn has, and
        the rates.
    """
    features, labels = clusters(800, seed=1)
    unseen, answers = clusters(2000, seed=2)
    rates = [rate, *companion_rates((rate,))]
    row = HeadRow("cls1", 6, learning_rates=rates[:1], companions=rates[1:], num_classes=4, seed=0)
    order = Order(800, 32, epochs, seed=0)
    for step, (_, positions) in enumerate(order.batches(0)):
        row.step(features[positions], labels[positions], factor=order.factor(step))
    oracle = LogisticRegression(C=1e8, max_iter=2000).fit(features.numpy(), labels.numpy())
    best = 100 * oracle.score(unseen.numpy(), answers.numpy())
    return row.right(unseen, answers).numpy(), best, rates


@pytest.mark.parametrize(
    ("rate", "epochs", "converges"),
    [(1e-6, 40, False), (5e-6, 40, False), (0.1, 40, True), (0.02, 40, True), (0.5, 40, True)],
)
def test_heads_that_have_and_have_not_converged(rate: float, epochs: int, converges: bool) -> None:
    right, best, rates = trained(rate, epochs)
    found = doubt(
        Training(epochs, 25 * epochs, augmented=True), rate=rate, rates=rates, right=right
    )
    accuracy = 100 * right[0].mean()
    if converges:
        assert accuracy > best - 1
        assert found is None
    else:
        assert accuracy < best - 5
        assert found is not None
        assert "accuracy on the hold-out still rises, by" in found
        assert f"over what the learning rate {rate / 2:g} gives (p = " in found
        assert "it took" not in found


def _right(won: int, lost: int, total: int) -> np.ndarray:
    """The chosen head has `won` images right that the other has wrong, and `lost` the reverse."""
    more, less = np.ones((2, total), bool)
    less[:won], more[won : won + lost] = False, False
    return np.stack([less, more])


@pytest.mark.parametrize(
    ("won", "lost", "total", "rises"),
    [
        (6, 0, 200, True),  # p = 2 / 2^6 = 0.03
        (5, 0, 200, False),  # p = 0.06
        (20, 14, 200, False),  # as likely by chance
        (300, 150, 20_000, False),  # no chance, but 0.75 points
        (400, 150, 20_000, True),
        (0, 40, 200, False),  # the lower rate is better
        (0, 0, 200, False),
    ],
)
def test_a_rise_is_neither_chance_nor_small(won: int, lost: int, total: int, rises: bool) -> None:
    found = doubt(LONG, rate=2.0, rates=(1.0, 2.0), right=_right(won, lost, total))
    assert (found is not None) == rises
    # A rate that is no half of it says nothing of half the training.
    assert doubt(LONG, rate=2.0, rates=(0.2, 2.0), right=_right(won, lost, total)) is None


def test_few_steps_are_fewer_than_the_default_takes() -> None:
    assert FEW_STEPS == 50 * STEPS_PER_EPOCH
    same = {"rate": 1.0, "rates": (0.5, 1.0), "right": np.ones((2, 10), bool)}
    assert doubt(LONG, **same) is None  # type: ignore[arg-type]
    for training, remedy in (
        (
            Training(50, 50, True),
            "--epochs 800, or in less time with --cached-features --epochs 800",
        ),
        (
            Training(50, 799, True),
            "--epochs 200, or in less time with --cached-features --epochs 500",
        ),
        (Training(3, 21, False), "--epochs 115"),
    ):
        found = doubt(training, **same)  # type: ignore[arg-type]
        assert found == (
            f"the probe may not have converged: it took {training.steps} steps, fewer than 800; "
            f"repeat with {remedy}"
        )


def test_both_reasons_are_one_sentence() -> None:
    found = doubt(Training(10, 70, False), rate=2.0, rates=(1.0, 2.0), right=_right(9, 0, 100))
    assert found == (
        "the probe may not have converged: it took 70 steps, fewer than 800 and accuracy on the "
        "hold-out still rises, by 9.0 points over what the learning rate 1 gives (p = 0.004); "
        "repeat with --epochs 115"
    )
