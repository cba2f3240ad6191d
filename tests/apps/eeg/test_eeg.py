"""Commands of the EEG field on a study of synthetic people."""

import csv
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from voxelwave.apps import cli
from voxelwave.eeg.estimators import build
from voxelwave.eeg.networks import ModelCard, build_network, load_network, save_network
from voxelwave.eeg.search_spaces import NAMES
from voxelwave.eeg.study import read_study
from voxelwave.eeg.synthetic import write_synthetic_study
from voxelwave.eeg.windows import WindowOptions, load_windows

CONFIGS = sorted((Path(cli.__file__).parent / "configs" / "eeg").glob("adhdeepnet*.yaml")) + sorted(
    (Path(cli.__file__).parent / "configs" / "eeg").glob("eegnet*.yaml")
)
NESTED_CONFIGS = sorted((Path(cli.__file__).parent / "configs" / "eeg").glob("*nested*.yaml"))
# wrong usage, which is found before any file is read (exit code 2); other errors have exit code 1
USAGE = (
    "epochs must",
    "--patience must",
    "threads must",
    "batch must",
    "--validation-share must",
    "validation-share must",
    "--threshold must be between",
    "last.ckpt",
    "is not the folder of a nested run",
    "--most-windows must",
)
TINY = {
    "adhdeepnet": {"F1": 2, "D": 2, "kernel_length": 16, "lr": 5e-3, "max_norm": 5.0},
    "eegnet": {"F1": 2, "D": 1, "lr": 5e-3},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_synthetic_study(folder, subjects=10, seconds=10, difference_uv=10, seed=1)
    return folder


@pytest.fixture(scope="module")
def weights(study, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump({"settings": TINY["adhdeepnet"], "windows": {"seconds": 2.0, "sfreq": 64.0}}))
    words = ["--config", str(config), "--epochs", "2", "--batch", "8", "--threads", "1", "--seed", "3"]
    assert cli.main(["eeg", "train", str(study), "-o", str(folder / "run"), *words]) == 0
    return folder / "run"


def _rows(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_train(config, study, tmp_path):
    """The texts of configurations are read, but the networks are made smaller."""
    content = yaml.safe_load(config.read_text())
    network = content["network"]
    content["settings"] = {**content["settings"], **TINY[network]}
    content["windows"]["seconds"] = 2.0
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump({**content, "epochs": 1}))
    assert cli.main(["eeg", "train", str(study), "-o", str(tmp_path / "run"), "--config", str(small)]) == 0
    assert load_network(tmp_path / "run")[1].network == network


def test_a_resumed_training_ends_like_an_uninterrupted_one(weights, study, tmp_path):
    words = ["--config", str(weights.parent / "tiny.yaml"), "--batch", "8", "--threads", "1", "--seed", "3"]
    command = ["eeg", "train", str(study), "-o", str(tmp_path), *words]
    assert cli.main([*command, "--epochs", "1"]) == 0
    assert cli.main([*command, "--epochs", "2"]) == 2  # a checkpoint exists
    assert cli.main([*command, "--epochs", "2", "--resume"]) == 0
    assert _rows(tmp_path / "curve.csv") == _rows(weights / "curve.csv")
    for name, tensor in load_network(weights)[0].state_dict().items():
        np.testing.assert_array_equal(tensor, load_network(tmp_path)[0].state_dict()[name])


@pytest.mark.slow
def test_diagnosis_of_a_folder_names_what_it_cannot_read(weights, study, tmp_path, capsys, shared_data):
    recordings = tmp_path / "in"
    recordings.mkdir()
    for name in ("s001_raw.fif", "s002_raw.fif"):
        (recordings / name).write_bytes((study / name).read_bytes())
    (recordings / "s003_raw.fif").write_bytes((study / "s003_raw.fif").read_bytes()[:3000])
    other = shared_data / "eeg_formats" / "EEGLAB" / "test_raw_2021.set"
    (recordings / other.name).write_bytes(other.read_bytes())
    output = tmp_path / "out"
    assert cli.main(["eeg", "diagnose", "-i", str(recordings), "-o", str(output), "--weights", str(weights)]) == 3
    errors = capsys.readouterr().err
    assert "s003_raw" in errors
    assert "must have the channels" in errors
    rows, windows = _rows(output / "subjects.csv"), _rows(output / "windows.csv")
    content = json.loads((output / "diagnosis.json").read_text())
    assert [row["subject"] for row in rows] == ["s001_raw", "s002_raw"]
    assert "not a medical device" in content["note"]
    assert len(content["failed"]) == 2
    for row in rows:
        own = [float(w["probability"]) for w in windows if w["subject"] == row["subject"]]
        assert float(row["probability"]) == pytest.approx(np.mean(own))
        assert "optimistic" in row["notes"]


def test_a_probability_near_the_threshold_gets_no_decision(weights, study, tmp_path):
    base = ["eeg", "diagnose", "-i", str(study / "s001_raw.fif"), "--weights", str(weights)]
    decisions = []
    for number, words in enumerate((["--threshold", "1", "--abstain", "0"], ["--abstain", "1"], ["--threshold", "0"])):
        output = tmp_path / str(number)
        assert cli.main([*base, "-o", str(output), *words]) == 0
        decisions.append(_rows(output / "subjects.csv")[0]["decision"])
    assert decisions == ["control", "uncertain", "case"]


@pytest.mark.slow
def test_diagnosis_by_a_table_joins_recordings_of_a_person_and_names_who_is_missing(weights, study, tmp_path, capsys):
    recordings = tmp_path / "in"
    recordings.mkdir()
    for name in ("s001_raw.fif", "s002_raw.fif", "s003_raw.fif"):
        (recordings / name).write_bytes((study / name).read_bytes())
    (recordings / "._s001_raw.fif").write_bytes(b"of another system")
    rows = ["subject,group,who", "s001,case,Ann", "s002,case,Ann ", "s009,control,Bob"]
    (tmp_path / "people.csv").write_text("\n".join(rows) + "\n")
    words = ["-i", str(recordings), "-o", str(tmp_path / "out"), "--weights", str(weights)]
    words += ["--table", str(tmp_path / "people.csv"), "--label_column", "group", "--person_column", "who"]
    assert cli.main(["eeg", "diagnose", *words, "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert "s003_raw.fif: no row in people.csv" in out
    assert "s009 of people.csv: no recording" in out
    subjects, people = (_rows(tmp_path / "out" / name) for name in ("subjects.csv", "people.csv"))
    assert [row["person"] for row in subjects] == ["Ann", "Ann", "s003_raw"]
    assert [(row["person"], row["label"], row["recordings"]) for row in people] == [
        ("Ann", "case", "2"),
        ("s003_raw", "", "1"),
    ]
    of_ann = [(float(row["probability"]), int(row["windows"])) for row in subjects[:2]]
    mean = sum(p * n for p, n in of_ann) / sum(n for _, n in of_ann)
    assert float(people[0]["probability"]) == pytest.approx(mean)


@pytest.mark.slow
def test_diagnosis_of_a_split_recording_is_one_case(weights, study, tmp_path):
    import mne

    raw = mne.io.read_raw_fif(study / "s001_raw.fif", preload=True, verbose="ERROR")
    raw = mne.concatenate_raws([raw.copy() for _ in range(30)], verbose="ERROR")
    (tmp_path / "in").mkdir()
    raw.save(tmp_path / "in" / "s1_raw.fif", split_size="2MB", verbose="ERROR")
    assert len(list((tmp_path / "in").iterdir())) > 1
    words = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--weights", str(weights)]
    assert cli.main(["eeg", "diagnose", *words, "--jobs", "1"]) == 0
    assert len(_rows(tmp_path / "out" / "subjects.csv")) == 1


def test_a_slower_recording_is_refused_in_one_line(weights, study, tmp_path, capsys):
    import mne

    raw = mne.io.read_raw_fif(study / "s001_raw.fif", preload=True, verbose="error").resample(50, verbose="error")
    raw.save(tmp_path / "slow_raw.fif", verbose="error")
    words = ["-i", str(tmp_path / "slow_raw.fif"), "-o", str(tmp_path / "out"), "--weights", str(weights)]
    assert cli.main(["eeg", "diagnose", *words]) == 1
    error = capsys.readouterr().err
    assert "the weights need at least 64 Hz, got 50 Hz" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_explanation_of_one_file_needs_people_it_was_not_trained_on(weights, study, tmp_path, capsys):
    words = ["--study", str(study), "-o", str(tmp_path / "out"), "--threads", "1", "--steps", "4"]
    assert cli.main(["eeg", "explain", str(weights), *words]) == 1
    assert "so no subject is held out" in capsys.readouterr().err
    assert cli.main(["eeg", "explain", str(weights), *words, "--trained"]) == 0
    content = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert "used in training" in content["notes"][0]


@pytest.mark.slow
def test_explanation_of_a_nested_run_asks_each_network_about_its_own_test_part(study, tmp_path):
    arguments = {"study": str(study), "name": "adhdeepnet", "windows": {"seconds": 2.0}}
    spec = {"factory": "voxelwave.eeg.estimators:from_plan", "arguments": arguments}
    data = load_windows(read_study(study), WindowOptions(seconds=2.0)).digest
    plan = json.loads((Path(__file__).parents[1] / "nested_cv" / "run_of_0_1_0" / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**plan, "models": {"adhdeepnet": spec}, "data": data}))
    from voxelwave.eeg.estimators import from_plan

    estimator = from_plan(**arguments, options={"settings": TINY["adhdeepnet"]})
    for fold, test in enumerate(([0, 1, 2, 3], [4, 5, 6, 7])):
        train = [i for i in range(10) if i not in test]
        folder = tmp_path / "cells" / f"fold{fold}"
        estimator.fit(train, None, {}, 0, 1, folder)
        cell = {"model": "adhdeepnet", "keep": True, "train": train, "predict": test, "repeat": 0, "fold": fold}
        (folder / "cell.json").write_text(json.dumps(cell))
    assert cli.main(["eeg", "explain", str(tmp_path), "--threads", "1", "--steps", "4"]) == 0
    content = json.loads((tmp_path / "explain" / "explanation.json").read_text())
    assert content["subjects"] == 8
    assert content["networks"] == ["repeat 1, fold 1", "repeat 1, fold 2"]
    assert {row["channel"] for row in content["channels"]} >= {"O1", "Pz"}
    assert sum(row["importance"] for row in content["bands"]) == pytest.approx(1)
    for image in content["images"].values():
        assert (tmp_path / "explain" / image).read_bytes().startswith(b"\x89PNG")
    cell["train"] = cell["predict"]  # as if the network had been trained on them
    (folder / "cell.json").write_text(json.dumps(cell))
    assert cli.main(["eeg", "explain", str(tmp_path), "--overwrite"]) == 1


def test_damaged_weights_are_refused(tmp_path, capsys):
    card = ModelCard("adhdeepnet", {"F1": 2, "D": 1}, ("a", "b"), ("Cz",), 128.0, {})
    save_network(tmp_path, build_network("adhdeepnet", {"F1": 4, "D": 1}), card)
    with pytest.raises(ValueError, match="does not fit model"):
        load_network(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_network(tmp_path)
    (tmp_path / "model.json").unlink()
    with pytest.raises(FileNotFoundError, match="there is no"):
        load_network(tmp_path)


def test_benchmark_prints_windows_per_second_and_ratios(monkeypatch, capsys, tmp_path):
    from voxelwave.apps.eeg import benchmark as eeg_benchmark

    monkeypatch.setattr(eeg_benchmark, "SETTINGS", {"defaults": {}, "small": {"F1": 2, "kernel_length": 32}})
    words = ["--batch", "2", "--repeats", "1", "--threads", "1", "-o", str(tmp_path)]
    assert cli.main(["eeg", "benchmark", *words]) == 0
    rows = json.loads((tmp_path / "benchmark-training.json").read_text())["rows"]
    assert [row["network"] for row in rows][2] == "EEGNet"
    assert rows[1]["times as fast"] == 1
    assert "times as" in capsys.readouterr().out


def test_every_model_can_be_built_from_a_study(study, tmp_path):
    from voxelwave.eeg.study import read_study
    from voxelwave.eeg.windows import WindowOptions, load_windows

    windows = load_windows(read_study(study), WindowOptions(seconds=2.0), tmp_path)
    assert windows.classes == ("control", "case")
    assert {build(name, windows).name for name in NAMES} == set(NAMES)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["train", "nowhere", "-o", "{out}"], "no study at nowhere"),
        (["train", "{study}", "-o", "{out}", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["train", "{study}", "-o", "{out}", "--patience", "0"], "--patience must be at least 1"),
        (["train", "{study}", "-o", "{out}", "--threads", "0"], "threads must be at least 1"),
        (["train", "{study}", "-o", "{out}", "--resume"], "--resume needs"),
        (["train", "{study}", "-o", "{weights}"], "last.ckpt"),
        (["train", "{study}", "-o", "{out}", "--settings", "{{F2: 3}}"], "unexpected keyword argument 'F2'"),
        (["train", "{study}", "-o", "{out}", "--settings", "{{augmentation: much}}"], "augmentation must be"),
        (["train", "{study}", "-o", "{out}", "--windows", "{{second: 1}}"], "windows must be among seconds"),
        (["train", "{study}", "-o", "{out}", "--windows", "{{seconds: 90}}"], "both classes must have subjects with"),
        (["train", "{study}", "-o", "{out}", "--batch", "1"], "batch must be at least 2"),
        (["train", "{study}", "-o", "{out}", "--validation-share", "2"], "validation-share must be between 0 and 1"),
        (["diagnose", "-i", "nowhere", "-o", "{out}", "--weights", "{weights}"], "no recording or folder at nowhere"),
        (["diagnose", "-i", "{fif}", "-o", "{out}", "--weights", "{study}"], "model.json in one folder; there is no"),
        (["diagnose", "-i", "{table}", "-o", "{out}", "--weights", "{weights}"], "must be one of .edf"),
        (["diagnose", "-i", "{out}", "-o", "{out}/x", "--weights", "{weights}"], "holds no recording"),
        (
            ["diagnose", "-i", "{fif}", "-o", "{out}", "--weights", "{weights}", "--threshold", "2"],
            "--threshold must be between",
        ),
        (["diagnose", "-i", "{fif}", "-o", "{out}", "--weights", "{weights}", "--threads", "0"], "threads must be"),
        (["explain", "{weights}"], "is not the folder of a nested run: --study and --output"),
        (["explain", "{weights}", "--study", "nowhere", "-o", "{out}"], "no study at nowhere"),
        (["explain", "{weights}", "--most-windows", "0"], "--most-windows must be at least 1"),
        (["explain", "{broken}"], "plan.json must be a JSON file"),
        (["benchmark", "--batch", "0"], "batch must be at least 1"),
        (["planted", "-o", "{out}", "--subjects", "3"], "subjects must be at least 4"),
        (["planted", "-o", "{out}", "--seconds", "0"], "seconds must be at least 1"),
    ],
)
def test_unusable_input_ends_with_one_line_that_names_it(words, complaint, weights, study, tmp_path, capsys):
    places = {"study": study, "weights": weights, "out": tmp_path / "out", "broken": tmp_path / "broken"}
    places |= {"fif": study / "s001_raw.fif", "table": study / "subjects.tsv"}
    (tmp_path / "out").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "plan.json").write_text("{")
    code = cli.main(["eeg", *(word.format(**places) for word in words)])
    error = capsys.readouterr().err
    assert complaint in error
    kind = {1: "error", 2: "usage"}[code]
    assert error.startswith(f"voxelwave: {kind}: ")
    assert code == (2 if complaint.startswith(USAGE) else 1)
    assert error.count("\n") == 1


@pytest.mark.parametrize("config", NESTED_CONFIGS, ids=lambda path: path.stem)
def test_shipped_nested_configurations_hold_options_that_exist(config, study, tmp_path):
    from voxelwave.apps.eeg.nested_options import NestedCV
    from voxelwave.eeg.study import read_study
    from voxelwave.eeg.windows import WindowOptions, load_windows

    content = yaml.safe_load(config.read_text())
    assert set(content) <= set(inspect.signature(NestedCV).parameters)
    windows = load_windows(read_study(study), WindowOptions.of(content["windows"]))
    for model in content["models"]:
        assert build(model, windows, content["model_options"].get(model, {})).name == model


@pytest.mark.slow
def test_the_shipped_weights_find_the_rhythm_in_new_synthetic_people(tmp_path):
    write_synthetic_study(tmp_path / "study", subjects=4, seconds=8, difference_uv=12, seed=77)
    words = ["eeg", "diagnose", "-i", str(tmp_path / "study"), "-o", str(tmp_path / "out"), "--weights", "rhythm-demo"]
    assert cli.main(words) == 0
    with (tmp_path / "out" / "subjects.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["decision"] for row in rows] == ["no rhythm", "rhythm"] * 2  # every other synthetic subject has it
    assert not any("trained on" in row["notes"] for row in rows)
