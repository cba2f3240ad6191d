"""The head in an image of a head."""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_fill_holes, binary_opening, gaussian_filter, label

_SMOOTHED_MM = 1.5
_LEAST_BRIGHTNESS = 0.25  # of the bright parts


def head_region(array: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """The largest connected bright part of an image after smoothing; holes in it are filled.

    In a volume, holes are filled slice by slice, across the axis with the largest spacing.

    Args:
        array: (D, H, W) or (H, W), dark outside the head. Very bright outliers should be clipped.
        spacing: mm along each axis.

    Returns:
        bool, of the same shape.

    Example:
        >>> distance = np.hypot(*np.ogrid[-16:17, -16:17])
        >>> found = head_region(100.0 * ((distance > 5) & (distance < 12)), (1.0, 1.0))
        >>> bool(found[16, 16]), bool(found[0, 0])  # the hole in the ring belongs to the head
        (True, False)
    """
    smooth = gaussian_filter(array.astype(np.float32), [_SMOOTHED_MM / mm for mm in spacing])
    low = float(np.percentile(smooth, 2))
    bright = smooth[smooth > np.percentile(smooth, 50)]
    inside = smooth > low
    if bright.size:
        inside = smooth > low + _LEAST_BRIGHTNESS * (float(np.percentile(bright, 90)) - low)
    parts, count = label(binary_opening(inside))
    if count:
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        inside = parts == sizes.argmax()
    if array.ndim == 2:
        return np.asarray(binary_fill_holes(inside))
    thick = int(np.argmax(spacing))
    filled = [binary_fill_holes(plane) for plane in np.moveaxis(inside, thick, 0)]
    return np.moveaxis(np.stack(filled), 0, thick)
