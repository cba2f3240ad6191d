"""Calibration, net benefit, precision and learning curves of scores whose truth is known."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from voxelwave.apps.nested_cv.learning import learning_curve
from voxelwave.apps.nested_cv.stability import calibration_line, decision_curve, sample_size, stability
from voxelwave.apps.nested_cv.statistics import Scores, bootstrap_weights
from voxelwave.runs.auc import auc_variance


def _scores(label, score, folds: int = 5) -> Scores:
    score = np.atleast_2d(score)
    fold = np.broadcast_to(np.arange(len(label)) // 2 % folds, score.shape)
    return Scores(np.asarray(label), score, np.full(score.shape, 0.5), fold, np.arange(len(label)))


def _calibrated(n: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn with the probabilities given, so that the calibration is perfect; and the log odds."""
    generator = np.random.default_rng(seed)
    odds = generator.normal(size=n)
    return (generator.random(n) < 1 / (1 + np.exp(-odds))).astype(int), odds


def _probability(odds):
    return 1 / (1 + np.exp(-odds))


@pytest.mark.parametrize(("stretch", "shift", "slope", "intercept"), [(1, 0, 1, 0), (2, 0, 0.5, 0), (1, -1, 1, 1)])
def test_calibration_of_stretched_and_shifted_probabilities(stretch, shift, slope, intercept):
    label, odds = _calibrated()
    scores = _scores(label, _probability(stretch * odds + shift))
    found = calibration_line(scores, bootstrap_weights(scores, 50, 0))
    assert found["slope"] == pytest.approx(slope, abs=0.1)
    assert found["intercept"] == pytest.approx(intercept, abs=0.15)
    low, high = found["slope_interval"]
    assert low < found["slope"] < high


def test_the_calibration_slope_is_that_of_scikit_learn():
    label, odds = _calibrated(n=200)
    scores = _scores(label, _probability(1.7 * odds + 0.4))
    found = calibration_line(scores, bootstrap_weights(scores, 2, 0))
    regression = LogisticRegression(C=1e9, tol=1e-9).fit((1.7 * odds + 0.4)[:, None], label)
    assert found["slope"] == pytest.approx(regression.coef_[0, 0], rel=1e-3)


@pytest.mark.parametrize("score", [[0.1, 0.2, 0.8, 0.9] * 5, [0.4] * 20])
def test_separable_and_constant_scores_have_no_slope(score):
    scores = _scores([0, 0, 1, 1] * 5, np.array(score))
    found = calibration_line(scores, bootstrap_weights(scores, 10, 0))
    assert found["slope"] is None
    assert found["slope_interval"] is None


def test_net_benefit_of_a_perfect_model_and_of_calling_everyone_positive():
    label = np.array([0, 1] * 10)
    perfect, everyone = (decision_curve(_scores(label, score)) for score in (label.astype(float), np.ones(20)))
    assert [point["model"] for point in perfect] == pytest.approx([0.5] * 19)
    assert [point["model"] for point in everyone] == pytest.approx([point["everyone"] for point in everyone])
    half = next(point for point in everyone if point["threshold"] == 0.5)
    assert half["everyone"] == pytest.approx(0.0)  # as many right as wrong


def test_the_spread_over_partitions_is_apart_from_that_over_subjects():
    label, odds = _calibrated(n=60)
    noise = np.random.default_rng(1).normal(size=(6, 60))
    weights = bootstrap_weights(_scores(label, odds), 200, 0)
    same, noisy = (
        stability(_scores(label, _probability(odds + size * noise)), weights)["spread"]["auc"] for size in (0, 3)
    )
    assert len(noisy["per_partition"]) == 6
    assert same["sd_partitions"] == 0
    assert noisy["sd_partitions"] > 0.02
    assert min(same["sd_subjects"], noisy["sd_subjects"]) > 0.02
    assert stability(_scores(label, odds), weights)["spread"]["auc"]["sd_partitions"] is None


def test_the_standard_error_of_an_auc_is_that_of_simulated_studies():
    generator = np.random.default_rng(0)
    shift = 1.2
    areas = []
    for _ in range(2000):
        a, b = generator.normal(size=30), generator.normal(size=50) + shift
        areas.append((b[:, None] > a).mean())
    assert np.sqrt(auc_variance(float(np.mean(areas)), 50, 30)) == pytest.approx(np.std(areas), rel=0.1)


def test_the_sample_size_gives_the_wanted_width():
    label = np.array([0] * 48 + [1] * 49)
    found = sample_size(0.88, label)
    assert found["half_width"] == pytest.approx(0.07, abs=0.01)
    n = found["needed"]
    assert 1.96 * np.sqrt(auc_variance(0.88, n * 49 / 97, n * 48 / 97)) <= 0.05
    assert 1.96 * np.sqrt(auc_variance(0.88, 0.97 * n * 49 / 97, 0.97 * n * 48 / 97)) > 0.05
    assert f"about {n} subjects" in found["text"]
    assert sample_size(1.0, label)["half_width"] > 0  # no error seen is not no error


def test_a_learning_curve_of_known_shape_is_continued():
    """AUC in each fold = share of right pairs; scores are made so that it is 0.9 - 2 / sqrt(n) up to rounding."""
    trained, label = 400.0, np.array([0, 1] * 1000)

    def scores(area: float) -> Scores:
        ranks = np.zeros(2000)
        for fold in range(5):
            here = np.flatnonzero(np.arange(2000) // 2 % 5 == fold)
            positives = here[label[here] == 1]
            ranks[positives] = np.where(np.arange(len(positives)) < round((2 * area - 1) * len(positives)), 1.0, 0.0)
        return _scores(label, 0.25 + ranks / 2)

    parts = {share: scores(0.9 - 2 / np.sqrt(share * trained)) for share in (0.25, 0.5, 0.75)}
    found = learning_curve("net", scores(0.9 - 0.1), parts, trained, 0.25)
    assert [point["share"] for point in found["points"]] == [0.25, 0.5, 0.75, 1.0]
    assert found["limit"] == pytest.approx(0.9, abs=0.01)
    assert found["more"][1]["auc"] == pytest.approx(0.9 - 2 / np.sqrt(800), abs=0.01)
    assert "Twice as many training subjects (800) would give an AUC of 0.83" in found["text"]
    flat = learning_curve("net", scores(0.7), {share: scores(0.75) for share in (0.25, 0.5)}, trained, 0.25)
    assert "no sign that more would help" in flat["text"]
