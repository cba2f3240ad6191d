"""Weights of several sizes on the command line: restore, evaluate and extract."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from voxelwave.apps.cli import main
from voxelwave.restoration.mair import MaIR
from voxelwave.restoration.weights import load_weights, save_weights
from voxelwave.runs.exit import ERROR, USAGE
from voxelwave.runs.json_files import read_json


@pytest.fixture
def elastic(tmp_path: Path) -> Path:
    """Weights of two sizes, and beside them a picture in a folder."""
    torch.manual_seed(0)
    model = MaIR(in_channels=1, scale=1, upsampler=None, width=12, depths=(1, 1), states=1, stripe_width=4)
    file = tmp_path / "elastic.safetensors"
    unit = {"intensity_range": (0.0, 1.0), "intensity_unit": "relative"}
    save_weights(file, model, task="denoise", **unit, notes={"seed": "0"}, sizes={"small": {"width": 6}})
    (tmp_path / "in").mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (20, 24), dtype=np.uint8)
    Pillow.fromarray(picture).save(tmp_path / "in/a.png")
    return file


def _restored(weights: Path, folder: Path, *words: str) -> np.ndarray:
    result = folder / "result.png"
    run = ["restoration", "restore", "-i", str(folder / "in/a.png"), "-o", str(result), "--weights", str(weights)]
    assert main([*run, *words, "--overwrite"]) == 0
    return np.asarray(Pillow.open(result))


def test_the_size_of_the_network_is_an_option(elastic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = elastic.parent
    extracted = folder / "small.safetensors"
    assert main(["restoration", "extract", str(elastic), "--size", "small", "-o", str(extracted)]) == 0
    assert "size small of elastic.safetensors" in capsys.readouterr().out
    model, info = load_weights(extracted)
    assert (model.arguments["width"], info.notes["seed"], info.sizes) == (6, "0", {})
    assert info.notes["extracted"] == "small of elastic.safetensors"
    full, small = _restored(elastic, folder), _restored(elastic, folder, "--size", "small")
    assert read_json(folder / "result.restoration.json")["options"]["size"] == "small"
    assert (full != small).any()
    np.testing.assert_array_equal(small, _restored(extracted, folder))
    assert "size" not in read_json(folder / "result.restoration.json")["options"]


def test_a_folder_is_restored_again_for_another_size(elastic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = elastic.parent
    run = ["restoration", "restore", "-i", str(folder / "in"), "-o", str(folder / "out"), "--weights", str(elastic)]
    results = []
    for words in ([], ["--size", "small"]):
        assert main([*run, *words]) == 0
        results.append(np.asarray(Pillow.open(next((folder / "out").rglob("*.png")))))
    assert (results[0] != results[1]).any()


def test_evaluation_measures_the_given_size(elastic: Path) -> None:
    folder = elastic.parent
    scores = []
    for size in ("small", "full"):
        table = folder / f"{size}.tsv"
        run = ["restoration", "evaluate", str(folder / "in"), "--weights", str(elastic), "--sigma", "20"]
        assert main([*run, "--methods", "[]", "--size", size, "-o", str(table)]) == 0
        scores.append(table.read_text())
    assert scores[0] != scores[1]
    assert read_json(folder / "small.json")["options"]["size"] == "small"


def test_sizes_that_do_not_exist_are_one_clear_line(elastic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = elastic.parent
    run = ["restoration", "restore", "-i", str(folder / "in/a.png"), "-o", str(folder / "b.png"), "--weights"]
    assert main([*run, "denoise-grey", "--size", "small"]) == ERROR
    assert "size must be full for denoise-grey.safetensors, which has no other size" in capsys.readouterr().err
    assert main([*run, str(elastic), "--size", "medium"]) == ERROR
    assert "size must be small or full" in capsys.readouterr().err
    assert main([*run, str(elastic), "--size", "tiny"]) == USAGE
    assert not (folder / "b.png").exists()
    assert main(["restoration", "extract", str(elastic), "--size", "small", "-o", str(elastic)]) == USAGE
    assert "--output must be another path" in capsys.readouterr().err
