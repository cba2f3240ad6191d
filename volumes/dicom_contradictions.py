"""Warnings if the position and orientation of a DICOM image contradict its acquisition tags.

Some GE scanners and reconstructions stored images upside down, or slices in reverse, so that they contradict
ImageOrientationPatient and ImagePositionPatient; their private acquisition tags still give the true positions. We use
the standard tags, as every reader does, and report the contradiction.
"""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from .dicom_frames import Frame
from .dicom_groups import private_value
from .mosaic import numbers_of
from .warning import warn

_ACQUISITION, _IMAGE = "GEMS_ACQU_01", "GEMS_IMAG_01"
_FIRST_LETTER, _FIRST, _LAST_LETTER, _LAST = (
    0x18,
    0x19,
    0x1A,
    0x1B,
)  # elements of group 0019: letter and position of the end slices
_NEAR_MM = 2.0  # distance of a slice to the recorded end of the scan
_CENTRE, _TOP_RIGHT, _BOTTOM_RIGHT = 0x42, 0x48, 0x4B  # elements of group 0027: R, A and S of points of the image
_DIRECTIONS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}  # axis, sign in RAS
_LPS_LETTERS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "H": (2, 1), "F": (2, -1)}


def note_contradictions(path: Path, headers: dict[Path, Dataset], slices: list[Frame]) -> None:
    """Warn if the positions or orientations of the slices of a volume contradict their acquisition tags.

    Args:
        path: the series, for the note.
        headers: file -> header.
        slices: the slices of one volume.
    """
    found = [_slice_order(headers, slices), _in_plane(headers[slices[0].path], slices[0])]
    found.append(_letters(headers[slices[0].path], slices[0]))
    for text in found:
        if text:
            warn(f"{path}: {text}; the image may be upside down, check it against another scan of the person")


def _slice_order(headers: dict[Path, Dataset], slices: list[Frame]) -> str | None:
    """Compare the order of the slices with GE's positions of the first and the last scan."""
    numbered = [frame for frame in slices if frame.number is not None]
    if len(numbered) < 2 or len({frame.number for frame in numbered}) < len(numbered):
        return None
    ends = [min(numbered, key=lambda f: f.number or 0), max(numbered, key=lambda f: f.number or 0)]
    header = headers[ends[0].path]
    first, last = _signed(header, _FIRST_LETTER, _FIRST), _signed(header, _LAST_LETTER, _LAST)
    if first is None or last is None or first[0] != last[0] or abs(last[1] - first[1]) < 1:
        return None
    axis = first[0]
    at_first, at_last = (float(end.position[axis]) * (-1 if axis < 2 else 1) for end in ends)  # LPS -> RAS
    near = max(_NEAR_MM, 2 * abs(at_last - at_first) / (len(numbered) - 1))
    # the ends of a partial or renumbered series differ from those of the scan
    if abs(at_first - last[1]) > near or abs(at_last - first[1]) > near or abs(at_last - at_first) <= 2 * near:
        return None
    return (
        "its slices run against the order in which the scanner acquired them (first and last scan, 0019,1019 and 101B)"
    )


def _signed(header: Dataset, letter: int, place: int) -> tuple[int, float] | None:
    """The axis and the position in RAS mm, from a letter and a number."""
    name = str(private_value(header, 0x19, _ACQUISITION, letter) or "").strip().upper()[:1]
    numbers = numbers_of(private_value(header, 0x19, _ACQUISITION, place))
    if name not in _DIRECTIONS or len(numbers) != 1:
        return None
    axis, sign = _DIRECTIONS[name]
    return axis, sign * abs(numbers[0])


def _in_plane(header: Dataset, frame: Frame) -> str | None:
    """Compare the corners of an image with those that GE recorded."""
    points = [_point(header, start) for start in (_CENTRE, _TOP_RIGHT, _BOTTOM_RIGHT)]
    centre, top, bottom = points
    if centre is None or top is None or bottom is None or not any(top) or not any(bottom):
        return None
    down = np.subtract(bottom, top) * (-1, -1, 1)  # RAS -> LPS
    across = (np.add(top, bottom) / 2 - centre) * (-1, -1, 1)
    lengths = np.linalg.norm(down), np.linalg.norm(across)
    if min(lengths) < 1:
        return None
    cosines = down @ frame.orientation[3:] / lengths[0], across @ frame.orientation[:3] / lengths[1]
    if min(cosines) > -0.7:
        return None
    which = " and ".join(name for name, cosine in zip(("rows", "columns"), cosines, strict=True) if cosine < -0.7)
    return f"its {which} run against the corners that the scanner recorded (0027,1042 to 104D)"


def _letters(header: Dataset, frame: Frame) -> str | None:
    """Compare ImageOrientationPatient with the letters of PatientOrientation."""
    letters = header.get("PatientOrientation")
    if letters is None or isinstance(letters, str) or len(letters) != 2:
        return None
    for name, text, direction in zip(("rows", "columns"), letters, frame.orientation.reshape(2, 3), strict=True):
        axis, sign = _LPS_LETTERS.get(str(text).strip().upper()[:1], (0, 0))
        if sign * direction[axis] < -0.7:
            return f"the direction of its {name} contradicts PatientOrientation ({text})"
    return None


def _point(header: Dataset, start: int) -> list[float] | None:
    numbers = [numbers_of(private_value(header, 0x27, _IMAGE, start + k)) for k in range(3)]
    return [values[0] for values in numbers] if all(len(values) == 1 for values in numbers) else None
