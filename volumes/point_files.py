"""Files of points: tables with the columns x, y and z, and surfaces in GIFTI."""

import csv
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..runs.files import atomic_path
from ..runs.words import why_no_text
from .warning import VolumeWarning

TABLE_SUFFIXES, GIFTI_SUFFIX = (".csv", ".tsv"), ".gii"
_AXES = ("x", "y", "z")
_TKR = ("VolGeomC_R", "VolGeomC_A", "VolGeomC_S")  # FreeSurfer's shift from its surface space to the scanner's


@dataclass(frozen=True, eq=False)
class Points:
    """Points with the file that they came from, whose other content is kept.

    Args:
        coordinates: (N, 3), in the unit and axes of the file; NaN for a row of a table without coordinates.
        source: the file.
        table: the rows of a table, header first; None for a surface.
    """

    coordinates: np.ndarray
    source: Path
    table: list[list[str]] | None = None


def is_points_name(path: Path) -> bool:
    """Whether a file name has the suffix of a file of points."""
    return path.name.lower().endswith((*TABLE_SUFFIXES, GIFTI_SUFFIX))


def read_points(path: str | os.PathLike[str]) -> Points:
    """Read a .csv or .tsv file with a header and the columns x, y and z, or the points of a GIFTI surface.

    A row of a table may lack its coordinates, as `write_points` writes a point that has no place.

    Raises:
        ValueError: a column is missing, a value is no finite number, or the file holds no points.
        OSError: the file cannot be read.
    """
    path = Path(path)
    if path.name.lower().endswith(GIFTI_SUFFIX):
        return Points(_surface_points(path, _load(path)), path)
    if not path.name.lower().endswith(TABLE_SUFFIXES):
        raise ValueError(f"points must be a .csv, .tsv or .gii file, got {path.name}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = [row for row in csv.reader(stream, delimiter=_delimiter(path)) if any(map(str.strip, row))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} must be a table in UTF-8: {why_no_text(error)}") from None
    if not rows:
        raise ValueError(f"{path} must have a header with the columns x, y and z; it is empty")
    columns = _columns(path, rows[0])
    try:
        texts = [[row[k].strip() for k in columns] for row in rows[1:]]
        coordinates = np.array([[float(text) for text in row] for row in texts if any(row)]).reshape(-1, 3)
    except (ValueError, IndexError):
        raise ValueError(f"{path} must hold a number in x, y and z of each row") from None
    every = np.full((len(texts), 3), np.nan)
    every[[any(row) for row in texts]] = _checked(path, coordinates)
    return Points(every, path, rows)


def write_points(path: str | os.PathLike[str], points: Points, moved: np.ndarray) -> None:
    """Write points like the file that they came from, with other coordinates.

    Args:
        path: the file to write, of the same kind.
        points: the points as read.
        moved: (N, 3); a row with NaN is written with empty coordinates.

    Raises:
        ValueError: the suffix is that of another kind, or a point of a surface is not finite.
    """
    path = Path(path)
    if points.table is None:
        if not np.isfinite(moved).all():
            raise ValueError("each point of a surface must have a place, got points outside the transform")
        image = _load(points.source)
        for array in _pointsets(image):
            array.data = moved.astype(np.float32)
        with atomic_path(path) as temporary:
            nib.save(image, temporary)
        return
    columns = _columns(points.source, points.table[0])
    rows = [list(row) for row in points.table]
    for row, place in zip(rows[1:], moved, strict=True):
        for k, value in zip(columns, place, strict=True):
            row[k] = f"{value:.6g}" if abs(value) < 1 else f"{value:.4f}"
            row[k] = "" if np.isnan(value) else row[k]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=_delimiter(path), lineterminator="\n").writerows(rows)


def _delimiter(path: Path) -> str:
    return "\t" if path.name.lower().endswith(".tsv") else ","


def _columns(path: Path, header: list[str]) -> list[int]:
    names = [name.strip().lower() for name in header]
    if missing := [axis for axis in _AXES if axis not in names]:
        raise ValueError(
            f"{path} must have the columns x, y and z, separated by {'tabs' if _delimiter(path) != ',' else 'commas'},"
            f" got the header {_delimiter(path).join(header)!r} without {', '.join(missing)}"
        )
    return [names.index(axis) for axis in _AXES]


def _checked(path: Path, coordinates: np.ndarray) -> np.ndarray:
    if not len(coordinates):
        raise ValueError(f"{path} holds no points")
    if not np.isfinite(coordinates).all():
        raise ValueError(f"{path} must hold finite coordinates, got NaN or infinity")
    return coordinates


def _load(path: Path) -> Any:
    try:
        return nib.load(path)
    except Exception as error:  # the XML parser raises several types
        raise ValueError(f"{path} is not a readable GIFTI file: {error}") from None


def _pointsets(image: Any) -> list[Any]:
    return list(image.get_arrays_from_intent("NIFTI_INTENT_POINTSET"))


def _surface_points(path: Path, image: Any) -> np.ndarray:
    arrays = _pointsets(image) if hasattr(image, "get_arrays_from_intent") else []
    if len(arrays) != 1:
        raise ValueError(f"{path} must hold one set of points, got {len(arrays)}; give the surface, not its data")
    if any(abs(float(arrays[0].meta.get(key, 0))) > 1e-3 for key in _TKR):
        warnings.warn(
            f"{path} names a centre of FreeSurfer's volume: if its points are in FreeSurfer's surface space, convert"
            " them first with mris_convert --to-scanner",
            VolumeWarning,
            stacklevel=3,
        )
    return _checked(path, np.asarray(arrays[0].data, dtype=np.float64))
