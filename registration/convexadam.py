"""ConvexAdam (Siebert et al., IEEE TMI 2024), an optional peer of the benchmark: `pip install convexadam`."""

import importlib.util
import warnings

import numpy as np
import torch

from ..volumes import AffineTransform, CompositeTransform, DisplacementField, Volume, resample
from .affine import align_affine
from .checks import check_images

_MARGIN = 12  # voxels around the content; outside, its features would only cost memory (5 GB for 256^3 voxels)


def available() -> bool:
    """Whether ConvexAdam is installed."""
    return importlib.util.find_spec("convexAdam") is not None


def convexadam(moving: Volume, fixed: Volume, *, seed: int = 0) -> CompositeTransform:
    """Align by our affine registration, since ConvexAdam has none, and then by ConvexAdam with its default settings.

    ConvexAdam sees the box of the content of both images and a margin; outside, the displacement is that of the nearest
    voxel of the box.

    Args:
        moving: (D, H, W), any unit and orientation; skull-stripped.
        fixed: (D, H, W), any unit and orientation; skull-stripped.
        seed: seed of the affine registration.

    Returns:
        From fixed space into moving space.

    Raises:
        ValueError: an image is not 3-D, constant or not finite.
        ImportError: ConvexAdam is not installed.
    """
    check_images("moving", moving, None)
    check_images("fixed", fixed, None)
    affine = AffineTransform(align_affine(moving, fixed, seed=seed))
    moved = resample(moving, fixed, affine).array.astype(np.float32)
    still = fixed.array.astype(np.float32)
    box, sides = _box((moved != 0) | (still != 0))
    with warnings.catch_warnings():  # its import switches off all warnings of the process
        from convexAdam.convex_adam_MIND import convex_adam_pt

        warnings.simplefilter("ignore", UserWarning)  # of its calls of PyTorch
        found = convex_adam_pt(still[box], moved[box], dtype=torch.float32, device=torch.device("cpu"))
    displacement = np.pad(np.moveaxis(found, 3, 0), [(0, 0), *sides], mode="edge")
    return CompositeTransform((DisplacementField.from_voxels(displacement, fixed.affine), affine))


def _box(content: np.ndarray) -> tuple[tuple[slice, ...], list[tuple[int, int]]]:
    """The box of some voxels and a margin, and the voxels on either side of it along each axis."""
    places = np.argwhere(content)
    low = np.maximum(places.min(axis=0) - _MARGIN, 0)
    high = np.minimum(places.max(axis=0) + _MARGIN + 1, content.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return box, [(int(a), int(n - b)) for a, b, n in zip(low, high, content.shape, strict=True)]
