"""Check that the slices of a DICOM series form a regular stack, and compute its affine."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from ..runs.words import first_few
from .dicom_frames import Frame
from .dicom_groups import value_of
from .dicom_order import volumes_of
from .volume import LPS
from .warning import warn

_SAME_PLACE_MM = 0.03  # scanners write positions to about 0.01 mm
_SAME_DIRECTION = 2e-3  # about 0.1 degrees
_SIDEWAYS_MM = 0.05


def check_alike(path: Path, headers: dict[Path, Dataset], frames: list[Frame]) -> None:
    """Refuse slices that differ in size, spacing, orientation or frame of reference."""
    _one_near(
        path,
        "slice orientations",
        [f.orientation for f in frames],
        tolerance=_SAME_DIRECTION,
        mend="; a localizer or two series in one folder: put each stack into its own folder",
    )
    sizes = {(int(value_of(h, "Columns")), int(value_of(h, "Rows"))) for h in headers.values()}
    _one(path, "image sizes (columns x rows)", sizes)
    _one(path, "frames of reference", {str(value_of(h, "FrameOfReferenceUID") or "") for h in headers.values()})
    _one_near(path, "pixel spacings (mm)", [f.spacing for f in frames], tolerance=1e-3 * min(frames[0].spacing))


def _one(path: Path, what: str, found: set[Any]) -> None:
    if len(found) > 1:
        raise ValueError(
            f"{path} must hold one stack of slices, got {len(found)} {what}: {first_few(sorted(map(str, found)))}"
        )


def _one_near(path: Path, what: str, values: list[Any], *, tolerance: float, mend: str = "") -> None:
    found = np.array(values, dtype=np.float64)
    kinds = [found[0]]
    for value in found[np.abs(found - found[0]).max(axis=1) > tolerance]:
        if not any(np.abs(value - kind).max() <= tolerance for kind in kinds):
            kinds.append(value)
    if len(kinds) > 1:
        shown = first_few([str(np.round(kind, 3).tolist()) for kind in kinds])
        raise ValueError(f"{path} must hold one stack of slices, got {len(kinds)} {what}: {shown}{mend}")


def stack(path: Path, frames: list[Frame], *, fix_tilt: bool = False) -> tuple[list[list[Frame]], np.ndarray]:
    """The frames as volumes of slices along the normal, and the (3,) step from slice to slice in LPS mm.

    With `fix_tilt`, slices with an even sideways shift (gantry tilt) are accepted; `sideways` gives their shifts.
    """
    normal = _normal(frames)
    found = np.array([f.position for f in frames])
    along = found @ normal
    places: list[list[int]] = []
    for number in np.argsort(along, kind="stable").tolist():
        if places and along[number] - along[places[-1][0]] < _SAME_PLACE_MM:
            places[-1].append(number)
        else:
            places.append([number])
    positions = np.array([found[place].mean(axis=0) for place in places])
    if _check_straight(path, frames, positions, normal, fix_tilt=fix_tilt):
        positions = positions - sideways(positions, normal)
    spacing = _slice_spacing(path, frames[0], positions, normal)
    return volumes_of(path, [[frames[number] for number in place] for place in places], normal), spacing * normal


def sideways(positions: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """The shifts (n, 3) in mm of slices (n, 3) from the first one, at right angles to the normal."""
    moved = positions - positions[0]
    result: np.ndarray = moved - np.outer(moved @ normal, normal)
    return result


def is_tilted(frames: list[Frame]) -> bool:
    """Whether the slices shift sideways from one to the next, as in a CT with a tilted gantry."""
    normal = _normal(frames)
    positions = np.array([f.position for f in sorted(frames, key=lambda f: float(f.position @ normal))])
    along = (positions - positions[0]) @ normal
    return not _is_straight(positions, normal) and _is_even(sideways(positions, normal), along)


def _normal(frames: list[Frame]) -> np.ndarray:
    row, column = np.mean([f.orientation for f in frames], axis=0).reshape(2, 3)
    normal = np.cross(row, column)
    result: np.ndarray = normal / np.linalg.norm(normal)
    return -result if frames[0].descending else result


def _is_straight(positions: np.ndarray, normal: np.ndarray) -> bool:
    """Whether slices do not shift sideways by more than rounding errors."""
    along = (positions - positions[0]) @ normal
    shifts = np.linalg.norm(sideways(positions, normal), axis=1)
    return bool((shifts <= _SIDEWAYS_MM + _SAME_DIRECTION * np.abs(along)).all())


def _is_even(shifts: np.ndarray, along: np.ndarray) -> bool:
    """Whether shifts (n, 3) grow linearly with the position along the normal (n,)."""
    slope = along @ shifts / max(float(along @ along), 1e-9)
    return bool(np.linalg.norm(shifts - np.outer(along, slope), axis=1).max() <= 2 * _SIDEWAYS_MM)


def _check_straight(
    path: Path, frames: list[Frame], positions: np.ndarray, normal: np.ndarray, *, fix_tilt: bool
) -> bool:
    """Refuse stacks side by side and tilted slices (gantry tilt); return True if a tilt is to be straightened."""
    _check_one_stack(path, frames, normal)
    if _is_straight(positions, normal):
        return False
    shifts, along = sideways(positions, normal), (positions - positions[0]) @ normal
    worst = int(np.argmax(np.linalg.norm(shifts, axis=1)))
    angle = np.degrees(np.arctan2(float(np.linalg.norm(shifts[worst])), along[worst]))
    if not _is_even(shifts, along):
        raise ValueError(f"{path}: the slices shift sideways by up to {np.linalg.norm(shifts[worst]):.1f} mm, unevenly")
    if not fix_tilt:
        raise ValueError(
            f"{path}: the slices are not stacked at a right angle but tilted by {angle:.1f} degrees (gantry tilt);"
            " `register`, `apply` and `restore` straighten them with --fix-tilt, by one interpolation"
        )
    warn(f"{path}: the slices were tilted by {angle:.1f} degrees (gantry tilt) and are straightened by interpolation")
    return True


def _check_one_stack(path: Path, frames: list[Frame], normal: np.ndarray) -> None:
    """Refuse parallel stacks that lie side by side."""
    positions = np.array([frame.position for frame in frames])
    across, places = sideways(positions, normal), positions @ normal
    if _is_straight(positions, normal) or _is_even(across, places - places[0]):
        return
    stacks: list[list[int]] = []
    for number, shift in enumerate(across):
        near = (members for members in stacks if np.linalg.norm(across[members[0]] - shift) <= 2 * _SIDEWAYS_MM)
        found = next(near, None)
        if found is None:
            stacks.append([number])
        else:
            found.append(number)
    if 1 < len(stacks) <= len(frames) // 2 and min(map(len, stacks)) > 1:
        counts = " and ".join(str(len(members)) for members in stacks[:4])
        raise ValueError(
            f"{path} must hold one stack of slices, got {len(stacks)} parallel ones side by side, of {counts} images;"
            " put each into its own folder"
        )
    for members in stacks[1:]:
        for number in members:
            level = np.abs(places - places[number]) < _SAME_PLACE_MM
            if (np.linalg.norm(across[level] - across[number], axis=1) > 2 * _SIDEWAYS_MM).any():
                name = frames[number].path.name
                raise ValueError(f"{path}: two images at one level lie side by side ({name}); not one volume")


def _slice_spacing(path: Path, frame: Frame, positions: np.ndarray, normal: np.ndarray) -> float:
    if len(positions) == 1:
        if not frame.thickness:
            raise ValueError(f"{path} holds one slice without a thickness: give the folder with the whole series")
        warn(f"{path} holds one slice; its thickness of {frame.thickness:g} mm is taken from the header")
        return frame.thickness
    along = np.sort(positions @ normal)
    mean = float(along[-1] - along[0]) / (len(along) - 1)
    from highdicom.spatial import get_volume_positions  # takes a second to load; only for DICOM series

    spacing, _ = get_volume_positions(
        positions.tolist(), frame.orientation.tolist(), atol=max(_SAME_PLACE_MM, 0.01 * mean), perpendicular_tol=0.01
    )
    if spacing is None:
        raise ValueError(f"{path}: {_why_uneven(along)}")
    if len(positions) == 2:
        warn(f"{path} has only two slices, so their spacing of {mean:.4g} mm cannot be checked")
    ratio = mean / frame.thickness if frame.thickness and frame.gap_known else 1.0
    if ratio > 1.5:
        warn(
            f"{path}: the slices are {mean:.4g} mm apart, the header gives {frame.thickness:.4g} mm; some may be"
            " missing"
        )
    return float(spacing)


def _why_uneven(along: np.ndarray) -> str:
    """The reason why slice positions (n,) in mm along the normal are not evenly spaced, for the error."""
    steps = np.diff(along)
    least = float(steps.min())
    wide = np.flatnonzero(steps > 1.5 * least)
    if len(wide) and np.allclose(steps / least, np.round(steps / least), atol=0.05):
        missing = int(np.round(steps[wide] / least).sum()) - len(wide)
        where = first_few([f"{along[i]:.2f} and {along[i + 1]:.2f} mm" for i in wide])
        return f"{missing} of {len(along) + missing} slices are missing, between {where}; get the whole series"
    usual = float(np.median(steps))
    odd = np.flatnonzero(np.abs(steps - usual) > 0.05 * usual)
    if len(odd) == 1 and 1 < odd[0] + 1 < len(along) - 1:
        first = int(odd[0]) + 1
        return (
            f"two parallel stacks of {first} and {len(along) - first} slices, {steps[first - 1]:.4g} mm apart, whose"
            f" slices are {usual:.4g} mm apart; put each stack into its own folder"
        )
    worst = int(np.argmax(np.abs(steps - usual)))
    return (
        f"the slices are not evenly spaced: mostly {usual:.4g} mm apart, but {steps[worst]:.4g} mm after"
        f" {along[worst]:.2f} mm; resample the series with a tool for uneven slices"
    )


def affine_of(slices: list[Frame], step: np.ndarray, *, rows: int) -> np.ndarray:
    """(4, 4) voxel -> RAS+ mm for axes (column, row upwards, slice)."""
    row, column = np.mean([f.orientation for f in slices], axis=0).reshape(2, 3)
    between_rows, between_columns = slices[0].spacing
    affine = np.eye(4)
    affine[:3, 0] = row / np.linalg.norm(row) * between_columns
    affine[:3, 1] = -column / np.linalg.norm(column) * between_rows
    affine[:3, 2] = step
    # the position of the first slice is averaged over all slices, since single positions are rounded
    corner = np.mean([f.position - k * step for k, f in enumerate(slices)], axis=0)
    affine[:3, 3] = corner - (rows - 1) * affine[:3, 1]
    return LPS @ affine
