"""Saliency metrics: predicted against actual fixations of each object or pixel, regardless of their order.

The definitions are those of Bylinskii et al. (IEEE TPAMI 41, 2019), with objects in place of pixels.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

from ..runs import auc as roc

_FINE = 4  # raster cells per standard deviation of the blur


def fixation_counts(paths: list[np.ndarray], objects: int) -> np.ndarray:
    """(objects,) number of fixations on each object, over paths of object indices."""
    together = np.concatenate([np.asarray(p, dtype=np.int64) for p in paths]) if paths else np.empty(0, dtype=np.int64)
    return np.bincount(together, minlength=objects).astype(np.float64)


def nss(predicted: np.ndarray, fixations: np.ndarray) -> float:
    """Normalised scanpath saliency: the prediction, normalised to mean 0 and standard deviation 1 over the objects,
    averaged over the fixations. NaN if the prediction is the same for all objects.

    Args:
        predicted: (objects,) predicted saliency of each object, in any unit.
        fixations: (objects,) number of times that a person looked at each object.

    Example:
        >>> nss(np.array([1, 0, 0, 1]), np.array([3, 1, 0, 0]))
        0.5
    """
    predicted, fixations = _maps(predicted, fixations)
    spread = predicted.std()
    if spread == 0:
        return np.nan
    return float((predicted - predicted.mean()) / spread @ fixations / fixations.sum())


def auc(predicted: np.ndarray, fixations: np.ndarray) -> float:
    """AUC: how often a fixated object has a higher prediction than one that is not fixated; ties count half.

    NaN if all objects are fixated, or none is.

    Example:
        >>> auc(np.array([0.5, 0.3, 0.2, 0.0]), np.array([1, 0, 2, 0]))
        0.75
    """
    predicted, fixations = _maps(predicted, fixations)
    return float(roc.auc(predicted, fixations > 0))


def similarity(predicted: np.ndarray, fixations: np.ndarray) -> float:
    """SIM: the overlap of two distributions over the objects, the sum of min(p, q); 1 for equal ones.

    Example:
        >>> similarity(np.array([2, 2, 0]), np.array([0, 1, 1]))
        0.5
    """
    predicted, fixations = _maps(predicted, fixations)
    if not predicted.sum() > 0:
        return np.nan
    return float(np.minimum(predicted / predicted.sum(), fixations / fixations.sum()).sum())


def correlation(predicted: np.ndarray, fixations: np.ndarray) -> float:
    """CC: Pearson's correlation over the objects. NaN if one of them is the same for all objects.

    Example:
        >>> round(correlation(np.array([1, 2, 3]), np.array([2, 4, 6])), 12)
        1.0
    """
    predicted, fixations = _maps(predicted, fixations)
    a, b = predicted - predicted.mean(), fixations - fixations.mean()
    spread = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b / spread) if spread > 0 else np.nan


def nss_of_points(predicted: np.ndarray, fixations: np.ndarray, size: tuple[int, int], *, sigma: float = 0.0) -> float:
    """NSS over the pixels of a picture.

    Args:
        predicted: (n, 2) predicted positions in pixels.
        fixations: (m, 2) where a person looked.
        size: width and height of the picture.
        sigma: 0 for the map published for OAT, which is 1 at every predicted pixel and 0 elsewhere; this map is crude,
            since people hardly ever look at exactly that pixel. Above 0, the standard deviation in pixels of the
            Gaussian with which each predicted fixation is blurred, on a raster of sigma / 4.
    """
    points, looks = (np.asarray(p, dtype=np.float64).reshape(-1, 2) for p in (predicted, fixations))
    if sigma < 0 or not len(looks):
        raise ValueError(f"sigma must be at least 0 px and fixations at least one, got {sigma} and {len(looks)}")
    cell = max(sigma / _FINE, 1.0)
    shape = tuple(int(np.ceil(side / cell)) for side in size)
    places, seen = (np.clip(np.floor(p / cell).astype(int), 0, np.array(shape) - 1) for p in (points, looks))
    if sigma == 0:  # the same as with a map of ones and zeros, but without building it
        ones = {tuple(p) for p in places.tolist()}
        mean = len(ones) / (shape[0] * shape[1])
        value = np.mean([tuple(p) in ones for p in seen.tolist()])
        return float((value - mean) / np.sqrt(mean * (1 - mean))) if 0 < mean < 1 else np.nan
    density = np.zeros(shape)
    np.add.at(density, tuple(places.T), 1)
    density = gaussian_filter(density, sigma / cell, mode="constant")
    spread = density.std()
    return float((density[tuple(seen.T)].mean() - density.mean()) / spread) if spread > 0 else np.nan


def _maps(predicted: np.ndarray, fixations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predicted, fixations = np.asarray(predicted, dtype=np.float64), np.asarray(fixations, dtype=np.float64)
    if predicted.shape != fixations.shape or predicted.ndim != 1 or not fixations.sum() > 0:
        raise ValueError(
            f"both must be (objects,), and one object fixated at least, got {predicted.shape} and {fixations.shape}"
            f" with {fixations.sum():g} fixations"
        )
    return predicted, fixations
