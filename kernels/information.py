"""Mutual information of samples under a linear map by the compiled kernels (csrc/information.cpp).

`registration.linear` has the same in plain PyTorch. No result depends on the number of threads.
"""

import ctypes

import numpy as np
import torch
from torch import Tensor

from . import native
from .threads import kernel_threads

COLUMNS = 35  # of the joint histogram, for 32 bins


def serves(*images: Tensor) -> bool:
    """Whether the compiled library can read these images, which must be float32 on the CPU."""
    fitting = all(each.device.type == "cpu" and each.dtype == torch.float32 for each in images)
    return fitting and native.library() is not None


def mutual_information(
    points: Tensor, rows: Tensor, image: Tensor, mask: Tensor | None, to_voxel: Tensor, *, least: int, with_slope: bool
) -> tuple[float, float, Tensor]:
    """Normalised mutual information of samples and an image, 1 to 2 (Studholme et al., Pattern Recognition 1999).

    Args:
        points: (3, N) float64, contiguous.
        rows: (N,) int32, contiguous: the bin of the fixed image at each point, 0 to 31, times `COLUMNS`.
        image: (D, H, W), the moving image in bins from 0 to 31.
        mask: (D, H, W), above a half where the image is compared; None for everywhere.
        to_voxel: (4, 4) float64, from points to voxels of the image.
        least: with fewer samples in the image, the value is 1 and the derivative 0.
        with_slope: whether to compute the derivative.

    Returns:
        The value; the sum of the weights of the samples, which fall from 1 to 0 at the border of the image; and the
        derivative of the value with respect to the first three rows of `to_voxel`, (3, 4) float64.
    """
    image, map_ = image.contiguous(), to_voxel[:3].contiguous()
    mask = None if mask is None else mask.contiguous()
    result = np.empty(15)
    native.function("vw_information_linear")(
        ctypes.c_void_p(points.data_ptr()),
        ctypes.c_void_p(rows.data_ptr()),
        ctypes.c_int64(points.shape[1]),
        ctypes.c_void_p(image.data_ptr()),
        ctypes.c_void_p(None if mask is None else mask.data_ptr()),
        (ctypes.c_int64 * 3)(*image.shape),
        ctypes.c_void_p(map_.data_ptr()),
        ctypes.c_int64(least),
        ctypes.c_int64(with_slope),
        ctypes.c_void_p(result.ctypes.data),
        ctypes.c_int64(kernel_threads()),
    )
    return float(result[0]), float(result[1]), torch.from_numpy(result[3:].reshape(3, 4))
