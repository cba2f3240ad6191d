"""Synthetic pictures of cloth: stripes, checks and weaves in folds, which open photographs show too rarely.

A denoiser sees periodic detail as noise unless its training images have it. Each picture is a patchwork of regions; a
region has its own grey level, shading and one or two gratings whose phase follows a smooth deformation.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

_PERIODS = 2.4, 14.0  # pixels; below 2 pixels a grating is aliased
_CONTRASTS = 0.04, 0.4  # peak-to-peak amplitude, as a fraction of the intensity range


def cloth(seed: int, size: int = 384) -> np.ndarray:
    """Draw a picture of cloth.

    Args:
        seed: seed of the draws; the same seed gives the same picture.
        size: height and width in pixels.

    Returns:
        (size, size) float64, with values from 0 to 1.

    Example:
        >>> picture = cloth(seed=3, size=64)
        >>> picture.shape, bool(picture.min() >= 0), bool(picture.max() <= 1)
        ((64, 64), True, True)
    """
    rng = np.random.default_rng(seed)
    regions = int(rng.integers(3, 9))
    score = np.stack([_smooth(rng, size, 30.0) for _ in range(regions)])
    owner = score.argmax(0)
    picture = np.zeros((size, size))
    for region in range(regions):
        inside = owner == region
        picture[inside] = _piece(rng, size)[inside]
    picture = gaussian_filter(picture, rng.uniform(0.0, 0.6))  # the blur of a lens
    return np.asarray(np.clip(picture, 0.0, 1.0))


def _piece(rng: np.random.Generator, size: int) -> np.ndarray:
    """One piece of cloth over the whole picture."""
    rows, columns = np.mgrid[:size, :size].astype(np.float64)
    folds = rng.uniform(0.0, 12.0)  # pixels
    rows = rows + folds * _smooth(rng, size, rng.uniform(15.0, 60.0))
    columns = columns + folds * _smooth(rng, size, rng.uniform(15.0, 60.0))
    shade = rng.uniform(0.15, 0.85) + rng.uniform(0.0, 0.15) * _smooth(rng, size, rng.uniform(10.0, 60.0))
    angle = rng.uniform(0.0, np.pi)
    pattern = _grating(rng, rows, columns, angle)
    if rng.random() < 0.5:  # threads in both directions
        other = _grating(rng, rows, columns, angle + np.pi / 2)
        pattern = pattern * other if rng.random() < 0.5 else 0.5 * (pattern + other)
    low, high = np.log(_CONTRASTS)
    return np.asarray(shade + 0.5 * np.exp(rng.uniform(low, high)) * pattern)


def _grating(rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray, angle: float) -> np.ndarray:
    """A periodic pattern from -1 to 1, between a sine wave and sharp stripes."""
    low, high = np.log(_PERIODS)
    period, phase = np.exp(rng.uniform(low, high)), rng.uniform(0.0, 2 * np.pi)
    wave = np.sin(2 * np.pi * (rows * np.sin(angle) + columns * np.cos(angle)) / period + phase)
    sharpness = rng.uniform(0.1, 4.0)
    return np.asarray(np.tanh(sharpness * (wave - rng.uniform(-0.5, 0.5))) / np.tanh(1.5 * sharpness))


def _smooth(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    """Smooth noise with standard deviation 1; `scale` is the standard deviation of the smoothing in pixels."""
    noise = gaussian_filter(rng.standard_normal((size, size)), scale, mode="wrap")
    return np.asarray((noise - noise.mean()) / noise.std())
