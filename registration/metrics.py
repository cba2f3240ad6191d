"""How good a registration is, by the definitions that the field has agreed on; each function names its source.

Several published definitions share a name and give different numbers. Images and label maps are (D, H, W), a
displacement is (B, 3, D, H, W) in voxels; NumPy arrays and tensors both serve.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics import SSIMMetric, compute_hausdorff_distance
from numpy.typing import ArrayLike
from torch import Tensor

BORDER = 2  # voxels on each side that Learn2Reg leaves out of its Jacobian figures


def ssim(image: ArrayLike | Tensor, reference: ArrayLike | Tensor, *, data_range: float) -> float:
    """Structural similarity of two volumes, 1 for equal ones.

    Wang et al. 2004 in three dimensions, as MONAI's `SSIMMetric`: Gaussian window of 11 voxels with sigma 1.5,
    K1 = 0.01, K2 = 0.03, the mean over the windows that lie inside the volume, in float32.

    Args:
        image: (D, H, W), each axis at least 11 long.
        reference: (D, H, W), the same grid.
        data_range: largest minus smallest value that the images can take, 1 for [0, 1]. The result depends on it, so
            it goes beside every published value.
    """
    image, reference = _same_shape("image", image, "reference", reference)
    if min(image.shape) < 11:
        raise ValueError(f"image must be at least 11 voxels along each axis, got {tuple(image.shape)}")
    if not data_range > 0:
        raise ValueError(f"data_range must be above 0, got {data_range}")
    pair = ((volume.double() / data_range)[None, None] for volume in (image, reference))  # SSIM has no unit
    score = SSIMMetric(spatial_dims=3, data_range=1.0)(*pair)
    assert isinstance(score, Tensor)
    return float(score.mean())


def dice(labels: ArrayLike | Tensor, reference: ArrayLike | Tensor, *, label_list: Sequence[int]) -> dict[int, float]:
    """Overlap 2 |A ∩ B| / (|A| + |B|) of each label, NaN where a label is absent from either map.

    The convention of the Learn2Reg challenge (Hering et al. 2023); the mean leaves NaN out: `np.nanmean`.

    Args:
        labels: (D, H, W) of whole numbers, such as a warped label map.
        reference: (D, H, W), the same grid.
        label_list: the labels to score. Which ones belong to a score is a decision, so they are not looked for.

    Example:
        >>> dice(np.array([[[1, 1, 2, 0]]]), np.array([[[1, 0, 2, 0]]]), label_list=[1, 2, 3])
        {1: 0.6666666666666666, 2: 1.0, 3: nan}
    """
    labels, reference = _same_shape("labels", labels, "reference", reference)
    scores = {}
    for label in label_list:
        a, b = labels == label, reference == label
        sizes = int(a.sum()), int(b.sum())
        scores[int(label)] = 2 * int((a & b).sum()) / sum(sizes) if all(sizes) else float("nan")
    return scores


def hd95_mm(
    labels: ArrayLike | Tensor,
    reference: ArrayLike | Tensor,
    *,
    label_list: Sequence[int],
    spacing: Sequence[float],
) -> dict[int, float]:
    """Hausdorff distance of each label's surfaces in mm, its 95th percentile; NaN where a label is absent from a map.

    MONAI's definition: the surface voxels of each mask, the distances from each to the nearest surface voxel of the
    other, the 95th percentile of both directed sets, the larger of the two.

    Args:
        labels: (D, H, W) of whole numbers.
        reference: (D, H, W), the same grid.
        label_list: the labels to score.
        spacing: mm between voxels along each axis.
    """
    labels, reference = _same_shape("labels", labels, "reference", reference)
    if len(spacing) != 3 or not all(step > 0 for step in spacing):
        raise ValueError(f"spacing must be three positive numbers in mm, got {tuple(spacing)}")
    distances = {}
    for label in label_list:
        a, b = labels == label, reference == label
        if not (a.any() and b.any()):
            distances[int(label)] = float("nan")
            continue
        # Cropped to both masks with a margin of one voxel: a structure is a small part of a brain.
        occupied = (a | b).nonzero()
        box = tuple(slice(low, high + 1) for low, high in zip(occupied.amin(0), occupied.amax(0), strict=True))
        first, second = (torch.nn.functional.pad(mask[box].float(), (1,) * 6)[None, None] for mask in (a, b))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of a call inside itself
            distance = compute_hausdorff_distance(
                first, second, include_background=True, percentile=95, spacing=[float(step) for step in spacing]
            )
        distances[int(label)] = float(distance)
    return distances


def _same_shape(
    name: str, image: ArrayLike | Tensor, reference_name: str, reference: ArrayLike | Tensor
) -> tuple[Tensor, Tensor]:
    first, second = _tensor(image), _tensor(reference)
    if first.ndim != 3:
        raise ValueError(f"{name} must have shape (D, H, W), got {tuple(first.shape)}")
    if second.shape != first.shape:
        raise ValueError(
            f"{reference_name} must have shape {tuple(first.shape)} to match {name}, got {tuple(second.shape)}"
        )
    return first, second


def _tensor(values: ArrayLike | Tensor) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu()
    array = np.asarray(values)
    if array.dtype.kind == "u":  # PyTorch compares few of the unsigned types
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array, order="C", dtype=array.dtype.newbyteorder("=")))
