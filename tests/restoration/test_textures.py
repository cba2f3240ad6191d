"""Drawn pictures of cloth."""

import numpy as np

from voxelwave.restoration.textures import _PERIODS, _grating, cloth


def test_a_seed_gives_one_picture_and_another_seed_another() -> None:
    first = cloth(1, size=48)
    np.testing.assert_array_equal(first, cloth(1, size=48))
    assert np.abs(first - cloth(2, size=48)).mean() > 0.05


def test_a_grating_has_its_period_and_its_direction() -> None:
    rows, columns = np.mgrid[:64, :64].astype(float)
    for seed in range(5):
        pattern = _grating(np.random.default_rng(seed), rows, columns, angle=np.pi / 2)
        assert np.abs(pattern - pattern[:, :1]).max() < 1e-9  # it varies along the rows only
        spectrum = np.abs(np.fft.rfft((pattern[:, 0] - pattern[:, 0].mean()) * np.hanning(64)))
        assert 64 / _PERIODS[1] - 2 < spectrum.argmax() < 64 / _PERIODS[0] + 2
        assert np.abs(pattern).max() < 1.6
