"""Check that the inputs and results of a model are finite."""

import numpy as np
from torch import Tensor


def check_finite(values: np.ndarray | Tensor, what: str) -> None:
    """Refuse NaN and infinity, which are never a result and from which no result can be computed.

    Args:
        values: an array of any shape.
        what: a noun for the values in the error, such as "probabilities".

    Raises:
        ValueError: some values are NaN or infinite; the message gives their number.

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
