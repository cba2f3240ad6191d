from dataclasses import replace

import numpy as np
import pytest
import torch

from voxelwave.scanpath.data import IGNORED, PathData, scene_batch
from voxelwave.scanpath.oat import BEGIN
from voxelwave.scanpath.planted import planted_dataset
from voxelwave.scanpath.scene import Dataset, Scene, SceneObject, Trial


def grid_dataset(targets=(0, 5, 5), columns=4, rows=3):
    boxes = [(30.0 * c, 20.0 * r, 20.0, 15.0) for r in range(rows) for c in range(columns)]
    scenes = [
        Scene(f"s{k}", (130, 70), tuple(SceneObject("thing", box) for box in boxes), target, rows, columns)
        for k, target in enumerate(targets)
    ]
    paths = [np.array(path) for path in ([0, 1, 5], [2, 2], [11, 4, 4, 0])]
    trials = [Trial(s.identifier, "Ann", p, s.centres[p]) for s, p in zip(scenes, paths, strict=False)]
    return Dataset({s.identifier: s for s in scenes}, tuple(trials))


@pytest.mark.parametrize(("target_position", "encoded"), [("hidden", 1), ("given", 2)])
def test_scenes_with_the_same_inputs_are_encoded_once(target_position, encoded):
    data = PathData(grid_dataset(), target_position=target_position)
    assert len(data.scenes) == encoded
    batch = data[[0, 1, 2]]
    assert len(batch.scenes) == encoded
    shown = batch.scenes.target[batch.scene][batch.scenes.shown[batch.scene]]
    assert shown.tolist() == ([] if target_position == "hidden" else [0, 5, 5])


def test_tokens_are_shifted_by_one_and_end_after_the_last_fixation():
    batch = PathData(grid_dataset())[[1, 2]]
    assert batch.previous.tolist() == [[BEGIN, 2, 2, 0, 0], [BEGIN, 11, 4, 4, 0]]
    assert batch.chosen.tolist() == [[2, 2, 12, IGNORED, IGNORED], [11, 4, 4, 0, 12]]
    assert batch.first.tolist() == [[True, *[False] * 4]] * 2


def test_a_smaller_scene_is_padded_and_its_end_is_that_of_the_batch():
    dataset = planted_dataset(6, seed=3)
    data = PathData(dataset, appearance="features")
    counts = [len(dataset.scene_of(k)) for k in range(6)]
    assert len(set(counts)) > 1
    batch = data[list(range(6))]
    assert batch.scenes.present.sum(1)[batch.scene].tolist() == counts
    assert set(batch.chosen[batch.chosen >= 0].tolist()) >= {max(counts)}
    assert batch.scenes.appearance.shape == (6, max(counts), 3)


def test_the_mirrored_scene_has_its_columns_turned_round():
    data = PathData(grid_dataset(), mirror=True)
    assert len(data) == 6
    plain, mirrored = data[[0]], data[[3]]
    torch.testing.assert_close(mirrored.scenes.position[..., 1], 3 - plain.scenes.position[..., 1])
    torch.testing.assert_close(mirrored.scenes.position[..., 0], plain.scenes.position[..., 0])
    assert mirrored.chosen.tolist() == plain.chosen.tolist()


@pytest.mark.parametrize("alike", [False, True])
def test_an_epoch_holds_each_path_once_and_weights_keep_every_token_alike(alike):
    data = PathData(planted_dataset(50, seed=1), appearance="features")
    loader = data.loader(8, shuffle=lambda: np.random.default_rng(0), alike=alike)
    orders = [sorted(i for part in loader.sampler for i in part) for _ in range(2)]
    assert orders == [list(range(50))] * 2
    if alike:
        padded = [
            sum(len(b.scene) * b.chosen.shape[1] for b in data.loader(8, shuffle=loader.sampler.shuffle, alike=a))
            for a in (False, True)
        ]
        assert padded[1] < 0.8 * padded[0]
        batches = list(data.loader(8, alike=True))
        shares = [float(b.weight) * len(b.scene) / int((b.chosen != IGNORED).sum()) for b in batches]
        np.testing.assert_allclose(shares, shares[0], rtol=1e-6)


def test_missing_features_are_told_by_the_name_of_the_scene():
    scene = next(iter(grid_dataset().scenes.values()))
    with pytest.raises(ValueError, match="objects of scene s0 have no features"):
        scene_batch([scene], appearance="features")
    with pytest.raises(ValueError, match="scene s0 must name an image"):
        scene_batch([scene], appearance="cnn")
    other = replace(scene, objects=tuple(replace(o, features=np.ones(2)) for o in scene.objects))
    three = replace(scene, objects=tuple(replace(o, features=np.ones(3)) for o in scene.objects))
    with pytest.raises(ValueError, match="one length in all scenes"):
        scene_batch([other, three], appearance="features")
