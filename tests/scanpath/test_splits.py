import numpy as np
import pytest

from voxelwave.scanpath.scene import Dataset, Scene, SceneObject, Trial
from voxelwave.scanpath.splits import groups_of, shared, split


@pytest.fixture
def dataset():
    """Eight layouts with two targets each, which make 16 scenes; six people on every scene."""
    objects = tuple(
        SceneObject(name, (40 * k, 0, 30, 30)) for k, name in enumerate(("cup", "pan", "pot", "jar", "lid"))
    )
    scenes = [
        Scene(f"{layout}/{target}", (200, 30), objects, target=(layout + target) % 5, layout=str(layout))
        for layout in range(8)
        for target in range(2)
    ]
    trials = [Trial(s.identifier, f"p{k}", np.array([k % 5]), np.zeros((1, 2))) for s in scenes for k in range(6)]
    return Dataset({s.identifier: s for s in scenes}, tuple(trials))


@pytest.mark.parametrize("by", ["layout", "person", "target", "trial"])
@pytest.mark.parametrize("folds", [2, 5, None])
def test_each_trial_is_tested_once_and_nothing_that_is_kept_apart_is_on_both_sides(dataset, by, folds):
    parts = split(dataset, by, folds=folds)
    groups = groups_of(dataset, by)
    assert len(parts) == (folds or len(set(groups)))
    assert sorted(np.concatenate([test for _, test in parts])) == list(range(len(dataset)))
    for train, test in parts:
        assert not set(groups[train]) & set(groups[test])
        assert sorted([*train, *test]) == list(range(len(dataset)))


def test_a_layout_stays_together_with_all_its_targets(dataset):
    for train, test in split(dataset, "layout", folds=4):
        seen = shared(dataset, train, test)
        assert seen["layout"] == 0
        assert seen["person"] == 1
    # with a split by trial, as published, nearly every layout has been seen in training
    assert np.mean([shared(dataset, *part)["layout"] for part in split(dataset, "trial", folds=5)]) > 0.9


def test_a_seed_makes_the_partition(dataset):
    def tests(seed):
        return [test.tolist() for _, test in split(dataset, "layout", folds=4, seed=seed)]

    assert tests(0) == tests(0)
    assert tests(0) != tests(1)


def test_some_trials_can_be_split_for_inner_folds(dataset):
    train, test = split(dataset, "layout", folds=4)[0]
    inner = split(dataset, "layout", folds=3, trials=train)
    assert sorted(np.concatenate([part for _, part in inner])) == sorted(train)
    assert not {k for part in inner for side in part for k in side} & set(test)


def test_a_target_is_the_same_wherever_it_stands(dataset):
    assert set(groups_of(dataset, "target")) == {"cup", "pan", "pot", "jar", "lid"}
    free = Dataset({"s": Scene("s", (9, 9), (SceneObject("", (0, 0, 9, 9)),))}, (Trial("s", "p", [0], [[1, 1]]),))
    with pytest.raises(ValueError, match="needs one in every scene, s has none"):
        groups_of(free, "target")
    assert shared(free, np.array([0]), np.array([0])) == {"layout": 1.0, "person": 1.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "cover"}, "by must be layout, person, target, trial, got 'cover'"),
        ({"by": "layout", "folds": 9}, "9 folds by layout need 9 of them, got 8"),
        ({"by": "layout", "folds": 1}, "folds must be 2 or more, got 1"),
        ({"by": "person", "folds": None, "trials": [0]}, "left-out folds by person need 2 of them, got 1"),
    ],
)
def test_an_impossible_split_is_refused(dataset, arguments, message):
    with pytest.raises(ValueError, match=message):
        split(dataset, **arguments)
