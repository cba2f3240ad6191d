"""Rivals from the literature: features that are fitted on the training windows, and logistic regression on them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ..runs.json_files import write_json
from .random_convolutions import RandomConvolutions
from .searched import FitWithoutEpochs, Searched
from .settings import Settings
from .tangent_space import TangentSpaceMap
from .windows import Scaler, Windows


class FeatureMap(Protocol):
    """Features of windows, with whatever was fitted on training windows."""

    def features(self, x: np.ndarray) -> np.ndarray:
        """(n, features) of windows (n, channels, times)."""

    def numbers(self) -> dict[str, Any]:
        """The map as plain values."""


MAPS: dict[str, type[TangentSpaceMap] | type[RandomConvolutions]] = {
    "riemann": TangentSpaceMap,
    "minirocket": RandomConvolutions,
}
_KEPT = 2  # training parts whose features are kept for the next setting


@dataclass(eq=False)
class _Mapped:
    """The features of a study under a map; each window is computed when it is first needed."""

    map: FeatureMap
    scaler: Scaler | None
    values: np.ndarray | None = None  # (windows, features) float32
    known: set[int] = field(default_factory=set)

    def of(self, windows: Windows, rows: np.ndarray) -> np.ndarray:
        """The features of the windows in these rows."""
        missing = np.array([row for row in rows.tolist() if row not in self.known], np.int64)
        if len(missing):
            x = windows.x[missing]
            found = self.map.features(x if self.scaler is None else self.scaler.apply(x)).astype(np.float32)
            if self.values is None:
                self.values = np.empty((len(windows.x), found.shape[1]), np.float32)
            self.values[missing] = found
            self.known |= set(missing.tolist())
        assert self.values is not None  # a part has windows
        result: np.ndarray = self.values[rows]
        return result


class MappedEstimator(Searched):
    """Logistic regression on standardised features of a map that is fitted on the training windows.

    Args:
        name: "riemann" (covariances in the tangent space) or "minirocket" (random convolutions).
        windows: the windows of the study.
        options: "space" and "settings", as for networks.
    """

    def __init__(self, name: str, windows: Windows, options: dict[str, Any]):
        super().__init__(name, windows, options)
        self._mapped: dict[tuple[object, ...], _Mapped] = {}

    def fit(
        self,
        train: Sequence[int],
        validation: Sequence[int] | None,
        settings: Settings,
        seed: int,
        epochs: int | None,
        folder: Path | None,
    ) -> "MappedFit":
        """Fit to the windows of the subjects; the features depend on these subjects and the seed alone."""
        rows = self.windows.rows(train)
        mapped = self._features(rows, seed)
        pipeline = make_pipeline(
            StandardScaler(),
            LogisticRegression(C={**settings, **self.fixed}.get("C", 1e-2), class_weight="balanced", max_iter=2000),
        )
        pipeline.fit(mapped.of(self.windows, rows).astype(np.float64), self.windows.labels[self.windows.subject[rows]])
        fit = MappedFit(self, mapped, pipeline)
        if folder is not None:
            write_json(folder / "model.json", {"model": self.name, **fit.numbers()})
        return fit

    def _features(self, rows: np.ndarray, seed: int) -> _Mapped:
        key = (seed, *rows.tolist())
        if key not in self._mapped:
            x = self.windows.x[rows]
            scaler = Scaler.fit(x) if self.windows.options.scaling == "fold" else None
            made = MAPS[self.name].fit(x if scaler is None else scaler.apply(x), seed)
            while len(self._mapped) >= _KEPT:
                del self._mapped[next(iter(self._mapped))]
            self._mapped[key] = _Mapped(made, scaler)
        return self._mapped[key]


class MappedFit(FitWithoutEpochs):
    """A fitted map with its logistic regression."""

    def __init__(self, estimator: MappedEstimator, mapped: _Mapped, pipeline: Pipeline):
        super().__init__(estimator)
        self._mapped, self._pipeline = mapped, pipeline

    def probability(self, rows: np.ndarray) -> np.ndarray:
        features = self._mapped.of(self._estimator.windows, rows)
        result: np.ndarray = self._pipeline.predict_proba(features.astype(np.float64))[:, 1]
        return result

    def numbers(self) -> dict[str, Any]:
        """The map, the scaler of the windows if there is one, and the regression, as plain values."""
        scaler = self._mapped.scaler
        windows = None if scaler is None else {"mean": scaler.mean.tolist(), "sd": scaler.sd.tolist()}
        return {"map": self._mapped.map.numbers(), "scaler": windows, **numbers_of(self._pipeline)}


def numbers_of(pipeline: Pipeline) -> dict[str, Any]:
    """Mean and scale of each feature, coefficients and intercept of a standardised logistic regression."""
    scaler, regression = pipeline.named_steps.values()
    arrays = {"mean": scaler.mean_, "scale": scaler.scale_, "coefficients": regression.coef_[0]}
    return {name: array.tolist() for name, array in arrays.items()} | {"intercept": float(regression.intercept_[0])}
