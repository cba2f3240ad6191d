"""Mirroring of positions beyond the border of an image."""

import torch
from torch import Tensor


def mirrored(position: Tensor, length: int, *, edge_twice: bool = False) -> Tensor:
    """Map positions outside 0 .. length - 1 to positions inside by mirroring at the border, as often as needed.

    Args:
        position: whole numbers, any shape.
        length: pixels along the axis.
        edge_twice: repeat the border pixel, as numpy's "symmetric" padding does; otherwise it occurs once ("reflect").

    Example:
        >>> mirrored(torch.arange(-3, 7), 4).tolist()
        [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]
        >>> mirrored(torch.arange(-3, 7), 4, edge_twice=True).tolist()
        [2, 1, 0, 0, 1, 2, 3, 3, 2, 1]
    """
    extra = int(edge_twice)
    period = max(2 * (length - 1 + extra), 1)
    position = position.remainder(period)
    return torch.minimum(position, period - extra - position)
