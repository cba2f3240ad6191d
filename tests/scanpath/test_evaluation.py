import math

import numpy as np
import pytest

from voxelwave.scanpath.baselines import Uniform, fit_baselines
from voxelwave.scanpath.evaluation import FIGURES, PEOPLE, compare, evaluate_fold, summarise
from voxelwave.scanpath.metrics import sequence_score
from voxelwave.scanpath.scene import Dataset, Scene, SceneObject, Trial


def grid(identifier, target=None):
    boxes = [(100 * c + 10, 100 * r + 10, 80, 80) for r in range(3) for c in range(4)]
    objects = tuple(SceneObject(f"o{k}", box) for k, box in enumerate(boxes))
    return Scene(identifier, (400, 300), objects, target, 3, 4)


def looked(scene, person, *path, **times):
    return Trial(scene.identifier, person, np.array(path), scene.centres[list(path)], **times)


@pytest.fixture
def dataset():
    """Three people on each of four scenes, with all fixations in the middle of objects."""
    rng = np.random.default_rng(0)
    scenes = [grid(f"g{k}", target=k) for k in range(4)]
    trials = [looked(s, f"p{k}", *rng.integers(0, 12, rng.integers(3, 7)), s.target) for s in scenes for k in range(3)]
    return Dataset({s.identifier: s for s in scenes}, tuple(trials))


class Fixed:
    """A model that returns given paths for each scene, and the same probability of everything."""

    name = "fixed"

    def __init__(self, paths, sums=1.0):
        self.paths, self.sums, self.asked = paths, sums, []

    def log_probabilities(self, scene, sequence):
        return np.full((len(sequence) + 1, len(scene) + 1), np.log(self.sums / (len(scene) + 1)))

    def sample(self, scene, n, *, seed=0, max_length=100):
        self.asked.append((scene.identifier, n, seed, max_length))
        return [np.array(self.paths[scene.identifier])] * n


def test_a_model_that_draws_a_persons_path_is_perfect_for_that_person(dataset):
    first = range(0, 12, 3)
    model = Fixed({dataset.trials[k].scene: dataset.trials[k].objects for k in first})
    rows = evaluate_fold({"copy": model}, dataset, first, samples=2)
    table = summarise(rows, resamples=50)
    perfect = {"sequence_score": 1, "edit_distance": 0, "multimatch": 1, "scanmatch": 1, "sim": 1, "cc": 1, "delta": 0}
    for name, value in perfect.items():
        assert table["copy"][name] == pytest.approx((value, value, value, 4), abs=1e-6), name
    assert table["copy"]["auc"].value == 1
    assert table["copy"]["nll_per_token"].value == pytest.approx(math.log(13))
    assert table["copy"]["probability"].value == pytest.approx(1 / 13)
    assert table["copy"]["correct"].value == 1
    assert table[PEOPLE]["sequence_score"].value < 1


def test_a_row_holds_what_was_computed_by_hand():
    scene = grid("g", target=5)
    trials = looked(scene, "Ann", 0, 0, 1, 5), looked(scene, "Bob", 0, 1)
    data = Dataset({"g": scene}, trials)
    rows = evaluate_fold({"m": Fixed({"g": [0, 5]})}, data, [0], samples=3)
    (row, people) = rows
    assert (row["model"], row["trial"], row["scene"], row["layout"], row["person"]) == ("m", 0, "g", "g", "Ann")
    assert row["sequence_score"] == 0.5  # 0 and 5 agree, of 0 0 1 5
    assert row["edit_distance"] == 2
    assert row["sim"] == pytest.approx(0.5 + 0.25)  # shares 1/2 and 1/2, compared with 2/4, 1/4 and 1/4
    assert row["nll_fixations"] == pytest.approx(4 * math.log(13))
    assert (row["correct"], row["length"], row["search"], row["refix"], row["revisit"]) == (1, 2, 1, 0, 0)
    assert (row["human_length"], row["human_search"], row["human_refix"], row["human_correct"]) == (4, 0.75, 0.25, 1)
    assert people["model"] == PEOPLE
    assert people["sequence_score"] == 0.5
    assert people["correct"] == 0
    assert "nll_fixations" not in people


def test_everyone_on_a_scene_is_compared_with_the_same_draws_made_once(dataset):
    model = Fixed({s: [1, 2] for s in dataset.scenes})
    evaluate_fold({"m": model}, dataset, range(12), samples=4, seed=9, max_length=33)
    assert model.asked == [(s, 4, 9, 33) for s in dataset.scenes]


def test_people_are_compared_with_all_others_on_the_scene_in_every_fold(dataset):
    together = [row for row in evaluate_fold({}, dataset, range(12), samples=1) if row["model"] == PEOPLE]
    apart = [row for k in range(12) for row in evaluate_fold({}, dataset, [k], samples=1)]
    assert together == apart
    assert len(together) == 12
    # the mean over people of the mean over the others equals the mean over pairs
    pairs = [row["sequence_score"] for row in together if row["scene"] == "g0"]
    a, b, c = (t.objects for t in dataset.trials[:3])
    assert np.mean(pairs) == pytest.approx(np.mean([sequence_score(*p) for p in ((a, b), (a, c), (b, c))]))
    assert summarise(together, resamples=20)[PEOPLE]["delta"].value == pytest.approx(0)


def test_another_trial_of_the_same_person_is_not_other_people():
    scene = grid("g", target=5)
    trials = looked(scene, "Ann", 0, 1, 5), looked(scene, "Ann", 0, 1, 5), looked(scene, "Bob", 8, 9, 10)
    rows = evaluate_fold({}, Dataset({"g": scene}, trials), [0, 2], samples=1)
    assert [(row["person"], row["sequence_score"]) for row in rows] == [("Ann", 0.0), ("Bob", 0.0)]
    assert evaluate_fold({}, Dataset({"g": scene}, trials[:2]), [0], samples=1) == []  # there is no other person


def test_durations_count_where_they_are_known():
    scene = grid("g")
    trials = [
        looked(scene, "Ann", 0, 1, 2, duration=[0.2, 0.4, 0.1]),
        looked(scene, "Bob", 0, 1, 2, duration=[0.1, 0.4, 0.9]),
    ]
    table = summarise(
        evaluate_fold({"m": Fixed({"g": [0, 1, 2]})}, Dataset({"g": scene}, tuple(trials)), [0, 1], samples=1)
    )
    assert table[PEOPLE]["multimatch_duration"].value == pytest.approx(1 - (0.5 + 0) / 2)
    assert "multimatch_duration" not in table["m"]
    assert "correct" not in table["m"]  # there is no target


def test_likelihoods_are_per_token_not_per_trial():
    scenes = grid("a"), grid("b")
    data = Dataset({s.identifier: s for s in scenes}, (looked(scenes[0], "p", 0), looked(scenes[1], "p", *range(9))))
    table = summarise(evaluate_fold({"u": Uniform().fit(data)}, data, [0, 1], samples=1), resamples=20)
    # two first fixations among 12 objects, eight later ones and two ends among 13 possibilities
    assert table["u"]["nll_per_token"].value == pytest.approx((2 * math.log(12) + 10 * math.log(13)) / 12)
    assert table["u"]["nll_per_fixation"].value == pytest.approx((2 * math.log(12) + 8 * math.log(13)) / 10)
    assert table["u"]["probability"].value == pytest.approx((2 / 12 + 8 / 13) / 10)


def test_layouts_are_resampled_with_all_their_trials():
    rows = [
        {"model": "m", "trial": 10 * layout + k, "layout": str(layout), "sequence_score": float(layout % 2)}
        for layout in range(40)
        for k in range(10)
    ]
    found = summarise(rows, resamples=2000)["m"]["sequence_score"]
    assert (found.value, found.trials) == (0.5, 400)
    # 40 independent coins: 1.96 sqrt(0.25 / 40) = 0.155; 400 trials would give 0.049
    assert (found.low, found.high) == pytest.approx((0.345, 0.655), abs=0.03)
    one = summarise([row for row in rows if row["layout"] == "3"], resamples=20)["m"]["sequence_score"]
    assert one == (1, 1, 1, 10)


def test_a_difference_is_paired_by_layout():
    rng = np.random.default_rng(1)
    rows = []
    for layout, hard in enumerate(rng.random(30)):
        for model, gain in (("a", 0.02), ("b", 0.0)):
            rows.append({"model": model, "trial": layout, "layout": str(layout), "sequence_score": hard + gain})
    alone = summarise(rows, resamples=200)
    assert alone["a"]["sequence_score"].low < alone["b"]["sequence_score"].high
    found = compare(rows, "a", "b", resamples=200)["sequence_score"]
    assert found == pytest.approx((0.02, 0.02, 0.02, 30))
    assert compare(rows, "a", "a", resamples=20)["sequence_score"] == pytest.approx((0, 0, 0, 30))
    with pytest.raises(ValueError, match="both a and c, got none in common"):
        compare(rows, "a", "c")


def test_all_figures_of_all_baselines_are_there(dataset):
    given = dataset.with_target_position("given")
    models = fit_baselines(given, range(6))
    rows = evaluate_fold(models, given, range(6, 12), samples=2)
    assert rows == evaluate_fold(models, given, range(6, 12), samples=2)  # the seed determines the draws
    table = summarise(rows, resamples=30)
    assert list(table) == [*models, PEOPLE]
    for name, figures in table.items():
        missing = set(FIGURES) - set(figures) - {"multimatch_duration"}
        assert missing <= ({"nll_per_token", "nll_per_fixation", "probability"} if name == PEOPLE else set()), name
        for figure, found in figures.items():
            assert found.low <= found.value + 1e-9 or figure == "delta", (name, figure)
            assert found.high >= found.value - 1e-9 or figure == "delta", (name, figure)


def test_something_that_a_model_calls_impossible_is_infinitely_unlikely(dataset):
    class Sure(Fixed):
        def log_probabilities(self, scene, sequence):
            log_p = np.full((len(sequence) + 1, len(scene) + 1), -np.inf)
            log_p[:, 0] = 0
            return log_p

    table = summarise(evaluate_fold({"m": Sure({"g0": [0]})}, dataset, [0], samples=1), resamples=5)
    assert table["m"]["nll_per_token"] == (np.inf, np.inf, np.inf, 1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Fixed({"g0": []}), "m must draw paths of at least one fixation"),
        (Fixed({"g0": [0, 12]}), r"on the objects 0 to 11 of g0, got \[0, 12\]"),
        (Fixed({"g0": [0]}, sums=2), "m on g0: probabilities must sum to 1 at every step, got sums of 2"),
    ],
)
def test_a_model_that_breaks_the_rules_is_named(dataset, model, message):
    with pytest.raises(ValueError, match=message):
        evaluate_fold({"m": model}, dataset, [0], samples=1)


def test_misuse_is_refused(dataset):
    with pytest.raises(ValueError, match="samples and max_length must be at least 1, got 0"):
        evaluate_fold({}, dataset, [0], samples=0)
    with pytest.raises(ValueError, match="since this name denotes people"):
        evaluate_fold({PEOPLE: Fixed({})}, dataset, [0], samples=1)
    with pytest.raises(ValueError, match="at least one row"):
        summarise([])
