"""Reading and writing of images in any supported format."""

import os
from pathlib import Path
from typing import Literal

from .dicom import read_dicom
from .nifti import is_nifti_name, read_nifti, write_nifti
from .nrrd_files import read_nrrd
from .volume import Volume


def read_volume(path: str | os.PathLike[str], *, ndim: Literal[3] | None = None, fix_tilt: bool = False) -> Volume:
    """Read an image from a NIfTI, .mgz or .nrrd file, a folder with one DICOM series, or one DICOM file.

    Args:
        path: .nii, .nii.gz, .mgz, .nrrd, a folder, or a DICOM file of any name, which may be enhanced multi-frame.
        ndim: 3 if a single volume is needed; a series of volumes is then an error.
        fix_tilt: straighten the slices of a CT with a tilted gantry, with one interpolation and a warning; without it,
            such a series is refused.

    Returns:
        The image with its RAS+ affine. Unusual input that could be read raises a `VolumeWarning`.

    Raises:
        ValueError, OSError: the values or the position in space cannot be trusted (one line); see the tables in `nifti`
            and `dicom`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    if is_nifti_name(path) and path.is_file():
        volume = read_nifti(path)
    elif path.name.lower().endswith(".nrrd") and path.is_file():
        volume = read_nrrd(path)
    else:
        volume = read_dicom(path, fix_tilt=fix_tilt)
    if ndim == 3 and volume.array.ndim == 4:
        raise ValueError(
            f"{path} must hold one volume, got {volume.array.shape[3]} ({volume.array.shape}); choose one of them, for"
            " example the b0 or the mean of a diffusion series, and save it as its own file"
        )
    return volume


def write_volume(
    path: str | os.PathLike[str], volume: Volume, *, space: Literal["scanner", "aligned"] = "scanner"
) -> None:
    """Write an image as .nii, .nii.gz or .mgz, by the suffix of `path`; the file appears complete or not at all.

    Args:
        path: the file to write; missing folders are created.
        volume: the image; its dtype is kept if the format supports it (bool becomes uint8).
        space: "scanner" for an image in its own space (NIfTI code 1), "aligned" for an image that was resampled to
            another one (code 2).

    Raises:
        ValueError: the suffix is another one, or the dtype is not real.

    Example:
        >>> import tempfile, numpy as np
        >>> path = Path(tempfile.mkdtemp()) / "ones.nii.gz"
        >>> write_volume(path, Volume(np.ones((2, 3, 4), np.int16), np.diag([2.0, 2.0, 3.0, 1.0])))
        >>> read_volume(path).spacing
        (2.0, 2.0, 3.0)
    """
    path = Path(path)
    if not is_nifti_name(path):
        raise ValueError(f"path must end in .nii, .nii.gz or .mgz, got {path.name}")
    write_nifti(path, volume, space=space)
