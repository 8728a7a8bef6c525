"""Numbers of the robustness protocols: golden cases, the authors' definitions, hand-made grids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sercli.data.corruptions.catalogue import CATALOGUE, CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES
from sercli.errors import UserError
from sercli.evals.common import Right
from sercli.evals.robustness.metrics import (
    ALEXNET_CLEAN_ERROR,
    NOISE_PERTURBATIONS,
    corruption_errors,
    flip_probability,
    top5_distance,
)
from sercli.evals.robustness.scores import (
    Normalisers,
    Sequences,
    corruption_metrics,
    corruption_settings,
    normalised_metrics,
    perturbation_metrics,
    protocol,
)
from sercli.metrics import top_classes
from sercli.runs.result import protocol_id
from tests.support.alexnet import ALEXNET_ERRORS, ALEXNET_EXTRA_ERRORS

# -- mCE ------------------------------------------------------------------------------------------


def constant(errors: dict[str, float]) -> dict[str, list[float]]:
    return {name: [error] * 5 for name, error in errors.items()}


def test_alexnet_has_a_hundred_percent() -> None:
    found = corruption_errors(constant(dict(ALEXNET_ERRORS)), clean=ALEXNET_CLEAN_ERROR)
    assert found.mce == 100
    assert found.relative_mce == 100
    assert set(found.ce.values()) == {100.0}


def test_the_table_is_the_published_one() -> None:
    assert len(ALEXNET_ERRORS) == 15
    assert np.mean(list(ALEXNET_ERRORS.values())) == pytest.approx(0.788993, abs=5e-7)
    assert not ALEXNET_ERRORS.keys() & ALEXNET_EXTRA_ERRORS.keys()
    assert len(ALEXNET_EXTRA_ERRORS) == 4
    assert tuple(ALEXNET_ERRORS) == CORRUPTIONS
    assert tuple(ALEXNET_EXTRA_ERRORS) == EXTRA_CORRUPTIONS
    errors = {name: one.alexnet_error for name, one in CATALOGUE.items()}
    assert errors == ALEXNET_ERRORS | ALEXNET_EXTRA_ERRORS


def test_ce_sums_over_severities_before_dividing() -> None:
    draws = np.random.default_rng(0)
    errors = {name: draws.random(5) for name in ALEXNET_ERRORS}
    found = corruption_errors({k: v.tolist() for k, v in errors.items()}, clean=0.24)
    ce = {k: 100 * v.sum() / (5 * ALEXNET_ERRORS[k]) for k, v in errors.items()}
    relative = {
        k: 100 * (v.mean() - 0.24) / (ALEXNET_ERRORS[k] - 0.43478) for k, v in errors.items()
    }
    assert found.ce == pytest.approx(ce)
    assert found.relative_ce == pytest.approx(relative)
    assert found.mce == pytest.approx(np.mean(list(ce.values())))
    assert found.relative_mce == pytest.approx(np.mean(list(relative.values())))


def test_extra_corruptions_enter_no_mean_and_a_missing_one_undoes_it() -> None:
    errors = constant(dict(ALEXNET_ERRORS))
    with_extra = corruption_errors(errors | constant({"saturate": 1.0, "spatter": 0.0}))
    assert with_extra.mce == 100
    assert with_extra.ce["saturate"] == pytest.approx(100 / 0.658248)
    assert with_extra.relative_mce is None
    assert not with_extra.relative_ce
    del errors["fog"]
    assert corruption_errors(errors, clean=0.4).mce is None
    assert corruption_errors(errors, clean=0.4).relative_mce is None


def test_what_alexnet_was_not_measured_on_has_no_ce() -> None:
    errors = constant(dict(ALEXNET_ERRORS))
    found = corruption_errors(errors | {"rain": [0.5] * 5}, clean=0.4)
    assert found.ce["rain"] is None
    assert found.relative_ce["rain"] is None
    without = corruption_errors(errors, clean=0.4)
    assert (found.mce, found.relative_mce) == (without.mce, without.relative_mce)


def test_missing_severities_are_refused() -> None:
    with pytest.raises(ValueError, match="4 severities"):
        corruption_errors({"fog": [0.5] * 4})


# -- Flips and the top-5 distance -----------------------------------------------------------------


def test_flips_compare_neighbours_and_under_noise_the_first_frame() -> None:
    frames = torch.tensor([[3, 4, 4, 4, 3], [1, 1, 1, 1, 1], [1, 2, 1, 2, 1]])
    assert flip_probability(frames, noise=False).tolist() == [0.5, 0.0, 1.0]
    assert flip_probability(frames, noise=True).tolist() == [0.75, 0.0, 0.5]
    assert {"gaussian_noise", "shot_noise"} == NOISE_PERTURBATIONS
    with pytest.raises(ValueError, match="1 frames"):
        flip_probability(frames[:, :1], noise=False)


def distance(*rankings: list[int], noise: bool = False) -> float:
    """Of rankings of all classes, best first."""
    return top5_distance(torch.tensor(rankings)[:, :5], noise=noise).item()


@pytest.mark.parametrize("classes", [10, 1000])
def test_golden_cases_of_the_top5_distance(classes: int) -> None:
    identity = list(range(classes))
    swapped = [1, 0, *identity[2:]]
    assert distance(identity, identity) == 0
    assert distance(identity, swapped) == 2
    assert distance(identity, identity[::-1]) == 15
    # Beyond the fifth place nothing counts, but what falls there counts once, at place 5.
    assert distance(identity, [*identity[:5], *identity[5:][::-1]]) == 0
    assert distance(identity, [*identity[:4], 5, 4, *identity[6:]]) == 1


def test_distance_compares_neighbours_and_under_noise_the_first_frame() -> None:
    identity = list(range(10))
    swapped = [1, 0, *range(2, 10)]
    sequence = (identity, swapped, identity, identity)
    assert distance(*sequence) == pytest.approx((2 + 2 + 0) / 3)
    assert distance(*sequence, noise=True) == pytest.approx((2 + 0 + 0) / 3)
    assert distance(identity, swapped, swapped) == pytest.approx(1)
    assert distance(identity, swapped, swapped, noise=True) == pytest.approx(2)


def papers_distance(before: np.ndarray, after: np.ndarray) -> int:
    """Σ_{i=1…5} Σ_{j=min(i,σ(i))+1}^{max(i,σ(i))} [1 ≤ j−1 ≤ 5], from two rankings of classes."""
    total = 0
    for i in range(1, min(5, len(before)) + 1):
        sigma = int(np.flatnonzero(after == before[i - 1])[0]) + 1
        total += sum(1 <= j - 1 <= 5 for j in range(min(i, sigma) + 1, max(i, sigma) + 1))
    return total


@pytest.mark.parametrize("classes", [3, 5, 7, 40])
@pytest.mark.parametrize("noise", [False, True])
def test_distance_is_the_papers_double_sum(classes: int, noise: bool) -> None:
    draws = np.random.default_rng(classes)
    logits = draws.standard_normal((4, 6, classes))
    rankings = np.argsort(-logits, axis=-1)
    expected = [
        np.mean([papers_distance(video[0 if noise else j - 1], video[j]) for j in range(1, 6)])
        for video in rankings
    ]
    best = top_classes(torch.from_numpy(logits).flatten(0, 1)).view(4, 6, -1)
    found = top5_distance(best, noise=noise)
    assert found.numpy() == pytest.approx(np.array(expected))
    assert found.max() > 0


# -- Masks ----------------------------------------------------------------------------------------


def test_a_mask_before_argmax_is_another_answer_than_one_after() -> None:
    logits = torch.tensor([[9.0, 1, 2, 8, 3], [0, 7.0, 1, 2, 6]])
    assert top_classes(logits, top=1).tolist() == [[0], [1]]
    subset = torch.tensor([4, 2, 1])  # in any order
    assert top_classes(logits, top=2, subset=subset).tolist() == [[4, 2], [1, 4]]
    assert top_classes(logits, subset=subset).shape == (2, 3)


def test_of_equal_logits_the_first_class_is_better() -> None:
    assert top_classes(torch.zeros(1, 900)).tolist() == [[0, 1, 2, 3, 4]]


# -- From predictions to metrics ------------------------------------------------------------------


def test_accuracies_count_first_places_and_the_first_five() -> None:
    best = np.array([[1, 2, 3, 4, 5], [2, 1, 3, 4, 5], [9, 8, 7, 6, 5], [1, 2, 3, 4, 5]])
    values = Right.of(best, np.array([1, 1, 1, 5])).metrics()
    assert (values["top1"], values["top5"]) == (25, 75)
    assert values["top1/low"] < 25 < values["top1/high"]  # type: ignore[operator]


def grid(names: list[str], share: float) -> dict[tuple[str, int], Right]:
    return {(name, s): Right(round(1000 * share), 900, 1000) for name in names for s in SEVERITIES}


def test_grid_of_corruptions() -> None:
    cells = grid(list(ALEXNET_ERRORS), 0.5) | grid(["saturate"], 0.0)
    cells["fog", 3] = Right(0, 0, 1000)
    values = corruption_metrics(cells, clean=76.0)
    assert values["top1"] == pytest.approx(50 * 74 / 75)
    assert values["top5"] == pytest.approx(90 * 74 / 75)
    assert values["top1/fog"] == pytest.approx(40)
    assert values["top1/fog/3"] == 0
    assert values["top1/saturate/1"] == 0
    assert values["top1/clean"] == 76
    errors = {name: [0.5] * 5 for name in ALEXNET_ERRORS} | {"fog": [0.5, 0.5, 1, 0.5, 0.5]}
    expected = corruption_errors(errors, clean=0.24)
    assert values["mce"] == pytest.approx(expected.mce)
    assert values["relative_mce"] == pytest.approx(expected.relative_mce)
    assert values["ce/saturate"] == pytest.approx(100 / 0.658248)
    without = corruption_metrics(cells)
    assert without["mce"] == values["mce"]
    assert without["relative_mce"] is None
    assert without["relative_ce/fog"] is None


def test_a_corruption_of_ones_own_is_reported_and_enters_no_mean() -> None:
    cells = grid(list(ALEXNET_ERRORS), 0.5)
    values = corruption_metrics(cells | grid(["rain"], 0.0), clean=76.0)
    assert values.items() >= corruption_metrics(cells, clean=76.0).items()
    assert (values["top1/rain"], values["ce/rain"], values["relative_ce/rain"]) == (0, None, None)


@pytest.mark.parametrize(
    ("variant", "of_the_fifteen"),
    [("imagenet-c", "be7eaf1e6226"), ("imagenet-c-otf", "d278182c6ee8")],
)
def test_the_protocol_names_corruptions_that_imagenet_c_does_not_have(
    variant: str, of_the_fifteen: str
) -> None:
    def id_of(*corruptions: str) -> str:
        settings = corruption_settings(corruptions, on_the_fly=variant == "imagenet-c-otf")
        return protocol_id(protocol(variant, {"head": "x"}, settings))

    assert id_of(*CORRUPTIONS) == of_the_fifteen
    assert id_of(*CORRUPTIONS, *EXTRA_CORRUPTIONS) == of_the_fifteen
    others = {id_of(*CORRUPTIONS, *more) for more in ([], ["rain"], ["hail"], ["rain", "hail"])}
    assert len(others) == 4


def test_an_incomplete_grid_has_no_mce() -> None:
    cells = grid(["fog", "snow"], 0.5)
    del cells["fog", 5]
    values = corruption_metrics(cells, clean=50.0)
    assert (values["top1"], values["mce"], values["ce/fog"]) == (50, None, None)
    assert values["ce/snow"] == pytest.approx(50 / 0.866816)
    assert "top1/fog/5" not in values


def test_perturbations_are_means_over_videos_then_over_perturbations() -> None:
    one = Sequences(
        np.array([[1, 1, 2], [3, 3, -1]]),
        np.array([1, 3]),
        np.array([0.5, 0.0]),
        np.array([4.0, 1.0]),
    )
    two = Sequences(np.array([[0, 0]]), np.array([1]), np.array([0.0]), np.array([0.5]))
    values = perturbation_metrics({"tilt": one, "scale": two})
    assert values["fp/tilt"] == 0.25
    assert values["fp"] == 0.125
    assert values["ut5d"] == pytest.approx((2.5 + 0.5) / 2)
    assert values["top1/tilt"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert values["top1"] == pytest.approx(values["top1/tilt"] / 2)  # type: ignore[operator]


# -- AlexNet's table ------------------------------------------------------------------------------


def test_flip_rates_only_by_a_table_of_the_users(tmp_path: Path) -> None:
    file = tmp_path / "alexnet.json"
    file.write_text(json.dumps({"fp": {"tilt": 0.2, "scale": 0.4}}))
    table = Normalisers.from_file(file)
    values = normalised_metrics({"fp/tilt": 0.1, "fp/scale": 0.1, "fp": 0.1}, table)
    assert values["mfr"] == pytest.approx((50 + 25) / 2)
    assert values["fr/tilt"] == pytest.approx(50)
    assert values["mt5d"] is None
    file.write_text(json.dumps({"tilt": 0.2}))
    flat = normalised_metrics({"fp/tilt": 0.1, "fp/scale": 0.1}, Normalisers.from_file(file))
    assert (flat["mfr"], flat["fr/tilt"]) == (None, pytest.approx(50))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "no table of numbers under 'fp'"),
        ('{"fp": {"tilt": 0}}', "fp of tilt is 0"),
        ('{"fp": {"tilt": "many"}}', "fp of tilt is 'many'"),
        ('{"fp": {"tilt": 1}, "other": {}}', "under 'other'"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "alexnet.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        Normalisers.from_file(file)
    with pytest.raises(UserError, match="cannot read"):
        Normalisers.from_file(tmp_path / "none.json")
