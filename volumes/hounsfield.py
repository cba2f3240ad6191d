"""Recognise CT by its values, in Hounsfield units."""

import numpy as np


def share_of_air(values: np.ndarray) -> float:
    """The share of values like those of air in CT, -1100 to -900, if it is above 1 % and some are bone's; otherwise 0.

    Args:
        values: of an image, of any shape.

    Example:
        >>> share_of_air(np.array([-1000, -998, 40, 700]))
        0.5
        >>> share_of_air(np.array([0, 20, 40, 700]))
        0.0
    """
    air = float(np.mean((values >= -1100) & (values <= -900)))
    return air if air > 0.01 and values.max() > 300 else 0.0
