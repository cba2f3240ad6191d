"""Greedy (Yushkevich et al., 2016), an optional peer of the benchmark: `pip install picsl_greedy`."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..volumes import AffineTransform, CompositeTransform, DisplacementField, Volume, read_transform, write_volume
from .checks import check_images

_ITERATIONS = "100x50x10"  # as in its documentation for brains


def available() -> bool:
    """Whether Greedy is installed."""
    try:
        import picsl_greedy  # noqa: F401
    except ImportError:
        return False
    return True


def greedy(moving: Volume, fixed: Volume, *, contrasts: bool = False) -> CompositeTransform:
    """Align by Greedy's linear and greedy diffeomorphic stages with its documented settings.

    Args:
        moving: (D, H, W), any unit and orientation.
        fixed: (D, H, W), any unit and orientation.
        contrasts: whether the images are of two contrasts and one session. Greedy then uses mutual information instead
            of local correlation, and a rigid map, from the scanner's geometry, instead of an affine one.

    Returns:
        From fixed space into moving space.

    Raises:
        ValueError: an image is not 3-D, constant or not finite.
        ImportError: Greedy is not installed.
    """
    from picsl_greedy import Greedy3D

    check_images("moving", moving, None)
    check_images("fixed", fixed, None)
    program: Any = Greedy3D()
    metric, linear = "NCC 2x2x2", "-dof 12 -ia-image-centers"
    if contrasts:
        metric, linear = "NMI", "-dof 6 -ia-identity"
    with tempfile.TemporaryDirectory(prefix="voxelwave-greedy-") as name:
        folder = Path(name)
        write_volume(folder / "moving.nii.gz", moving)
        write_volume(folder / "fixed.nii.gz", fixed)
        images = f"-i {folder}/fixed.nii.gz {folder}/moving.nii.gz -m {metric} -n {_ITERATIONS}"
        threads = f"-threads {torch.get_num_threads()}"
        program.execute(f"-V 0 -a {linear} {images} {threads} -o {folder}/affine.mat")
        program.execute(f"-V 0 {images} {threads} -it {folder}/affine.mat -o {folder}/field.nii.gz")
        field = read_transform(folder / "field.nii.gz")
        affine = _read_affine(folder / "affine.mat")
    assert isinstance(field, DisplacementField)
    return CompositeTransform((field, affine))


def _read_affine(path: Path) -> AffineTransform:
    """Read a matrix from a text file, fixed world -> moving world, RAS mm."""
    return AffineTransform(np.loadtxt(path))
