"""Commands of the scanpath field on synthetic scenes and observers."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from voxelwave.apps import cli
from voxelwave.runs.exit import ERROR, USAGE
from voxelwave.scanpath.own_files import write_scanpaths
from voxelwave.scanpath.planted import planted_dataset
from voxelwave.scanpath.scene import Dataset, Scene, SceneObject, Trial
from voxelwave.scanpath.weights import load_model

CONFIGS = sorted((Path(cli.__file__).parent / "configs" / "scanpath").glob("*.yaml"))
TINY = {"d_appearance": 4, "d_position": 12, "layers": 1, "feed_forward": 16, "steps": 64}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    """Files with features in free layouts, and with images on a grid."""
    folder = tmp_path_factory.mktemp("data")
    write_scanpaths(planted_dataset(12, paths=2, seed=1, most=11), folder / "free.json")
    rng = np.random.default_rng(0)
    scenes, trials = {}, []
    for k in range(6):
        Image.fromarray(rng.integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(folder / f"grid{k}.png")
        boxes = [(30.0 * c + 4, 30.0 * r + 4, 22.0, 22.0) for r in range(2) for c in range(3)]
        objects = tuple(SceneObject("cover", box) for box in boxes)
        scene = Scene(f"grid {k}", (90, 60), objects, k % 3, 2, 3, folder / f"grid{k}.png", sought=f"sought {k % 3}")
        scenes[scene.identifier] = scene
        for person in ("Ann", "Bob"):
            path = rng.integers(0, 6, int(rng.integers(2, 6)))
            trials.append(Trial(scene.identifier, person, path, scene.centres[path] + rng.normal(size=(len(path), 2))))
    write_scanpaths(Dataset(scenes, tuple(trials)), folder / "grid.json")
    return {"free": folder / "free.json", "grid": folder / "grid.json"}


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump({"network": TINY, "appearance": "features", "batch": 4, "lr": 0.003}))
    words = ["--config", str(config), "--epochs", "3", "--threads", "1", "--seed", "3"]
    assert cli.main(["scanpath", "train", str(data["free"]), "-o", str(folder / "run"), *words]) == 0
    return folder / "run"


def _rows(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_run(config, data, tmp_path):
    """The texts of configurations are read, but the networks and runs are made smaller."""
    content = yaml.safe_load(config.read_text())
    folds = config.stem.endswith("_folds")
    content["network"] = {**content["network"], **TINY, "heads": 2}
    content |= {"epochs": 1, "samples": 1, "folds": 2, "resamples": 5} if folds else {"epochs": 1}
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump(content))
    file = str(data["free" if config.stem == "features" else "grid"])
    verb = "cross-validate" if folds else "train"
    assert cli.main(["scanpath", verb, file, "-o", str(tmp_path / "run"), "--config", str(small)]) == 0
    if not folds:
        network = load_model(tmp_path / "run" / "model.safetensors").network
        assert network.appearance == content["appearance"]
        assert network.arguments["layers"] == 1


def test_a_resumed_training_ends_like_an_uninterrupted_one(trained, data, tmp_path, capsys):
    words = ["--config", str(trained.parent / "tiny.yaml"), "--threads", "1", "--seed", "3"]
    command = ["scanpath", "train", str(data["free"]), "-o", str(tmp_path), *words]
    assert cli.main([*command, "--epochs", "1"]) == 0
    assert cli.main([*command, "--epochs", "3"]) == 2
    assert "continue with --resume" in capsys.readouterr().err
    assert cli.main([*command, "--epochs", "3", "--resume"]) == 0
    assert cli.main([*command, "--epochs", "4", "--resume", "--lr", "0.5"]) == 1
    assert "with other data or options (lr was" in capsys.readouterr().err
    assert _rows(tmp_path / "curve.csv") == _rows(trained / "curve.csv")
    ours, theirs = (load_model(folder / "model.safetensors") for folder in (tmp_path, trained))
    for name, tensor in ours.network.state_dict().items():
        np.testing.assert_array_equal(tensor, theirs.network.state_dict()[name])


def test_weights_tell_what_they_have_seen_and_a_checkpoint_loads_without_executing_anything(trained, data):
    from voxelwave.scanpath.module import load_checkpoint

    info = load_model(trained / "model.safetensors").info
    assert set(info.trained_on) == {f"planted-1-{k}" for k in range(12)}
    assert (info.task, info.grid, info.features) == ("free viewing", False, ("feature 1", "feature 2", "feature 3"))
    assert load_checkpoint(trained / "last.ckpt").network.arguments == info.arguments


@pytest.mark.parametrize("decode", ["greedy", "beam", "sample"])
def test_prediction_of_one_scene_is_told_in_json_and_drawn(decode, trained, tmp_path, capsys):
    scene = next(iter(planted_dataset(1, seed=8).scenes.values()))
    write_scanpaths(Dataset({scene.identifier: scene}), tmp_path / "one.json")
    words = ["-i", str(tmp_path / "one.json"), "-o", str(tmp_path / "out"), "--decode", decode, "--samples", "3"]
    assert cli.main(["scanpath", "predict", *words, "--weights", str(trained / "model.safetensors")]) == 0
    content = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert len(content["paths"]) == (3 if decode == "sample" else 1)
    model = load_model(trained / "model.safetensors")
    for path in content["paths"]:
        tokens = [*path["objects"], len(scene)]
        log_p = model.log_probabilities(scene, path["objects"])[np.arange(len(tokens)), tokens]
        told = [*path["log_probability"], path["log_probability_of_end"]]
        np.testing.assert_allclose(told, log_p, atol=1e-4)
        assert path["names"] == [scene.objects[k].name for k in path["objects"]]
        np.testing.assert_allclose(path["x"], scene.centres[path["objects"], 0], atol=0.06)
    assert sum(content["fixation_probability"]) == pytest.approx(1, abs=1e-3)
    assert sum(content["attention"]) + content["attention_on_target_token"] == pytest.approx(1, abs=1e-3)
    with Image.open(tmp_path / "out" / "scanpath.png") as picture:
        assert picture.width > 2 * picture.height
    assert "flatters" not in capsys.readouterr().out


def test_of_a_folder_a_broken_scene_is_told_and_the_others_go_on(trained, data, tmp_path, capsys):
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    (folder / "broken.json").write_text("{")
    (folder / "list.json").write_text("[1, 2]")
    (folder / "._grid.json").write_bytes(b"of macOS")  # ignored, like all hidden files
    (folder / "deeper" / "free.json").write_bytes(data["free"].read_bytes())
    (folder / "grid.json").write_bytes(data["grid"].read_bytes())
    words = ["-o", str(tmp_path / "out"), "--weights", str(trained / "model.safetensors"), "--samples", "1"]
    assert cli.main(["scanpath", "predict", "-i", str(folder), *words, "--no-pictures"]) == 3
    rows = {row["scene"]: row for row in _rows(tmp_path / "out" / "predictions.csv")}
    reasons = {name: row["reason"] for name, row in rows.items() if row["status"] == "failed"}
    assert set(reasons) == {"broken.json", "list.json", *(f"grid {k}" for k in range(6))}
    assert "must be JSON" in reasons["broken.json"]
    assert "must be scanpaths" in reasons["list.json"]
    assert "must be a free layout" in reasons["grid 0"]
    done = [row for row in rows.values() if row["status"] == "done"]
    assert len(done) == 12
    assert all((tmp_path / "out" / row["folder"] / "prediction.json").is_file() for row in done)
    assert "the weights were trained on this layout" in capsys.readouterr().out
    assert cli.main(["scanpath", "predict", "-i", str(folder / "broken.json"), *words, "--overwrite"]) == 1
    error = capsys.readouterr().err
    assert "broken.json must be JSON" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["predict", "-i", "nowhere", "-o", "out", "--weights", "nobody"], "no scene or folder at nowhere"),
        (
            ["predict", "-i", ".", "-o", "out", "--weights", "nobody"],
            "must be a file or a name (planted-observer, search-interiors)",
        ),
        (["train", "DATA", "-o", "out", "--validation-share", "0.9"], "--validation-share must be above 0 and at most"),
        (["train", "DATA", "-o", "out", "--resume"], "--resume needs out/last.ckpt"),
        (["train", "DATA", "-o", "out", "--network", '{"d_position": 13}'], "divisible by heads"),
        (["train", "DATA", "-o", "out", "--appearance", "cnn"], "must name an image from which objects can be cut"),
        (["train", "DATA", "-o", "out", "--split", "target"], "a split by target needs one in every scene"),
        (["cross-validate", "DATA", "-o", "out", "--target-position", "given"], "needs scenes with a target"),
        (["cross-validate", "DATA", "-o", "out", "--folds", "13"], "13 folds by layout need 13 of them, got 12"),
        (["benchmark", "-o", "out", "--scenes", "0"], "--scenes must be at least 1"),
    ],
)
def test_bad_requests_are_answered_in_one_line(words, told, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["scanpath", *(str(data["free"]) if w == "DATA" else w for w in words)]) in (ERROR, USAGE)
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("voxelwave: usage: --") == told.startswith(("--validation", "--scenes"))
    assert error.count("\n") == 1


def test_cross_validation_tests_each_scanpath_once_by_weights_that_never_saw_its_layout(data, tmp_path, capsys):
    config = tmp_path / "folds.yaml"
    network = {**TINY, "heads": 2, "batch": 4}
    space = {"dropout": [0.0, 0.3], "lr": [1e-3, 1e-2]}
    options = {"folds": 2, "trials": 2, "epochs": 2, "samples": 2, "resamples": 20, "network": network, "space": space}
    config.write_text(yaml.safe_dump(options))
    output = tmp_path / "out"
    command = ["scanpath", "cross-validate", str(data["grid"]), "-o", str(output), "--config", str(config)]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    rows = _rows(output / "trials.csv")
    models = {row["model"] for row in rows}
    assert {
        "OAT, target hidden",
        "OAT, target given",
        "step Markov",
        "step Markov with target",
        "other people",
    } < models
    plan = json.loads((output / "plan.json").read_text())
    for model in models:
        assert sorted(int(row["trial"]) for row in rows if row["model"] == model) == list(range(12))
    for split in plan["splits"]:
        for mode in ("hidden", "given"):
            cell = output / "cells" / f"oat-{mode}-r0-f{split['fold']}-nested-final"
            tested = {row["layout"] for row in json.loads((cell / "rows.json").read_text())}
            info = load_model(cell / "model.safetensors").info
            assert not tested & set(info.trained_on)
            assert info.target_position == mode
    results = json.loads((output / "results.json").read_text())
    own = [row for row in rows if row["model"] == "OAT, target hidden"]
    nats = sum(float(r["nll_fixations"]) + float(r["nll_end"]) for r in own)
    tokens = sum(int(r["fixations"]) + 1 for r in own)
    told = results["results"]["OAT, target hidden"]["nll_per_token"]["value"]
    assert told == pytest.approx(nats / tokens)
    assert "OAT, target hidden, difference in nats per token to simpler models" in shown
    for fold in results["folds"]:
        best = max(fold["trials"], key=lambda trial: trial["score"])
        assert fold["settings"] == best["settings"]
        assert fold["epochs"] == max(1, round(np.median(best["epochs"])))
    times = {p: p.stat().st_mtime_ns for p in (output / "cells").rglob("result.json")}
    assert cli.main(command) == 0  # continues from the existing results
    assert {p: p.stat().st_mtime_ns for p in (output / "cells").rglob("result.json")} == times
    assert json.loads((output / "results.json").read_text())["results"] == results["results"]
    assert cli.main([*command, "--trials", "1"]) == 1
    assert "with another plan (trials was 2, now 1" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["person", pytest.param("target", marks=pytest.mark.slow)])
def test_other_splits_keep_people_or_targets_apart(split, data, tmp_path):
    words = ["--split", split, "--folds", "2" if split == "person" else "3", "--inner", "2", "--epochs", "1"]
    words += ["--samples", "1", "--resamples", "5", "--target-position", "hidden", "--network", json.dumps({**TINY})]
    command = ["scanpath", "cross-validate", str(data["grid"]), "-o", str(tmp_path / "out"), *words]
    if split == "person":  # one of two people is left for training, who cannot be split again
        assert cli.main(command) == 1
        return
    assert cli.main(command) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["test_trials_seen_in_training_of_their_fold"][split] == 0


@pytest.mark.slow
def test_benchmarks_measure_on_small_scenes(tmp_path, monkeypatch, capsys):
    from voxelwave.scanpath import benchmark as scanpath_benchmark

    monkeypatch.setattr(scanpath_benchmark, "PLANTED", {**TINY, "steps": 128, "lr": 1e-3, "batch": 8})
    words = ["-o", str(tmp_path), "--scenes", "3", "--steps", "4", "--repeats", "1"]
    assert cli.main(["scanpath", "benchmark", *words, "--training-scenes", "20", "--epochs", "1"]) == 0
    shown = capsys.readouterr().out
    assert "3 of 3 paths are equal" in shown
    content = json.loads((tmp_path / "benchmark-planted.json").read_text())
    nats = content["nats_per_token"]
    assert nats["planted observer"] == pytest.approx(content["entropy"], rel=0.02)
    assert nats["planted observer"] < nats["nearest object"] < nats["OAT"]
    assert load_model(tmp_path / "model.safetensors").info.features == ("red", "green", "blue")
