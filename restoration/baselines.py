"""Classical denoisers for comparison with the networks: non-local means, wavelets, total variation, BM3D.

Each takes an image (C, H, W), scaled so that the ends of its range are 0 and 1, and the noise level in that unit, and
returns the denoised image.
"""

from collections.abc import Callable

import numpy as np
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, denoise_wavelet, estimate_sigma

Baseline = Callable[[np.ndarray, float], np.ndarray]


def non_local_means(image: np.ndarray, sigma: float) -> np.ndarray:
    """Non-local means (Buades et al. 2005): 7 x 7 patches in windows of 23 x 23 pixels, filter strength 0.6 sigma."""
    return _channels_last(
        image,
        lambda x, axis: denoise_nl_means(
            x, patch_size=7, patch_distance=11, h=0.6 * sigma, sigma=sigma, fast_mode=True, channel_axis=axis
        ),
    )


def wavelet(image: np.ndarray, sigma: float) -> np.ndarray:
    """BayesShrink soft thresholding (Chang et al. 2000) of Daubechies wavelets with two vanishing moments."""
    return _channels_last(
        image,
        lambda x, axis: denoise_wavelet(
            x, sigma=sigma, wavelet="db2", mode="soft", method="BayesShrink", rescale_sigma=False, channel_axis=axis
        ),
    )


def total_variation(image: np.ndarray, sigma: float) -> np.ndarray:
    """Total variation denoising by Chambolle's projection (2004) with a weight of sigma."""
    return _channels_last(image, lambda x, axis: denoise_tv_chambolle(x, weight=sigma, channel_axis=axis))


def bm3d(image: np.ndarray, sigma: float) -> np.ndarray:
    """BM3D (Dabov et al. 2007) from the authors' package `bm3d`, whose licence allows non-commercial use only.

    Raises:
        ImportError: the package is not installed.
    """
    try:  # optional, because of its licence
        from bm3d import bm3d as authors_bm3d
        from bm3d import bm3d_rgb
    except ImportError as error:
        raise ImportError("BM3D needs its authors' package (non-commercial licence): pip install bm3d") from error
    if len(image) == 3:
        return np.moveaxis(bm3d_rgb(np.moveaxis(image, 0, -1).astype(np.float64), sigma), -1, 0).astype(np.float32)
    return np.stack([authors_bm3d(plane.astype(np.float64), sigma) for plane in image]).astype(np.float32)


DENOISERS: dict[str, Baseline] = {"nlm": non_local_means, "wavelet": wavelet, "tv": total_variation, "bm3d": bm3d}


def estimated_sigma(image: np.ndarray) -> float:
    """Noise level of (C, H, W) from the finest wavelet coefficients (Donoho and Johnstone 1994), mean over channels."""
    return float(np.mean([estimate_sigma(plane) for plane in image]))


def _channels_last(image: np.ndarray, method: Callable[[np.ndarray, int | None], np.ndarray]) -> np.ndarray:
    if len(image) == 1:
        return np.asarray(method(image[0], None), np.float32)[None]
    return np.moveaxis(np.asarray(method(np.moveaxis(image, 0, -1), -1), np.float32), -1, 0)
