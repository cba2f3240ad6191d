"""Siemens mosaics and UIH grids: one DICOM image that holds all slices of a volume as tiles.

The tiles are ordered row by row, ceil(sqrt(slices)) per row. In a Siemens mosaic, the image position is the corner of
the large image, centred on the first slice; the number of slices and their direction are in the CSA header. A UIH grid
(image type VFRAME) gives each slice's position in a private sequence.

Sources of the layouts: nibabel (doc "Siemens mosaic", "CSA header") and the manual pages of dcm2niix (UIH). Shape,
affine, values, b-values and b-vectors equal those of dcm2niix.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag

from .dicom_groups import private_value, value_of

_CSA_TAG = struct.Struct("<64si4siii")  # name, multiplicity, VR, type, items, mark
_CSA_ITEM = struct.Struct("<4i")
_MOST_SLICES = 1024


@dataclass(frozen=True, eq=False)
class Mosaic:
    """The slices in a tiled image.

    Args:
        positions: (slices, 3), the centre of each tile's first pixel, in LPS mm, in the order of the tiles.
        descending: whether the slices are ordered against the normal of the image plane (row x column direction).
        times: (slices,), acquisition time of each slice in ms after the first one; None if the header has no times.
    """

    positions: np.ndarray
    descending: bool
    times: np.ndarray | None


def is_mosaic(header: Dataset) -> bool:
    """Whether an image holds all slices of a volume as tiles (Siemens mosaic or UIH grid)."""
    kinds = value_of(header, "ImageType") or []
    return "MOSAIC" in kinds or _is_grid(header)


def read_mosaic(file: Path, header: Dataset) -> Mosaic:
    """Read the positions of the slices of a mosaic or grid.

    Raises:
        ValueError: the header lacks the number of slices, their distance or their direction.
    """
    if int(header.get("NumberOfFrames") or 1) != 1:
        raise ValueError(f"{file} is a mosaic of several frames: convert it with dcm2niix first")
    row, column = _vector(file, header, "ImageOrientationPatient", 6).reshape(2, 3)
    normal = np.cross(row, column)
    if _is_grid(header):
        items = _grid_items(file, header)
        positions = np.array([_vector(file, item, "ImagePositionPatient", 3) for item in items])
        times = _clock([item.get("AcquisitionTime") or item.get("AcquisitionDateTime") for item in items])
    else:
        positions = _siemens_positions(file, header, row, column)
        times = _siemens_times(header, len(positions))
    # dcm2niix keeps the order of a Siemens mosaic, unless the scanner counts its slices in reverse, and sorts a grid's
    in_reverse = (numbers_of(read_csa(header).get("ProtocolSliceNumber")) or [0.0])[0] > 1
    descending = not (_is_grid(header) or in_reverse) and bool((positions[-1] - positions[0]) @ normal < 0)
    return Mosaic(positions, descending, times)


def tiles(file: Path, header: Dataset, image: np.ndarray) -> np.ndarray:
    """The (slices, rows, columns) of a mosaic's image (rows, columns)."""
    count = _count(file, header)
    across, down = _layout(file, header, count)
    rows, columns = image.shape[0] // down, image.shape[1] // across
    cut = image.reshape(down, rows, across, columns).transpose(0, 2, 1, 3)
    return cut.reshape(down * across, rows, columns)[:count]


def mosaic_gradient(header: Dataset) -> tuple[float, np.ndarray] | None:
    """The diffusion weighting of a volume.

    Returns:
        The b-value in s/mm^2 and the direction (3,): for Siemens in LPS, for UIH along row, column and slice; zeros if
        there is none. None for an image without diffusion weighting in its header.
    """
    if _is_grid(header):
        weighting = numbers_of(_private(header, 0x65, _UIH, 0x09)) or numbers_of(header.get("DiffusionBValue"))
        direction = numbers_of(_private(header, 0x65, _UIH, 0x37))
    else:
        csa = read_csa(header)
        weighting = (
            numbers_of(csa.get("B_value"))
            or numbers_of(_private(header, 0x19, _SIEMENS, 0x0C))
            or numbers_of(header.get("DiffusionBValue"))
        )
        direction = (
            numbers_of(csa.get("DiffusionGradientDirection"))
            or numbers_of(_private(header, 0x19, _SIEMENS, 0x0E))
            or numbers_of(header.get("DiffusionGradientOrientation"))
            or _from_b_matrix(csa)
        )
    if not weighting:
        return None
    vector = np.array(direction) if len(direction) == 3 and weighting[0] > 0 else np.zeros(3)
    length = float(np.linalg.norm(vector))
    return weighting[0], vector / length if length > 0 else vector


def is_along_image_axes(header: Dataset) -> bool:
    """Whether `mosaic_gradient` gives directions along row, column and slice (UIH), and not in LPS (Siemens)."""
    return _is_grid(header)


def read_csa(header: Dataset) -> dict[str, list[str]]:
    """The Siemens CSA image header, name -> texts; empty if it is missing or damaged.

    Format: nibabel's documentation, "Siemens format DICOM with CSA header", versions 1 and 2 (SV10).
    """
    data = _private(header, 0x29, "SIEMENS CSA HEADER", 0x10)
    if not isinstance(data, bytes):
        return {}
    try:
        return _parse_csa(data)
    except (struct.error, ValueError):
        return {}


_SIEMENS = "SIEMENS MR HEADER"
_UIH = "Image Private Header"


def _parse_csa(data: bytes) -> dict[str, list[str]]:
    second = data[:4] == b"SV10"
    at = 8 if second else 0
    (count,) = struct.unpack_from("<I", data, at)
    if not 0 < count <= 1024:
        raise ValueError(f"expected up to 1024 tags, got {count}")
    at += 8
    found: dict[str, list[str]] = {}
    first_items = 0
    for number in range(count):
        name, _, _, _, items, _ = _CSA_TAG.unpack_from(data, at)
        at += _CSA_TAG.size
        first_items = items if number == 0 else first_items
        if not 0 <= items <= len(data):
            raise ValueError(f"expected a number of items, got {items}")
        texts = []
        for _ in range(items):
            lengths = _CSA_ITEM.unpack_from(data, at)
            at += _CSA_ITEM.size
            length = lengths[1] if second else lengths[0] - first_items
            if not 0 <= length <= len(data) - at:
                raise ValueError(f"expected {length} bytes, got {len(data) - at}")
            text = data[at : at + length].split(b"\0")[0].decode("latin-1").strip()
            at += (length + 3) // 4 * 4
            if text:
                texts.append(text)
        found[name.split(b"\0")[0].decode("latin-1")] = texts
    return found


def _is_grid(header: Dataset) -> bool:
    return "VFRAME" in (header.get("ImageType") or []) or _private(header, 0x65, _UIH, 0x51) is not None


def _private(header: Dataset, group: int, creator: str, element: int) -> Any:
    found = private_value(header, group, creator, element)
    # UIH does not always name the block's creator, and uses one block
    if found is None and creator == _UIH and (tag := Tag(group, 0x1000 + element)) in header.keys():  # noqa: SIM118
        return header[tag].value
    return found


def numbers_of(value: Any) -> list[float]:
    """Finite numbers of a header value; an empty list if it is missing or holds something else."""
    if isinstance(value, bytes):
        return []
    if value is None or value == "":
        return []
    values = list(value) if isinstance(value, list | tuple | MultiValue) else [value]
    try:
        numbers = [float(v) for v in values]
    except (TypeError, ValueError):
        return []
    return numbers if np.isfinite(numbers).all() else []


def _vector(file: Path, header: Dataset, keyword: str, count: int) -> np.ndarray:
    numbers = numbers_of(header.get(keyword))
    if len(numbers) != count:
        raise ValueError(f"{file}: {keyword} of a mosaic must hold {count} finite numbers, got {header.get(keyword)}")
    return np.array(numbers)


def _count(file: Path, header: Dataset) -> int:
    if _is_grid(header):
        return len(_grid_items(file, header))
    found = numbers_of(read_csa(header).get("NumberOfImagesInMosaic")) or numbers_of(
        _private(header, 0x19, _SIEMENS, 0x0A)
    )
    count = int(found[0]) if found else 0
    if not 0 < count <= _MOST_SLICES:
        raise ValueError(
            f"{file} is a Siemens mosaic whose number of slices is missing (CSA header: NumberOfImagesInMosaic);"
            " get the file again with its private tags"
        )
    return count


def _grid_items(file: Path, header: Dataset) -> list[Dataset]:
    items = _private(header, 0x65, _UIH, 0x51)
    announced = numbers_of(_private(header, 0x65, _UIH, 0x50))
    if items is None or isinstance(items, bytes | str) or len(items) == 0:
        raise ValueError(
            f"{file} is a UIH grid whose slice positions are missing (0065,1051); get the file again with its private"
            " tags"
        )
    if announced and int(announced[0]) != len(items):
        raise ValueError(f"{file} is a UIH grid of {int(announced[0])} slices but gives {len(items)} positions")
    return list(items)


def _layout(file: Path, header: Dataset, count: int) -> tuple[int, int]:
    """Tiles in a row and in a column: a Siemens mosaic is square, a UIH grid has no empty rows."""
    across = math.isqrt(count - 1) + 1 if count > 1 else 1
    down = math.ceil(count / across) if _is_grid(header) else across
    if int(header.Columns) % across or int(header.Rows) % down:
        raise ValueError(
            f"{file} must hold {across} x {down} tiles for {count} slices, got {header.Columns} x {header.Rows} pixels"
        )
    return across, down


def _siemens_positions(file: Path, header: Dataset, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    count = _count(file, header)
    across, down = _layout(file, header, count)
    between_rows, between_columns = _vector(file, header, "PixelSpacing", 2)
    corner = _vector(file, header, "ImagePositionPatient", 3)
    corner = corner + row * between_columns * (header.Columns - header.Columns // across) / 2
    corner = corner + column * between_rows * (header.Rows - header.Rows // down) / 2
    normal = np.array(numbers_of(read_csa(header).get("SliceNormalVector")))
    plane = np.cross(row, column)
    if normal.shape != (3,) or abs(abs(normal @ plane) - 1) > 0.01:
        raise ValueError(
            f"{file} is a Siemens mosaic whose slice direction is missing or not at a right angle to the image (CSA"
            f" header: SliceNormalVector, got {normal.tolist()}); get the file again with its private tags"
        )
    gap = numbers_of(header.get("SpacingBetweenSlices"))
    if not gap and header.get("MRAcquisitionType") == "3D":  # without gaps
        gap = numbers_of(header.get("SliceThickness"))
    if not gap or gap[0] <= 0:
        raise ValueError(f"{file} is a Siemens mosaic without SpacingBetweenSlices: convert it with dcm2niix first")
    step = gap[0] * np.sign(normal @ plane) * plane / np.linalg.norm(plane)
    positions: np.ndarray = corner + np.arange(count)[:, None] * step
    return positions


def _siemens_times(header: Dataset, count: int) -> np.ndarray | None:
    times = numbers_of(read_csa(header).get("MosaicRefAcqTimes")) or numbers_of(_private(header, 0x19, _SIEMENS, 0x29))
    return np.array(times) - min(times) if len(times) == count else None


def _clock(texts: list[Any]) -> np.ndarray | None:
    """Times of the day, "hhmmss.ffffff" after an optional date "yyyymmdd", as ms after the first."""
    seconds = []
    for text in texts:
        digits = str(text or "").split("+")[0]
        whole, _, fraction = digits.partition(".")
        whole = whole[-6:]
        if len(whole) != 6 or not (whole + (fraction or "0")).isdigit():
            return None
        seconds.append(int(whole[:2]) * 3600 + int(whole[2:4]) * 60 + float(f"{whole[4:]}.{fraction or 0}"))
    return (np.array(seconds) - min(seconds)) * 1000.0


def _from_b_matrix(csa: dict[str, list[str]]) -> list[float]:
    """The direction of a linear weighting: the first eigenvector of the b-matrix (xx, xy, xz, yy, yz, zz)."""
    numbers = numbers_of(csa.get("B_matrix"))
    if len(numbers) != 6 or "DIRECTIONAL" not in (csa.get("DiffusionDirectionality") or []):
        return []
    xx, xy, xz, yy, yz, zz = numbers
    _, vectors = np.linalg.eigh(np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]))
    first: list[float] = vectors[:, 2].tolist()
    return first
