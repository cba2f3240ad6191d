"""Reading of NRRD images whose data are in the same file, by pynrrd."""

import warnings
import zlib
from pathlib import Path
from typing import Any

import nrrd
import numpy as np

from ..runs.memory import check_memory
from ..runs.words import one_line
from .volume import Volume
from .warning import VolumeWarning

_KINDS = {"domain", "space", "none", "???"}
_MM = {"mm": 1.0, "millimeter": 1.0, "um": 0.001, "micron": 0.001, "micrometer": 0.001, "cm": 10.0, "m": 1000.0}
# world -> RAS: the signs of the axes
_SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}


def read_nrrd(path: Path) -> Volume:
    """Read a 2-D or 3-D NRRD image; a 2-D image becomes (D, H, 1).

    If the header names no space, the axes are taken as RAS axes with the spacings of the header.

    Raises:
        ValueError, OSError: the file is damaged, its data are elsewhere, or it holds vectors, colours or other axes.
    """
    try:
        header = nrrd.read_header(str(path))
        if "data file" in header or "datafile" in header:
            raise ValueError("its data must be in the same file, got a header that names another file")
        sizes = [int(n) for n in header["sizes"]]
        if len(sizes) not in (2, 3) or min(sizes) < 1:
            raise ValueError(f"it must have 2 or 3 axes, got sizes {sizes}")
        others = sorted({str(kind) for kind in header.get("kinds", [])} - _KINDS)
        if others:
            raise ValueError(f"its axes must be those of space, got {', '.join(others)}")
        check_memory(path, 2 * int(np.prod(np.array(sizes, dtype=object))) * 8)
        array, header = nrrd.read(str(path), index_order="F")
        affine = _affine(path, header, len(sizes))
    except (
        nrrd.NRRDError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        EOFError,
        zlib.error,
        AssertionError,
        StopIteration,
    ) as error:
        raise ValueError(f"{path} is not a readable NRRD image: {one_line(error)}") from error
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{path} must hold real numbers, got {array.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{path} holds NaN or infinite values")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return Volume(np.ascontiguousarray(array if array.ndim == 3 else array[..., None]), affine, path)


def _affine(path: Path, header: dict[str, Any], axes: int) -> np.ndarray:
    """The affine (4, 4), voxel -> RAS world, mm."""
    affine, factor = np.eye(4), _factor(header)
    directions, space = header.get("space directions"), str(header.get("space", "")).lower()
    if directions is None:
        spacings = np.asarray(header.get("spacings", np.ones(axes)), dtype=np.float64)
        affine[range(axes), range(axes)] = factor * np.where(np.isfinite(spacings), spacings, 1.0)
        if axes == 3:
            warnings.warn(f"{path} names no space: its axes are taken as R, A, S", VolumeWarning, stacklevel=4)
        return affine
    vectors = np.asarray(directions, dtype=np.float64)
    if vectors.shape != (axes, 3) or not np.isfinite(vectors).all():
        raise ValueError(f"each axis must have a direction in 3-D, got {np.array2string(vectors, separator=', ')}")
    if space not in _SPACES:
        raise ValueError(f"its space must be one of {', '.join(_SPACES)}, got {space!r}")
    affine[:3, :axes] = factor * vectors.T
    if axes == 2:
        normal = np.cross(vectors[0], vectors[1])
        affine[:3, 2] = normal / np.linalg.norm(normal)
    affine[:3, 3] = factor * np.asarray(header.get("space origin", np.zeros(3)), dtype=np.float64)
    affine[:3] *= np.array(_SPACES[space])[:, None]
    return affine


def _factor(header: dict[str, Any]) -> float:
    """Millimetres per unit of the header; those of `units` or `space units`, mm if there are none."""
    given = header.get("space units") or header.get("units") or []
    names = {str(unit).strip('" ').lower() for unit in given} - {"", "none", "???"}
    if not names:
        return 1.0
    if len(names) > 1 or not names <= set(_MM):
        raise ValueError(f"its unit must be one of {', '.join(_MM)} for all axes, got {', '.join(sorted(names))}")
    return _MM[names.pop()]
