"""Synthetic subjects: the planted oscillation is on its channels, and nothing else separates the classes."""

import numpy as np
import pytest

from voxelwave.eeg.channels import CED_ORDER
from voxelwave.eeg.features import welch_band_power
from voxelwave.eeg.recording import read_recording
from voxelwave.eeg.study import read_study
from voxelwave.eeg.synthetic import synthetic_signal, write_synthetic_study


def test_the_oscillation_has_its_size_band_and_channels():
    with_it, without = (
        synthetic_signal(np.random.default_rng(0), planted_uv=uv, planted=("O1",), seconds=60) for uv in (8.0, 0.0)
    )
    difference = with_it - without
    planted = CED_ORDER.index("O1")
    assert np.abs(np.delete(difference, planted, axis=0)).max() == 0
    assert difference[planted].std() == pytest.approx(8)
    power = welch_band_power(difference[planted][None, None], 128.0, {"near": (8.0, 12.0), "all": (0.5, 60.0)})[0, :, 0]
    assert power[0] / power[1] > 0.98


def test_a_study_is_written_balanced_readable_and_by_its_seed(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_synthetic_study(tmp_path / name, subjects=6, seconds=5, seed=seed)
    a, b, c = (read_study(tmp_path / name) for name in "abc")
    assert a.labels == 3 * [0, 1]
    signals = [read_recording(study.subjects[1].file).signal for study in (a, b, c)]
    np.testing.assert_array_equal(signals[0], signals[1])
    assert signals[0].shape != signals[2].shape or not np.array_equal(signals[0], signals[2])
    assert 5 < signals[0].std() < 60  # microvolts


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="planted channels must be among Fp1"):
        synthetic_signal(np.random.default_rng(0), planted_uv=1, planted=("X1",))
    with pytest.raises(ValueError, match="subjects must be at least 4, got 3"):
        write_synthetic_study(tmp_path, subjects=3)
