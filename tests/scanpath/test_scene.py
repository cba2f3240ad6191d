import numpy as np
import pytest

from voxelwave.scanpath.scene import Dataset, Scene, SceneObject, Trial

BOX = (0, 0, 1, 1)


def grid(identifier="s", rows=2, columns=3, **more):
    boxes = [(100 * c + 10, 100 * r + 10, 80, 80) for r in range(rows) for c in range(columns)]
    objects = tuple(SceneObject(f"o{k}", box) for k, box in enumerate(boxes))
    return Scene(identifier, (100 * columns, 100 * rows), objects, rows=rows, columns=columns, **more)


def path(scene, person, *objects):
    return Trial(scene, person, np.array(objects), np.zeros((len(objects), 2)))


def test_places_on_a_grid_are_rows_and_columns():
    scene = grid(target=4)
    assert scene.places.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert scene.centres[4].tolist() == [150, 150]
    assert (scene.spacing, scene.diagonal, scene.layout, scene.sought) == (100, np.hypot(300, 200), "s", "o4")


def test_places_of_a_free_layout_count_distances_of_neighbours():
    objects = tuple(SceneObject("", (x, y, 20, 20)) for x, y in [(0, 0), (60, 0), (0, 60), (300, 300)])
    scene = Scene("s", (400, 400), objects)
    assert scene.spacing == 60
    np.testing.assert_allclose(scene.places[1] - scene.places[0], [0, 1])
    assert scene.sought is None
    assert Scene("one", (400, 300), objects[:1]).spacing == 400


def test_a_box_has_four_finite_numbers_and_sides():
    for wrong in [(0, 0, 1), (0, 0, 0, 1), (0, 0, 1, -1), (0, np.nan, 1, 1), (0, 0, np.inf, 1)]:
        with pytest.raises(ValueError, match="box must be x, y, width, height"):
            SceneObject("o", wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objects": ()}, "at least one object"),
        ({"size": (0, 5)}, "a size above 0"),
        ({"target": 6}, "target of scene s must be 0 to 5, got 6"),
        ({"target": -1}, "target of scene s must be 0 to 5, got -1"),
        ({"rows": None}, "rows and columns or neither, got None and 3"),
        ({"rows": 3}, "3 x 3 objects, one per place, got 6"),
        ({"objects": (SceneObject("a", BOX, np.ones(2)), SceneObject("b", BOX)), "columns": 1}, "one length"),
    ],
)
def test_an_impossible_scene_is_refused(change, message):
    scene = grid()
    told = {"size": scene.size, "objects": scene.objects, "rows": 2, "columns": 3, **change}
    with pytest.raises(ValueError, match=message):
        Scene("s", **told)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objects": np.empty(0, int)}, "n at least 1"),
        ({"objects": np.array([0.5, 1])}, "whole numbers"),
        ({"xy": np.zeros((3, 2))}, r"positions \(2, 2\), got \(3, 2\)"),
        ({"xy": np.full((2, 2), np.nan)}, "finite positions"),
        ({"onset": np.array([0.1])}, r"onset of trial of Ann on s must be \(2,\) seconds"),
        ({"duration": np.array([0.1, -0.1])}, "duration of trial of Ann on s must be"),
    ],
)
def test_an_impossible_trial_is_refused(change, message):
    told = {"objects": np.array([0, 1]), "xy": np.zeros((2, 2)), **change}
    with pytest.raises(ValueError, match=message):
        Trial("s", "Ann", **told)


def test_trials_must_be_on_objects_of_known_scenes():
    scene = grid()
    with pytest.raises(ValueError, match="on scene t, which is not in the dataset"):
        Dataset({"s": scene}, (path("t", "Ann", 0),))
    with pytest.raises(ValueError, match="objects of Ann on s must be 0 to 5, got 1 to 6"):
        Dataset({"s": scene}, (path("s", "Ann", 1, 6),))
    with pytest.raises(ValueError, match="under its identifier, got t"):
        Dataset({"t": scene})


def test_the_target_position_is_hidden_unless_asked_for():
    dataset = Dataset({"s": grid(target=1)}, (path("s", "Ann", 0, 1),))
    assert dataset.target_position == "hidden"
    given = dataset.with_target_position("given")
    assert (given.target_position, given.trials, dataset.target_position) == ("given", dataset.trials, "hidden")
    with pytest.raises(ValueError, match='must be "hidden" or "given", got \'shown\''):
        dataset.with_target_position("shown")


def test_long_trials_are_left_out_by_mean_and_standard_deviation_and_told():
    trials = [path("s", f"p{k}", 0, 1) for k in range(20)] + [path("s", "long", *[0, 1] * 30)]
    dataset = Dataset({"s": grid()}, tuple(trials))
    limit = np.mean([2] * 20 + [60]) + 3 * np.std([2] * 20 + [60])
    kept = dataset.without_long_trials()
    assert limit < 60
    assert kept.lengths.tolist() == [2] * 20
    assert kept.notes == (f"1 of 21 trials left out, longer than {limit:.2f} fixations",)
    assert len(dataset.without_long_trials(sd=9)) == 21
