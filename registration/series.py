"""The 3-D image by which a diffusion series is registered, and the gradient files beside the series."""

import warnings
from pathlib import Path

import numpy as np

from ..volumes import Volume, VolumeWarning, read_volume
from .diffusion import fractional_anisotropy, mean_b0, mean_dwi, read_bvals, read_gradients
from .pairs import Pair, without_suffix


def sidecar(image: Path, suffix: str) -> Path:
    """Return the path beside an image with the same name and another suffix, such as ".bval".

    Example:
        >>> sidecar(Path("dwi/sub-1_dwi.nii.gz"), ".bval").as_posix()
        'dwi/sub-1_dwi.bval'
    """
    base = without_suffix(image)
    return base.with_name(base.name + suffix)


def load_fixed(pair: Pair) -> Volume:
    """Read the fixed image of a pair, (D, H, W); of a diffusion series, compute the map that `pair.contrast` names.

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
    bval, bvec = sidecar(pair.fixed, ".bval"), sidecar(pair.fixed, ".bvec")
    for file in (bval, bvec) if pair.contrast == "fa" else (bval,):
        if not file.is_file():
            raise FileNotFoundError(f'contrast "{pair.contrast}" of {pair.fixed} needs {file.name} beside it')
    try:
        if pair.contrast == "fa":
            return fractional_anisotropy(volume, *read_gradients(bval, bvec))
        return (mean_b0 if pair.contrast == "b0" else mean_dwi)(volume, read_bvals(bval))
    except ValueError as error:
        raise ValueError(f"{pair.fixed}: {error}") from error


def reference_image(volume: Volume, path: Path) -> Volume:
    """Return the 3-D image that represents a series: its mean b0 if b-values lie beside it, else the mean of all.

    Args:
        volume: (D, H, W), returned as it is, or (D, H, W, T).
        path: the file of `volume`.
    """
    if volume.array.ndim == 3:
        return volume
    bval = sidecar(path, ".bval")
    if bval.is_file():
        return mean_b0(volume, read_bvals(bval))
    warnings.warn(
        f"{path} holds {volume.array.shape[3]} volumes without {bval.name} beside it: the mean of all is aligned",
        VolumeWarning,
        stacklevel=2,
    )
    return volume.with_array(volume.array.mean(axis=3, dtype=np.float32))
