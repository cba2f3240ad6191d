"""Comparison of scanpath models with people: a row of metrics for each trial, and means with intervals over layouts.

Every model draws some paths for a scene. Each of them is compared with the path of each person on the scene, and the
metrics are averaged over the drawn paths. People are compared in the same way: each person with all other people on the
scene, but never with another trial of the same person. No model needs to exceed the score of people.

These are the metrics; all but the first three compare drawn paths:
    nll_per_token, nll_per_fixation  `metrics.negative_log_likelihood` of people's objects and ends, or of objects only
    probability        mean probability of the object that the person looked at next (SIM in Fang et al., ECCV 2024)
    sequence_score, edit_distance, delta, correct, length, search, refix, revisit  see `metrics`
    multimatch, multimatch_vector ...  `multimatch` as published for OAT (short paths are padded): mean of 4, and each
    scanmatch          `scanmatch` with 12 x 8 bins, without durations
    nss, auc, sim, cc  `saliency` over objects: the counts of all drawn paths against those of one person
    nss_pixels, nss_smoothed  over pixels as published for OAT, and blurred by half the distance of neighbouring objects
For metrics of positions, people's fixations are at their measured positions and those of models at the centres of their
objects, which lowers the MultiMatch of people by 0.008 on collages of 6 x 14 covers. Saliency improves with the number
of paths, so compare models with equal numbers of paths.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from . import saliency
from .baselines import ScanpathModel
from .metrics import BEHAVIOUR, behaviour, behaviour_delta, edit_distance, negative_log_likelihood, sequence_score
from .multimatch import DIMENSIONS, mean_similarity, multimatch
from .scanmatch import scanmatch
from .scene import Dataset, Scene, Trial

Row = dict[str, Any]
PEOPLE = "other people"  # the name for people in the column "model"
# metric -> whether higher (1) or lower (-1) is better, or neither (0)
FIGURES: dict[str, int] = {
    "nll_per_token": -1,
    "nll_per_fixation": -1,
    "probability": 1,
    "sequence_score": 1,
    "edit_distance": -1,
    "multimatch": 1,
    **{f"multimatch_{name}": 1 for name in DIMENSIONS},
    "scanmatch": 1,
    "nss": 1,
    "auc": 1,
    "sim": 1,
    "cc": 1,
    "nss_pixels": 1,
    "nss_smoothed": 1,
    "delta": -1,
    **dict.fromkeys(BEHAVIOUR, 0),
}
_OF_PATHS = ("sequence_score", "edit_distance", "multimatch", *(f"multimatch_{n}" for n in DIMENSIONS), "scanmatch")
_OF_MAPS = ("nss", "auc", "sim", "cc", "nss_pixels", "nss_smoothed")


class Interval(NamedTuple):
    """The value of a metric over some trials, with its bootstrap interval."""

    value: float
    low: float
    high: float
    trials: int


Table = dict[str, dict[str, Interval]]  # model -> metric -> value


@dataclass(frozen=True, eq=False)
class _Drawn:
    """A drawn path, with which a person's path is compared."""

    objects: np.ndarray
    xy: np.ndarray
    duration: np.ndarray | None = None


def evaluate_fold(
    models: Mapping[str, ScanpathModel],
    dataset: Dataset,
    trials: Sequence[int] | np.ndarray,
    *,
    samples: int,
    seed: int = 0,
    max_length: int = 100,
) -> list[Row]:
    """A row of metrics for each model and trial, and one for the other people on each trial's scene.

    Args:
        models: the models by their names in the rows; none may have been trained on these trials.
        dataset: the dataset that holds the scenes and trials. People are compared with all its trials on a scene.
        trials: indices of the trials to test on.
        samples: number of paths that each model draws for a scene; all people on the scene are compared with the same
            drawn paths.
        seed: seed of the draws.
        max_length: a drawn path is cut at this length; OAT's published evaluation uses the longest training path.

    Returns:
        Rows with "model", "trial", "scene", "layout" and "person"; "fixations" of the person; their "nll_fixations",
        "nll_end" and "probability_sum", which rows of other people lack; the metrics of `FIGURES` that are defined for
        a single trial, NaN if undefined for this one; and the person's own behaviour as "human_correct" and so on.
    """
    if samples < 1 or max_length < 1:
        raise ValueError(f"samples and max_length must be at least 1, got {samples} and {max_length}")
    if PEOPLE in models:
        raise ValueError(f'no model may be named "{PEOPLE}", since this name denotes people')
    rows = []
    for name, model in models.items():
        drawn: dict[str, list[_Drawn]] = {}
        for index in trials:
            trial, scene = dataset.trials[index], dataset.scene_of(int(index))
            if scene.identifier not in drawn:
                paths = model.sample(scene, samples, seed=seed, max_length=max_length)
                drawn[scene.identifier] = [_placed(path, scene, name) for path in paths]
            likelihood = _likelihood(model, name, scene, trial)
            rows.append(_row(name, int(index), trial, scene, drawn[scene.identifier], likelihood))
    on_scene: dict[str, list[Trial]] = {}
    for trial in dataset.trials:
        on_scene.setdefault(trial.scene, []).append(trial)
    for index in trials:
        trial, scene = dataset.trials[index], dataset.scene_of(int(index))
        others = [_Drawn(t.objects, t.xy, t.duration) for t in on_scene[trial.scene] if t.person != trial.person]
        if others:
            rows.append(_row(PEOPLE, int(index), trial, scene, others, {}))
    return rows


def summarise(rows: Sequence[Row], *, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Table:
    """The metrics of each model over all rows, with bootstrap intervals.

    Layouts are drawn with replacement, together with all trials on them, because the trials of several people on one
    picture are not independent. The likelihoods are sums over tokens divided by the number of tokens; "delta" is
    computed from the mean behaviour, as published; all other metrics are means over the trials that define them.

    Args:
        rows: rows of `evaluate_fold`, of one or more folds.
        resamples: number of bootstrap resamples, shared by all models.
        seed: seed of the bootstrap.
        level: fraction of the resamples that the interval contains.

    Returns:
        Model -> metric -> value, low, high, and the number of trials behind it. Metrics that no trial defines are left
        out.
    """
    weights = _layout_weights(rows, resamples, seed)
    table: Table = {}
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name]
        table[name] = {}
        for figure, (values, trials) in _resampled(own, weights).items():
            table[name][figure] = Interval(float(values[0]), *_interval(values[1:], level), trials)
    return table


def compare(
    rows: Sequence[Row], model: str, reference: str, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """The difference between two models in each metric, on the trials that both have.

    Both models are evaluated on the same resamples of layouts, so an interval without 0 shows a difference even if the
    two intervals of `summarise` overlap.

    Args:
        rows: rows of `evaluate_fold`.
        model: name of a model in the rows.
        reference: name of the model that is subtracted.
        resamples: see `summarise`.
        seed: see `summarise`.
        level: see `summarise`.
    """
    both = [{row["trial"]: row for row in rows if row["model"] == name} for name in (model, reference)]
    common = [trial for trial in both[0] if trial in both[1]]
    if not common:
        raise ValueError(f"rows must hold trials of both {model} and {reference}, got none in common")
    pair = [[part[trial] for trial in common] for part in both]
    weights = _layout_weights(pair[0], resamples, seed)
    ours, theirs = (_resampled(part, weights) for part in pair)
    table = {}
    for figure in ours.keys() & theirs.keys():
        difference = ours[figure][0] - theirs[figure][0]
        trials = min(ours[figure][1], theirs[figure][1])
        table[figure] = Interval(float(difference[0]), *_interval(difference[1:], level), trials)
    return {figure: table[figure] for figure in FIGURES if figure in table}


def _placed(path: Sequence[int] | np.ndarray, scene: Scene, model: str) -> _Drawn:
    objects = np.asarray(path, dtype=np.int64)
    if not len(objects) or objects.min() < 0 or objects.max() >= len(scene):
        raise ValueError(
            f"{model} must draw paths of at least one fixation on the objects 0 to {len(scene) - 1} of"
            f" {scene.identifier}, got {objects.tolist()}"
        )
    return _Drawn(objects, scene.centres[objects])


def _likelihood(model: ScanpathModel, name: str, scene: Scene, trial: Trial) -> dict[str, float]:
    log_p = model.log_probabilities(scene, trial.objects)
    try:
        loss = negative_log_likelihood(log_p, trial.objects)
    except ValueError as error:
        raise ValueError(f"{name} on {scene.identifier}: {error}") from None
    return {
        "nll_fixations": float(loss[:-1].sum()),
        "nll_end": float(loss[-1]),
        "probability_sum": float(np.exp(-loss[:-1]).sum()),
    }


def _row(
    name: str, index: int, trial: Trial, scene: Scene, paths: Sequence[_Drawn], likelihood: Mapping[str, float]
) -> Row:
    row: Row = {"model": name, "trial": index, "scene": scene.identifier, "layout": scene.layout}
    row |= {"person": trial.person, "fixations": len(trial), **likelihood}
    row |= _means([_compare_paths(path, trial, scene) for path in paths], _OF_PATHS)
    counts = saliency.fixation_counts([path.objects for path in paths], len(scene))
    looks = saliency.fixation_counts([trial.objects], len(scene))
    points = np.concatenate([path.xy for path in paths])
    maps = (
        saliency.nss(counts, looks),
        saliency.auc(counts, looks),
        saliency.similarity(counts, looks),
        saliency.correlation(counts, looks),
        saliency.nss_of_points(points, trial.xy, scene.size),
        saliency.nss_of_points(points, trial.xy, scene.size, sigma=scene.spacing / 2),
    )
    row |= dict(zip(_OF_MAPS, maps, strict=True))
    row |= _means([behaviour(path.objects, scene.target) for path in paths], BEHAVIOUR)
    row |= {f"human_{key}": value for key, value in behaviour(trial.objects, scene.target).items()}
    return row


def _compare_paths(path: _Drawn, trial: Trial, scene: Scene) -> dict[str, float]:
    durations = {"duration_a": path.duration, "duration_b": trial.duration}
    alike = multimatch(path.xy, trial.xy, scene.size, **durations, pad=True)
    return {
        "sequence_score": sequence_score(path.objects, trial.objects),
        "edit_distance": float(edit_distance(path.objects, trial.objects)),
        "multimatch": mean_similarity(alike),
        **{f"multimatch_{key}": value for key, value in alike.items()},
        "scanmatch": scanmatch(path.xy, trial.xy, scene.size),
    }


def _means(records: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, float]:
    """The mean of each metric over the records that define it."""
    means = {}
    for name in names:
        values = np.array([record[name] for record in records])
        known = values[~np.isnan(values)]
        means[name] = float(known.mean()) if len(known) else np.nan
    return means


def _layout_weights(rows: Sequence[Row], resamples: int, seed: int) -> dict[str, np.ndarray]:
    """Layout -> (1 + resamples,) weights: 1, then the number of times that the layout is drawn in each resample."""
    layouts = sorted({row["layout"] for row in rows})
    if not layouts:
        raise ValueError("rows must hold at least one row, got none")
    n = len(layouts)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    counted = np.vstack([np.ones((1, n)), drawn])
    return dict(zip(layouts, counted.T, strict=True))


def _resampled(rows: Sequence[Row], weights: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, int]]:
    """For each metric of one model, (1 + resamples,) values and the number of trials behind them."""
    weight = np.array([weights[row["layout"]] for row in rows])  # (rows, 1 + resamples)

    def column(name: str) -> np.ndarray:
        return np.array([row.get(name, np.nan) for row in rows], dtype=np.float64)

    def ratio(above: np.ndarray, below: np.ndarray) -> tuple[np.ndarray, int]:
        """The ratio of the sums over the rows in which `above` is known."""
        known = ~np.isnan(above)
        with np.errstate(invalid="ignore"):  # in a resample without any known row
            return above[known] @ weight[known] / (below[known] @ weight[known]), int(known.sum())

    ones, fixations = np.ones(len(rows)), column("fixations")
    found = {
        "nll_per_token": ratio(column("nll_fixations") + column("nll_end"), fixations + 1),
        "nll_per_fixation": ratio(column("nll_fixations"), fixations),
        "probability": ratio(column("probability_sum"), fixations),
        **{name: ratio(column(name), ones) for name in (*_OF_PATHS, *_OF_MAPS, *BEHAVIOUR)},
    }
    theirs = {name: ratio(column(f"human_{name}"), ones)[0] for name in BEHAVIOUR}
    delta = [
        behaviour_delta({k: found[k][0][r] for k in BEHAVIOUR}, {k: theirs[k][r] for k in BEHAVIOUR})
        for r in range(weight.shape[1])
    ]
    found["delta"] = np.array(delta), len(rows)
    return {name: found[name] for name in FIGURES if found[name][1] and not np.isnan(found[name][0][0])}


def _interval(values: np.ndarray, level: float) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if not len(values):
        return np.nan, np.nan
    # no interpolation: a likelihood may be infinite
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return float(low), float(high)
