"""The bias that Rician noise adds to the mean of MR magnitudes, and its removal."""

import numpy as np
from scipy.special import ive

_TABLE = np.linspace(0, 40, 8001)  # signal / sigma; above 40 the mean is sqrt(signal^2 + sigma^2) to 1e-6 sigma


def rician_mean(signal: np.ndarray, sigma: float) -> np.ndarray:
    """The mean of |signal + n1 + i n2| (Gudbjartsson and Patz 1995), which exceeds the signal (by 1.25 sigma at 0).

    Args:
        signal: magnitudes without noise, any shape.
        sigma: the standard deviation of n1 and of n2, in the same unit.

    Example:
        >>> rician_mean(np.array([0.0, 2.0, 20.0]), 1.0).round(4).tolist()
        [1.2533, 2.2724, 20.025]
    """
    x = np.square(np.asarray(signal, np.float64) / sigma) / 2
    return np.asarray(sigma * np.sqrt(np.pi / 2) * ((1 + x) * ive(0, x / 2) + x * ive(1, x / 2)))


def without_rician_bias(mean: np.ndarray, sigma: float) -> np.ndarray:
    """The signal with this Rician mean (first moment, Koay and Basser 2006); 0 for means below that of pure noise.

    Denoisers for Gaussian noise return the mean of the noisy magnitudes; this function removes its bias.

    Args:
        mean: denoised magnitudes, any shape.
        sigma: the standard deviation of the noise before denoising, in the same unit.

    Example:
        >>> without_rician_bias(np.array([1.0, 2.2724, 20.025]), 1.0).round(3).tolist()
        [0.0, 2.0, 20.0]
    """
    mean = np.asarray(mean, np.float64)
    looked_up = np.interp(mean / sigma, rician_mean(_TABLE, 1.0), _TABLE) * sigma
    strong = np.sqrt(np.maximum(np.square(mean) - sigma**2, 0))
    return np.where(mean > _TABLE[-1] * sigma, strong, looked_up)
