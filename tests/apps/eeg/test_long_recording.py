"""Commands with the network for whole recordings: training, diagnosis, streams and a nested run."""

import csv
import json
import shutil
from pathlib import Path

import mne
import numpy as np
import pytest
import yaml

from voxelwave.apps import cli
from voxelwave.eeg import stream
from voxelwave.eeg.networks import load_network
from voxelwave.eeg.stream import pieces, stream_recording
from voxelwave.eeg.synthetic import write_synthetic_study
from voxelwave.eeg.windows import WindowOptions, cut

WINDOWS = {"seconds": 2.0, "sfreq": 128.0}
SETTINGS = {"mixer": "recurrent", "dim": 8, "heads": 2, "depth": 1, "components": 4, "filters": 4, "lr": 5e-3}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_synthetic_study(folder, subjects=12, seconds=8, difference_uv=15, seed=1)
    return folder


def trained(study, folder, **settings) -> Path:
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump({"settings": {**SETTINGS, **settings}, "windows": WINDOWS}))
    words = ["--network", "long_recording", "--config", str(config), "--epochs", "2", "--batch", "4", "--threads", "1"]
    assert cli.main(["eeg", "train", str(study), "-o", str(folder / "run"), *words]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def weights(study, tmp_path_factory) -> Path:
    return trained(study, tmp_path_factory.mktemp("weights"))


def diagnosed(output, *words):
    assert cli.main(["eeg", "diagnose", "-o", str(output), "--threads", "1", *map(str, words)]) == 0
    with (output / "subjects.csv").open(newline="") as table:
        return list(csv.DictReader(table))


def test_a_recording_is_diagnosed_as_a_whole_and_in_a_stream_alike(study, weights, tmp_path, monkeypatch):
    recording = study / "s003_raw.fif"
    [whole] = diagnosed(tmp_path / "whole", "-i", recording, "--weights", weights)
    assert whole["windows"] == "1"
    monkeypatch.setattr(stream_recording, "__kwdefaults__", {"piece_s": 3.0})
    [streamed] = diagnosed(tmp_path / "stream", "-i", recording, "--weights", weights, "--stream")
    assert float(streamed["probability"]) == pytest.approx(float(whole["probability"]), abs=1e-5)
    assert {k: v for k, v in streamed.items() if k not in ("probability", "notes")} == {
        k: v for k, v in whole.items() if k not in ("probability", "notes")
    }


@pytest.mark.slow
def test_a_folder_is_diagnosed_in_streams(study, weights, tmp_path):
    rows = diagnosed(tmp_path / "out", "-i", study, "--weights", weights, "--stream", "--include", "*s00[12]*")
    assert len(rows) == 2


@pytest.mark.parametrize("seconds", [0.7, 2.0])
def test_pieces_hold_the_windows_of_the_whole(study, seconds):
    options = WindowOptions(seconds=seconds, sfreq=128.0)
    path = study / "s002_raw.fif"
    whole, _ = cut(options.read(path), options)
    parts = [cut(piece, options)[0] for piece in pieces(path, options, 128.0, 3.0)]
    assert len(parts) > 2
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-3)  # microvolts, float32


def test_marked_spans_are_left_out_of_a_stream(study, weights, tmp_path):
    raw = mne.io.read_raw_fif(study / "s004_raw.fif", preload=True, verbose="ERROR")
    raw.set_annotations(mne.Annotations([3.5], [1.0], ["BAD movement"]))
    raw.save(tmp_path / "bad_raw.fif", verbose="ERROR")
    network, card = load_network(weights)
    whole = diagnosed(tmp_path / "whole", "-i", tmp_path / "bad_raw.fif", "--weights", weights)[0]
    found = stream_recording(network, card, tmp_path / "bad_raw.fif", piece_s=2.0)
    assert found.probability == pytest.approx(float(whole["probability"]), abs=1e-5)
    assert found.seconds == pytest.approx(raw.n_times / 128)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"mixer": "softmax"}, "mixer softmax keeps no state of constant size")],
)
def test_weights_that_read_no_stream_are_refused(settings, message, study, tmp_path, capsys):
    folder = trained(study, tmp_path, **settings)
    words = ["-i", str(study / "s001_raw.fif"), "-o", str(tmp_path / "out"), "--weights", str(folder), "--stream"]
    assert cli.main(["eeg", "diagnose", *words]) == 1
    assert message in capsys.readouterr().err


def test_recordings_of_another_rate_or_band_are_no_stream(study, weights, tmp_path):
    network, card = load_network(weights)
    raw = mne.io.read_raw_fif(study / "s001_raw.fif", preload=True, verbose="ERROR").resample(256)
    raw.save(tmp_path / "fast_raw.fif", verbose="ERROR")
    with pytest.raises(ValueError, match="must have 128 Hz, got 256 Hz"):
        stream_recording(network, card, tmp_path / "fast_raw.fif")
    for option, message in (
        ({"band": (1.0, 40.0)}, "filtered as a whole"),
        ({"scaling": "recording"}, "scaled as a whole"),
        ({"overlap": 0.5}, "overlapping windows"),
    ):
        content = json.loads((weights / "model.json").read_text())
        changed = tmp_path / message.split()[0]
        changed.mkdir()
        (changed / "model.safetensors").write_bytes((weights / "model.safetensors").read_bytes())
        content["windows"] |= option
        (changed / "model.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            stream.check_streams(*load_network(changed))


def test_a_nested_run_decides_about_recordings_at_once_and_continues(study, tmp_path, capsys):
    config = tmp_path / "nested.yaml"
    fixed = {k: v for k, v in SETTINGS.items() if k != "mixer"}
    options = {
        "space": {"mixer": ["recurrent", "associative"], "electrode_hops": [None]},
        "settings": fixed,
        "epochs": 2,
    }
    content = {"models": ["long_recording", "majority"], "model_options": {"long_recording": options}}
    content |= {"windows": WINDOWS, "outer": 2, "inner": 2, "trials": 2, "jobs": 1, "no_audit": True}
    config.write_text(yaml.safe_dump(content))
    words = ["eeg", "nested-cv", str(study), "--config", str(config), "-o", str(tmp_path / "run")]
    assert cli.main(words) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [model["name"] for model in results["models"]] == ["long_recording", "majority"]
    with (tmp_path / "run" / "predictions.csv").open(newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["model"] == "long_recording"]
    by_subject = {}
    for row in rows:
        by_subject.setdefault(row["subject"], set()).add(row["probability"])
    assert len(by_subject) == 12
    assert all(len(found) == 1 for found in by_subject.values())
    kept = [p.parent for p in (tmp_path / "run" / "cells").glob("*/model.json") if "long" in p.read_text()]
    assert load_network(kept[0])[1].network == "long_recording"
    before = (tmp_path / "run" / "predictions.csv").read_bytes()
    (tmp_path / "run" / "predictions.csv").unlink()
    shutil.rmtree(kept[0])  # as after a kill: the fit is repeated
    assert cli.main(words) == 0
    assert (tmp_path / "run" / "predictions.csv").read_bytes() == before


def test_explain_asks_for_a_network_of_windows(study, weights, tmp_path, capsys):
    words = [str(weights), "--study", str(study), "--output", str(tmp_path / "out"), "--trained"]
    assert cli.main(["eeg", "explain", *words]) == 1
    assert (
        "must be of a network of windows (adhdeepnet, eegnet, shallow), got long_recording" in capsys.readouterr().err
    )


def test_a_training_can_begin_with_a_growing_mask(study, tmp_path, capsys):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({"settings": SETTINGS, "windows": WINDOWS}))
    words = ["--config", str(config), "--epochs", "1", "--batch", "4", "--threads", "1", "-o", str(tmp_path / "run")]
    command = ["eeg", "train", str(study), *words, "--mask-epochs", "2"]
    assert cli.main([*command, "--network", "eegnet"]) == 2
    assert "--mask-epochs needs --network adhdeepnet or long_recording" in capsys.readouterr().err
    assert cli.main([*command, "--network", "long_recording"]) == 0
    assert "pre-trained under a growing mask for 2 epochs" in capsys.readouterr().out
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    assert card["notes"]["mask_epochs"] == 2
    assert cli.main([*command, "--network", "long_recording", "--mask-epochs", "3", "--resume"]) == 1
    assert "mask_epochs" in capsys.readouterr().err
