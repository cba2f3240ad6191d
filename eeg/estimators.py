"""Models for nested cross-validation: networks, and simple models on features, with one interface.

An estimator holds the windows of a study; subjects are given by index. It implements the protocol `Estimator` of
the cross-validation, which does not depend on EEG.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from ..kernels.attention.choice import Place, mixer_of
from ..runs.json_files import write_json
from ..runs.predictions import Predictions
from ..runs.training import fit_quietly
from .alterations import load_altered
from .fast_layers import keep_freed_memory
from .features import Features, band_power, log_variance, recording_length
from .mapped import MAPS, MappedEstimator, numbers_of
from .module import PREDICTED_AT_ONCE, best_epoch, set_norm_momentum
from .networks import LONG_RECORDING, ModelCard, predict_windows, save_network
from .recording_data import RecordingData
from .search_spaces import NAMES, NETWORK_NAMES
from .searched import FitWithoutEpochs, Searched
from .settings import Settings, balanced_weights, network_arguments, tensors_of
from .study import read_study
from .training import data_of, seeded_module
from .whole_recordings import predict_recordings
from .windows import Scaler, WindowOptions, Windows, load_windows


class NetworkEstimator(Searched):
    """A network trained by `EEGModule`.

    Args:
        name: one of `NETWORK_NAMES`.
        windows: the windows of the study.
        options: "space": a table setting -> choices, or "published", "reduced", "none"; "settings": fixed settings;
            "epochs": the maximum (100); "patience" of early stopping (15); "reduce_patience" of the learning rate (10);
            "batch": batch size if it is not searched (64); "class_weights": weight classes inversely to their numbers
            of windows (True); "monitor": the figure that decides which epoch is best, "validation_loss" or, as
            published, "validation_accuracy"; "norm_momentum": weight of a new batch in the running averages of batch
            normalisation (None: the network's own, 0.01 as in Keras, for which about 400 steps are needed; use a larger
            value for a training of few epochs).
    """

    def __init__(self, name: str, windows: Windows, options: dict[str, Any]):
        super().__init__(name, windows, options)
        defaults: dict[str, Any] = {
            "epochs": 100,
            "patience": 15,
            "reduce_patience": 10,
            "batch": 64,
            "class_weights": True,
            "monitor": "validation_loss",
            "norm_momentum": None,
        }
        unknown = set(options) - set(defaults) - {"space", "settings"}
        if unknown:
            raise ValueError(f"options of {name} must be among {', '.join(defaults)}, space, settings; got {unknown}")
        for mixer in (self.fixed.get("mixer"), *self.space.get("mixer", ())):
            if mixer is not None:  # a wrong word ends the run before the first fit, not at some trial
                mixer_of(mixer, Place(heads=self.fixed.get("heads", 4), channels=8))
        self.options = {**defaults, **{k: v for k, v in options.items() if k in defaults}}

    def fit(
        self,
        train: Sequence[int],
        validation: Sequence[int] | None,
        settings: Settings,
        seed: int,
        epochs: int | None,
        folder: Path | None,
    ) -> "NetworkFit":
        """Train and keep the epoch that is best on the `validation` subjects, or train for exactly `epochs` epochs."""
        if validation is None and epochs is None:
            raise ValueError("either validation subjects or a number of epochs must be given")
        windows, options = self.windows, self.options
        settings = {**settings, **self.fixed}
        rows = windows.rows(train)
        scaler = Scaler.fit(windows.x[rows]) if windows.options.scaling == "fold" else None
        labels = windows.labels[np.asarray(train) if self.name == LONG_RECORDING else windows.subject[rows]]
        arguments = network_arguments(windows, settings, self.name)
        module = seeded_module(
            self.name,
            arguments,
            settings,
            class_weights=balanced_weights(labels) if options["class_weights"] else None,
            reduce_patience=options["reduce_patience"],
            seed=seed,
        )
        if options["norm_momentum"] is not None:
            set_norm_momentum(module.network, options["norm_momentum"])
        best = best_epoch(options["monitor"], patience=options["patience"])
        training = data_of(self.name, windows, train, scaler, module.levels)
        held_out = None if validation is None else data_of(self.name, windows, validation, scaler)
        with torch.random.fork_rng(devices=[]):  # the fit seeds torch's generator
            fit_quietly(
                module,
                training.loader(settings.get("batch", options["batch"]), shuffle=module.order),
                None if held_out is None else held_out.loader(PREDICTED_AT_ONCE),
                epochs=options["epochs"] if epochs is None else epochs,
                best=best,
            )
        fit = NetworkFit(self, module.network, scaler, best.epoch or len(best.curve), best.curve)
        if folder is not None:
            names = [windows.subjects[i] for i in (*train, *(validation or ()))]
            notes = {"settings": settings, "seed": seed, "epochs": fit.epochs, "model": self.name}
            fit.save(folder, arguments, names, notes)
        return fit


class NetworkFit:
    """A trained network with the scaler of its training windows."""

    def __init__(
        self,
        estimator: NetworkEstimator,
        network: nn.Module,
        scaler: Scaler | None,
        epochs: int,
        curve: list[dict[str, float]],
    ):
        self.network, self.scaler, self.epochs, self.curve = network.eval(), scaler, epochs, curve
        self._estimator = estimator

    def predict(self, subjects: Sequence[int]) -> Predictions:
        """Probabilities of all windows of the subjects; a recording that is read at once has one probability."""
        windows = self._estimator.windows
        rows = windows.rows(subjects)
        if self._estimator.name == LONG_RECORDING:
            data = RecordingData(windows, np.unique(windows.subject[rows]).tolist(), self.scaler)
            by_subject = dict(zip(data.subjects, predict_recordings(self.network, data.x), strict=True))
            return self._estimator.predictions(rows, np.array([by_subject[s] for s in windows.subject[rows].tolist()]))
        x, _, _ = tensors_of(windows, rows, self.scaler)
        return self._estimator.predictions(rows, predict_windows(self.network, x))

    def save(self, folder: Path, arguments: dict[str, Any], subjects: Sequence[str], notes: dict[str, Any]) -> None:
        """Write model.safetensors and model.json."""
        windows = self._estimator.windows
        card = ModelCard(
            network=self._estimator.name,
            arguments=arguments,
            classes=windows.classes,
            channels=windows.channels,
            sfreq=windows.sfreq,
            windows=asdict(windows.options),
            unit=windows.unit,
            scaler=None if self.scaler is None else {"mean": self.scaler.mean.tolist(), "sd": self.scaler.sd.tolist()},
            subjects=tuple(subjects),
            notes=notes,
        )
        save_network(folder, self.network, card)


class LinearEstimator(Searched):
    """Logistic regression on standardised features, with balanced classes; it has no epochs.

    Args:
        name: "bandpower" and "amplitude" use features of windows, "length" uses the duration of the recording.
        windows: the windows of the study.
        options: "space" and "settings", as for networks.
    """

    def __init__(self, name: str, windows: Windows, options: dict[str, Any]):
        super().__init__(name, windows, options)
        if name == "length":
            whole = recording_length(windows)
            self.features = Features(whole.values[windows.subject], whole.names)
        else:
            self.features = band_power(windows) if name == "bandpower" else log_variance(windows)

    def fit(
        self,
        train: Sequence[int],
        validation: Sequence[int] | None,
        settings: Settings,
        seed: int,
        epochs: int | None,
        folder: Path | None,
    ) -> "LinearFit":
        """Fit to the windows of the subjects; for "length", each subject is one row."""
        rows = self.windows.rows(train)
        if self.name == "length":
            rows = rows[np.unique(self.windows.subject[rows], return_index=True)[1]]
        regression = LogisticRegression(
            C={**settings, **self.fixed}.get("C", 1.0), class_weight="balanced", max_iter=2000
        )
        pipeline = make_pipeline(StandardScaler(), regression)
        pipeline.fit(self.features.values[rows], self.windows.labels[self.windows.subject[rows]])
        fit = LinearFit(self, pipeline)
        if folder is not None:
            content = {"model": self.name, "features": self.features.names, **fit.numbers()}
            write_json(folder / "model.json", content)
        return fit


class LinearFit(FitWithoutEpochs):
    """A fitted logistic regression."""

    def __init__(self, estimator: LinearEstimator, pipeline: Pipeline):
        super().__init__(estimator)
        self._features, self.pipeline = estimator.features.values, pipeline

    def probability(self, rows: np.ndarray) -> np.ndarray:
        probability: np.ndarray = self.pipeline.predict_proba(self._features[rows])[:, 1]
        return probability

    def numbers(self) -> dict[str, Any]:
        """Mean and scale of each feature, coefficients and intercept."""
        return numbers_of(self.pipeline)


class MajorityEstimator(Searched):
    """Predicts the share of the positive class among the training subjects for every subject."""

    def fit(
        self,
        train: Sequence[int],
        validation: Sequence[int] | None,
        settings: Settings,
        seed: int,
        epochs: int | None,
        folder: Path | None,
    ) -> "MajorityFit":
        """Compute the share among the subjects."""
        return MajorityFit(self, float(self.windows.labels[np.asarray(train)].mean()))


class MajorityFit(FitWithoutEpochs):
    """Predicts the same probability for every subject."""

    def __init__(self, estimator: MajorityEstimator, share: float):
        super().__init__(estimator)
        self.share = share

    def probability(self, rows: np.ndarray) -> np.ndarray:
        return np.full(len(rows), self.share)


EEGEstimator = NetworkEstimator | LinearEstimator | MappedEstimator | MajorityEstimator


def build(name: str, windows: Windows, options: dict[str, Any] | None = None) -> EEGEstimator:
    """Make the estimator of a model on these windows.

    Args:
        name: one of `NAMES`.
        windows: the windows of a study.
        options: see `NetworkEstimator` and `LinearEstimator`.
    """
    if name not in NAMES:
        raise ValueError(f"model must be one of {', '.join(NAMES)}, got {name!r}")
    if name in NETWORK_NAMES:
        return NetworkEstimator(name, windows, options or {})
    if name in MAPS:
        return MappedEstimator(name, windows, options or {})
    return (MajorityEstimator if name == "majority" else LinearEstimator)(name, windows, options or {})


def from_plan(
    study: str,
    name: str,
    *,
    windows: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    positive: str | None = None,
    cache: str | None = None,
    by_window: bool = False,
    label_column: str | None = None,
    altered: dict[str, Any] | None = None,
) -> EEGEstimator:
    """Build an estimator from plain values; a process that has already loaded the study does not load it again.

    Args:
        study: path of the study.
        name: one of `NAMES`.
        windows: fields of `WindowOptions`.
        options: options of the estimator.
        positive: the class of output 1.
        cache: a folder for the cut windows.
        by_window: treat each window as a separate subject, to show the result of a random split of windows.
        label_column: the column of the label in the table of the study.
        altered: for a refit on altered data: "name" of an alteration and the "seed" of its random numbers; or other
            "labels", one per subject.
    """
    keep_freed_memory()  # a worker calls this first; it is not part of `fit`, because it affects the whole process
    cut = json.dumps(windows or {}, sort_keys=True)
    if altered is None:
        return build(name, _windows(study, cut, positive, cache, by_window, label_column), options)
    return build(name, _altered(study, cut, positive, cache, label_column, altered), options)


def _altered(
    study: str,
    options: str,
    positive: str | None,
    cache: str | None,
    label_column: str | None,
    altered: dict[str, Any],
) -> Windows:
    """Windows under an alteration; the caller keeps them, if they are needed again."""
    if "labels" in altered:
        windows = _windows(study, options, positive, cache, False, label_column)
        return replace(windows, labels=np.array(altered["labels"], np.int64))
    given = read_study(study, positive, label_column=label_column)
    return load_altered(given, WindowOptions(**json.loads(options)), cache, altered["name"], seed=altered["seed"])


@functools.lru_cache(maxsize=2)
def _windows(
    study: str, options: str, positive: str | None, cache: str | None, by_window: bool, label_column: str | None
) -> Windows:
    given = read_study(study, positive, label_column=label_column)
    windows = load_windows(given, WindowOptions(**json.loads(options)), cache)
    return windows_as_subjects(windows) if by_window else windows


def windows_as_subjects(windows: Windows) -> Windows:
    """The same windows, each as a separate subject."""
    names = tuple(f"{windows.subjects[s]}@{t}" for s, t in zip(windows.subject, windows.start, strict=True))
    return replace(
        windows,
        subject=np.arange(len(windows.x)),
        subjects=names,
        labels=windows.labels[windows.subject],
        seconds=windows.seconds[windows.subject],
        digests=names,
    )
