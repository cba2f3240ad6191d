"""The 3-D image that represents a diffusion series in a registration, and the gradient files of the series."""

import warnings
from pathlib import Path

import numpy as np

from ..volumes import Volume, VolumeWarning, read_volume
from ..volumes.dicom_gradients import read_dicom_gradients
from ..volumes.dicom_registered import is_dicom
from .diffusion import fractional_anisotropy, mean_b0, mean_dwi, read_bvals, read_gradients
from .pairs import Pair, without_suffix


def sidecar(image: Path, suffix: str) -> Path:
    """Return the path of a file in the folder of an image, with the same name and another suffix, such as ".bval".

    Example:
        >>> sidecar(Path("dwi/sub-1_dwi.nii.gz"), ".bval").as_posix()
        'dwi/sub-1_dwi.bval'
    """
    base = without_suffix(image)
    return base.with_name(base.name + suffix)


def gradients_of(image: Path) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Return the b-values (T,) and b-vectors (T, 3) of a series, from the files beside it or from its DICOM headers.

    The b-vectors are None if there is only a .bval file beside the image; the result is None if there are no b-values.
    """
    bval, bvec = sidecar(image, ".bval"), sidecar(image, ".bvec")
    if bval.is_file():
        return read_gradients(bval, bvec) if bvec.is_file() else (read_bvals(bval), None)
    return read_dicom_gradients(image) if is_dicom(image) else None


def load_fixed(pair: Pair) -> Volume:
    """Read the fixed image of a pair, (D, H, W); for a diffusion series, compute the map given by `pair.contrast`.

    Raises:
        ValueError: the file is 4-D and the contrast is "image", or the gradients do not match the series.
        FileNotFoundError: the gradient files are missing.
    """
    volume = read_volume(pair.fixed)
    if pair.contrast == "image":
        if volume.array.ndim == 4:
            raise ValueError(
                f'{pair.fixed} is 4-D, shape {volume.array.shape}: set contrast to "b0", "fa" or "dwi" for this pair'
            )
        return volume
    bvals, bvecs = gradients_of(pair.fixed) or (None, None)
    for suffix, missing in ((".bval", bvals is None), (".bvec", pair.contrast == "fa" and bvecs is None)):
        if missing:
            name = sidecar(pair.fixed, suffix).name
            raise FileNotFoundError(f'contrast "{pair.contrast}" of {pair.fixed} needs {name} beside it')
    assert bvals is not None  # checked above
    try:
        if pair.contrast == "fa" and bvecs is not None:
            return fractional_anisotropy(volume, bvals, bvecs)
        return (mean_b0 if pair.contrast == "b0" else mean_dwi)(volume, bvals)
    except ValueError as error:
        raise ValueError(f"{pair.fixed}: {error}") from error


def reference_image(volume: Volume, path: Path) -> Volume:
    """Return the 3-D image that represents a series: its mean b0 if there are b-values, otherwise the mean of all.

    Args:
        volume: (D, H, W), returned unchanged, or (D, H, W, T).
        path: the file of `volume`.
    """
    if volume.array.ndim == 3:
        return volume
    gradients = gradients_of(path)
    if gradients is not None:
        return mean_b0(volume, gradients[0])
    warnings.warn(
        f"{path} holds {volume.array.shape[3]} volumes without {sidecar(path, '.bval').name} beside it: the mean of all"
        " is aligned",
        VolumeWarning,
        stacklevel=2,
    )
    return volume.with_array(volume.array.mean(axis=3, dtype=np.float32))
