"""Features: band powers (checked by Parseval's theorem), amplitude alone, and the mean over a subject's windows."""

import dataclasses

import numpy as np
import pytest

from voxelwave.eeg.features import (
    BANDS,
    band_power,
    log_variance,
    recording_length,
    welch_band_power,
)


@pytest.mark.parametrize(
    ("frequency", "band"), [(2.5, "delta"), (6, "theta"), (10, "alpha"), (20, "beta"), (40, "gamma")]
)
def test_power_of_a_sine_lies_in_its_band_and_is_half_its_amplitude_squared(frequency, band):
    x = 3 * np.sin(2 * np.pi * frequency * np.arange(512) / 128)[None, None]
    power = dict(zip(BANDS, welch_band_power(x, 128.0)[0, :, 0], strict=True))
    assert power[band] == pytest.approx(4.5, rel=0.05)
    assert sum(power.values()) - power[band] < 0.01 * power[band]


def test_bands_above_half_the_rate_are_left_out_and_too_narrow_ones_refused():
    x = np.random.default_rng(0).standard_normal((1, 1, 128))
    assert welch_band_power(x, 32.0).shape == (1, 4, 1)
    with pytest.raises(ValueError, match=r"narrow \(10.2 to 10.3 Hz\) must hold a frequency"):
        welch_band_power(x, 64.0, {"narrow": (10.2, 10.3)})


def test_band_powers_have_names_relative_ones_add_up_and_the_ratio_is_their_difference(cohort):
    found = band_power(cohort)
    assert found.values.shape == (len(cohort.x), len(found.names))
    column = {name: found.values[:, i] for i, name in enumerate(found.names)}
    shares = sum(np.exp(column[f"{band} relative Cz"]) for band in BANDS if f"{band} relative Cz" in column)
    np.testing.assert_allclose(shares, 1, rtol=1e-6)
    expected = column["theta absolute Cz"] - column["beta absolute Cz"]
    np.testing.assert_allclose(column["theta/beta Cz"], expected, atol=1e-9)


def test_amplitude_and_length_see_nothing_but_themselves(cohort):
    other = dataclasses.replace(cohort, x=cohort.x[::-1].copy())
    np.testing.assert_array_equal(log_variance(cohort).values, log_variance(other).values)
    assert recording_length(cohort).values.tolist() == 40 * [[10.0]]
