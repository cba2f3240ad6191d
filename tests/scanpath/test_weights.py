from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from voxelwave.runs.catalogue import list_weights
from voxelwave.scanpath.oat import OAT
from voxelwave.scanpath.planted import FEATURES, PlantedObserver, planted_dataset, planted_scene
from voxelwave.scanpath.positions import distance_table
from voxelwave.scanpath.scene import Scene, SceneObject
from voxelwave.scanpath.weights import NetworkModel, WeightsInfo, load_model, save_model


def network(**changes):
    torch.manual_seed(0)
    arguments = {"rows": 3, "columns": 4, "appearance": "none", "d_appearance": 4, "d_position": 12, "layers": 1}
    return OAT(**{**arguments, "feed_forward": 16, "steps": 40, **changes}).eval()


def grid_scene(rows=3, columns=4, target=5):
    boxes = [(30.0 * c, 20.0 * r, 20.0, 15.0) for r in range(rows) for c in range(columns)]
    return Scene("s", (130, 70), tuple(SceneObject("thing", box) for box in boxes), target, rows, columns)


def info(**changes):
    return replace(WeightsInfo({}, "hidden", "search", True, ("s",), (), 20), **changes)


def test_weights_are_read_as_they_were_written_with_a_table_of_another_kind(tmp_path):
    table = distance_table(4, 4, sigma=1.3, seed=7)
    model = NetworkModel(network(table=table), info(target_position="given", notes={"seed": "7"}))
    save_model(tmp_path / "w.safetensors", model.network, model.info)
    read = load_model(tmp_path / "w.safetensors")
    assert (read.info.trained_on, read.info.notes, read.info.target_position) == (("s",), {"seed": "7"}, "given")
    assert read.info.arguments == model.network.arguments
    path = [0, 5, 11]
    np.testing.assert_array_equal(
        read.log_probabilities(grid_scene(), path), model.log_probabilities(grid_scene(), path)
    )


def test_a_network_answers_what_baselines_answer():
    model = NetworkModel(network(), info())
    log_p = model.log_probabilities(grid_scene(), [3, 3, 0])
    assert log_p.shape == (4, 13)
    np.testing.assert_allclose(np.exp(log_p).sum(1), 1, rtol=1e-9)
    assert np.isneginf(log_p[0, -1])
    assert np.isfinite(log_p[1:]).all()
    np.testing.assert_allclose(model.log_probabilities(grid_scene(), [3]), log_p[:2], atol=1e-6)
    paths = model.sample(grid_scene(), 5, seed=3, max_length=6)
    assert all(1 <= len(path) <= 6 for path in paths)
    again = model.sample(grid_scene(), 2, seed=3, max_length=6)
    assert [p.tolist() for p in again] == [p.tolist() for p in paths[:2]]
    with pytest.raises(ValueError, match="objects must be 0 to 11"):
        model.log_probabilities(grid_scene(), [12])


def test_hidden_weights_do_not_tell_targets_apart_and_given_ones_do():
    hidden, given = NetworkModel(network(), info()), NetworkModel(network(), info(target_position="given"))
    here, there = (grid_scene(target=k) for k in (0, 9))
    np.testing.assert_array_equal(hidden.log_probabilities(here, [2]), hidden.log_probabilities(there, [2]))
    assert not np.allclose(given.log_probabilities(here, [2]), given.log_probabilities(there, [2]))


def test_attention_of_each_step_sums_to_one():
    weights = NetworkModel(network(), info()).attention(grid_scene(), [1, 2])
    assert weights.shape == (3, 13)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("how", ["greedy", "beam", "sample"])
def test_scenes_are_decoded_together_as_alone(how):
    scenes = [planted_scene(str(k), k) for k in range(3)]
    model = NetworkModel(network(rows=8, columns=10, appearance="features", features=3), info(grid=False))
    together = model.decode(scenes, how, samples=3, max_length=7)
    assert together == [model.decode([scene], how, samples=3, max_length=7)[0] for scene in scenes]
    assert {len(paths) for paths in together} == {3 if how == "sample" else 1}


def test_scenes_that_do_not_fit_are_refused_in_words():
    model = NetworkModel(network(), info())
    with pytest.raises(ValueError, match="must be a grid of 3 x 4, as the weights require, got 2 x 6"):
        model.log_probabilities(grid_scene(2, 6), [])
    free = planted_scene("free", 0)
    with pytest.raises(ValueError, match=r"must be a grid of 3 x 4.*got a free layout"):
        model.decode([free])
    looks = network(rows=8, columns=10, appearance="features", features=3)
    colours = NetworkModel(looks, info(grid=False, features=FEATURES))
    with pytest.raises(ValueError, match=r"must be a free layout.*got a grid of 3 x 4"):
        colours.decode([grid_scene()])
    bare = replace(free, objects=tuple(replace(o, features=None) for o in free.objects))
    with pytest.raises(ValueError, match=r"must have 3 features \(red, green, blue\), got 0"):
        colours.decode([bare])


def test_other_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "text.safetensors").write_text("no weights")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    save_model(tmp_path / "cut.safetensors", network(), info())
    content = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    for name, words in (
        ("text.safetensors", "not a readable safetensors file"),
        ("cut.safetensors", "not a readable safetensors file"),
        ("other.safetensors", "must be weights of voxelwave scanpath train"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            load_model(tmp_path / name)
        assert "\n" not in str(caught.value)
    for name in ("nowhere.safetensors", "nobody"):
        with pytest.raises(FileNotFoundError, match=r"no file of weights at|weights must be a file or a name"):
            load_model(tmp_path / name)
    with pytest.raises(ValueError, match=r"path must end in \.safetensors"):
        save_model(tmp_path / "w.pt", network(), info())


def test_parameters_of_another_size_are_refused(tmp_path):
    import json

    from safetensors import safe_open

    save_model(tmp_path / "w.safetensors", network(), info())
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        told = json.loads(file.metadata()["info"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata())
    told["arguments"]["feed_forward"] = 20
    save_file(state, tmp_path / "w.safetensors", {**metadata, "info": json.dumps(told)})
    with pytest.raises(ValueError, match=r"linear1\.weight must have shape \(20, 16\), got \(16, 16\)"):
        load_model(tmp_path / "w.safetensors")


def test_shipped_weights_are_small_and_near_the_observer_that_they_learnt():
    assert [entry.name for entry in list_weights("scanpath")] == ["planted-observer", "search-interiors"]
    model, observer = load_model("planted-observer"), PlantedObserver()
    dataset = planted_dataset(40, seed=99)

    def nats(one):
        rows = [(dataset.scene_of(k), t.objects) for k, t in enumerate(dataset.trials)]
        losses = [-one.log_probabilities(s, p)[np.arange(len(p) + 1), [*p, len(s)]] for s, p in rows]
        return np.concatenate(losses).mean()

    assert nats(model) < 1.08 * nats(observer)  # 5 % with 500 scenes; here there are 40
    assert model.info.features == FEATURES


@pytest.mark.parametrize(
    "changes",
    [
        {"mixer": "workspace(slots=3)"},
        {"mixer": "graph_window(hops=1)", "gates": "mixture_of_heads(shared=1, active=2)"},
        {"prior_share": 0.4},
    ],
)
def test_weights_of_another_mechanism_are_read_as_they_were_written(changes, tmp_path):
    model = NetworkModel(network(**changes), info())
    save_model(tmp_path / "w.safetensors", model.network, model.info)
    read = load_model(tmp_path / "w.safetensors")
    assert {name: read.network.arguments[name] for name in changes} == changes
    path = [0, 5, 11]
    np.testing.assert_array_equal(
        read.log_probabilities(grid_scene(), path), model.log_probabilities(grid_scene(), path)
    )
