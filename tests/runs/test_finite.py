"""NaN and infinity neither enter a network nor leave it as a result; damaged files are refused in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from voxelwave.eeg.networks import predict_windows
from voxelwave.eeg.study import read_rows, read_study
from voxelwave.registration.pairs import read_pairs
from voxelwave.runs.finite import check_finite
from voxelwave.scanpath.measured import read_json


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
