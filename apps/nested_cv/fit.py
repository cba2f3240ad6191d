"""One fit of nested cross-validation: the work of a cell."""

import csv
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypedDict, cast

import numpy as np

from ...runs.functions import load_function
from ...runs.predictions import Predictions
from ...runs.threads import limited_threads
from .records import EstimatorSpec, FitCell, FitResult, PredictedSubject, Settings

if TYPE_CHECKING:  # optional package
    import optuna


class Likelihood(TypedDict):
    """The negative log-likelihood "nats", summed over "tokens"."""

    nats: float
    tokens: int


class Fit(Protocol):
    """A fitted model. With early stopping, `epochs` is the best epoch; `curve` has one entry per epoch."""

    epochs: int
    curve: list[dict[str, float]]

    def predict(self, subjects: Sequence[int]) -> Predictions:
        """Probabilities of the positive class for all windows of the subjects."""


class LikelihoodFit(Protocol):
    """A fitted model that gives the likelihood of measurements instead of the probability of a class."""

    epochs: int
    curve: list[dict[str, float]]

    def evaluate(self, units: Sequence[int], folder: Path | None) -> Likelihood:
        """The likelihood of held-out units; further figures are written into `folder`."""


class Estimator(Protocol):
    """Interface of a model to be cross-validated; workers rebuild it from its `EstimatorSpec`."""

    name: str

    def suggest(self, trial: "optuna.Trial") -> Settings:
        """The settings to try next; {} if there is nothing to search."""

    def fit(
        self,
        train: Sequence[int],
        validation: Sequence[int] | None,
        settings: Settings,
        seed: int,
        epochs: int | None,
        folder: Path | None,
    ) -> Fit | LikelihoodFit:
        """Fit to subjects: with early stopping on `validation`, or for exactly `epochs` epochs.

        The weights are written into `folder`, if given.
        """


def build_estimator(spec: EstimatorSpec) -> Estimator:
    """Build an estimator; the most recent ones are cached, since they hold the data."""
    return _built(json.dumps(spec, sort_keys=True))


def _build(spec: str) -> Estimator:
    content = json.loads(spec)
    result: Estimator = load_function(content["factory"])(**content["arguments"])
    return result


_built = functools.lru_cache(maxsize=16)(_build)
_built_for_refits = functools.lru_cache(maxsize=1)(_build)  # each refit alters the data, and holds them in memory


def refit_cell(cell: FitCell, folder: Path) -> FitResult:
    """`fit_cell` for a cell of a refit."""
    return _fit_and_predict(_built_for_refits(json.dumps(cell["estimator"], sort_keys=True)), cell, folder)


def fit_cell(cell: FitCell, folder: Path) -> FitResult:
    """Fit once and predict once; write predictions.csv and curve.csv into the folder.

    Returns:
        "epochs" and "subjects"; or "failed" with the reason if a probability is not finite.

    Raises:
        ValueError: a subject is in both the training and the predicted part, or the model left out some subjects.
    """
    return _fit_and_predict(build_estimator(cell["estimator"]), cell, folder)


def _fit_and_predict(estimator: Estimator, cell: FitCell, folder: Path) -> FitResult:
    _check_apart(cell)
    with limited_threads(cell["threads"]):  # torch may have been loaded just now
        fit = cast(Fit, _fit(estimator, cell, folder))
        predictions = fit.predict(cell["predict"])
    probability = np.asarray(predictions.probability, dtype=float)
    _write_rows(
        folder / "predictions.csv",
        ("subject", "window", "probability"),
        zip(predictions.subject.tolist(), predictions.window.tolist(), probability.tolist(), strict=True),
    )
    _write_curve(folder, fit.curve)
    if not np.isfinite(probability).all():
        return {"failed": "a probability is not finite", "epochs": int(fit.epochs)}
    missing = set(cell["predict"]) - set(predictions.subject.tolist())
    if missing or probability.min() < 0 or probability.max() > 1:
        raise ValueError(f"model {cell['model']} must predict a probability in [0, 1] for each subject")
    subjects: list[PredictedSubject] = []
    for index in cell["predict"]:
        own = probability[predictions.subject == index]
        row: PredictedSubject = {
            "subject": index,
            "probability": float(own.mean()),
            "windows": len(own),
            "above": int((own >= 0.5).sum()),
        }
        subjects.append(row)
    return {"epochs": int(fit.epochs), "subjects": subjects}


def fit_likelihood_cell(cell: FitCell, folder: Path) -> FitResult:
    """Fit once and evaluate the likelihood of the held-out units; write curve.csv into the folder.

    Returns:
        "epochs", "nats" and "tokens"; or "failed" with the reason if the likelihood is not finite.

    Raises:
        ValueError: a unit is in both the training and the predicted part.
    """
    _check_apart(cell)
    estimator = build_estimator(cell["estimator"])
    with limited_threads(cell["threads"]):
        fit = cast(LikelihoodFit, _fit(estimator, cell, folder))
        figures = fit.evaluate(cell["predict"], folder if cell["keep"] else None)
    _write_curve(folder, fit.curve)
    if not np.isfinite(figures["nats"]):
        return {"failed": "the likelihood is not finite", "epochs": int(fit.epochs)}
    return {"epochs": int(fit.epochs), **figures}


def _check_apart(cell: FitCell) -> None:
    both = set(cell["train"]) & set(cell["predict"] + (cell["validation"] or []))
    if both:
        raise ValueError(f"no subject may be both fitted and predicted, got {sorted(both)[:3]} in both")


def _fit(estimator: Estimator, cell: FitCell, folder: Path) -> Fit | LikelihoodFit:
    weights = folder if cell["keep"] else None
    return estimator.fit(cell["train"], cell["validation"], cell["settings"], cell["seed"], cell["epochs"], weights)


def _write_curve(folder: Path, curve: list[dict[str, float]]) -> None:
    names = list(dict.fromkeys(name for row in curve for name in row))
    _write_rows(folder / "curve.csv", names, ([row.get(name, "") for name in names] for row in curve))


def _write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
