"""Metrics of sequences, MultiMatch, ScanMatch and saliency: identities, bounds, and values computed by hand."""

import functools
import itertools

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from voxelwave.scanpath import saliency
from voxelwave.scanpath.alignment import cheapest_walk, needleman_wunsch
from voxelwave.scanpath.metrics import (
    BEHAVIOUR,
    behaviour,
    behaviour_delta,
    edit_distance,
    negative_log_likelihood,
    sequence_score,
)
from voxelwave.scanpath.multimatch import DIMENSIONS, mean_similarity, multimatch
from voxelwave.scanpath.scanmatch import scanmatch

SIZE = (800, 600)


def random_paths(count=60, objects=4, longest=7, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, objects, rng.integers(1, longest + 1)) for _ in range(count)]


def random_points(count, seed, shortest=3, longest=15):
    rng = np.random.default_rng(seed)
    return [rng.random((rng.integers(shortest, longest), 2)) * SIZE for _ in range(count)]


def is_subsequence(short, path):
    rest = iter(path)
    return all(any(k == other for other in rest) for k in short)


def test_sequence_score_is_the_longest_common_subsequence_by_the_longer_length():
    for a, b in itertools.pairwise(random_paths()):
        subsets = (c for n in range(len(a), -1, -1) for c in itertools.combinations(a.tolist(), n))
        longest = len(next(c for c in subsets if is_subsequence(c, b.tolist())))
        assert sequence_score(a, b) == pytest.approx(longest / max(len(a), len(b)))


def test_edit_distance_is_that_of_its_recursive_definition():
    @functools.cache
    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    for a, b in itertools.pairwise(random_paths()):
        assert edit_distance(a, b) == slow(tuple(a.tolist()), tuple(b.tolist()))


@pytest.mark.parametrize(
    ("a", "b", "score", "distance"),
    [
        ([3], [3], 1, 0),
        ([3], [4], 0, 1),
        ([1, 2, 3], [3, 2, 1], 1 / 3, 2),
        ([1, 1, 1], [1], 1 / 3, 2),
        ([5, 1, 2, 6], [1, 2], 0.5, 2),
        ([], [1, 2], 0, 2),
        ([], [], 1, 0),
    ],
)
def test_sequence_metrics_by_hand(a, b, score, distance):
    assert sequence_score(a, b) == sequence_score(b, a) == pytest.approx(score)
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_an_alignment_pays_for_gaps():
    worth = np.array([[2.0, -1.0], [-1.0, 2.0], [2.0, -1.0]])  # 0 1 0 compared with 0 1
    assert needleman_wunsch(worth, gap=-0.5) == 2 + 2 - 0.5
    assert needleman_wunsch(worth, gap=-10) == max(2 + 2 - 10, -1 - 1 - 10)
    with pytest.raises(ValueError, match="gap 0 or less"):
        needleman_wunsch(worth, gap=1)


def test_the_cheapest_walk_is_cheapest_of_all():
    def walks(i, j):
        if (i, j) == (0, 0):
            return [[(0, 0)]]
        before = [(p, q) for p, q in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if p >= 0 and q >= 0]
        return [[*walk, (i, j)] for p, q in before for walk in walks(p, q)]

    rng = np.random.default_rng(0)
    for _ in range(20):
        cost = rng.random(rng.integers(1, 5, 2))
        price = {tuple(walk): sum(cost[f] for f in walk[1:]) for walk in walks(*(n - 1 for n in cost.shape))}
        found = tuple(map(tuple, cheapest_walk(cost).tolist()))
        assert price[found] == pytest.approx(min(price.values()))
    # of the paths with equal cost, the one with diagonal steps
    assert cheapest_walk(np.zeros((3, 3))).tolist() == [[0, 0], [1, 1], [2, 2]]


def test_runs_of_a_path_are_told_apart():
    # 4 | 4 | 7 | 4 | 7 | 7 | 9: first runs on 4, 7, 9; two fixations stay on their object; two runs return
    assert behaviour([4, 4, 7, 4, 7, 7, 9], target=9) == {
        "correct": 1.0,
        "length": 7.0,
        "search": 3 / 7,
        "refix": 2 / 7,
        "revisit": 2 / 7,
    }
    assert behaviour([4], target=9)["correct"] == 0
    assert np.isnan(behaviour([4])["correct"])
    for path in random_paths():
        assert sum(behaviour(path)[k] for k in BEHAVIOUR[2:]) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least one fixation"):
        behaviour([])


def test_delta_is_the_mean_of_relative_differences_that_are_defined():
    people = {"correct": 0.8, "length": 10.0, "search": 0.8, "refix": 0.2, "revisit": 0.0}
    assert behaviour_delta(people, people) == 0
    model = {"correct": 0.4, "length": 20.0, "search": 0.6, "refix": 0.4, "revisit": 1.0}
    assert behaviour_delta(model, people) == pytest.approx((0.5 + 1 + 0.25 + 1) / 4)
    assert behaviour_delta(model, {**people, "correct": np.nan}) == pytest.approx((1 + 0.25 + 1) / 3)


def test_likelihood_of_objects_and_end_by_hand():
    log_p = np.log([[0.5, 0.5, 1e-300], [0.25, 0.25, 0.5], [0.1, 0.1, 0.8]])
    np.testing.assert_allclose(negative_log_likelihood(log_p, [1, 0]), [np.log(2), np.log(4), -np.log(0.8)])
    with np.errstate(divide="ignore"):
        impossible = np.log([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert negative_log_likelihood(impossible, [0]).tolist() == [np.inf, 0]
    with pytest.raises(ValueError, match=r"sum to 1 .* 0\.9 to 1"):
        negative_log_likelihood(np.log([[0.5, 0.4, 1e-300], [0.2, 0.3, 0.5]]), [0])
    with pytest.raises(ValueError, match="must have 3 rows"):
        negative_log_likelihood(log_p[:2], [0, 1])


def test_multimatch_by_hand():
    a, b = np.array([[0, 0], [30, 0], [30, 40]]), np.array([[0, 0], [0, 30], [30, 30]])
    # |u - v| = [[42.4, 0], [10, 50]]: the diagonal costs 50, and so does the path through the 0
    found = multimatch(a, b, (30, 40), duration_a=[0.2, 0.3, 0.1], duration_b=[0.2, 0.1, 0.5])
    root = np.sqrt(1800)
    assert found == pytest.approx(
        {
            "vector": 1 - (root + 50) / 2 / 100,
            "direction": 0.5,
            "length": 1 - 5 / 50,
            "position": 1 - root / 2 / 50,
            "duration": 1 - (0 + 0.2 / 0.3) / 2,
        }
    )
    assert mean_similarity(found) == pytest.approx(np.mean([found[k] for k in DIMENSIONS[:4]]))


def test_multimatch_of_a_path_with_itself_is_one_and_it_is_symmetric_and_bounded():
    for a, b in itertools.pairwise(random_points(20, seed=1, shortest=2)):
        durations = np.linspace(0.1, 0.4, len(a)), np.linspace(0.3, 0.2, len(b))
        same = multimatch(a, a, SIZE, duration_a=durations[0], duration_b=durations[0])
        assert list(same.values()) == pytest.approx([1] * 5)
        one = multimatch(a, b, SIZE, duration_a=durations[0], duration_b=durations[1])
        assert one == pytest.approx(multimatch(b, a, SIZE, duration_a=durations[1], duration_b=durations[0]))
        assert all(0 <= value <= 1 for value in one.values())


def test_directions_on_both_sides_of_the_left_are_alike():
    turn = np.deg2rad(1)
    a, b = (np.array([[400, 300], [400 - 100 * np.cos(turn), 300 + s * 100 * np.sin(turn)]]) for s in (1, -1))
    assert multimatch(a, b, SIZE)["direction"] == pytest.approx(1 - 2 / 180)


def test_short_paths_have_no_similarity_or_are_filled_up_as_published():
    one, two = np.array([[10, 20]]), np.array([[10, 20], [30, 5]])
    long = random_points(1, seed=2)[0]
    assert np.isnan(list(multimatch(one, long, SIZE).values())).all()
    assert np.isfinite(list(multimatch(two, long, SIZE).values())[:4]).all()
    with pytest.raises(ValueError, match="a path of 2 positions must have 2 durations, got 3"):
        multimatch(two, long, SIZE, duration_a=[1, 2, 3])
    filled = np.vstack([one, [[1, 1], [1, 1]]]), np.vstack([two, [[1, 1]]])
    for short, full in zip((one, two), filled, strict=True):
        published = multimatch(short, long, SIZE, pad=True)
        assert list(published.values())[:4] == list(multimatch(full, long, SIZE).values())[:4]
        assert np.isnan(published["duration"])
    assert multimatch(long, long, SIZE, pad=True) == pytest.approx(multimatch(long, long, SIZE), nan_ok=True)


def test_multimatch_agrees_with_the_package_of_that_name():
    package = pytest.importorskip("multimatch_gaze", reason="needs multimatch-gaze to compare with")
    kind = [("start_x", float), ("start_y", float), ("duration", float)]
    rng = np.random.default_rng(3)
    for a, b in itertools.pairwise(random_points(30, seed=3)):
        durations = rng.uniform(0.1, 0.5, len(a)), rng.uniform(0.1, 0.5, len(b))
        records = [
            np.array([(*xy, d) for xy, d in zip(p, e, strict=True)], dtype=kind)
            for p, e in zip((a, b), durations, strict=True)
        ]
        expected = package.docomparison(*records, screensize=SIZE)
        found = multimatch(a, b, SIZE, duration_a=durations[0], duration_b=durations[1])
        np.testing.assert_allclose(list(found.values()), expected, rtol=0, atol=1e-12)


def test_scanmatch_by_hand():
    def at(*columns):
        return np.array([[100 * c + 50, 50] for c in columns])

    options = {"size": (400, 100), "bins": (4, 1), "threshold": 2.0}
    assert scanmatch(at(0, 1, 3), at(0, 3), **options) == pytest.approx((2 + 2) / (2 * 3))
    assert scanmatch(at(0), at(1), **options) == pytest.approx(1 / 2)  # a neighbour scores 2 - 1
    assert scanmatch(at(0), at(3), **options) == 0  # the score would be 2 - 3, so gaps are better
    assert scanmatch(at(0, 3), at(0), gap=-0.5, **options) == pytest.approx((2 - 0.5) / (2 * 2))
    # letters 0 0 1 and 0 1 1: the first letters match, and the last two
    durations = {"duration_a": [0.1, 0.05], "duration_b": [0.05, 0.1]}
    found = scanmatch(at(0, 1), at(0, 1), **options, **durations, duration_bin=0.05)
    assert found == pytest.approx((2 + 1 + 2) / (2 * 3))


def test_scanmatch_of_a_path_with_itself_is_one_and_it_is_symmetric_and_bounded():
    for a, b in itertools.pairwise(random_points(20, seed=4, shortest=1)):
        assert scanmatch(a, a, SIZE) == pytest.approx(1)
        assert scanmatch(a, b, SIZE) == pytest.approx(scanmatch(b, a, SIZE))
        assert 0 <= scanmatch(a, b, SIZE) <= 1
    edge = np.array([[800, 600], [-3, 0]])
    assert scanmatch(edge, [[799, 599], [0, 0]], SIZE) == 1  # points outside the picture belong to the bin at its edge
    with pytest.raises(ValueError, match="both paths or for none"):
        scanmatch(edge, edge, SIZE, duration_a=[0.1, 0.1])
    with pytest.raises(ValueError, match="threshold and duration_bin above 0"):
        scanmatch(edge, edge, SIZE, threshold=0)


def test_saliency_over_objects_by_hand():
    predicted, seen = np.array([4.0, 2, 2, 0]), np.array([1, 0, 0, 1])
    assert saliency.nss(predicted, seen) == pytest.approx(0)  # one object 2 above the mean, one 2 below
    assert saliency.nss(predicted, [3, 0, 0, 0]) == pytest.approx(2 / np.sqrt(2))
    assert saliency.auc(predicted, [2, 0, 0, 0]) == 1
    assert saliency.auc(predicted, [0, 1, 0, 0]) == pytest.approx((0 + 0.5 + 1) / 3)
    assert saliency.similarity(predicted, [1, 0, 0, 1]) == pytest.approx(0.5)
    assert saliency.correlation(predicted, 3 * predicted + 1) == pytest.approx(1)
    assert saliency.correlation(predicted, 4 - predicted) == pytest.approx(-1)
    assert saliency.fixation_counts([np.array([1, 1]), np.array([3])], 4).tolist() == [0, 2, 0, 1]


def test_saliency_agrees_with_others_and_with_itself():
    rng = np.random.default_rng(5)
    for _ in range(20):
        predicted, seen = rng.integers(0, 5, 12), rng.integers(0, 2, 12)
        seen[:2] = 0, 1
        assert saliency.auc(predicted, seen) == pytest.approx(roc_auc_score(seen, predicted))
        assert saliency.correlation(predicted, seen) == pytest.approx(np.corrcoef(predicted, seen)[0, 1])
        assert saliency.similarity(seen, seen) == pytest.approx(1)
        assert saliency.auc(seen, seen) == 1


def test_saliency_that_is_not_defined_is_nan():
    flat, seen = np.ones(4), np.array([1, 0, 0, 2])
    assert np.isnan(saliency.nss(flat, seen))
    assert np.isnan(saliency.correlation(flat, seen))
    assert np.isnan(saliency.auc(flat, [1, 1, 1, 1]))
    assert np.isnan(saliency.similarity(np.zeros(4), seen))
    with pytest.raises(ValueError, match="one object fixated at least"):
        saliency.nss(flat, np.zeros(4))


def test_published_nss_is_that_of_a_map_of_ones_and_zeros():
    rng = np.random.default_rng(6)
    points, looks = rng.integers(0, (30, 20), (40, 2)), rng.integers(0, (30, 20), (10, 2))
    plane = np.zeros((20, 30))
    plane[points[:, 1], points[:, 0]] = 1
    expected = ((plane - plane.mean()) / plane.std())[looks[:, 1], looks[:, 0]].mean()
    assert saliency.nss_of_points(points, looks, (30, 20)) == pytest.approx(expected)


def test_smoothed_nss_falls_with_distance_from_the_prediction():
    point = np.array([[400, 300]])
    at = [saliency.nss_of_points(point, point + np.array([d, 0]), SIZE, sigma=40) for d in (0, 20, 40, 80, 300)]
    assert at == sorted(at, reverse=True)
    assert at[0] > 3
    assert -1 < at[-1] < 0
    # at 1 sigma a Gaussian is lower by a factor of exp(-1/2); its mean over the picture is small in comparison
    assert (at[2] - at[-1]) / (at[0] - at[-1]) == pytest.approx(np.exp(-0.5), abs=0.08)  # a raster of sigma / 4
    with pytest.raises(ValueError, match="sigma must be at least 0 px"):
        saliency.nss_of_points(point, point, SIZE, sigma=-1)
