"""The b-values and b-vectors of a diffusion series in DICOM, in FSL's form and in the order of `read_volume`."""

import os
import warnings
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from ..runs.files import atomic_path
from .dicom import read_series
from .dicom_headers import read_headers
from .mosaic import is_along_image_axes, is_mosaic, mosaic_gradient


def read_dicom_gradients(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """The gradients of a diffusion series by Siemens, or of UIH grids.

    Args:
        path: a folder with one series, or one file.

    Returns:
        b-values (T,) in s/mm^2 and b-vectors (T, 3) in FSL's form for the grid of `read_volume`, equal to dcm2niix;
        zeros for a volume without direction. None if no volume is weighted, or for a series of another manufacturer.

    Raises:
        ValueError, OSError: the series cannot be read, or only some of its volumes have a b-value.
    """
    path = Path(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `read_volume` gives the warnings about the same series
        if not all(_known(header) for header in read_headers(path).values()):
            return None
        headers, volumes = read_series(path)
    firsts = [volume[0] for volume in volumes]
    found = [mosaic_gradient(headers[frame.path]) for frame in firsts]
    known = [gradient for gradient in found if gradient is not None]
    if not any(value > 0 for value, _ in known):
        return None
    if len(known) != len(found):
        raise ValueError(f"{path}: {len(found) - len(known)} of {len(found)} volumes have no b-value in their header")
    bvecs = [
        _fsl(headers[frame.path], direction, descending=frame.descending)
        for frame, (_, direction) in zip(firsts, known, strict=True)
    ]
    return np.array([value for value, _ in known]), np.array(bvecs)


def write_dicom_gradients(path: str | os.PathLike[str], base: str | os.PathLike[str]) -> bool:
    """Write BASE.bval and BASE.bvec of a diffusion series as dcm2niix does; False if it has no gradients.

    Args:
        path: the series, as for `read_dicom_gradients`.
        base: the path of the image without its suffix.
    """
    gradients = read_dicom_gradients(path)
    if gradients is None:
        return False
    bvals, bvecs = gradients
    base = Path(base)
    for suffix, rows in ((".bval", bvals[None]), (".bvec", bvecs.T)):
        with atomic_path(base.with_name(base.name + suffix)) as temporary:
            temporary.write_text("".join("\t".join(f"{np.float32(v):g}" for v in row) + "\n" for row in rows))
    return True


def holds_mosaic(path: Path) -> bool:
    """Whether a DICOM series consists of mosaics or grids, which cannot be the source of DICOM results."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return any(is_mosaic(header) for header in read_headers(path).values())


def _known(header: Dataset) -> bool:
    if is_mosaic(header):
        return True
    return "SIEMENS" in str(header.get("Manufacturer", "")).upper() and "PerFrameFunctionalGroupsSequence" not in header


def _fsl(header: Dataset, direction: np.ndarray, *, descending: bool) -> np.ndarray:
    """A direction along the voxel axes; the first axis is negated for a positive determinant (sign as dcm2niix)."""
    if is_along_image_axes(header):
        along = direction
    else:
        row, column = np.array(header.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
        along = np.stack([row, column, np.cross(row, column)]) @ direction
    # the array's rows run upwards; for descending slices all signs change, which is the same direction
    result: np.ndarray = along * (1.0, 1.0 if descending else -1.0, 1.0) + 0.0
    return result
