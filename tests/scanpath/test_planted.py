import numpy as np
import pytest

from voxelwave.scanpath.planted import COLOURS, PlantedObserver, entropy, planted_dataset, planted_scene


def test_probabilities_sum_to_one_and_follow_their_formula():
    scene, observer = planted_scene("a", 1), PlantedObserver(seen=1.0, stay=4.0)
    log_p = observer.log_probabilities(scene, [2, 5])
    np.testing.assert_allclose(np.exp(log_p).sum(1), 1)
    assert np.isneginf(log_p[0, -1])
    np.testing.assert_allclose(np.exp(log_p[1:, -1]), observer.end)
    distance = np.linalg.norm(scene.centres - scene.centres[5], axis=1) / scene.spacing
    liking = np.array([observer.preference.get(o.name, 0) for o in scene.objects])
    off = np.select([np.arange(len(scene)) == 5, np.arange(len(scene)) == 2], [observer.stay, observer.seen], 0)
    score = liking - distance / observer.scale - off
    expected = np.exp(score) / np.exp(score).sum() * (1 - observer.end)
    np.testing.assert_allclose(np.exp(log_p[2, :-1]), expected, rtol=1e-6)


def test_drawn_paths_have_the_frequencies_of_the_probabilities():
    scene, observer = planted_scene("a", 1, fewest=4, most=4), PlantedObserver()
    paths = observer.sample(scene, 800, seed=1)
    first = np.bincount([path[0] for path in paths], minlength=4) / len(paths)
    np.testing.assert_allclose(first, np.exp(observer.log_probabilities(scene, [])[0, :4]), atol=0.06)
    # 800 paths: a standard error of the mean of 0.28
    assert np.mean([len(path) for path in paths]) == pytest.approx(1 / observer.end, abs=1.2)


def test_no_model_is_likelier_than_the_observer_itself_whose_mean_loss_is_its_entropy():
    dataset, observer = planted_dataset(60, paths=3, seed=2), PlantedObserver()

    def nats(model):
        rows = [(dataset.scene_of(k), t.objects) for k, t in enumerate(dataset.trials)]
        losses = [-model.log_probabilities(s, p)[np.arange(len(p) + 1), [*p, len(s)]] for s, p in rows]
        return float(np.concatenate(losses).mean())

    assert nats(observer) == pytest.approx(entropy(observer, dataset), rel=0.04)
    others = (PlantedObserver(scale=1.4), PlantedObserver(preference={}), PlantedObserver(stay=0.0))
    assert nats(observer) < min(nats(other) for other in others)


def test_objects_do_not_overlap_and_look_like_their_colour():
    for seed in range(20):
        scene = planted_scene("a", seed)
        apart = np.linalg.norm(scene.centres[:, None] - scene.centres[None], axis=-1)
        assert apart[~np.eye(len(scene), dtype=bool)].min() >= 95 - 1e-3
        assert (scene.boxes[:, :2] >= -1e-3).all()
        assert (scene.boxes[:, :2] + scene.boxes[:, 2:] <= np.array(scene.size) + 1e-3).all()
        for o in scene.objects:
            nearest = min(COLOURS, key=lambda name: np.linalg.norm(o.features - COLOURS[name]))
            assert nearest == o.name
