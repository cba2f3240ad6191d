"""Overlap and surface distance of label maps.

Several published definitions share a name and give different numbers; each function names its source. Label maps are
(D, H, W), NumPy arrays or tensors.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree
from torch import Tensor


def dice(labels: ArrayLike | Tensor, reference: ArrayLike | Tensor, *, label_list: Sequence[int]) -> dict[int, float]:
    """Overlap 2 |A ∩ B| / (|A| + |B|) of each label, NaN if a label is absent from either map.

    This is the convention of the Learn2Reg challenge (Hering et al. 2023), whose mean ignores NaN (`np.nanmean`).

    Args:
        labels: (D, H, W) of whole numbers, such as a warped label map.
        reference: (D, H, W), on the same grid.
        label_list: the labels to score. The caller decides which labels belong to a score.

    Returns:
        The overlap of each label in `label_list`.

    Example:
        >>> dice(np.array([[[1, 1, 2, 0]]]), np.array([[[1, 0, 2, 0]]]), label_list=[1, 2, 3])
        {1: 0.6666666666666666, 2: 1.0, 3: nan}
    """
    labels, reference = same_shape("labels", labels, "reference", reference)
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
    """The 95th percentile of the distances between the surfaces of each label in mm, NaN if a map lacks the label.

    This is MONAI's definition: for each surface voxel of one mask, the distance to the nearest surface voxel of the
    other mask is computed; the result is the larger of the 95th percentiles of these distances in both directions.

    Args:
        labels: (D, H, W) of whole numbers.
        reference: (D, H, W), on the same grid.
        label_list: the labels to score.
        spacing: voxel spacing along each axis, in mm.

    Returns:
        The distance of each label in `label_list`.
    """
    labels, reference = same_shape("labels", labels, "reference", reference)
    if len(spacing) != 3 or not all(step > 0 for step in spacing):
        raise ValueError(f"spacing must be three positive numbers in mm, got {tuple(spacing)}")
    distances = {}
    for label in label_list:
        a, b = labels == label, reference == label
        if not (a.any() and b.any()):
            distances[int(label)] = float("nan")
            continue
        # cropped to both masks, since a structure is a small part of the brain
        occupied = (a | b).nonzero()
        box = tuple(slice(low, high + 1) for low, high in zip(occupied.amin(0), occupied.amax(0), strict=True))
        first, second = (_surface_points(mask[box].numpy(), spacing) for mask in (a, b))
        distances[int(label)] = max(_percentile_95(first, second), _percentile_95(second, first))
    return distances


def _surface_points(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """The surface voxels of a mask, (N, 3) in mm: those with a face neighbour outside it."""
    return np.argwhere(mask ^ binary_erosion(mask)) * np.asarray(spacing, dtype=np.float64)


def _percentile_95(points: np.ndarray, others: np.ndarray) -> float:
    """The 95th percentile of the distances from each point to the nearest of the others."""
    # a large leaf is faster for a single query; float32 as in MONAI, so that the values are the same
    distances = KDTree(others, leafsize=32).query(points)[0].astype(np.float32)
    return float(torch.quantile(torch.from_numpy(distances), 0.95))


def same_shape(
    name: str, image: ArrayLike | Tensor, reference_name: str, reference: ArrayLike | Tensor
) -> tuple[Tensor, Tensor]:
    """Return two volumes as tensors on the CPU; refuse them unless both have the same shape (D, H, W)."""
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
    if array.dtype.kind == "u":  # PyTorch can compare only some of the unsigned types
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array, order="C", dtype=array.dtype.newbyteorder("=")))
