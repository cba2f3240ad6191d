"""Neighbouring slices, and the eight orientations of a square image."""

from torch import Tensor


def neighbours(count: int, k: int, slices: int) -> list[int]:
    """The `slices` slice numbers around k in a stack of `count`; beyond an end the last slice stands in.

    Example:
        >>> neighbours(4, 0, 3)
        [0, 0, 1]
    """
    return [min(max(k + offset, 0), count - 1) for offset in range(-(slices // 2), slices // 2 + 1)]


def dihedral(image: Tensor, view: int) -> Tensor:
    """One of the eight views of (..., H, W): bit 0 flips up-down, bit 1 left-right, bit 2 transposes last."""
    if view & 1:
        image = image.flip(-2)
    if view & 2:
        image = image.flip(-1)
    return image.transpose(-2, -1) if view & 4 else image


def undo_dihedral(image: Tensor, view: int) -> Tensor:
    """The inverse of `dihedral`."""
    if view & 4:
        image = image.transpose(-2, -1)
    if view & 2:
        image = image.flip(-1)
    return image.flip(-2) if view & 1 else image
