"""Check, from the numbers alone, whether positions are in pixels of the picture and times are in seconds."""

from collections.abc import Mapping, Sequence

import numpy as np

from .measured import MeasuredPath
from .scene import Scene

_SMALLEST_PICTURE = 10  # from this side length in pixels on, positions from 0 to 1 count as fractions of the side
_FAR = 0.05  # fraction of the picture's diagonal; no error of an eye tracker is larger
_MOSTLY = 0.5  # with a larger share of fixations far outside, the positions cannot be those of the picture
_SECONDS = (0.005, 10.0)  # plausible range of the median duration of a fixation, and of the median step between onsets
_CORNER = 0.6  # if all fixations are within this share of a side, they may belong to a smaller picture
_ENOUGH = 50  # with this number of fixations or more, that is no coincidence
_TINY_CORNER, _FEW = 0.3, 6  # the same for a smaller corner, as that of positions in percent


def check_units(scenes: Mapping[str, Scene], paths: Sequence[MeasuredPath]) -> list[str]:
    """Notes about positions outside the picture, or in a corner of it.

    Args:
        scenes: identifier -> scene, for all paths.
        paths: the measured paths.

    Raises:
        ValueError: positions are fractions of the picture's size or belong to another picture, or times are not in
            seconds, or the onsets of a path fall.
    """
    _check_times(paths)
    measured = [path for path in paths if path.xy is not None and len(path.xy)]
    if not measured:
        return []
    _check_shares(scenes, measured)
    outside, far = _outside(scenes, measured)
    total = sum(len(path.xy) for path in measured if path.xy is not None)
    if outside > _MOSTLY * total:
        raise ValueError(
            f"x and y must be pixels of the picture from its upper left corner; {outside} of {total} fixations lie "
            f"outside of their picture, up to {far:.0f} px: is the picture's size right, and the origin?"
        )
    notes = []
    if outside:
        notes.append(f"{outside} of {total} fixations lie far outside of their picture, up to {far:.0f} px")
    share = np.max([np.max(path.xy / np.array(scenes[path.scene].size), axis=0) for path in measured], axis=0)
    small = (share < _CORNER).all() and total >= _ENOUGH
    if small or ((share < _TINY_CORNER).all() and total >= _FEW):
        across, down = (f"{100 * v:.0f} %" for v in share)
        notes.append(
            f"all {total} fixations lie in the left {across} and upper {down} of their pictures: "
            "were they measured on smaller ones?"
        )
    return notes


def _check_shares(scenes: Mapping[str, Scene], measured: Sequence[MeasuredPath]) -> None:
    """Refuse paths that lie within the first pixel, since their positions must be fractions of width and height."""
    for path in measured:
        assert path.xy is not None
        scene = scenes[path.scene]
        everywhere = path.xy.min() >= 0 and path.xy.max() <= 1 and min(scene.size) >= _SMALLEST_PICTURE
        if everywhere and len(path.xy) >= 2 and np.ptp(path.xy, axis=0).max() > 0:
            raise ValueError(
                f"x and y must be pixels; all fixations of {path.person} on {path.scene} lie between 0 and 1: multiply "
                f"x by the width, {scene.size[0]}, and y by the height, {scene.size[1]}"
            )


def _outside(scenes: Mapping[str, Scene], measured: Sequence[MeasuredPath]) -> tuple[int, float]:
    """The number of fixations far outside their picture, and the largest distance in pixels."""
    count, farthest = 0, 0.0
    for path in measured:
        assert path.xy is not None
        scene = scenes[path.scene]
        distance = np.linalg.norm(np.maximum(np.maximum(-path.xy, path.xy - np.array(scene.size)), 0), axis=1)
        far = distance > _FAR * scene.diagonal
        count += int(far.sum())
        farthest = max(farthest, float(distance.max()))
    return count, farthest


def _check_times(paths: Sequence[MeasuredPath]) -> None:
    for path in paths:
        if path.onset is not None and (np.diff(path.onset) < 0).any():
            raise ValueError(f"onset of {path.person} on {path.scene} must not fall from one fixation to the next")
    durations = [path.duration for path in paths if path.duration is not None]
    steps = [np.diff(path.onset) for path in paths if path.onset is not None]
    for name, what, values in (("duration", "duration", durations), ("onset", "step between onsets", steps)):
        found = np.concatenate(values) if values else np.zeros(0)
        found = found[found > 0]
        if not len(found):
            continue
        middle = float(np.median(found))
        low, high = _SECONDS
        if low <= middle <= high:
            continue
        mend = "are they milliseconds? divide them by 1000" if middle > high else "multiply them by 1000"
        raise ValueError(
            f"{name} must be in seconds (T of COCO-Search18 in milliseconds), got values whose median {what} would be "
            f"{middle:g} s; {mend}"
        )
