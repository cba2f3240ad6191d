"""Covariances of windows in the tangent space of their Riemannian mean (Barachant et al. 2012, IEEE TBME 59, 920)."""

from typing import Any

import numpy as np
from pyriemann.tangentspace import TangentSpace

_FLOOR = 1e-6  # of the mean variance, added to the diagonal: flat or linearly dependent channels have no logarithm


def oas_covariances(x: np.ndarray) -> np.ndarray:
    """Covariances of windows, shrunk towards a multiple of the identity.

    The shrinkage is the oracle approximation (Chen et al. 2010, IEEE TSP 58, equation 23), as in scikit-learn.

    Args:
        x: (n, channels, times).

    Returns:
        (n, channels, channels) float64, positive definite unless a window is flat in all channels, which gives the
        identity.
    """
    x = x.astype(np.float64)
    x -= x.mean(axis=-1, keepdims=True)
    channels, times = x.shape[1:]
    found: np.ndarray = x @ x.transpose(0, 2, 1) / times
    mean = np.trace(found, axis1=1, axis2=2) / channels
    square = (found**2).mean(axis=(1, 2))
    above, below = square + mean**2, (times + 1) * (square - mean**2 / channels)
    shrinkage = np.where(below > 0, np.minimum(above / np.where(below > 0, below, 1), 1), 1.0)[:, None, None]
    target = np.where(mean > 0, mean, 1.0)[:, None, None] * np.eye(channels)
    result: np.ndarray = (1 - shrinkage) * found + shrinkage * target + _FLOOR * target
    return result


class TangentSpaceMap:
    """Vectors of covariances in the tangent space at the mean of the training windows.

    Args:
        mean: (channels, channels), the Riemannian mean.
    """

    def __init__(self, mean: np.ndarray):
        self._space = TangentSpace(metric="riemann")
        self._space.reference_ = np.asarray(mean, np.float64)

    @classmethod
    def fit(cls, x: np.ndarray, seed: int) -> "TangentSpaceMap":
        """The map at the Riemannian mean of windows (n, channels, times)."""
        return cls(TangentSpace(metric="riemann").fit(oas_covariances(x)).reference_)

    def features(self, x: np.ndarray) -> np.ndarray:
        """(n, channels (channels + 1) / 2) features of windows (n, channels, times)."""
        result: np.ndarray = self._space.transform(oas_covariances(x))
        return result

    def numbers(self) -> dict[str, Any]:
        """The map as plain values."""
        return {"mean": self._space.reference_.tolist()}

    @classmethod
    def of(cls, numbers: dict[str, Any]) -> "TangentSpaceMap":
        """The map of `numbers`."""
        return cls(np.array(numbers["mean"]))
