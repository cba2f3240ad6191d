"""One fit of nested cross-validation, as a cell that a worker runs."""

import csv
import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from ...runs.cells import Cell, Result, limited_threads
from ...runs.functions import load_function

if TYPE_CHECKING:
    import optuna
from .plan import EstimatorSpec, Settings


@dataclass(frozen=True, eq=False)
class Predictions:
    """Rows of predicted windows.

    Args:
        subject: (n,) index of the subject.
        window: (n,) first sample of the window, or any number that names it.
        probability: (n,) of the positive class.
    """

    subject: np.ndarray
    window: np.ndarray
    probability: np.ndarray


class Fit(Protocol):
    """A fitted model. `epochs` is the best epoch where it was stopped early; `curve` has one entry for each epoch."""

    epochs: int
    curve: list[dict[str, float]]

    def predict(self, subjects: Sequence[int]) -> Predictions:
        """Probabilities of all windows of the subjects."""


class LikelihoodFit(Protocol):
    """A fitted model that says how likely measurements are, where nothing is classified."""

    epochs: int
    curve: list[dict[str, float]]

    def evaluate(self, units: Sequence[int], folder: Path | None) -> Result:
        """ "nats", the negative log-likelihood, and "tokens", what it is the sum of; more goes into `folder`."""


class Estimator(Protocol):
    """What can be evaluated. In a worker it is built anew from its `EstimatorSpec`."""

    name: str

    def suggest(self, trial: "optuna.Trial") -> Settings:
        """Settings to try; {} where there is nothing to search."""

    def fit(
        self,
        train: Sequence[int],
        validation: Sequence[int] | None,
        settings: Settings,
        seed: int,
        epochs: int | None,
        folder: Path | None,
    ) -> Fit | LikelihoodFit:
        """Fit on subjects: with `validation` stopped early on it, with `epochs` for exactly so many.

        Weights go into `folder` where it is given.
        """


def build_estimator(spec: EstimatorSpec) -> Estimator:
    """The estimator of a spec; the latest ones are kept, since they hold the data."""
    return _built(json.dumps(spec, sort_keys=True))


@functools.lru_cache(maxsize=16)
def _built(spec: str) -> Estimator:
    content = json.loads(spec)
    result: Estimator = load_function(content["factory"])(**content["arguments"])
    return result


def fit_cell(cell: Cell, folder: Path) -> Result:
    """Fit and predict once: the work of a cell.

    Returns:
        "epochs", "curve" and "subjects": index, mean probability, number of windows, how many are above 0.5; or
        "failed" with the reason where the probabilities are no numbers.

    Raises:
        ValueError: fitted subjects are to be predicted, or the model left some out.
    """
    estimator = _estimator_of(cell)
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
        return {"failed": "probabilities that are no numbers", "epochs": int(fit.epochs)}
    missing = set(cell["predict"]) - set(predictions.subject.tolist())
    if missing or probability.min() < 0 or probability.max() > 1:
        raise ValueError(f"model {cell['model']} must predict a probability in [0, 1] for each subject")
    subjects = []
    for index in cell["predict"]:
        own = probability[predictions.subject == index]
        row = {
            "subject": index,
            "probability": float(own.mean()),
            "windows": len(own),
            "above": int((own >= 0.5).sum()),
        }
        subjects.append(row)
    return {"epochs": int(fit.epochs), "subjects": subjects}


def fit_likelihood_cell(cell: Cell, folder: Path) -> Result:
    """Fit, and say how likely what was held out is: the work of a cell whose estimator gives no class.

    Returns:
        "epochs" and what `LikelihoodFit.evaluate` gives; or "failed" where the likelihood is no number.

    Raises:
        ValueError: what is fitted is to be predicted.
    """
    estimator = _estimator_of(cell)
    with limited_threads(cell["threads"]):
        fit = cast(LikelihoodFit, _fit(estimator, cell, folder))
        figures = fit.evaluate(cell["predict"], folder if cell["keep"] else None)
    _write_curve(folder, fit.curve)
    if not np.isfinite(figures["nats"]):
        return {"failed": "a likelihood that is no number", "epochs": int(fit.epochs)}
    return {"epochs": int(fit.epochs), **figures}


def _estimator_of(cell: Cell) -> Estimator:
    both = set(cell["train"]) & set(cell["predict"] + (cell["validation"] or []))
    if both:
        raise ValueError(f"subjects {sorted(both)[:3]} would be fitted and predicted")
    return build_estimator(cell["estimator"])


def _fit(estimator: Estimator, cell: Cell, folder: Path) -> Fit | LikelihoodFit:
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
