"""`registration train`: its configurations, and the files that it writes."""

import json
from pathlib import Path

import numpy as np
import pytest

from voxelwave.apps import cli
from voxelwave.apps.arguments import parse_arguments
from voxelwave.apps.registration.options import Train, TrainTissues
from voxelwave.registration.nestedmorph_files import load_nestedmorph, read_training_options
from voxelwave.registration.training_settings import TrainingSettings
from voxelwave.registration.weights_method import method_of_weights
from voxelwave.runs.exit import DONE, ERROR, USAGE
from voxelwave.volumes import write_volume

from ...registration.test_synthetic import ellipsoids

FOLDER = Path(cli.__file__).parent / "configs" / "registration"
OF_TISSUES = FOLDER / "brain_any_contrast.yaml"
CONFIGS = sorted(set(FOLDER.glob("*.yaml")) - {OF_TISSUES})


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_understood(config):
    words = ["--config", str(config), "--pairs", "pairs.csv", "-o", "out"]
    options = Train(**parse_arguments(Train, words, prog="voxelwave registration train"))
    assert len(options.size) == 3
    assert options.pairs == Path("pairs.csv")
    assert options.settings.task == options.task
    assert options.settings != TrainingSettings()


def test_the_configuration_of_the_tissue_network_is_understood():
    words = ["labels", "--config", str(OF_TISSUES), "-o", "out"]
    options = TrainTissues(**parse_arguments(TrainTissues, words, prog="voxelwave registration train-tissues"))
    assert (options.labels, options.size, options.precision) == (Path("labels"), (80, 96, 80), "bfloat16")


def test_help_shows_percent_signs_once(capsys):
    with pytest.raises(SystemExit):
        cli.main(["registration", "train", "--help"])
    assert "train (80 %)" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
def test_train_writes_weights_and_prints_the_best_epoch(scans, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("voxelwave.registration.nestedmorph.WIDTHS", (16, 32, 64, 128))  # takes a tenth of the time
    monkeypatch.setattr("voxelwave.registration.data.align_affine", lambda *args, **kwargs: np.eye(4))
    rows = [f"moving.nii.gz,fixed.nii.gz,person-{number},{s}" for number, s in enumerate(("train", "val", "test"))]
    (scans / "splits.csv").write_text("\n".join(["moving,fixed,subject,split", *rows]))
    words = ["registration", "train", "--pairs", str(scans / "splits.csv"), "-o", str(tmp_path / "out")]
    words += ["--size", "[32,32,32]", "--spacing-mm", "3", "--epochs", "1", "--similarity", "ncc", "--device", "cpu"]
    words += ["--flow-head", "quarter", "--mixer", "bilevel(regions=2, top=1)"]
    assert cli.main(words) == DONE
    shown = capsys.readouterr()
    printed = shown.out
    assert [word for word in ("TPU", "GPU", "litlogger", "Trainer") if word in printed + shown.err] == []
    assert "best val_loss" in printed
    assert "test_loss" in printed
    options = read_training_options(tmp_path / "out" / "network.safetensors")
    assert options is not None
    assert (options["similarity"], options["spacing_mm"], options["epochs"]) == ("ncc", 3.0, 1)
    network = load_nestedmorph(tmp_path / "out" / "network.safetensors")
    assert (network.flow_head, network.mixer) == ("quarter", "bilevel(regions=2, top=1)")


@pytest.mark.parametrize(
    ("words", "complaint", "code"),
    [
        (["--epochs", "0"], "--epochs must be at least 1", USAGE),
        (["--batch-size", "0"], "--batch-size must be at least 1", USAGE),
        (["--task", "atlas-to-patient"], "--atlas is needed", USAGE),
        (["--task", "atlas-to-patient", "--atlas", "gone.nii.gz"], "no atlas at gone.nii.gz", ERROR),
        (["--pairs", "gone.csv"], "no list or folder of pairs at gone.csv", ERROR),
        (["--resume"], "--resume needs", ERROR),
        (["--synthetic", "maps"], "give either --pairs or --synthetic, got both", USAGE),
        (["--accumulate", "0"], "--accumulate must be at least 1", USAGE),
        (["--similarity-weight", "0"], "--label-weight or --correspondence-weight must be above 0", USAGE),
        (["--width", "20.5"], "--width", USAGE),
        (["--width", "17"], "--width must be an even number from 16, got 17", USAGE),
    ],
)
def test_wrong_options_are_one_line_and_write_nothing(tmp_path, capsys, words, complaint, code):
    out = tmp_path / "out"
    (tmp_path / "bids").mkdir()
    assert cli.main(["registration", "train", "--pairs", str(tmp_path / "bids"), "-o", str(out), *words]) == code
    error = capsys.readouterr().err.strip()
    assert complaint in error
    assert "\n" not in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "complaint", "code"),
    [
        ([], "give either --pairs or --synthetic, got neither", USAGE),
        (["--synthetic", "gone", "--label-weight", "1"], "no folder of label maps at gone", ERROR),
        (
            ["--pairs", ".", "--correspondence-weight", "1"],
            "--correspondence-weight, --one-contrast-epochs and --workers need --synthetic",
            USAGE,
        ),
        (["--pairs", ".", "--workers", "1"], "and --workers need --synthetic", USAGE),
        (["--synthetic", ".", "--workers", "-1"], "--workers must be at least 0, got -1", USAGE),
        (["--synthetic", ".", "--longest-gradient", "-1"], "--longest-gradient must not be negative, got -1", USAGE),
        (["--synthetic", "."], "--synthetic needs --label-weight or --correspondence-weight above 0", USAGE),
        (["--synthetic", ".", "--label-weight", "1"], "no label maps (.nii, .nii.gz, .mgz) in .", ERROR),
    ],
)
def test_a_training_on_synthetic_images_needs_label_maps(tmp_path, monkeypatch, capsys, words, complaint, code):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["registration", "train", "-o", "out", *words]) == code
    error = capsys.readouterr().err.strip()
    assert complaint in error
    assert "\n" not in error


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
def test_train_tissues_writes_weights_that_register_takes(scans, tmp_path, capsys):
    for number in range(4):
        write_volume(tmp_path / f"maps/head-{number}.nii.gz", ellipsoids(0.05 * number))
    words = ["registration", "train-tissues", str(tmp_path / "maps"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    words += ["--size", "[16,16,16]", "--spacing-mm", "10", "--width", "8", "--epochs", "1", "--epoch-steps", "2"]
    assert cli.main(words) == DONE
    weights = tmp_path / "out" / "network.safetensors"
    assert f"weights: {weights}" in capsys.readouterr().out
    assert method_of_weights(weights) == "tissues"
    pair = ["registration", "register", str(scans / "moving.nii.gz"), str(scans / "fixed.nii.gz")]
    pair += ["-o", str(tmp_path / "result"), "--weights", str(weights), "--device", "cpu", "--guard", "warn"]
    assert cli.main(pair) == DONE
    record = json.loads((tmp_path / "result" / "record.json").read_text())
    assert record["options"]["method"] == "tissues"
    assert cli.main([*pair, "--overwrite", "--method", "field"]) == USAGE
    assert "needs --method tissues, got --method field" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "complaint", "code"),
    [
        (["gone"], "no folder of label maps at gone", ERROR),
        (["."], "no label maps (.nii, .nii.gz, .mgz) in .", ERROR),
        ([".", "--width", "12"], "--width must be a multiple of 8, got 12", USAGE),
        ([".", "--epochs", "0"], "--epochs must be at least 1", USAGE),
        ([".", "--start-from", "gone.safetensors"], "no file of weights at gone.safetensors", ERROR),
    ],
)
def test_wrong_options_of_train_tissues_are_one_line(tmp_path, monkeypatch, capsys, words, complaint, code):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["registration", "train-tissues", *words, "-o", "out"]) == code
    error = capsys.readouterr().err.strip()
    assert complaint in error
    assert "\n" not in error
    assert not (tmp_path / "out" / "network.safetensors").exists()
