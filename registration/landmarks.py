"""The brain and the ventricles in a T1w scan and in a b0 image of one person, segmented in each image by itself.

They serve as landmarks that both contrasts show. The brain ends where its hull does: sulci are closed, and fluid around
it does not count, since a T1w scan shows it as dark as bone. Only the upper part of the brain is segmented well: below
the ventricles, a T1w scan shows muscles as bright as the brain.
"""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_fill_holes, distance_transform_edt, gaussian_filter, label
from skimage.filters import threshold_multiotsu

from ..volumes import Volume
from .evidence import head_mask

BRAIN, VENTRICLES = 1, 2
_UPPER_MM = 110.0  # the part of a head below its top in which a T1w scan is segmented
_SCALP_MM = 7.0
_BRIDGES_MM = 3.0  # connections between the brain and the scalp are thinner than twice this
_SULCI_MM = 9.0  # sulci are narrower than twice this
_DEPTH_MM = 22.0  # least depth of the ventricles below the hull of the brain
_ATLAS_MM = 2.0  # how far the brain may reach beyond that of the atlas
_LEAST_PART = 0.2  # least size of a part of the ventricles, as a share of the largest


def segmented_t1(image: Volume, *, atlas: Volume | None = None) -> Volume:
    """The brain (1) and the ventricles (2) in a T1w scan (D, H, W): fluid is the darkest of three classes.

    Args:
        image: the T1w scan.
        atlas: on the grid of `image`, not 0 in the brain of another person that was registered to it. Voxels further
            than 2 mm from it are not brain. In slices of several millimetres, the skull is blurred away, and its marrow
            and the muscles beside it look like brain.
    """
    head = head_mask(image).array > 0
    array = gaussian_filter(image.array.astype(np.float32), [0.5 / mm for mm in image.spacing])
    depth = _depth(head, image.spacing)
    region = head & _upper(image, head) & (depth > _SCALP_MM)
    typical = float(np.median(array[region & (depth > 0.5 * depth[region].max())]))
    even = _even(array, region & (array > 0.4 * typical) & (array < 1.5 * typical), image.spacing, sigma_mm=40)
    brain_values = region & (even < 1.6)
    fluid, bright = threshold_multiotsu(even[brain_values], classes=3)
    white = float(np.median(even[brain_values & (even > bright)]))
    fluid = min(
        float(fluid), 0.6 * white
    )  # grey matter is brighter, but may be in the class of the fluid if that is rare
    tissue = region & (even > fluid) & (even < 1.3 * white)
    if atlas is not None:
        tissue &= distance_transform_edt(atlas.array == 0, sampling=image.spacing) <= _ATLAS_MM
    brain = _hull(tissue, image.spacing)
    return image.with_array(_with_ventricles(brain, even < fluid, image.spacing))


def segmented_b0(image: Volume) -> Volume:
    """The brain (1) and the ventricles (2) in a b0 image (D, H, W): fluid is the brightest of three classes."""
    head = head_mask(image).array > 0
    even = _even(image.array.astype(np.float32), head, image.spacing, sigma_mm=30)
    brain = _hull(head & (even > 0.45) & (even < 1.5), image.spacing)
    depth = _depth(head, image.spacing)
    _, fluid = threshold_multiotsu(even[(depth > 0.4 * depth.max()) & (even > 0.3)], classes=3)
    return image.with_array(_with_ventricles(brain, even > fluid, image.spacing))


def above_base(labels: Volume) -> np.ndarray:
    """Where a voxel of the label map (D, H, W) lies above the lower end of the ventricles; bool, (D, H, W)."""
    axis, sign = _superior(labels)
    heights = np.argwhere(labels.array == VENTRICLES)[:, axis] * sign
    lowest = np.percentile(heights, 5) if heights.size else -np.inf
    above: np.ndarray = np.arange(labels.shape[axis]) * sign >= lowest
    return np.broadcast_to(_along(above, axis), labels.shape)


def _superior(image: Volume) -> tuple[int, float]:
    """The axis that leads up most directly, and 1 if the index grows upwards, else -1."""
    axis = int(np.argmax(np.abs(image.affine[2, :3])))
    return axis, float(np.sign(image.affine[2, axis]))


def _along(values: np.ndarray, axis: int) -> np.ndarray:
    return values.reshape([-1 if a == axis else 1 for a in range(3)])


def _upper(image: Volume, head: np.ndarray) -> np.ndarray:
    axis, sign = _superior(image)
    height = np.arange(image.shape[axis]) * sign * image.spacing[axis]
    top = height[head.any(axis=tuple(a for a in range(3) if a != axis))].max()
    return _along(top - height < _UPPER_MM, axis)


def _depth(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """The distance in mm to the nearest voxel outside; beyond the border of the grid is outside."""
    depth: np.ndarray = distance_transform_edt(np.pad(mask, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    return depth


def _even(array: np.ndarray, where: np.ndarray, spacing: Sequence[float], *, sigma_mm: float) -> np.ndarray:
    """The image divided by its mean over `where` in a Gaussian window."""
    sigma = [sigma_mm / mm for mm in spacing]
    weight = gaussian_filter(where.astype(np.float32), sigma)
    mean = gaussian_filter(np.where(where, array, 0), sigma) / np.maximum(weight, 1e-3)
    even: np.ndarray = array / np.maximum(mean, 1e-6 * float(array.max()))
    return even


def _hull(tissue: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """The largest part of the tissue without thin bridges to other parts, with sulci closed and holes filled."""
    reach = max(_BRIDGES_MM, 1.01 * sorted(spacing)[1])
    core = _largest(_depth(tissue, spacing) > reach)
    brain = tissue & (distance_transform_edt(~core, sampling=spacing) <= reach + 1)
    margins = [int(np.ceil(_SULCI_MM / mm)) + 1 for mm in spacing]
    padded = np.pad(brain, [(margin, margin) for margin in margins])
    wide = distance_transform_edt(~padded, sampling=spacing) <= _SULCI_MM
    closed = distance_transform_edt(wide, sampling=spacing) > _SULCI_MM
    closed = closed[tuple(slice(margin, -margin) for margin in margins)]
    thick = int(np.argmax(spacing))
    return np.moveaxis(np.stack([binary_fill_holes(plane) for plane in np.moveaxis(closed, thick, 0)]), 0, thick)


def _with_ventricles(brain: np.ndarray, fluid: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    deep = fluid & (_depth(brain, spacing) > _DEPTH_MM)
    parts, sizes = _parts(deep)
    kept = np.flatnonzero((sizes > 0) & (sizes >= _LEAST_PART * sizes.max(initial=0)))
    return brain.astype(np.uint8) * BRAIN + np.isin(parts, kept).astype(np.uint8)


def _largest(mask: np.ndarray) -> np.ndarray:
    parts, sizes = _parts(mask)
    largest: np.ndarray = mask & (parts == sizes.argmax())
    return largest


def _parts(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The connected parts, numbered from 1, and their sizes; the size of the background counts as 0."""
    parts, _ = label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts, sizes
