"""OAT as an estimator for cross-validation: settings to search, fits on some trials, and the likelihood of others."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..runs.training import BestEpoch, fit_quietly
from .baselines import fit_baselines
from .data import PathData
from .evaluation import PEOPLE, Row, evaluate_fold
from .module import FIGURES, VALIDATION_BATCH, ScanpathModule, nats_per_token
from .readers import read_scanpaths
from .scene import Dataset, Scene, grid_around
from .weights import NetworkModel, WeightsInfo, save_model

if TYPE_CHECKING:
    import optuna

Settings = dict[str, int | float | str | bool]
WEIGHTS, ROWS = "model.safetensors", "rows.json"
# the settings of batches and of training; all other settings are arguments of the network
_OF_MODULE = ("lr", "weight_decay", "warmup", "cosine_steps", "ema_decay")
_OF_TRAINING = ("batch", "mirror", "alike")


@dataclass(frozen=True)
class Options:
    """How a network is trained for cross-validation.

    Args:
        network: settings of all fits: arguments of `oat.OAT` and `ScanpathModule`, and "batch", "mirror", "alike".
        space: setting -> values to search; the names are those of `network`.
        epochs: largest number of epochs.
        patience: epochs without a better validation loss before training stops.
        appearance: see `data.scene_batch`.
        samples: number of paths drawn for each test scene.
    """

    network: Settings = field(default_factory=dict)
    space: dict[str, list[int | float | str | bool]] = field(default_factory=dict)
    epochs: int = 60
    patience: int = 10
    appearance: str = "none"
    samples: int = 10


def read_dataset(data: str | Path, *, long_trials: str = "keep", duplicates: Any = "error") -> Dataset:
    """Scanpaths prepared for training and cross-validation.

    Args:
        data: see `read_scanpaths`.
        long_trials: "drop" leaves out trials longer than the mean plus three standard deviations, as published for OAT.
        duplicates: see `read_scanpaths`.
    """
    if long_trials not in ("keep", "drop"):
        raise ValueError(f'long_trials must be "keep" or "drop", got {long_trials!r}')
    dataset = read_scanpaths(data, duplicates=duplicates)
    if not len(dataset):
        raise ValueError(f"{data} must hold at least one trial, got none")
    return dataset.without_long_trials() if long_trials == "drop" else dataset


def from_plan(
    *, data: str, name: str, target_position: Any, long_trials: str, duplicates: str, options: dict[str, Any]
) -> "OATEstimator":
    """Rebuild an estimator from plain values, in a worker."""
    dataset = read_dataset(data, long_trials=long_trials, duplicates=duplicates)
    return OATEstimator(name, dataset.with_target_position(target_position), Options(**options))


@dataclass
class OATEstimator:
    """OAT on the trials of a dataset."""

    name: str
    dataset: Dataset
    options: Options

    def suggest(self, trial: "optuna.Trial") -> Settings:
        """The settings to try next; {} if there is nothing to search."""
        found: dict[str, Any] = {key: trial.suggest_categorical(key, v) for key, v in self.options.space.items()}
        return found

    def fit(
        self,
        train: Sequence[int],
        validation: Sequence[int] | None,
        settings: Settings,
        seed: int,
        epochs: int | None,
        folder: Path | None,
    ) -> "OATFit":
        """Fit to the training trials: with early stopping on `validation`, or for exactly `epochs` epochs."""
        given = {"lr": 1e-3, **self.options.network, **settings}
        appearance = self.options.appearance
        torch.manual_seed(seed)
        module = build_module(self.dataset, given, appearance=appearance, seed=seed)
        training = PathData(self.dataset, train, appearance=appearance, mirror=bool(given.get("mirror", False)))
        held_out = None if validation is None else PathData(self.dataset, validation, appearance=appearance)
        module.fit_prior(training)
        best = BestEpoch("validation_nats", patience=self.options.patience, figures=FIGURES)
        batch, alike = int(given.get("batch", 20)), bool(given.get("alike", False))
        fit_quietly(
            module,
            training.loader(batch, shuffle=module.order, alike=alike),
            None if held_out is None else held_out.loader(VALIDATION_BATCH),
            epochs=epochs or self.options.epochs,
            best=best,
            gradient_clip=1.0,
        )
        network = module.with_weights(best.weights)
        known = [*train, *(validation or [])]
        info = model_info(self.dataset, known, network.arguments, notes={"seed": str(seed)})
        if folder is not None:
            save_model(folder / WEIGHTS, network, info)
        model = NetworkModel(network, info, self.name)
        return OATFit(epochs or best.epoch, best.curve, model, self.dataset, self.options.samples)


@dataclass
class OATFit:
    """A fitted network."""

    epochs: int
    curve: list[dict[str, float]]
    model: NetworkModel
    dataset: Dataset
    samples: int

    def evaluate(self, units: Sequence[int], folder: Path | None) -> dict[str, Any]:
        """The sums "nats" and "tokens" over trials; with a folder, also write a row of metrics for each trial."""
        data = PathData(self.dataset, units, appearance=self.model.network.appearance)
        mean, tokens = nats_per_token(self.model.network, data)
        if folder is not None:
            longest = self.model.info.longest
            rows = evaluate_fold(
                {self.model.name: self.model}, self.dataset, units, samples=self.samples, max_length=longest
            )
            write_rows(folder / ROWS, [row for row in rows if row["model"] != PEOPLE])
        return {"nats": mean * tokens, "tokens": tokens}


def baseline_rows(dataset: Dataset, train: Sequence[int], test: Sequence[int], *, samples: int) -> list[Row]:
    """Rows of figures on the test trials, for all baselines, fitted to the training trials, and for people."""
    longest = int(dataset.lengths[list(train)].max())
    return evaluate_fold(fit_baselines(dataset, train), dataset, test, samples=samples, max_length=longest)


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write rows of figures as JSON; undefined figures are null."""
    plain = [{k: None if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()} for row in rows]
    path.write_text(json.dumps(plain, default=float) + "\n")


def read_rows(path: Path) -> list[Row]:
    """The rows that `write_rows` wrote."""
    return [{k: np.nan if v is None else v for k, v in row.items()} for row in json.loads(path.read_text())]


def build_module(dataset: Dataset, settings: Settings, *, appearance: str, seed: int) -> ScanpathModule:
    """A module for a dataset; `settings` holds the settings of both training and network, the data define the rest."""
    own = {k: v for k, v in settings.items() if k in _OF_MODULE}
    arguments = {k: v for k, v in settings.items() if k not in (*_OF_MODULE, *_OF_TRAINING)}
    return ScanpathModule(
        arguments={**data_arguments(dataset, appearance), **arguments},
        target_position=dataset.target_position,
        seed=seed,
        **own,  # type: ignore[arg-type]
    )


def data_arguments(dataset: Dataset, appearance: str) -> dict[str, Any]:
    """The arguments of the network that depend on the data: grid, number of features, longest path.

    Raises:
        ValueError: the scenes are on different grids, or some are on a grid and some are not; or objects lack features.
    """
    scenes = _scenes(dataset)
    grids = {(scene.rows, scene.columns) for scene in scenes}
    if len(grids) > 1:
        raise ValueError(f"a network needs scenes on one grid, or only free layouts, got {sorted(map(str, grids))}")
    rows, columns = grid_around(scenes)
    arguments: dict[str, Any] = {"rows": rows, "columns": columns, "appearance": appearance}
    if appearance == "features":
        first = scenes[0].features
        if first is None:
            raise ValueError(f'appearance "features" needs them for all objects, scene {scenes[0].identifier} has none')
        arguments["features"] = int(first.shape[1])
    return {**arguments, "steps": max(2 * int(dataset.lengths.max()), 128)}


def model_info(
    dataset: Dataset,
    known: Sequence[int],
    arguments: dict[str, Any],
    *,
    task: str | None = None,
    features: Sequence[str] = (),
    notes: dict[str, str] | None = None,
) -> WeightsInfo:
    """The description of a network that was trained on the `known` trials."""
    some = dataset.subset(known)
    count = arguments["features"] if arguments["appearance"] == "features" else 0
    if features and len(features) != count:
        raise ValueError(f"feature names must be as many as features ({count}), got {len(features)}")
    searching = any(scene.target is not None for scene in _scenes(some))
    return WeightsInfo(
        arguments=arguments,
        target_position=dataset.target_position,
        task=task or ("search" if searching else "free viewing"),
        grid=_scenes(some)[0].rows is not None,
        trained_on=tuple(sorted({some.scene_of(k).layout for k in range(len(some))})),
        features=tuple(features) or tuple(f"feature {k + 1}" for k in range(count)),
        longest=int(some.lengths.max()),
        notes=notes or {},
    )


def _scenes(dataset: Dataset) -> list[Scene]:
    """The scenes that have trials."""
    return list(dict.fromkeys(dataset.scene_of(k) for k in range(len(dataset))))
