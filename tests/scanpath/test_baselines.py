import numpy as np
import pytest

from voxelwave.scanpath.baselines import (
    BASELINES,
    CellFrequency,
    CentreNearest,
    MarkovWithTarget,
    NearestObject,
    Random,
    StepMarkov,
    Uniform,
    choice_weights,
    fit_baselines,
)
from voxelwave.scanpath.readers import read_scanpaths
from voxelwave.scanpath.scene import Dataset, Scene, SceneObject, Trial
from voxelwave.scanpath.splits import split


def grid(identifier, target=None, rows=3, columns=4):
    boxes = [(100 * c + 10, 100 * r + 10, 80, 80) for r in range(rows) for c in range(columns)]
    objects = tuple(SceneObject(f"o{k}", box) for k, box in enumerate(boxes))
    return Scene(identifier, (100 * columns, 100 * rows), objects, target, rows, columns)


def free(identifier, count, target=None, seed=0):
    xy = np.random.default_rng(seed).random((count, 2)) * (700, 500)
    objects = tuple(SceneObject("", (*p, 60, 60)) for p in xy.tolist())
    return Scene(identifier, (800, 600), objects, target)


def dataset(scenes, paths, target_position="given"):
    """A dataset of these scenes and paths (scene, objects)."""
    trials = [
        Trial(scene.identifier, f"p{k}", np.array(path), scene.centres[path]) for k, (scene, path) in enumerate(paths)
    ]
    return Dataset({s.identifier: s for s in scenes}, tuple(trials), target_position=target_position)


@pytest.fixture(scope="module")
def mixed():
    """Grids with targets and free layouts without targets, and random paths."""
    rng = np.random.default_rng(0)
    scenes = [grid("g0", target=5), grid("g1", target=11), free("f0", 7), free("f1", 1), free("f2", 9, target=2)]
    paths = [(s, rng.integers(0, len(s), rng.integers(1, 9)).tolist()) for s in scenes for _ in range(6)]
    return dataset(scenes, paths)


@pytest.mark.parametrize("name", list(BASELINES))
def test_probabilities_of_every_step_sum_to_one_and_no_path_is_empty(mixed, name):
    model = BASELINES[name]().fit(mixed, range(0, len(mixed), 2))
    for k, trial in enumerate(mixed.trials):
        scene = mixed.scene_of(k)
        log_p = model.log_probabilities(scene, trial.objects)
        assert log_p.shape == (len(trial) + 1, len(scene) + 1)
        np.testing.assert_allclose(np.exp(log_p).sum(1), 1)
        assert log_p[0, -1] == -np.inf
        assert np.isfinite(log_p[1:]).all()  # every action that a person may take has a probability above 0
        assert np.isfinite(model.log_probability(scene, trial.objects)).all()
    empty = model.log_probabilities(scene, [])
    np.testing.assert_array_equal(empty, log_p[:1])


@pytest.mark.parametrize("name", list(BASELINES))
def test_drawn_paths_follow_the_probabilities_and_a_seed(mixed, name):
    model = BASELINES[name]().fit(mixed)
    scene = mixed.scenes["f2"]
    paths = model.sample(scene, 400, seed=3)
    assert [p.tolist() for p in paths] == [p.tolist() for p in model.sample(scene, 400, seed=3)]
    assert [p.tolist() for p in paths[:5]] != [p.tolist() for p in model.sample(scene, 5, seed=4)]
    assert min(map(len, paths)) >= 1
    expected = np.exp(model.log_probabilities(scene, [])[0, :-1])
    seen = np.bincount([p[0] for p in paths], minlength=len(scene)) / len(paths)
    # four standard errors of a fraction in 400 draws
    assert (np.abs(seen - expected) < 4 * np.sqrt(expected * (1 - expected) / 400) + 1e-9).all()
    assert max(map(len, model.sample(scene, 50, max_length=2))) <= 2


def test_uniform_knows_nothing_but_the_number_of_objects():
    scene = grid("g")
    log_p = Uniform().fit(dataset([scene], [(scene, [0])])).log_probability(scene, [3, 4])
    np.testing.assert_allclose(log_p, -np.log([12, 13, 13]))


def test_random_paths_are_as_long_as_peoples():
    scene = grid("g")
    model = Random().fit(dataset([scene], [(scene, [0, 1, 2]), (scene, [3, 4, 5, 6, 7])]))
    assert np.exp(model.log_probability(scene, [1])[-1]) == pytest.approx(
        2 / 8.5
    )  # 2 ends after 8 fixations, and a pseudo-count of a half
    lengths = [len(p) for p in model.sample(scene, 2000, max_length=1000)]
    assert np.mean(lengths) == pytest.approx(8.5 / 2, abs=0.3)  # sd 3.7 of 2000: 0.08


def test_cells_are_as_likely_as_they_were_looked_at():
    scene = grid("g")
    data = dataset([scene], [(scene, [0] * 60 + [5] * 30)])
    share = np.exp(CellFrequency().fit(data).log_probabilities(scene, [])[0, :-1])
    assert share[0] / share[5] == pytest.approx(60.5 / 30.5)  # each place has a pseudo-count of a half
    assert share[1] == pytest.approx(0.5 / 96)
    # another scene on another grid is asked about the same positions in the picture
    other = grid("h", rows=6, columns=8)
    there = np.exp(CellFrequency().fit(data).log_probabilities(other, [])[0, :-1]).reshape(6, 8)
    assert there[0, 0] == there[1, 1] > there[2, 0]


def test_nearest_object_finds_the_scale_that_made_the_paths():
    rng = np.random.default_rng(1)
    scene = grid("g", rows=6, columns=6)
    distance = np.linalg.norm(scene.centres[:, None] - scene.centres, axis=-1) / 100
    paths = []
    for _ in range(150):
        path = [14]
        for _ in range(15):
            weight = np.exp(-distance[path[-1]] / 0.7)
            weight[list(set(path))] *= np.exp(-1.5)
            weight[path[-1]] = 0
            path.append(int(rng.choice(36, p=weight / weight.sum())))
        paths.append((scene, path))
    model = NearestObject().fit(dataset([scene], paths))
    assert model.scale == pytest.approx(0.7, rel=0.1)
    assert model.seen == pytest.approx(-1.5, abs=0.2)
    assert model.stay < -5


def test_nearest_to_the_centre_prefers_the_middle_wherever_one_looks():
    scene = grid("g", rows=5, columns=5)
    model = CentreNearest().fit(dataset([scene], [(scene, [12, 7, 12, 11, 13]), (scene, [12, 17])]))
    share = np.exp(model.log_probabilities(scene, [0]))
    assert share[0, :-1].argmax() == 12
    assert share[1, 13] > share[1, 14] > share[1, 24]


def test_steps_are_learnt_from_anywhere_and_only_those_inside_a_scene_are_offered():
    scene = grid("g", rows=1, columns=6)
    paths = [(scene, [0, 1, 2, 3, 4, 5])] * 30 + [(scene, [5, 3, 1])] * 10
    model = StepMarkov().fit(dataset([scene], paths))
    share = np.exp(model.log_probabilities(scene, [2])[1])[:-1] / (1 - model.end)
    assert share[3] > 0.7
    assert share[0] > 10 * share[1]  # there were two jumps to the left, and none of one
    last = np.exp(model.log_probabilities(scene, [5])[1])[:-1] / (1 - model.end)
    assert last[3] > 0.8  # a jump of one to the right is impossible there
    # a longer shelf: steps depend on the direction and length, not on the place
    longer = grid("h", rows=1, columns=9)
    assert np.exp(model.log_probabilities(longer, [7])[1])[:-1].argmax() == 8


def test_weights_of_choices_are_those_that_made_them():
    rng = np.random.default_rng(2)
    truth = np.array([4.0, 2.0, 1.0, 1.0])
    offered, chosen = [], []
    for _ in range(300):
        kinds = rng.choice(4, rng.integers(2, 5), replace=False)
        offered.append(kinds)
        chosen.append(rng.multinomial(20, truth[kinds] / truth[kinds].sum()))
    found = choice_weights(offered, chosen, 5)
    assert found.mean() == pytest.approx(1)
    np.testing.assert_allclose(found[:4] / found[3], truth, rtol=0.1)
    # a small change of any weight cannot increase the likelihood

    def log_posterior(weight, prior=0.5):
        likely = sum(c @ np.log(weight[k] / weight[k].sum()) for k, c in zip(offered, chosen, strict=True))
        return likely + (prior * np.log(weight) - prior * weight).sum()

    best = log_posterior(found)
    for kind in range(5):
        for factor in (0.99, 1.01):
            assert log_posterior(found * np.where(np.arange(5) == kind, factor, 1)) < best


def test_the_target_is_jumped_to_from_near_and_ends_a_path():
    scenes = [grid(f"g{k}", target=k, rows=4, columns=5) for k in range(20)]
    rng = np.random.default_rng(3)
    paths = []
    for scene in scenes:
        for _ in range(20):
            path = [int(rng.integers(20))]
            while path[-1] != scene.target and len(path) < 60:
                away = np.abs(scene.places[path[-1]] - scene.places[scene.target]).max()
                path.append(scene.target if rng.random() < (0.8 if away <= 1 else 0.1) else int(rng.integers(20)))
            paths.append((scene, path))
    data = dataset(scenes, paths)
    model = MarkovWithTarget().fit(data)
    np.testing.assert_allclose(model.jump[1:4], [0.81, 0.145, 0.145], atol=0.05)  # plus one in 20 by chance
    assert model.end_on[1] > 0.95
    assert model.end_on[0] < 0.05
    drawn = model.sample(scenes[7], 50)
    assert np.mean([p[-1] == 7 for p in drawn]) > 0.9


def test_a_hidden_target_changes_nothing_and_none_of_the_models_may_ask(mixed):
    hidden = mixed.with_target_position("hidden")
    assert "step Markov with target" not in fit_baselines(hidden)
    assert "step Markov with target" in fit_baselines(mixed)
    with pytest.raises(ValueError, match="which this dataset hides"):
        MarkovWithTarget().fit(hidden)
    moved = {name: grid(name, target=0) if name.startswith("g") else scene for name, scene in hidden.scenes.items()}
    elsewhere = Dataset(moved, hidden.trials)
    for name, model in fit_baselines(hidden).items():
        other = fit_baselines(elsewhere)[name]
        path = hidden.trials[0].objects
        same = other.log_probabilities(elsewhere.scenes["g0"], path)
        np.testing.assert_array_equal(model.log_probabilities(hidden.scenes["g0"], path), same, err_msg=name)


def test_models_learn_from_training_trials_only(mixed):
    train = list(range(0, len(mixed), 2))
    changed = list(mixed.trials)
    for k in range(1, len(mixed), 2):
        changed[k] = Trial(changed[k].scene, "other", np.zeros(9, int), np.zeros((9, 2)))
    other = Dataset(mixed.scenes, tuple(changed), target_position="given")
    for name, model in fit_baselines(mixed, train).items():
        again = fit_baselines(other, train)[name]
        trial = mixed.trials[0]
        scene = mixed.scene_of(0)
        same = again.log_probabilities(scene, trial.objects)
        np.testing.assert_array_equal(model.log_probabilities(scene, trial.objects), same, err_msg=name)


def test_misuse_is_refused():
    scene = grid("g")
    data = dataset([scene], [(scene, [0, 1])])
    for ask in (lambda: StepMarkov().log_probabilities(scene, [0]), lambda: StepMarkov().sample(scene, 1)):
        with pytest.raises(ValueError, match="step Markov must be fitted to trials first"):
            ask()
    with pytest.raises(ValueError, match="needs at least one training trial"):
        Random().fit(data, [])
    with pytest.raises(ValueError, match="objects must be 0 to 11, got 0 to 12"):
        Uniform().fit(data).log_probabilities(scene, [0, 12])


def test_amazon_likelihoods_of_one_fold_are_near_those_of_all_hundred_collages(shared_data):
    data = read_scanpaths(shared_data / "gaze" / "amazon_covers" / "Amazon_part.json").without_long_trials()
    data = data.with_target_position("given")
    train, test = split(data, "layout", folds=5)[0]
    tokens = data.lengths[test].sum() + len(test)
    # measured on 585 trials of 100 collages with models of the same ideas, uniform over 86 classes
    published = {"uniform": 4.454, "cell frequency": 4.331, "step Markov": 3.511, "step Markov with target": 3.231}
    for name, expected in published.items():
        model = BASELINES[name]().fit(data, train)
        total = sum(model.log_probability(data.scene_of(k), data.trials[k].objects).sum() for k in test)
        assert -total / tokens == pytest.approx(expected, abs=0.12), name  # a fold of 16 collages
