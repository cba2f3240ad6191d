"""Features of EEG windows as transformers of scikit-learn, for its pipelines, searches and `clone`.

The nested cross-validation of voxelwave uses the same features. For networks, `EEGClassifier` of braindecode is the
estimator of scikit-learn, see `braindecode_models`.
"""

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from .features import BANDS, welch_band_power
from .random_convolutions import RandomConvolutions
from .tangent_space import TangentSpaceMap


class _WindowTransformer(TransformerMixin, BaseEstimator):
    """Base of the transformers: windows are (n, channels, times), or (n, times) if there is one channel."""

    def _windows(self, X: Any, *, reset: bool) -> np.ndarray:
        """Checked windows (n, channels, times)."""
        checked: np.ndarray = validate_data(self, X, reset=reset, allow_nd=True, dtype=np.float64)
        if checked.ndim > 3:
            raise ValueError(f"X must have shape (n, channels, times) or (n, times), got {checked.shape}")
        windows = checked[:, None] if checked.ndim == 2 else checked
        if reset:
            self.shape_ = windows.shape[1:]
        elif windows.shape[1:] != self.shape_:
            raise ValueError(f"X must have windows of {self.shape_} channels and samples, got {windows.shape[1:]}")
        return windows


class TangentSpaceFeatures(_WindowTransformer):
    """Covariances of windows in the tangent space of their Riemannian mean, see `TangentSpaceMap`.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((6, 3, 64))
        >>> TangentSpaceFeatures().fit_transform(x).shape
        (6, 6)
    """

    def fit(self, X: Any, y: Any = None) -> "TangentSpaceFeatures":
        """Find the mean of the windows (n, channels, times); y is not used."""
        self.map_ = TangentSpaceMap.fit(self._windows(X, reset=True), 0)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """(n, channels (channels + 1) / 2) features."""
        check_is_fitted(self)
        return self.map_.features(self._windows(X, reset=False))


class RandomConvolutionFeatures(_WindowTransformer):
    """Shares of samples at which random convolutions exceed a bias, see `RandomConvolutions`.

    Args:
        random_state: seed or generator of the draws, as in scikit-learn.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((6, 3, 64))
        >>> RandomConvolutionFeatures(random_state=0).fit_transform(x).shape
        (6, 756)
    """

    def __init__(self, random_state: Any = None) -> None:
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "RandomConvolutionFeatures":
        """Draw channels, and biases from the windows (n, channels, times); y is not used."""
        windows = self._windows(X, reset=True).astype(np.float32)
        seed = int(check_random_state(self.random_state).randint(2**31))
        self.map_ = RandomConvolutions.fit(windows, seed)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """(n, features) shares."""
        check_is_fitted(self)
        return self.map_.features(self._windows(X, reset=False).astype(np.float32)).astype(np.float64)


class BandPowerFeatures(_WindowTransformer):
    """Logarithms of the power in each band and channel, see `features.welch_band_power`.

    Args:
        sfreq: sampling rate in Hz.
        bands: name -> (low, high) in Hz; None takes `features.BANDS`.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((6, 3, 256))
        >>> BandPowerFeatures(sfreq=128.0).fit_transform(x).shape
        (6, 15)
    """

    def __init__(self, sfreq: float = 128.0, bands: dict[str, tuple[float, float]] | None = None) -> None:
        self.sfreq = sfreq
        self.bands = bands

    def fit(self, X: Any, y: Any = None) -> "BandPowerFeatures":
        """Remember the shape of the windows (n, channels, times); y is not used."""
        self._windows(X, reset=True)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """(n, bands x channels) features."""
        check_is_fitted(self)
        windows = self._windows(X, reset=False)
        power = welch_band_power(windows, self.sfreq, BANDS if self.bands is None else self.bands)
        result: np.ndarray = np.log(np.maximum(power, np.finfo(np.float32).tiny)).reshape(len(power), -1)
        return result
