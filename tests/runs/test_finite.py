"""NaN and infinity neither enter a network nor leave it as a result; damaged files are refused in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from voxelwave.eeg.networks import predict_windows
from voxelwave.eeg.study import read_rows, read_study
from voxelwave.registration.pairs import read_pairs
from voxelwave.restoration.degradations import degradation_margin
from voxelwave.runs.finite import check_finite
from voxelwave.runs.json_files import read_json
from voxelwave.runs.record import write_record
from voxelwave.runs.weight_file import read_checkpoint


class _Last(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0, :2] * 1e30 * 1e30


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_finite_check_counts_what_is_not(bad: float) -> None:
    values = np.array([[0.0, bad], [1.0, 2.0]])
    for given in (values, torch.tensor(values)):
        with pytest.raises(ValueError, match="1 of 4"):
            check_finite(given, "values")


def test_samples_and_probabilities_are_finite() -> None:
    x = np.ones((3, 2, 4), np.float32)
    with pytest.raises(ValueError, match="probabilities"):
        predict_windows(_Last(), x)
    x[1, 0, 0] = np.inf
    with pytest.raises(ValueError, match="samples of the recording"):
        predict_windows(_Last(), x)


def test_damaged_tables_archives_and_json(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("subject,label\n" + "x" * 200_000 + ",1\n")
    with pytest.raises(ValueError, match="not a readable table"):
        read_rows(tmp_path / "a.csv")
    (tmp_path / "deep.json").write_text("[" * 100_000 + "]" * 100_000)
    for read in (read_json, read_pairs):
        with pytest.raises(ValueError, match="must be JSON"):
            read(tmp_path / "deep.json")
    (tmp_path / "study" / "control").mkdir(parents=True)
    (tmp_path / "study" / "control" / "a.edf").touch()
    (tmp_path / "study" / "ADHD.zip").write_bytes(b"PK damaged")
    with pytest.raises(ValueError, match=r"ADHD\.zip is not a readable zip"):
        read_study(tmp_path / "study")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kind": "gaussian-blur"},
        {"kind": "gaussian-blur", "sigma_px": "wide"},
        {"kind": "gaussian-blur", "sigma_px": [1, np.inf]},
        {"kind": "box-blur", "size_px": 1e12},
        {"kind": "box-blur", "size_px": -3},
    ],
)
def test_a_degradation_without_kind_or_with_a_senseless_width(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"degradation must be|_px must be"):
        degradation_margin(**options)


@pytest.mark.parametrize("content", [[1, 2], {"hyper_parameters": 3, "state_dict": {}}, {"state_dict": {}}])
def test_a_foreign_checkpoint_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint of a training"):
        read_checkpoint(tmp_path / "a.ckpt", "a training")


def test_an_undefined_figure_of_a_record_is_null(tmp_path: Path) -> None:
    write_record(tmp_path / "record.json", inputs={}, metrics={"psnr": float("inf"), "dice": [0.5, float("nan")]})
    assert json.loads((tmp_path / "record.json").read_text())["metrics"] == {"psnr": None, "dice": [0.5, None]}
