"""Straightening of slices that shift sideways from one to the next, as in a CT with a tilted gantry."""

from dataclasses import replace

import numpy as np

from .dicom_frames import Frame
from .dicom_stack import sideways


def straighten(
    values: np.ndarray, slices: list[Frame], step: np.ndarray, background: float
) -> tuple[np.ndarray, list[Frame]]:
    """Shear a stack so that its slices are aligned along the normal; each slice is interpolated once, linearly.

    The grid keeps its spacing and grows in the plane of the slices, so that nothing is cut off.

    Args:
        values: (volumes, slices, rows upwards, columns).
        slices: the slices of one volume, in their order.
        step: (3,) vector from slice to slice, in LPS mm.
        background: the value outside a slice.

    Returns:
        float32 values on the new grid, and the slices with the positions of their first pixels on it.
    """
    row, column = np.mean([frame.orientation for frame in slices], axis=0).reshape(2, 3)
    between_rows, between_columns = slices[0].spacing
    shifts = sideways(np.array([frame.position for frame in slices]), step / np.linalg.norm(step))
    right, down = shifts @ row / between_columns, shifts @ column / between_rows  # in pixels
    left, up = int(np.ceil(max(0.0, -right.min()))), int(np.ceil(max(0.0, -down.min())))
    wider, taller = left + int(np.ceil(max(0.0, right.max()))), up + int(np.ceil(max(0.0, down.max())))
    volumes, count, rows, columns = values.shape
    straight = np.empty((volumes, count, rows + taller, columns + wider), np.float32)
    from scipy import ndimage  # takes a while to load; only for tilted scans

    for number in range(count):
        # rows run upwards: below the image lie the rows that a shift downwards needs
        plane = np.full((volumes, rows + taller, columns + wider), background, np.float32)
        plane[:, taller - up : taller - up + rows, left : left + columns] = values[:, number]
        moved = (0.0, -down[number], right[number])
        straight[:, number] = ndimage.shift(plane, moved, order=1, mode="grid-constant", cval=background)
    corner = left * between_columns * row + up * between_rows * column
    placed = [replace(f, position=f.position - s - corner) for f, s in zip(slices, shifts, strict=True)]
    return straight, placed
