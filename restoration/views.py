"""Neighbouring slices as channels, and the eight orientations of a square image."""

from torch import Tensor


def neighbours(count: int, k: int, slices: int) -> list[int]:
    """The indices of the `slices` slices around slice k in a stack of `count`; the end slices are repeated.

    Example:
        >>> neighbours(4, 0, 3)
        [0, 0, 1]
    """
    return [min(max(k + offset, 0), count - 1) for offset in range(-(slices // 2), slices // 2 + 1)]


def middle_channels(in_channels: int, out_channels: int) -> slice:
    """The input channels that a network's output channels correspond to.

    Raises:
        ValueError: the output channels cannot lie in the middle of the input channels.

    Example:
        >>> middle_channels(5, 1)
        slice(2, 3, None)
    """
    if out_channels < 1 or in_channels < out_channels or (in_channels - out_channels) % 2:
        raise ValueError(
            f"out_channels must be at least 1 and the middle of in_channels ({in_channels}), got {out_channels}"
        )
    first = (in_channels - out_channels) // 2
    return slice(first, first + out_channels)


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
