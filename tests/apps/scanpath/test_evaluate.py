"""`voxelwave scanpath evaluate` on synthetic scenes, from the command line."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from voxelwave.apps import cli
from voxelwave.scanpath.oat import OAT
from voxelwave.scanpath.own_files import write_scanpaths
from voxelwave.scanpath.scene import Dataset, Scene, SceneObject, Trial
from voxelwave.scanpath.weights import WeightsInfo, save_model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten shelves of 2 x 4, two people on each."""
    rng = np.random.default_rng(0)
    boxes = [(100 * c + 10, 100 * r + 10, 80, 80) for r in range(2) for c in range(4)]
    objects = tuple(SceneObject(f"o{k}", box) for k, box in enumerate(boxes))
    scenes = [Scene(f"shelf-{k}", (400, 200), objects, k % 8, 2, 4) for k in range(10)]
    trials = []
    for scene in scenes:
        for person in ("Ann", "Bob"):
            path = [*rng.integers(0, 8, rng.integers(2, 6)), scene.target]
            trials.append(
                Trial(scene.identifier, person, np.array(path), scene.centres[path] + rng.normal(size=(len(path), 2)))
            )
    file = tmp_path_factory.mktemp("data") / "shelves.json"
    write_scanpaths(Dataset({s.identifier: s for s in scenes}, tuple(trials)), file)
    return file


@pytest.fixture
def weights(tmp_path):
    """An untrained network whose card says that it was trained on shelves 0 to 3."""

    def write(name="net.safetensors", **changes):
        torch.manual_seed(0)
        size = {"d_appearance": 8, "d_position": 24, "layers": 1, "heads": 2, "feed_forward": 16, "steps": 60}
        network = OAT(rows=2, columns=4, appearance="none", **size)
        told = {"target_position": "hidden", "task": "search", "grid": True}
        told |= {"trained_on": tuple(f"shelf-{k}" for k in range(4)), **changes}
        save_model(tmp_path / name, network, WeightsInfo(arguments={}, **told))
        return tmp_path / name

    return write


def evaluate(data, output, *words):
    return cli.main(
        ["scanpath", "evaluate", str(data), "-o", str(output), "--samples", "2", "--resamples", "20", *words]
    )


def rows_of(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_baselines_and_people_stand_in_table_and_files(data, tmp_path, capsys):
    assert evaluate(data, tmp_path / "out", "--target-position", "given") == 0
    printed = capsys.readouterr().out
    for name in (
        "uniform",
        "random",
        "nearest object",
        "step Markov with",
        "other people",
        "nats/token",
        "fold 5 of 5",
    ):
        assert name in printed
    results = rows_of(tmp_path / "out" / "results.csv")
    by = {(row["model"], row["figure"]): row for row in results}
    uniform = by["uniform", "nll_per_token"]
    assert np.log(8) < float(uniform["low"]) <= float(uniform["value"]) <= float(uniform["high"]) < np.log(9)
    assert by["other people", "sequence_score"]["trials"] == "20"
    trials = rows_of(tmp_path / "out" / "trials.csv")
    assert len(trials) == 20 * 9  # eight models, and other people
    assert sorted({row["fold"] for row in trials}) == list("12345")
    record = json.loads((tmp_path / "out" / "results.json").read_text(), parse_constant=pytest.fail)  # no NaN in it
    assert record["options"]["target_position"] == "given"
    assert record["test_trials_seen_in_training_of_their_fold"]["layout"] == 0
    assert record["results"]["uniform"]["nll_per_token"]["value"] == pytest.approx(float(uniform["value"]))
    assert "uniform" in record["differences"]["step Markov with target"]
    assert record["inputs"]["data"]["sha256"]
    with Image.open(tmp_path / "out" / "results.png") as picture:
        assert picture.width > 1000


def test_a_hidden_target_is_the_default_and_a_seed_gives_the_same_again(data, tmp_path, capsys):
    for name in ("a", "b"):
        assert evaluate(data, tmp_path / name, "--split", "person", "--folds", "2") == 0
    printed = capsys.readouterr().out
    assert "target hidden" in printed
    assert "with target" not in printed
    assert (tmp_path / "a" / "trials.csv").read_bytes() == (tmp_path / "b" / "trials.csv").read_bytes()
    shared = json.loads((tmp_path / "a" / "results.json").read_text())["test_trials_seen_in_training_of_their_fold"]
    assert shared["person"] == 0
    assert shared["layout"] == 1


@pytest.mark.slow
def test_weights_are_told_apart_by_what_they_were_trained_on(data, weights, tmp_path, capsys):
    file = weights()
    assert evaluate(data, tmp_path / "all", "--weights", str(file)) == 0
    assert "OAT (net): the weights were trained on 4 of these 10 layouts, for which the figures are" in (
        capsys.readouterr().out
    )
    rows = [row for row in rows_of(tmp_path / "all" / "trials.csv") if row["model"] == "OAT (net)"]
    assert len(rows) == 20
    for row in rows:
        assert row["seen_in_training"] == str(int(row["layout"].removeprefix("shelf-")) < 4)
    record = json.loads((tmp_path / "all" / "results.json").read_text())
    assert record["weights_trained_on_tested"]["seen_in_training"] == [f"shelf-{k}" for k in range(4)]
    assert "step Markov" in record["differences"]["OAT (net)"]

    assert evaluate(data, tmp_path / "fresh", "--weights", str(file), "--only-unseen") == 0
    rows = rows_of(tmp_path / "fresh" / "trials.csv")
    assert {row["layout"] for row in rows} == {f"shelf-{k}" for k in range(4, 10)}
    assert "12 trials" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"target_position": "given"}, (), "use --target-position given"),
        ({"trained_on": ()}, ("--only-unseen",), "weights that record their training layouts"),
        ({"trained_on": tuple(f"shelf-{k}" for k in range(10))}, ("--only-unseen",), "leaves no trial"),
        ({"grid": False}, (), "must be a free layout"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(data, weights, tmp_path, capsys, changes, words, message):
    assert evaluate(data, tmp_path / "out", "--weights", str(weights(**changes)), *words) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--folds", "11"), 1, "11 folds by layout need 11 of them, got 10"),
        (("--folds", "1"), 1, "folds must be 2 or more, got 1"),
        (("--samples", "0"), 2, "--samples must be at least 1, got 0"),
        (("--only-unseen",), 2, "--only-unseen needs --weights"),
        (("--weights", "absent.safetensors"), 1, "absent.safetensors"),
        (("--split", "trial"), 2, "layout"),
        (("--target-position", "shown"), 2, "hidden"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(data, tmp_path, capsys, words, code, message):
    assert evaluate(data, tmp_path / "out", *words) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_data_that_are_absent_or_damaged_are_named(tmp_path, capsys):
    assert evaluate(tmp_path / "absent.json", tmp_path / "out") == 1
    assert "absent.json" in capsys.readouterr().err
    (tmp_path / "cut.json").write_text('{"format": "voxelwave sc')
    assert evaluate(tmp_path / "cut.json", tmp_path / "out") == 1
    assert "cut.json must be JSON" in capsys.readouterr().err
