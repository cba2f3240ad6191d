import math

import numpy as np
import pytest
import torch

from voxelwave.runs.training import BestEpoch, fit_quietly
from voxelwave.scanpath.baselines import NearestObject
from voxelwave.scanpath.data import IGNORED, PathData
from voxelwave.scanpath.estimators import OATEstimator, Options, build_module, data_arguments
from voxelwave.scanpath.module import ScanpathModule, nats_per_token, path_loss, path_nats
from voxelwave.scanpath.planted import planted_dataset
from voxelwave.scanpath.scene import Dataset, Scene, SceneObject, Trial

TINY = {"d_appearance": 4, "d_position": 12, "layers": 1, "feed_forward": 16, "lr": 3e-3, "dropout": 0.1}


def test_the_loss_is_the_mean_over_tokens_and_counts_the_padding_class():
    scores = torch.tensor([[[1.0, 0.0, 2.0, 0.5], [0.0, 0.0, 0.0, 0.0]], [[3.0, 1.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]]])
    chosen = torch.tensor([[0, 2], [2, IGNORED]])
    rows = [(scores[0, 0], 0), (scores[0, 1], 2), (scores[1, 0], 2)]
    by_hand = sum(math.log(row.exp().sum()) - float(row[k]) for row, k in rows) / 3
    assert float(path_loss(scores, chosen)) == pytest.approx(by_hand, abs=1e-6)


def test_the_likelihood_of_a_batch_is_that_of_its_paths_alone():
    dataset = planted_dataset(5, seed=2)
    network = build_module(dataset, TINY, appearance="features", seed=0).network.eval()
    data = PathData(dataset, appearance="features")
    alone = [nats_per_token(network, PathData(dataset, [k], appearance="features")) for k in range(5)]
    mean, tokens = nats_per_token(network, data)
    assert tokens == sum(n for _, n in alone) == dataset.lengths.sum() + 5
    assert mean == pytest.approx(sum(m * n for m, n in alone) / tokens, abs=1e-6)
    batch = data[[0]]
    scores = network(batch.scenes, batch.scene, batch.previous).detach()
    assert float(path_nats(scores, batch)[0]) < float(path_loss(scores, batch.chosen)) * tokens  # no padding class


def test_training_keeps_the_likeliest_epoch_and_stops():
    dataset = planted_dataset(30, seed=4)
    module = build_module(dataset, {**TINY, "lr": 0.05, "ema_decay": 0.0}, appearance="features", seed=0)
    best = BestEpoch("validation_nats", patience=2)
    held_out = PathData(dataset, range(20, 30), appearance="features")
    training = PathData(dataset, range(20), appearance="features").loader(4, shuffle=module.order)
    fit_quietly(module, training, held_out.loader(64), epochs=30, best=best, gradient_clip=1.0)
    network = module.network
    nats = [row["validation_nats"] for row in best.curve]
    assert len(nats) < 30
    assert best.epoch == int(np.argmin(nats)) + 1 == len(nats) - 2
    assert nats_per_token(network, held_out)[0] == pytest.approx(min(nats), abs=1e-5)


def test_the_same_seed_gives_the_same_weights_and_another_one_does_not():
    dataset = planted_dataset(8, seed=4)
    estimator = OATEstimator("OAT", dataset, Options(network={**TINY, "batch": 4}, appearance="features"))
    first, same, other = (estimator.fit(range(8), None, {}, seed, 2, None) for seed in (1, 1, 2))
    assert first.evaluate(range(8), None) == same.evaluate(range(8), None) != other.evaluate(range(8), None)


def test_hyper_parameters_are_plain_and_bad_ones_are_refused():
    module = ScanpathModule(arguments={"rows": 2, "columns": 3, "appearance": "none", "d_position": 16}, lr=1e-3)
    plain = (int, float, str, bool, dict, type(None))
    assert all(isinstance(value, plain) for value in dict(module.hparams).values())
    with pytest.raises(ValueError, match="lr must be above 0"):
        ScanpathModule(arguments={}, lr=0)
    with pytest.raises(ValueError, match='target_position must be "hidden" or "given"'):
        ScanpathModule(arguments={}, target_position="shown")


def test_a_table_given_as_numbers_is_the_networks_table():
    table = [[float(4 * i + j) for j in range(4)] for i in range(3)]
    arguments = {"rows": 2, "columns": 3, "appearance": "none", "d_appearance": 4, "d_position": 12, "table": table}
    network = ScanpathModule(arguments=arguments).network
    assert network.position.table[:3].tolist() == table


def test_scenes_on_different_grids_are_no_data_for_one_network():
    def scene(name, rows):
        objects = tuple(SceneObject("thing", (10.0 * k, 0.0, 5.0, 5.0)) for k in range(6))
        return Scene(name, (60, 10), objects, rows=rows, columns=None if rows is None else 6 // rows)

    def arguments(*scenes):
        trials = tuple(Trial(s.identifier, "Ann", np.array([0]), s.centres[:1]) for s in scenes)
        return data_arguments(Dataset({s.identifier: s for s in scenes}, trials), "none")

    assert (arguments(scene("a", 2))["rows"], arguments(scene("a", 2))["columns"]) == (2, 3)
    for pair in ((2, 3), (2, None)):
        with pytest.raises(ValueError, match="scenes on one grid, or only free layouts"):
            arguments(*(scene(str(rows), rows) for rows in pair))


@pytest.mark.slow
def test_an_observer_that_likes_red_things_is_learnt_better_than_distance_explains():
    """The command `voxelwave scanpath benchmark --part planted` does it in full."""
    from voxelwave.scanpath.planted import PlantedObserver

    observer = PlantedObserver(scale=3.0, preference={"red": 4.0, "blue": 2.0}, seen=0.0, stay=0.0, end=0.2)
    dataset = planted_dataset(500, seed=6, observer=observer, most=11)
    settings = {"d_appearance": 8, "d_position": 24, "layers": 1, "feed_forward": 32, "dropout": 0.0}
    settings |= {"lr": 5e-3, "batch": 16, "alike": True, "ema_decay": 0.9}
    estimator = OATEstimator("OAT", dataset, Options(network=settings, epochs=6, appearance="features"))
    fit = estimator.fit(range(300), range(300, 400), {}, 0, None, None)
    test = range(400, 500)
    figures = fit.evaluate(test, None)
    nearest = NearestObject().fit(dataset, range(300))

    def nats(model):
        rows = [(dataset.scene_of(k), dataset.trials[k].objects) for k in test]
        losses = [-model.log_probabilities(s, p)[np.arange(len(p) + 1), [*p, len(s)]] for s, p in rows]
        return float(np.concatenate(losses).mean())

    best, learnt, simple = nats(observer), figures["nats"] / figures["tokens"], nats(nearest)
    assert best < learnt < best + 0.6 * (simple - best)


@pytest.mark.parametrize("mixer", ["workspace(slots=2)", "graph_window(hops=1)"])
def test_settings_of_a_training_reach_mechanism_and_gates_and_the_gates_learn(mixer):
    dataset = planted_dataset(8, seed=4)
    network = {**TINY, "batch": 4, "mixer": mixer, "gates": "mixture_of_heads(shared=1, active=1)"}
    estimator = OATEstimator("OAT", dataset, Options(network=network, appearance="features"))
    nats = [estimator.fit(range(8), None, {}, 1, epochs, None).evaluate(range(8), None)["nats"] for epochs in (1, 4)]
    assert nats[1] < nats[0]
    with pytest.raises(ValueError, match="did you mean workspace"):
        build_module(dataset, {**TINY, "mixer": "workspce"}, appearance="features", seed=0)
