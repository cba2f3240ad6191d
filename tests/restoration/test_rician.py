"""The mean of Rician magnitudes, and the removal of its bias."""

import numpy as np
import pytest
import torch
from scipy.stats import rice

from voxelwave.restoration.degradations import rician_noise
from voxelwave.restoration.rician import rician_mean, without_rician_bias


@pytest.mark.parametrize("sigma", [0.05, 1.0, 30.0])
def test_the_mean_is_that_of_the_rice_distribution(sigma: float) -> None:
    signal = sigma * np.array([0.0, 0.3, 1.0, 4.0, 15.0])
    np.testing.assert_allclose(rician_mean(signal, sigma), rice(signal / sigma, scale=sigma).mean(), rtol=1e-9)


@pytest.mark.parametrize("sigma", [0.05, 30.0])
def test_removing_the_bias_is_the_inverse_at_every_level(sigma: float) -> None:
    signal = sigma * np.array([0.0, 0.2, 1.0, 3.0, 39.9, 40.1, 100.0, 1000.0])
    np.testing.assert_allclose(without_rician_bias(rician_mean(signal, sigma), sigma), signal, atol=5e-3 * sigma)
    assert without_rician_bias(np.array([0.0, sigma]), sigma).tolist() == [0.0, 0.0]


def test_the_mean_of_many_draws_gives_the_signal() -> None:
    signal = torch.linspace(1, 5, 9).expand(20_000, 9)
    mean = rician_noise(signal, 1.0, torch.Generator().manual_seed(0)).mean(0).numpy()
    np.testing.assert_allclose(without_rician_bias(mean, 1.0), np.linspace(1, 5, 9), atol=0.06)  # 4 standard errors
