"""Predicted probabilities of the windows or units of some subjects."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Predictions:
    """A table of predictions, one row per window.

    Args:
        subject: (n,) index of the subject.
        window: (n,) first sample of the window, or any other number that identifies it.
        probability: (n,) probability of the positive class.
    """

    subject: np.ndarray
    window: np.ndarray
    probability: np.ndarray
