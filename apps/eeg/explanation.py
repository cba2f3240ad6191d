"""Explanation of the networks of a run: the cases to explain and the summary over outer folds."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from ...eeg.adhdeepnet import ADHDeepNet
from ...eeg.estimators import from_plan, tensors_of
from ...eeg.explain import (
    FilterTable,
    by_band,
    first_filters,
    integrated_gradients,
    last_features,
    occlude_bands,
    occlude_channels,
    shares,
)
from ...eeg.features import BANDS
from ...eeg.networks import WEIGHTS, WINDOW_NETWORKS, load_network
from ...eeg.study import read_study
from ...eeg.windows import Scaler, Windows, load_windows
from ...runs.record import sha256
from ..nested_cv.plan import CELLS, PLAN, PUBLISHED, read_plan
from ..nested_cv.records import ExplanationFigures, FitCell, Importance
from .guard import persons_of

EXPLANATION = "explanation.json"
FACTORY = "eeg-models"  # the function that builds the models of an EEG run
_IMPORTANCE = (
    "Importance is the mean absolute integrated gradient, as a share; the cost of hiding is the increase of the "
    "cross-entropy in nats per window. Both describe the networks, not the condition."
)


def first_network(folder: Path) -> str | None:
    """The first network of a nested EEG run that was fitted on outer training parts, or None."""
    if not (folder / PLAN).is_file():
        return None
    plan = read_plan(folder / PLAN)
    if plan["design"]["protocol"] == PUBLISHED:
        return None
    models = plan["models"].items()
    return next((name for name, spec in models if spec["factory"] == FACTORY and name in WINDOW_NETWORKS), None)


@dataclass(frozen=True, eq=False)
class Case:
    """A network, and the windows that explain it: rows of `windows`, scaled by `scaler`."""

    name: str
    model: str
    network: nn.Module
    windows: Windows
    rows: np.ndarray
    scaler: Scaler | None

    def tensors(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Scaled windows and their labels."""
        x, label, _ = tensors_of(self.windows, rows, self.scaler)
        return x, label


@dataclass(frozen=True, eq=False)
class Found:
    """The explanation of one network."""

    name: str
    channel: np.ndarray  # (channels,) shares
    band: np.ndarray  # (bands + 1,) shares
    channel_and_band: np.ndarray  # (channels, bands + 1) shares
    channel_cost: np.ndarray  # (channels,) nats per window
    band_cost: np.ndarray  # (bands,)
    completeness_error: float
    filters: FilterTable | None
    embedding: np.ndarray  # (windows, 2)
    label: np.ndarray
    subject: np.ndarray
    silhouette: dict[str, float]


def cases_of_run(folder: Path, model: str) -> list[Case]:
    """The final networks of a nested run, each with its outer test subjects."""
    plan = read_plan(folder / PLAN)
    if model not in plan["models"]:
        raise ValueError(f"model must be one of the run's ({', '.join(plan['models'])}), got {model!r}")
    if model not in WINDOW_NETWORKS:
        raise ValueError(f"model must be a network of windows ({', '.join(WINDOW_NETWORKS)}), got {model!r}")
    windows = from_plan(**plan["models"][model]["arguments"]).windows
    if plan["data"] != windows.digest:
        raise ValueError(f"the recordings differ from those of the run in {folder}")
    cases = []
    for fit, cell in _outer_fits(folder, model):
        both = set(cell["train"]) & set(cell["predict"])
        if both:
            raise ValueError(f"{fit} was trained on {len(both)} of the subjects that should explain it")
        network, card = load_network(fit)
        name = f"repeat {cell['repeat'] + 1}, fold {cell['fold'] + 1}"
        cases.append(Case(name, model, network, windows, windows.rows(cell["predict"]), card.fitted_scaler))
    if not cases:
        raise ValueError(f"{folder} holds no finished outer fit of {model}; finish the run first")
    return cases


def _outer_fits(folder: Path, model: str) -> list[tuple[Path, FitCell]]:
    """The finished outer fits of a network, each with its cell."""
    cells = ((path.parent, json.loads(path.read_text())) for path in sorted((folder / CELLS).glob("*/cell.json")))
    return [(fit, cell) for fit, cell in cells if cell["model"] == model and cell["keep"] and (fit / WEIGHTS).is_file()]


def hash_of_networks(folder: Path, model: str) -> str:
    """SHA-256 of the recordings of a run and of the weights of all outer fits of a network."""
    fits = "".join(f"{fit.name} {sha256(fit / WEIGHTS)}\n" for fit, _ in _outer_fits(folder, model))
    return hashlib.sha256(f"{read_plan(folder / PLAN)['data']}\n{fits}".encode()).hexdigest()


def single_case(
    weights: Path,
    study: Path,
    positive: str | None,
    trained: bool,
    *,
    label_column: str | None = None,
    person_column: str | None = None,
) -> tuple[Case, list[str]]:
    """One network and the subjects of a study outside its training data, or all subjects if `trained`; and notes.

    A subject counts as training data if any subject of the same person was used for training.
    """
    network, card = load_network(weights)
    if card.network not in WINDOW_NETWORKS:
        raise ValueError(f"weights must be of a network of windows ({', '.join(WINDOW_NETWORKS)}), got {card.network}")
    listed = read_study(study, positive or card.classes[1], label_column=label_column, person_column=person_column)
    windows = load_windows(listed, card.window_options)
    if windows.channels != card.channels or windows.sfreq != card.sfreq:
        raise ValueError(
            f"the study must have the channels ({', '.join(card.channels)}) and the sampling rate ({card.sfreq:g} Hz) "
            f"of the weights, got {', '.join(windows.channels)}; {windows.sfreq:g} Hz"
        )
    persons = np.array(persons_of(listed, windows))
    known = np.isin(persons, persons[np.isin(windows.subjects, card.subjects)])
    if known.all() and not trained:
        raise ValueError(
            f"all {len(known)} subjects of {study} were used in training these weights, so no subject is held out; "
            "give another study, or --trained"
        )
    notes = []
    if trained and known.any():
        notes.append(f"{int(known.sum())} of these subjects were used in training: only the fit is explained.")
    chosen = np.arange(len(known)) if trained else np.flatnonzero(~known)
    rows = windows.rows(chosen.tolist())
    return Case(weights.name, card.network, network, windows, rows, card.fitted_scaler), notes


def explain_one(case: Case, most_windows: int, steps: int, seed: int) -> Found:
    """Explain one network on at most `most_windows` windows."""
    rows = thinned(case.rows, case.windows.subject[case.rows], most_windows)
    x, label = case.tensors(rows)
    attribution = integrated_gradients(case.network, x, steps=steps)
    parts = by_band(attribution, case.windows.sfreq)
    subject = case.windows.subject[rows]
    features = last_features(case.network, x)
    return Found(
        name=case.name,
        channel=shares(parts.sum(-1)),
        band=shares(parts.sum(1)),
        channel_and_band=shares(parts),
        channel_cost=occlude_channels(case.network, x, label),
        band_cost=occlude_bands(case.network, x, label, case.windows.sfreq),
        completeness_error=attribution.completeness_error,
        filters=first_filters(case.network, x) if isinstance(case.network, ADHDeepNet) else None,
        embedding=_embed(features, seed),
        label=label.numpy(),
        subject=subject,
        silhouette={"class": _silhouette(features, label.numpy()), "subject": _silhouette(features, subject)},
    )


def thinned(rows: np.ndarray, subject: np.ndarray, most: int) -> np.ndarray:
    """At most `most` rows, evenly spaced within each subject, but at least one row per subject.

    Example:
        >>> import numpy as np
        >>> thinned(np.arange(6), np.array([0, 0, 0, 0, 1, 1]), 3).tolist()
        [0, 2, 4]
    """
    if len(rows) <= most:
        return rows
    stride = math.ceil(len(rows) / most)
    return np.concatenate([rows[subject == one][::stride] for one in np.unique(subject)])


def _embed(features: np.ndarray, seed: int) -> np.ndarray:
    """(windows, 2) t-SNE of the features."""
    scaled = StandardScaler().fit_transform(features)
    perplexity = min(30.0, (len(scaled) - 1) / 3)
    result: np.ndarray = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(scaled)
    return result


def _silhouette(features: np.ndarray, group: np.ndarray) -> float:
    """Silhouette coefficient, -1 to 1: whether windows are nearer to their own group than to others."""
    groups = len(np.unique(group))
    return float(silhouette_score(features, group)) if 2 <= groups < len(group) else math.nan


def summarise(found: list[Found], cases: list[Case], notes: list[str]) -> ExplanationFigures:
    """Means and standard deviations over the networks, as plain values."""
    windows = cases[0].windows
    edges = [*BANDS.items(), ("other", (math.nan, math.nan))]
    channel, band = np.array([f.channel for f in found]), np.array([f.band for f in found])
    channel_cost, band_cost = np.array([f.channel_cost for f in found]), np.array([f.band_cost for f in found])
    band_cost = np.pad(band_cost, ((0, 0), (0, 1)), constant_values=np.nan)
    subjects = {int(s) for f in found for s in f.subject}
    notes = [*notes, _IMPORTANCE]
    class_gap, subject_gap = (float(np.nanmean([f.silhouette[k] for f in found])) for k in ("class", "subject"))
    if subject_gap > class_gap:
        notes.append(
            f"The last features lie closer by subject (silhouette {subject_gap:.2f}) than by class ({class_gap:.2f}): "
            "a sign that the networks distinguish persons."
        )
    return {
        "networks": [f.name for f in found],
        "subjects": len(subjects),
        "windows": sum(len(f.label) for f in found),
        "classes": list(windows.classes),
        "bands": [
            {"band": name, "low": _plain(low), "high": _plain(high), **_spread(band[:, i], band_cost[:, i])}
            for i, (name, (low, high)) in enumerate(edges)
        ],
        "channels": [
            {"channel": name, **_spread(channel[:, i], channel_cost[:, i])} for i, name in enumerate(windows.channels)
        ],
        "completeness_error": float(np.mean([f.completeness_error for f in found])),
        "silhouette": {"class": _plain(class_gap), "subject": _plain(subject_gap)},
        "notes": notes,
    }


def _spread(shares: np.ndarray, cost: np.ndarray) -> Importance:
    sd = float(shares.std(ddof=1)) if len(shares) > 1 else None
    return {"importance": float(shares.mean()), "sd": sd, "hiding_costs": _plain(float(cost.mean()))}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
