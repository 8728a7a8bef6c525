"""When a linear probe is said not to have converged: heads that have, and heads that have not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from sercli.evals.linear.classifiers import HeadRow, Judgement, choose
from sercli.evals.linear.convergence import FEW_STEPS, Training, companion_rates, doubt
from sercli.evals.linear.options import GRID
from sercli.evals.linear.probe import STEPS_PER_EPOCH
from sercli.evals.linear.training import Order
from tests.support.clusters import clusters

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


def test_each_image_is_judged() -> None:
    features, labels = clusters(300)
    row = HeadRow("cls1", 6, learning_rates=(0.1, 1e-9, 1e38), num_classes=4, seed=0)
    for _ in range(5):
        row.step(features, labels, factor=1.0)
    judged = row.judge(features, labels)
    for head in (0, 1):
        weight, bias = row.head(head, best=False)
        logits = (features @ weight.T + bias).double()
        assert judged.right[head].tolist() == (logits.argmax(1) == labels).tolist()
        expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        torch.testing.assert_close(judged.loss[head], expected, rtol=1e-4, atol=1e-5)
    assert not judged.loss[2].isfinite().all()


def trained(rate: float, epochs: int, unseen: int) -> tuple[Judgement, float, list[float]]:
    """Heads of `rate` and half of it after whole schedules of 25 steps an epoch.

    Returns:
        How they do on unseen points, how many percent of 2,000 scikit-learn has right, and the
        rates.
    """
    features, labels = clusters(800, seed=1)
    others, answers = clusters(2000, seed=2)
    rates = [rate, *companion_rates((rate,))]
    row = HeadRow("cls1", 6, learning_rates=rates[:1], companions=rates[1:], num_classes=4, seed=0)
    order = Order(800, 32, epochs, seed=0)
    for step, (_, positions) in enumerate(order.batches(0)):
        row.step(features[positions], labels[positions], factor=order.factor(step))
    oracle = LogisticRegression(C=1e8, max_iter=2000).fit(features.numpy(), labels.numpy())
    best = 100 * oracle.score(others.numpy(), answers.numpy())
    return row.judge(others[:unseen], answers[:unseen]), best, rates


@pytest.mark.parametrize("unseen", [200, 2000])
@pytest.mark.parametrize(
    ("rate", "epochs", "converges"),
    [(1e-6, 40, False), (5e-6, 40, False), (0.1, 40, True), (0.02, 40, True), (0.5, 40, True)],
)
def test_heads_that_have_and_have_not_converged(
    rate: float, epochs: int, converges: bool, unseen: int
) -> None:
    judged, best, rates = trained(rate, epochs, unseen)
    training = Training(epochs, 25 * epochs, augmented=True)
    found = doubt(training, rate=rate, rates=rates, judged=judged)
    accuracy = 100 * judged.right[0].double().mean().item()
    if converges:
        assert accuracy > best - (1 if unseen == 2000 else 5)
        assert found is None
    else:
        assert accuracy < best - 5
        assert found is not None
        assert "accuracy on the hold-out still rises, by" in found
        assert f"over what the learning rate {rate / 2:g} gives (p = " in found
        assert "it took" not in found


def _judged(won: int, lost: int, total: int, fall: float = 0.0) -> Judgement:
    """The chosen head has `won` images right that the other has wrong, and `lost` the reverse.

    The other's loss is 1 ± 0.5, the chosen one's lower by `fall` ± 0.1.
    """
    right = torch.ones(2, total, dtype=torch.bool)
    right[0, :won], right[1, won : won + lost] = False, False
    sign = torch.where(torch.arange(total) % 2 == 0, 1.0, -1.0).double()
    spread = torch.where(torch.arange(total) % 4 < 2, 1.0, -1.0).double()
    less = 1 + 0.5 * sign
    return Judgement(right, torch.stack([less, less - fall + 0.1 * spread]))


@pytest.mark.parametrize(
    ("won", "lost", "total", "rises"),
    [
        (6, 0, 200, True),  # p = 1 / 2^6 = 0.016
        (4, 0, 200, False),  # p = 1 / 2^4 = 0.06
        (20, 14, 200, False),  # as likely by chance
        (300, 150, 20_000, False),  # no chance, but 0.75 points
        (400, 150, 20_000, True),
        (0, 40, 200, False),  # the lower rate is better
        (0, 0, 200, False),
    ],
)
def test_a_rise_is_neither_chance_nor_small(won: int, lost: int, total: int, rises: bool) -> None:
    found = doubt(LONG, rate=2.0, rates=(1.0, 2.0), judged=_judged(won, lost, total))
    assert (found is not None) == rises
    # A rate that is no half of it says nothing of half the training.
    assert doubt(LONG, rate=2.0, rates=(0.2, 2.0), judged=_judged(won, lost, total)) is None


@pytest.mark.parametrize(
    ("won", "lost", "total", "fall", "rises"),
    [
        (8, 4, 200, 0.03, True),  # 2 points, which 12 images do not show, but the loss does
        (8, 4, 200, 0.012, False),  # 0.012 ± 0.007
        (8, 4, 200, -0.03, False),
        (5, 4, 200, 0.03, False),  # half a point
        (4, 2, 40, 0.03, False),  # 0.03 ± 0.016
    ],
)
def test_the_loss_tells_what_few_images_do_not(
    won: int, lost: int, total: int, fall: float, rises: bool
) -> None:
    judged = _judged(won, lost, total, fall)
    assert (doubt(LONG, rate=2.0, rates=(1.0, 2.0), judged=judged) is not None) == rises
    judged.loss[1, 0] = np.inf  # diverged
    assert doubt(LONG, rate=2.0, rates=(1.0, 2.0), judged=judged) is None


def test_few_steps_are_fewer_than_the_default_takes() -> None:
    assert FEW_STEPS == 50 * STEPS_PER_EPOCH
    same = {"rate": 1.0, "rates": (0.5, 1.0), "judged": _judged(0, 0, 12)}
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
    found = doubt(Training(10, 70, False), rate=2.0, rates=(1.0, 2.0), judged=_judged(9, 0, 100))
    assert found == (
        "the probe may not have converged: it took 70 steps, fewer than 800 and accuracy on the "
        "hold-out still rises, by 9.0 points over what the learning rate 1 gives (p = 0.002); "
        "repeat with --epochs 115"
    )
