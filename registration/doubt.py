"""Judge whether an alignment is credible: it must fit better than when it is displaced, and no worse than the start."""

import numpy as np

from ..volumes import AffineTransform, DisplacementField, Volume, resample
from .evidence import Evidence, Map, head_mask, restricted
from .linear import coarsened

_SPACING_MM = 3.0
_SHIFT = 0.15  # of the mean side of the head: 20 mm for a human head
_LEAST_BETTER = 2 / 3  # of the shifts: 4 of 6, in a plane 3 of 4
_LEAST_CUBES = 16  # fewer judge nothing
# Of 9 pairs of heads in equal and different contrasts, people and slabs among them, 8 fitted significantly better than
# after any of the 6 shifts, and one than after 5 of them. Of 7 pairs of a head and another object (slabs of CT,
# phantoms, other parts of the body), none fitted better than after any shift.


def doubt_about(moving: Volume, fixed: Volume, forward: DisplacementField, mask: Volume | None = None) -> str:
    """The reason to doubt an alignment, in one line; "" if there is none, or if the images are too small to judge.

    The mutual information of held-out voxels in the head of the fixed image (`evidence`) is compared with that after
    shifts along each axis of the world, and with that of the images as they lie in the scanner. A single slice is
    shifted within its plane only: beyond it, nothing fits anyway.

    Args:
        moving: (D, H, W).
        fixed: (D, H, W).
        forward: fixed world -> moving world.
        mask: on the grid of `fixed`; only its nonzero voxels are compared.
    """
    found = _evidence(moving, fixed, mask)
    if found is None:
        return ""
    evidence, side = found
    shifts = [sign * _SHIFT * side * axis for axis in _directions(fixed) for sign in (-1, 1)]
    better = sum(evidence.compare(forward.map, _after(shift, forward)).accepted for shift in shifts)
    if better < _LEAST_BETTER * len(shifts):
        return (
            f"the scans may show different objects: after a shift by {_SHIFT * side:.0f} mm they fit clearly worse in"
            f" only {better} of {len(shifts)} directions"
        )
    against_start = evidence.compare(forward.map, _start)
    if against_start.harmful:
        return f"the scans fit worse than they did at the start ({against_start} nats per voxel)"
    return ""


def start_is_better(moving: Volume, fixed: Volume, matrix: np.ndarray, mask: Volume | None = None) -> bool:
    """Whether the scans fit clearly better as they lie in the scanner than under a linear map.

    Args:
        moving: (D, H, W).
        fixed: (D, H, W).
        matrix: (4, 4), fixed world -> moving world.
        mask: on the grid of `fixed`; only its nonzero voxels are compared.
    """
    found = _evidence(moving, fixed, mask)
    return found is not None and found[0].compare(AffineTransform(matrix).map, _start).harmful


def _evidence(moving: Volume, fixed: Volume, mask: Volume | None) -> tuple[Evidence, float] | None:
    """The evidence inside the head of the fixed image, and the mean side of the head in mm; None for a small image."""
    coarse = coarsened(fixed, _SPACING_MM)
    head = restricted(head_mask(coarse), None if mask is None else resample(mask, coarse, order="nearest"))
    if not head.array.any():
        return None
    evidence = Evidence(moving, coarse, head, spacing_mm=_SPACING_MM)
    if evidence.cubes < _LEAST_CUBES:
        return None
    axes = _long_axes(fixed)
    size = float(np.count_nonzero(head.array)) * float(np.prod(np.array(coarse.spacing)[axes]))
    return evidence, size ** (1 / len(axes))


def _long_axes(image: Volume) -> list[int]:
    """The axes of an image with more than one voxel: two in a single slice."""
    return [axis for axis, size in enumerate(image.shape) if size > 1]


def _directions(image: Volume) -> np.ndarray:
    """(n, 3) unit vectors along which an image is shifted: the axes of the world, or those of a single slice."""
    axes = _long_axes(image)
    if len(axes) == 3:
        return np.eye(3)
    columns = image.affine[:3, axes].T
    return np.asarray(columns / np.linalg.norm(columns, axis=1, keepdims=True))


def _start(points: np.ndarray) -> np.ndarray:
    return points


def _after(shift: np.ndarray, forward: DisplacementField) -> Map:
    return lambda points: forward.map(points + shift)
