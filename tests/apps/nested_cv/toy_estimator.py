"""Estimators on synthetic numbers, which workers of a nested run import by name."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from voxelwave.runs.predictions import Predictions

WINDOWS = 4


def factory(labels: list[int], shown: list[int] | None = None, kind: str = "toy", **options):
    """`shown` are the labels on which the feature depends, if they differ from those of the subjects."""
    return {"toy": Toy, "broken": Broken, "plain": Plain, "few": Few}[kind](
        np.array(labels), np.array(shown or labels), **options
    )


@dataclass
class Toy:
    """One feature for each window, shifted by the class, and noise whose weight changes with training."""

    labels: np.ndarray
    shown: np.ndarray
    name: str = "toy"
    effect: float = 1.5
    pause: float = 0.0
    seed: int = 0
    x: np.ndarray = field(init=False)

    def __post_init__(self):
        generator = np.random.default_rng(self.seed)
        shape = (len(self.labels), WINDOWS, 3)
        person = generator.normal(size=(shape[0], 1, 3))
        self.x = person + 0.5 * generator.normal(size=shape)
        self.x[:, :, 0] += self.effect * self.shown[:, None]

    def suggest(self, trial):
        return {"penalty": trial.suggest_float("penalty", 1e-3, 1e3, log=True), "turn": trial.suggest_int("turn", 0, 2)}

    def fit(self, train, validation, settings, seed, epochs, folder):
        time.sleep(self.pause)
        noise = np.random.default_rng(seed).normal(size=3)
        x, y = self.x[train].reshape(-1, 3), np.repeat(self.labels[train], WINDOWS)
        scale = x.std(0)
        direction = (x[y == 1].mean(0) - x[y == 0].mean(0)) / (1 + settings["penalty"])
        steps = range(1, (epochs or 5) + 1)
        models = [(direction + noise / (3 + 2 * step), x.mean(0), scale) for step in steps]
        curve = [{"epoch": step, "train_loss": 1 / step} for step in steps]
        if validation is not None:
            for model, row in zip(models, curve, strict=True):
                row["validation_loss"] = float(
                    np.mean((_probability(self.x[validation], model).mean(1) - self.labels[validation]) ** 2)
                )
            epochs = int(np.argmin([row["validation_loss"] for row in curve])) + 1
        if folder is not None:
            (Path(folder) / "weights.txt").write_text(repr(models[epochs - 1][0].tolist()))
        return ToyFit(epochs, curve, models[epochs - 1], self.x)


@dataclass
class ToyFit:
    epochs: int
    curve: list
    model: tuple
    x: np.ndarray

    def predict(self, subjects):
        probability = _probability(self.x[subjects], self.model)
        return Predictions(
            np.repeat(np.asarray(subjects), WINDOWS),
            np.tile(np.arange(WINDOWS) * 512, len(subjects)),
            probability.ravel(),
        )


class Broken(Toy):
    """A penalty above 1 makes the fit diverge."""

    def fit(self, train, validation, settings, seed, epochs, folder):
        fit = super().fit(train, validation, settings, seed, epochs, folder)
        if settings["penalty"] > 1:
            fit.model = (np.full(3, np.nan), *fit.model[1:])
        return fit


class Few(Toy):
    """An estimator with six settings."""

    def suggest(self, trial):
        return {"penalty": trial.suggest_categorical("penalty", [0.0, 0.5, 1.0, 2.0, 4.0, 8.0])}


class Plain(Toy):
    """An estimator without settings to search."""

    def suggest(self, trial):
        return {}

    def fit(self, train, validation, settings, seed, epochs, folder):
        return super().fit(train, validation, {"penalty": 0.0}, seed, epochs, folder)


def _probability(x, model):
    direction, middle, scale = model
    return 1 / (1 + np.exp(-((x - middle) / scale) @ direction))
