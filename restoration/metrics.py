"""PSNR and SSIM with an explicit data range and border, and the Y channel for measuring super-resolution."""

import math

import numpy as np
from scipy.ndimage import correlate1d

SSIM_RADIUS, SSIM_SIGMA = 5, 1.5  # 11 x 11 Gaussian window (Wang et al. 2004)
_RADII = slice(SSIM_RADIUS, -SSIM_RADIUS)
_K1, _K2 = 0.01, 0.03  # the same paper
_LUMA = np.array([65.481, 128.553, 24.966])  # ITU-R BT.601 for 8 bits: black at 16, white at 235


def psnr(
    restored: np.ndarray,
    clean: np.ndarray,
    *,
    data_range: float,
    border: int = 0,
    region: np.ndarray | None = None,
) -> float:
    """10 log10(data_range^2 / mean squared error) in dB; infinite for equal images.

    Args:
        restored: (..., H, W), any unit.
        clean: the reference, of the same shape and unit.
        data_range: the distance between the two ends of the intensity range, 255 for 8 bits.
        border: pixels left out at each side of H and W.
        region: (H, W) bool; only these pixels count.

    Example:
        >>> clean = np.zeros((8, 8))
        >>> round(psnr(clean + 25.5, clean, data_range=255), 3)
        20.0
    """
    restored, clean = _inner(restored, clean, data_range, border)
    error = _mean(np.square(restored - clean), _inner_region(region, clean, border))
    return math.inf if error == 0 else 10 * math.log10(data_range**2 / error)


def ssim(
    restored: np.ndarray,
    clean: np.ndarray,
    *,
    data_range: float,
    border: int = 0,
    region: np.ndarray | None = None,
) -> float:
    """Mean structural similarity (Wang et al. 2004): 1 for equal images.

    It uses an 11 x 11 Gaussian window of sigma 1.5, population covariance, K1 = 0.01 and K2 = 0.03, and is averaged
    over all positions at which the window is inside the image, and then over planes.

    Args:
        restored: (..., H, W), any unit, at least 11 x 11 pixels inside the border.
        clean: the reference, of the same shape and unit.
        data_range: the distance between the two ends of the intensity range.
        border: pixels cut off at each side of H and W first.
        region: (H, W) bool; only windows centred on these pixels count.

    Example:
        >>> clean = np.random.default_rng(0).random((16, 16))
        >>> ssim(clean, clean, data_range=1)
        1.0
    """
    restored, clean = _inner(restored, clean, data_range, border)
    window = 2 * SSIM_RADIUS + 1
    if min(clean.shape[-2:]) < window:
        raise ValueError(f"ssim needs at least {window} x {window} pixels inside the border, got {clean.shape[-2:]}")
    x, y = restored, clean
    mean_x, mean_y = _local_mean(x), _local_mean(y)
    variance_x = _local_mean(x * x) - mean_x**2
    variance_y = _local_mean(y * y) - mean_y**2
    covariance = _local_mean(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    centred = _inner_region(region, clean, border)
    return _mean(similarity, None if centred is None else centred[_RADII, _RADII])


def y_channel(image: np.ndarray, *, data_range: float) -> np.ndarray:
    """(1, H, W) luma Y of (3, H, W) RGB by ITU-R BT.601, black at 16 / 255 and white at 235 / 255 of the data range.

    The values are not rounded. Papers report PSNR and SSIM of super-resolution on this channel.

    Example:
        >>> y_channel(np.full((3, 1, 1), 255.0), data_range=255).round(6).tolist()
        [[[235.0]]]
    """
    if image.ndim != 3 or len(image) != 3:
        raise ValueError(f"image must have shape (3, H, W), got {image.shape}")
    return np.asarray((np.tensordot(_LUMA, image.astype(np.float64), 1)[None] + 16 * data_range) / 255)


def _inner(restored: np.ndarray, clean: np.ndarray, data_range: float, border: int) -> tuple[np.ndarray, np.ndarray]:
    """Both images as float64 without their borders."""
    if restored.shape != clean.shape or clean.ndim < 2:
        raise ValueError(f"restored must have clean's shape (..., H, W), got {restored.shape} and {clean.shape}")
    if not data_range > 0:
        raise ValueError(f"data_range must be above 0, got {data_range}")
    if border < 0 or 2 * border >= min(clean.shape[-2:]):
        raise ValueError(f"border must be at least 0 and leave pixels of {clean.shape[-2:]}, got {border}")
    return _without_border(restored, border).astype(np.float64), _without_border(clean, border).astype(np.float64)


def _without_border(image: np.ndarray, border: int) -> np.ndarray:
    height, width = image.shape[-2:]
    return image[..., border : height - border, border : width - border]


def _inner_region(region: np.ndarray | None, inner: np.ndarray, border: int) -> np.ndarray | None:
    """The region without the border of the images, which have lost theirs."""
    if region is None:
        return None
    height, width = (size + 2 * border for size in inner.shape[-2:])
    if region.shape != (height, width) or region.dtype != bool:
        raise ValueError(f"region must be bool, ({height}, {width}), got {region.dtype} {region.shape}")
    return _without_border(region, border)


def _mean(values: np.ndarray, region: np.ndarray | None) -> float:
    """The mean of (..., H, W) over a region (H, W)."""
    if region is None:
        return float(values.mean())
    if not region.any():
        raise ValueError("region must hold a pixel inside the border, got none")
    return float(values[..., region].mean())


def _local_mean(values: np.ndarray) -> np.ndarray:
    """Gaussian means of (..., H, W) at the positions where the whole window lies inside."""
    offset = np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1)
    weights = np.exp(-0.5 * (offset / SSIM_SIGMA) ** 2)
    weights /= weights.sum()
    for axis in (-2, -1):
        values = correlate1d(values, weights, axis=axis)
    return values[..., _RADII, _RADII]
