"""Classical methods that stand beside the networks: non-local means, wavelets, total variation, BM3D, bicubic.

Each takes and gives one image (C, H, W) with 0 and 1 at the ends of the range, and the noise level in that unit.
"""

from collections.abc import Callable

import numpy as np

Baseline = Callable[[np.ndarray, float], np.ndarray]


def non_local_means(image: np.ndarray, sigma: float) -> np.ndarray:
    """Non-local means (Buades et al. 2005): 7 x 7 patches compared over 23 x 23 pixels, filter strength 0.6 sigma."""
    from skimage.restoration import denoise_nl_means

    return _channels_last(
        image,
        lambda x, axis: denoise_nl_means(
            x, patch_size=7, patch_distance=11, h=0.6 * sigma, sigma=sigma, fast_mode=True, channel_axis=axis
        ),
    )


def wavelet(image: np.ndarray, sigma: float) -> np.ndarray:
    """Soft thresholds by BayesShrink (Chang et al. 2000) in Daubechies wavelets with two vanishing moments."""
    from skimage.restoration import denoise_wavelet

    return _channels_last(
        image,
        lambda x, axis: denoise_wavelet(
            x, sigma=sigma, wavelet="db2", mode="soft", method="BayesShrink", rescale_sigma=False, channel_axis=axis
        ),
    )


def total_variation(image: np.ndarray, sigma: float) -> np.ndarray:
    """Total variation by Chambolle's projection (2004), weight equal to sigma."""
    from skimage.restoration import denoise_tv_chambolle

    return _channels_last(image, lambda x, axis: denoise_tv_chambolle(x, weight=sigma, channel_axis=axis))


def bm3d(image: np.ndarray, sigma: float) -> np.ndarray:
    """BM3D (Dabov et al. 2007) by the authors' package `bm3d`, whose licence allows non-commercial use only.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        from bm3d import bm3d as authors_bm3d
        from bm3d import bm3d_rgb
    except ImportError as error:
        raise ImportError("BM3D needs its authors' package (non-commercial licence): pip install bm3d") from error
    if len(image) == 3:
        return np.moveaxis(bm3d_rgb(np.moveaxis(image, 0, -1).astype(np.float64), sigma), -1, 0).astype(np.float32)
    return np.stack([authors_bm3d(plane.astype(np.float64), sigma) for plane in image]).astype(np.float32)


DENOISERS: dict[str, Baseline] = {"nlm": non_local_means, "wavelet": wavelet, "tv": total_variation, "bm3d": bm3d}


def estimated_sigma(image: np.ndarray) -> float:
    """The noise level of (C, H, W) from its finest wavelet coefficients (Donoho and Johnstone 1994), channel mean."""
    from skimage.restoration import estimate_sigma

    return float(np.mean([estimate_sigma(plane) for plane in image]))


def _channels_last(image: np.ndarray, method: Callable[[np.ndarray, int | None], np.ndarray]) -> np.ndarray:
    if len(image) == 1:
        return np.asarray(method(image[0], None), np.float32)[None]
    return np.moveaxis(np.asarray(method(np.moveaxis(image, 0, -1), -1), np.float32), -1, 0)
