"""Metrics and tests compared with scikit-learn, SciPy and complete enumeration."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from voxelwave.apps.nested_cv import statistics
from voxelwave.apps.nested_cv.statistics import Scores


def scores_of(label, score, threshold=0.5, fold=None, cluster=None) -> Scores:
    label, score = np.array(label), np.atleast_2d(np.array(score, float))
    fold = np.zeros(score.shape, int) if fold is None else np.atleast_2d(fold)
    cluster = np.arange(len(label)) if cluster is None else np.array(cluster)
    return Scores(label, score, np.full(score.shape, threshold), fold, cluster)


def drawn(seed=0, n=24, repeats=1, gain=0.15) -> Scores:
    generator = np.random.default_rng(seed)
    label = np.arange(n) % 2
    score = np.clip(0.5 + gain * (2 * label - 1) + 0.2 * generator.normal(size=(repeats, n)), 0, 1)
    fold = np.stack([generator.permutation(np.repeat(np.arange(n // 8), 8)) for _ in range(repeats)])
    return scores_of(label, score, fold=fold)


units = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.2, 0.35, 0.5, 0.8, 1.0])), min_size=4, max_size=30
)


@settings(max_examples=60, deadline=None)
@given(units, st.data())
def test_metrics_equal_scikit_learns_and_weights_are_repetitions(rows, data):
    from sklearn import metrics

    label, score = (np.array(column) for column in zip(*rows, strict=True))
    weights = np.array([data.draw(st.integers(0, 3)) for _ in rows])
    assume(all((label == value) @ weights > 0 for value in (0, 1)))
    found = statistics.metrics(label, score, score >= 0.5, weights[None])
    y, s = np.repeat(label, weights), np.repeat(score, weights)
    said = s >= 0.5
    expected = {
        "balanced_accuracy": metrics.balanced_accuracy_score(y, said),
        "sensitivity": metrics.recall_score(y, said),
        "specificity": metrics.recall_score(y, said, pos_label=0),
        "accuracy": metrics.accuracy_score(y, said),
        "f1": metrics.f1_score(y, said, zero_division=0),
        "mcc": metrics.matthews_corrcoef(y, said),
        "auc": metrics.roc_auc_score(y, s),
        "brier": np.mean((s - y) ** 2),
    }
    assert {name: float(value[0]) for name, value in found.items()} == pytest.approx(expected, abs=1e-12)


def test_nadeau_bengio_interval_by_hand_and_against_the_plain_t_interval():
    values = [0.5, 0.6, 0.7, 0.8, 0.9]
    # mean 0.7, variance 0.025, (1/5 + 1/4) of it, its root 0.106066, times 2.776445 (Student, 4 degrees of freedom)
    assert statistics.nadeau_bengio(values, 1 / 4) == pytest.approx((0.7 - 0.294487, 0.7 + 0.294487), abs=1e-6)
    from scipy.stats import ttest_1samp

    plain = ttest_1samp(values, 0).confidence_interval(0.9)
    assert statistics.nadeau_bengio(values, 0, level=0.9) == pytest.approx((plain.low, plain.high))


def test_permutation_p_agrees_with_all_relabellings():
    from sklearn.metrics import balanced_accuracy_score

    scores = scores_of([0, 0, 0, 0, 0, 1, 1, 1, 1], [0.1, 0.6, 0.2, 0.3, 0.7, 0.9, 0.8, 0.4, 0.6])
    said = scores.decision[0]
    observed = balanced_accuracy_score(scores.label, said)
    relabelled = (np.isin(np.arange(9), positives) for positives in itertools.combinations(range(9), 4))
    null = [balanced_accuracy_score(label, said) for label in relabelled]
    exact = np.mean(np.array(null) >= observed - 1e-12)
    assert 0.05 < exact < 0.5  # neither end, since otherwise any value would agree
    found = statistics.permutation_test(scores, 20000, seed=0)
    assert found["p"] == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20000))  # four standard errors
    assert found["null_mean"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["balanced_accuracy", "auc"])
def test_paired_comparison_agrees_with_all_swaps(metric):
    from scipy.stats import rankdata
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    a, b = drawn(4, n=8, gain=0.15), drawn(7, n=8, gain=0.0)
    label = a.label

    def difference(first, second):
        if metric == "auc":
            return roc_auc_score(label, first) - roc_auc_score(label, second)
        return balanced_accuracy_score(label, first) - balanced_accuracy_score(label, second)

    x, y = (rankdata(s.score[0]) if metric == "auc" else s.decision[0] for s in (a, b))
    observed = difference(x, y)
    swaps = itertools.product([False, True], repeat=8)
    null = [difference(np.where(swap, y, x), np.where(swap, x, y)) for swap in swaps]
    exact = np.mean(np.abs(null) >= abs(observed) - 1e-12)
    assert 0.01 < exact < 0.95
    weights = statistics.bootstrap_weights(a, 200, seed=0)
    found = statistics.compare(a, b, metric, 20000, weights, seed=0)
    assert found["difference"] == pytest.approx(observed)
    assert found["p"] == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20000))
    assert found["interval"][0] <= observed <= found["interval"][1]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p):
    """An adjusted p is the largest Bonferroni p of all families that contain the test (Marcus et al. 1976)."""
    everyone = range(len(p))
    families = [s for size in range(1, len(p) + 1) for s in itertools.combinations(everyone, size)]
    expected = [max(min(1.0, len(s) * min(p[j] for j in s)) for s in families if i in s) for i in everyone]
    np.testing.assert_allclose(statistics.holm(p), expected, atol=1e-12)


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (3, 10), (20, 40), (12, 12)])
def test_wilson_interval_equals_scipys(hits, n):
    from scipy.stats import binomtest

    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert statistics.wilson(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_bootstrap_draws_subjects_within_classes_with_all_their_windows():
    subject = np.repeat(np.arange(6), [1, 3, 2, 4, 1, 2])
    label = np.array([0, 0, 0, 1, 1, 1])[subject]
    scores = scores_of(label, np.zeros(len(label)), cluster=subject)
    weights = statistics.bootstrap_weights(scores, 50, seed=0)
    first = np.unique(subject, return_index=True)[1]
    assert (weights == weights[:, first][:, subject]).all()
    assert (weights[:, first[:3]].sum(1) == 3).all()
    assert (weights[:, first[3:]].sum(1) == 3).all()
    assert len(np.unique(weights, axis=0)) > 10


def test_summary_averages_folds_and_repeats_do_not_change_equal_figures():
    once = drawn(n=32)
    weights = statistics.bootstrap_weights(once, 100, seed=0)
    table = statistics.summary(once, weights, 1 / 3)
    folds = [row["auc"] for row in statistics.per_fold(once)]
    assert len(folds) == 4
    assert table["auc"]["mean"] == pytest.approx(np.mean(folds))
    assert table["auc"]["interval_nb"][0] < table["auc"]["mean"] < table["auc"]["interval_nb"][1]
    twice = Scores(
        once.label, *(np.repeat(v, 2, axis=0) for v in (once.score, once.threshold, once.fold)), once.cluster
    )
    again = statistics.summary(twice, weights, 1 / 3)
    assert again["auc"]["mean"] == pytest.approx(table["auc"]["mean"])
    assert again["auc"]["interval_bootstrap"] == pytest.approx(table["auc"]["interval_bootstrap"])  # not narrower
    assert statistics.confusion(twice) == statistics.confusion(once)


def test_roc_passes_through_scikit_learns_points():
    from sklearn.metrics import roc_curve

    scores = drawn(5, n=40)
    found = statistics.roc(scores, statistics.bootstrap_weights(scores, 100, seed=0))
    fpr, tpr, _ = roc_curve(scores.label, scores.score[0], drop_intermediate=False)
    upper = [tpr[np.isclose(fpr, x)].max() for x in np.unique(fpr)]
    ours = np.interp(np.unique(fpr), found["fpr"], found["tpr"])  # 20 negatives: their steps lie on the grid of 100
    np.testing.assert_allclose(ours, upper, atol=1e-12)
    assert (np.array(found["low"]) <= np.array(found["tpr"]) + 1e-12).all()
    assert (np.array(found["tpr"]) <= np.array(found["high"]) + 1e-12).all()


def test_calibration_covers_everyone_once():
    scores = drawn(6, n=40, repeats=2)
    rows = statistics.calibration(scores)
    assert sum(row["n"] for row in rows) == pytest.approx(40)
    assert sum(row["n"] * row["observed"] for row in rows) == pytest.approx(20)
    assert [row["predicted"] for row in rows] == sorted(row["predicted"] for row in rows)


@settings(max_examples=60, deadline=None)
@given(units)
def test_no_threshold_does_better_than_the_chosen_one(rows):
    from sklearn.metrics import balanced_accuracy_score

    label, score = (np.array(column) for column in zip(*rows, strict=True))
    assume(len(set(label)) == 2)
    chosen = balanced_accuracy_score(label, score >= statistics.choose_threshold(label, score))
    between = np.unique(score)[1:]  # at least one person on either side of the threshold
    best = max(balanced_accuracy_score(label, score >= t) for t in (0.5, *between))
    assert chosen == pytest.approx(best)


def test_intervals_of_guesses_cover_one_half_at_their_nominal_rate():
    """For 200 cohorts with random scores, at least 95 % of the corrected intervals contain one half."""
    generator = np.random.default_rng(0)
    label, fold = np.arange(40) % 2, np.arange(40) // 8
    covered = {"interval_nb": 0, "interval_bootstrap": 0}
    for trial in range(200):
        scores = scores_of(label, generator.random(40), fold=fold)
        auc = statistics.summary(scores, statistics.bootstrap_weights(scores, 200, trial), 1 / 4)["auc"]
        for name in covered:
            covered[name] += auc[name][0] <= 0.5 <= auc[name][1]
    assert covered["interval_nb"] >= 190
    assert 176 <= covered["interval_bootstrap"] <= 199  # 190 expected, sd 3; percentile intervals are a little narrow
