"""What all estimators of a study share: the windows, the space of settings, and the form of predictions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..runs.predictions import Predictions
from .search_spaces import DEFAULT_SPACES, SPACES
from .settings import Settings
from .windows import Windows


class Searched:
    """Base of all estimators: the data and the space of settings."""

    def __init__(self, name: str, windows: Windows, options: dict[str, Any]):
        self.name, self.windows = name, windows
        self.fixed: Settings = dict(options.get("settings", {}))
        space = options.get("space", DEFAULT_SPACES[name])
        if isinstance(space, str):
            if space not in SPACES or (space != "none" and name != "adhdeepnet"):
                raise ValueError(f"space of {name} must be a table, or one of {', '.join(SPACES)}, got {space!r}")
            space = SPACES[space]
        self.space: dict[str, Sequence[Any]] = {k: v for k, v in space.items() if k not in self.fixed}
        unknown = (set(self.space) | set(self.fixed)) - set(DEFAULT_SPACES[name])
        if unknown:
            known = ", ".join(DEFAULT_SPACES[name]) or "none"
            raise ValueError(f"settings of {name} must be among {known}; got {', '.join(sorted(unknown))}")

    def suggest(self, trial: Any) -> Settings:
        """Settings drawn by a trial: one value for each dimension of the space."""
        return {key: trial.suggest_categorical(key, list(choices)) for key, choices in self.space.items()}

    def predictions(self, rows: np.ndarray, probability: np.ndarray) -> Predictions:
        """The probabilities of the windows in these rows."""
        return Predictions(self.windows.subject[rows], self.windows.start[rows], probability)


class FitWithoutEpochs:
    """What fits that are not trained in epochs share."""

    epochs = 0

    def __init__(self, estimator: Searched):
        self._estimator = estimator
        self.curve: list[dict[str, float]] = []

    def predict(self, subjects: Sequence[int]) -> Predictions:
        """Probabilities of all windows of the subjects."""
        rows = self._estimator.windows.rows(subjects)
        return self._estimator.predictions(rows, self.probability(rows))

    def probability(self, rows: np.ndarray) -> np.ndarray:
        """Probability of the positive class of the windows in these rows."""
        raise NotImplementedError
