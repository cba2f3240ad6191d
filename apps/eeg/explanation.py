"""What the models of a run go by: the cases to explain and the summary over outer folds."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from sklearn.preprocessing import StandardScaler

from ...eeg.adhdeepnet import ADHDeepNet
from ...eeg.estimators import from_plan, tensors_of
from ...eeg.explain import (
    by_band,
    first_filters,
    integrated_gradients,
    last_features,
    occlude_bands,
    occlude_channels,
    shares,
)
from ...eeg.features import BANDS
from ...eeg.networks import NETWORKS, WEIGHTS, load_network
from ...eeg.study import read_study
from ...eeg.windows import digest_of, load_windows

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from ...eeg.explain import FilterTable
    from ...eeg.windows import Windows

from ...runs.functions import with_present_names

PLAN, FOLDER, EXPLANATION = "plan.json", "explain", "explanation.json"
FACTORY = "eeg-models"  # what builds the models of an EEG run


def is_network(name: str) -> bool:

    return name in NETWORKS


def plan_of(folder: Path) -> dict[str, Any] | None:
    path = folder / PLAN
    if not path.is_file():
        return None
    try:
        plan = with_present_names(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path} must be a JSON file: {error}") from error
    if not isinstance(plan, dict) or not isinstance(plan.get("models"), dict):
        raise ValueError(f"{path} must be the plan of a nested run, with models in it")
    return plan


@dataclass(frozen=True, eq=False)
class Case:
    """A network and the windows it is asked about."""

    name: str
    model: str
    network: "nn.Module"
    windows: "Windows"
    rows: "np.ndarray"
    scaler: Any

    def tensors(self, rows: "np.ndarray") -> "tuple[Tensor, Tensor]":
        """Scaled windows and labels."""

        x, label, _ = tensors_of(self.windows, rows, self.scaler)
        return x, label


@dataclass(frozen=True, eq=False)
class Found:
    """What was found about one network."""

    name: str
    channel: "np.ndarray"  # (channels,) shares
    band: "np.ndarray"  # (bands + 1,) shares
    channel_and_band: "np.ndarray"  # (channels, bands + 1) shares
    channel_cost: "np.ndarray"  # (channels,) nats per window
    band_cost: "np.ndarray"  # (bands,)
    completeness_error: float
    filters: "FilterTable | None"
    embedding: "np.ndarray"  # (windows, 2)
    label: "np.ndarray"
    subject: "np.ndarray"
    silhouette: dict[str, float]


def cases_of_run(folder: Path, model: str) -> list[Case]:
    """The final networks of a nested run, each with its outer test subjects."""

    plan = plan_of(folder) or {}
    if model not in plan["models"]:
        raise ValueError(f"model must be one of the run's ({', '.join(plan['models'])}), got {model!r}")
    if model not in NETWORKS:
        raise ValueError(f"model must be a network ({', '.join(NETWORKS)}), got {model!r}")
    windows = from_plan(**plan["models"][model]["arguments"]).windows
    if plan.get("data", digest_of(windows)) != digest_of(windows):
        raise ValueError(f"the recordings are not those that {folder} was run with")
    cases = []
    for path in sorted((folder / "cells").glob("*/cell.json")):
        cell = json.loads(path.read_text())
        if cell["model"] != model or not cell["keep"] or not (path.parent / WEIGHTS).is_file():
            continue
        both = set(cell["train"]) & set(cell["predict"])
        if both:
            raise ValueError(f"{path.parent} was trained on {len(both)} of the subjects that it should be asked about")
        network, card = load_network(path.parent)
        name = f"repeat {cell['repeat'] + 1}, fold {cell['fold'] + 1}"
        cases.append(Case(name, model, network, windows, windows.rows(cell["predict"]), card.fitted_scaler))
    if not cases:
        raise ValueError(f"{folder} holds no finished outer fit of {model}; let the run end first")
    return cases


def single_case(weights: Path, study: Path, positive: str | None, trained: bool) -> tuple[Case, list[str]]:

    network, card = load_network(weights)
    windows = load_windows(read_study(study, positive or card.classes[1]), card.window_options)
    if windows.channels != card.channels or windows.sfreq != card.sfreq:
        raise ValueError(
            f"the study must have channels and rate of the weights ({', '.join(card.channels)}; {card.sfreq:g} Hz), "
            f"got {', '.join(windows.channels)}; {windows.sfreq:g} Hz"
        )
    known = np.isin(windows.subjects, card.subjects)
    if known.all() and not trained:
        raise ValueError(
            f"all {len(known)} subjects of {study} were used in training these weights, so nothing would be held out; "
            "give another study, or --trained"
        )
    notes = []
    if trained and known.any():
        notes.append(f"{int(known.sum())} of these subjects were used in training: what was learnt, no more.")
    asked = np.arange(len(known)) if trained else np.flatnonzero(~known)
    rows = windows.rows(asked.tolist())
    return Case(weights.name, card.network, network, windows, rows, card.fitted_scaler), notes


def explain_one(case: Case, most_windows: int, steps: int, seed: int) -> Found:

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


def thinned(rows: "np.ndarray", subject: "np.ndarray", most: int) -> "np.ndarray":
    """At most `most` rows, evenly spaced within each subject, at least one of each.

    Example:
        >>> import numpy as np
        >>> thinned(np.arange(6), np.array([0, 0, 0, 0, 1, 1]), 3).tolist()
        [0, 2, 4]
    """

    if len(rows) <= most:
        return rows
    stride = math.ceil(len(rows) / most)
    return np.concatenate([rows[subject == one][::stride] for one in np.unique(subject)])


def _embed(features: "np.ndarray", seed: int) -> "np.ndarray":

    scaled = StandardScaler().fit_transform(features)
    perplexity = min(30.0, (len(scaled) - 1) / 3)
    result: np.ndarray = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(scaled)
    return result


def _silhouette(features: "np.ndarray", group: "np.ndarray") -> float:
    """-1 to 1; how much nearer windows are to their own group's than to the nearest other group's."""

    groups = len(np.unique(group))
    return float(silhouette_score(features, group)) if 2 <= groups < len(group) else math.nan


def summarise(found: list[Found], cases: list[Case], notes: list[str]) -> dict[str, Any]:
    """Means and standard deviations over the networks, as plain values."""

    windows = cases[0].windows
    edges = [*BANDS.items(), ("other", (math.nan, math.nan))]
    channel, band = np.array([f.channel for f in found]), np.array([f.band for f in found])
    channel_cost, band_cost = np.array([f.channel_cost for f in found]), np.array([f.band_cost for f in found])
    band_cost = np.pad(band_cost, ((0, 0), (0, 1)), constant_values=np.nan)
    subjects = {int(s) for f in found for s in f.subject}
    notes = [
        *notes,
        "Importance is the mean absolute integrated gradient, as a share; the cost of hiding is the rise of the "
        "cross-entropy in nats per window. Both show what the networks use, not what the condition is.",
    ]
    class_gap, subject_gap = (float(np.nanmean([f.silhouette[k] for f in found])) for k in ("class", "subject"))
    if subject_gap > class_gap:
        notes.append(
            f"The last features lie closer by subject (silhouette {subject_gap:.2f}) than by class ({class_gap:.2f}): "
            "a sign that the networks tell people apart."
        )
    return {
        "networks": [f.name for f in found],
        "subjects": len(subjects),
        "windows": sum(len(f.label) for f in found),
        "classes": list(windows.classes),
        "bands": [
            {"band": name, "low": _plain(low), "high": _plain(high)} | _spread(band[:, i], band_cost[:, i])
            for i, (name, (low, high)) in enumerate(edges)
        ],
        "channels": [
            {"channel": name} | _spread(channel[:, i], channel_cost[:, i]) for i, name in enumerate(windows.channels)
        ],
        "completeness_error": float(np.mean([f.completeness_error for f in found])),
        "silhouette": {"class": _plain(class_gap), "subject": _plain(subject_gap)},
        "notes": notes,
    }


def _spread(shares: "np.ndarray", cost: "np.ndarray") -> dict[str, float | None]:
    sd = float(shares.std(ddof=1)) if len(shares) > 1 else None
    return {"importance": float(shares.mean()), "sd": sd, "hiding_costs": _plain(float(cost.mean()))}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def percent(content: dict[str, Any]) -> str:
    return f"{100 * content['completeness_error']:.2g} %"
