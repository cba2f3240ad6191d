"""Structural similarity of volumes, for comparison with published registrations that report it."""

from monai.metrics import SSIMMetric
from numpy.typing import ArrayLike
from torch import Tensor

from .metrics import same_shape


def ssim(image: ArrayLike | Tensor, reference: ArrayLike | Tensor, *, data_range: float) -> float:
    """Structural similarity of two volumes, 1 for equal ones.

    This is the definition of Wang et al. 2004 in three dimensions, as computed by MONAI's `SSIMMetric`: a Gaussian
    window of 11 voxels with sigma 1.5, K1 = 0.01, K2 = 0.03, and the mean over the windows inside the volume, in
    float32.

    Args:
        image: (D, H, W), each axis at least 11 long.
        reference: (D, H, W), on the same grid.
        data_range: largest minus smallest possible value of the images, 1 for [0, 1]. The result depends on it, so
            state it with every published value.
    """
    image, reference = same_shape("image", image, "reference", reference)
    if min(image.shape) < 11:
        raise ValueError(f"image must be at least 11 voxels along each axis, got {tuple(image.shape)}")
    if not data_range > 0:
        raise ValueError(f"data_range must be above 0, got {data_range}")
    pair = ((volume.double() / data_range)[None, None] for volume in (image, reference))  # SSIM has no unit
    score = SSIMMetric(spatial_dims=3, data_range=1.0)(*pair)
    assert isinstance(score, Tensor)
    return float(score.mean())
