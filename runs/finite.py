"""Numbers that enter a model and results that leave it are finite."""

import numpy as np
from torch import Tensor


def check_finite(values: np.ndarray | Tensor, what: str) -> None:
    """Refuse NaN and infinity: they are never a result, and no result can be computed from them.

    Args:
        values: of any shape.
        what: what they are, for the error, such as "probabilities".

    Raises:
        ValueError: names the number of such values.

    Example:
        >>> check_finite(np.array([0.0, np.inf]), "probabilities")
        Traceback (most recent call last):
            ...
        ValueError: probabilities must be finite, got NaN or infinity in 1 of 2 values
    """
    if isinstance(values, Tensor):
        bad = int((~values.isfinite()).sum())
        size = values.numel()
    else:
        bad, size = int(np.count_nonzero(~np.isfinite(values))), np.size(values)
    if bad:
        raise ValueError(f"{what} must be finite, got NaN or infinity in {bad} of {size} values")
