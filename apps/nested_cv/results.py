"""Results of a finished nested run: predictions.csv, and the figures derived from it, results.json and results.csv."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...runs.files import atomic_path
from ...runs.json_files import write_json
from . import statistics
from .plan import CELLS, NESTED, PREDICTIONS, PUBLISHED, RANDOM_WINDOWS, RESULTS, TEST_EPOCH, cohort_of
from .records import (
    AuditRow,
    Comparison,
    CurveRow,
    Evidence,
    Figures,
    Flow,
    FoldOfNames,
    FoldRow,
    Headline,
    ModelFigures,
    ModelResults,
    ModelTexts,
    OptimismRow,
    Plan,
    Results,
    SecondaryFigures,
    Split,
    SubjectRow,
)
from .search import Outcome
from .seeds import derive_seed
from .splits import Cohort
from .stability import sample_size, stability
from .statistics import METRICS, Scores
from .tripod import tripod_items

_RESAMPLES, _PERMUTATIONS = 2000, 10000
_WHAT = {
    NESTED: "settings, epochs and threshold chosen in the inner folds",
    TEST_EPOCH: "settings from the inner folds, epoch chosen on the test fold, threshold 0.5",
    PUBLISHED: "selection on the test fold, to demonstrate optimism: settings and epoch by that fold, threshold 0.5",
    RANDOM_WINDOWS: "windows split at random, so the same subjects are on both sides, threshold 0.5",
}


@dataclass(frozen=True)
class Facts:
    """Facts from the calling command, which results.json holds unchanged.

    Args:
        title: title of the report.
        command: the command that repeats the run.
        flow: numbers of subjects and windows.
        windows: number of windows of each subject.
        seconds: length of each subject's recording.
        extra: further columns of each subject.
        audit: checks with their outcomes.
        limits: sentences on the limits of the study.
        description: sentences on how the data were read and cut.
        models: model -> title and description.
        caveats: other possible explanations of the figures.
        hardware: description of the hardware.
        created: date and time.
        seconds_run: wall time of the run, over all sessions of a resumed run.
    """

    title: str
    command: str
    flow: Flow
    windows: Sequence[int]
    seconds: Sequence[float]
    extra: Sequence[dict[str, Any]]
    audit: list[AuditRow]
    limits: list[str]
    description: list[str]
    models: dict[str, ModelTexts]
    caveats: list[str]
    hardware: str
    created: str
    seconds_run: float


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of predicted windows of one model under one protocol, in the order of repeat, fold, subject and window."""

    repeat: np.ndarray
    fold: np.ndarray
    subject: np.ndarray
    window: np.ndarray
    probability: np.ndarray
    threshold: np.ndarray


def write_predictions(folder: Path, plan: Plan, outcomes: Sequence[Outcome]) -> dict[tuple[str, str], Table]:
    """Write predictions.csv, a row per window, and return its rows as tables: (protocol, model) -> rows."""
    tables = read_tables(folder, plan, outcomes)
    _write_predictions(folder / PREDICTIONS, plan, tables)
    return tables


def write_results(
    folder: Path,
    plan: Plan,
    outcomes: Sequence[Outcome],
    tables: dict[tuple[str, str], Table],
    facts: Facts,
    evidence: Evidence | None = None,
) -> Results:
    """Write results.json and results.csv into the folder of the run, and return the results.

    Args:
        folder: the folder of the run.
        plan: the plan of the run.
        outcomes: the outcomes of all its parts.
        tables: the tables of `write_predictions`.
        facts: further facts for the results.
        evidence: the parts that come from refits.
    """
    results: Results = {**summarise(folder, plan, outcomes, tables, facts), **(evidence or {})}
    write_json(folder / RESULTS, results)
    with atomic_path(folder / "results.csv") as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(
            ("model", "protocol", "metric", "mean", "sd_folds", "nb_low", "nb_high", "pooled", "low", "high")
        )
        for model in results["models"]:
            for metric, row in model["metrics"].items():
                values = [
                    *(row["mean"], row["sd_folds"], *row["interval_nb"]),
                    *(row["pooled"], *row["interval_bootstrap"]),
                ]
                writer.writerow((model["name"], model["protocol"], metric, *values))
    return results


def read_tables(folder: Path, plan: Plan, outcomes: Sequence[Outcome]) -> dict[tuple[str, str], Table]:
    """(protocol, model) -> rows, read from the predictions of the cells."""
    parts: dict[tuple[str, str], list[np.ndarray]] = {}
    for outcome in outcomes:
        path = folder / CELLS / outcome.cell / "predictions.csv"
        rows = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
        if outcome.protocol == RANDOM_WINDOWS:
            windows = plan["windows"]
            assert windows is not None  # the protocol needs them
            rows[:, 0] = np.array(windows["subject"])[rows[:, 0].astype(int)]
        place = np.broadcast_to([outcome.repeat, outcome.fold, outcome.threshold], (len(rows), 3))
        parts.setdefault((outcome.protocol, outcome.model), []).append(np.hstack([place, rows]))
    tables = {}
    for key, some in parts.items():
        rows = np.concatenate(some)
        rows = rows[np.lexsort((rows[:, 4], rows[:, 3], rows[:, 1], rows[:, 0]))]
        repeat, fold, threshold, subject, window, probability = rows.T
        repeat, fold, subject, window = (values.astype(int) for values in (repeat, fold, subject, window))
        tables[key] = Table(repeat, fold, subject, window, probability, threshold)
    return tables


def subject_scores(table: Table, labels: np.ndarray) -> Scores:
    """Mean probability of each subject in each repeat."""
    repeats, count = int(table.repeat.max()) + 1, len(labels)
    place = table.repeat * count + table.subject
    size = repeats * count
    windows = np.bincount(place, minlength=size)
    threshold, fold = np.zeros(size), np.zeros(size, dtype=int)
    threshold[place], fold[place] = table.threshold, table.fold
    shape = (repeats, count)
    score = (np.bincount(place, table.probability, minlength=size) / windows).reshape(shape)
    return Scores(labels, score, threshold.reshape(shape), fold.reshape(shape), np.arange(count))


def window_scores(table: Table, labels: np.ndarray) -> Scores:
    """Scores with windows as units; subjects remain the clusters of the bootstrap."""
    repeats = int(table.repeat.max()) + 1
    order = np.lexsort((table.window, table.subject, table.repeat))
    shape = (repeats, -1)
    subject = table.subject[order].reshape(shape)[0]
    score, threshold, fold = (
        values[order].reshape(shape) for values in (table.probability, table.threshold, table.fold)
    )
    return Scores(labels[subject], score, threshold, fold, subject)


def summarise(
    folder: Path,
    plan: Plan,
    outcomes: Sequence[Outcome],
    tables: dict[tuple[str, str], Table],
    facts: Facts,
) -> Results:
    """The content of results.json."""
    cohort, design = cohort_of(plan), plan["design"]
    labels = np.array(cohort.labels)
    test_share = 1 / (design["outer"] - 1)
    scores = {key: subject_scores(table, labels) for key, table in tables.items() if key[0] != RANDOM_WINDOWS}
    weights = statistics.bootstrap_weights(
        next(iter(scores.values())), _RESAMPLES, derive_seed(design["seed"], "bootstrap")
    )
    reported = [key for key in scores if key[0] in (NESTED, PUBLISHED)]
    models: list[ModelResults] = []
    for key in reported:
        found = _model(folder, key, scores[key], tables[key], labels, weights, test_share, outcomes, design["seed"])
        models.append({**found, **facts.models[key[1]]})
    first = models[0]
    results: Results = {
        "title": facts.title,
        "created": facts.created,
        "command": facts.command,
        "description": facts.description,
        "seconds": facts.seconds_run,
        "hardware": facts.hardware,
        "versions": plan["versions"],
        "options": {**design, **plan["options"]},
        "unit": "subject",
        "classes": list(cohort.classes),
        "flow": facts.flow,
        "splits": {
            "outer": design["outer"],
            "inner": design["inner"],
            "repeats": design["repeats"],
            "seeds": plan["seeds"],
            "folds": [_fold_row(split, cohort) for split in plan["splits"]],
        },
        "headline": _headline(first),
        "models": models,
        "comparisons": _comparisons(scores, weights, design["seed"]),
        "optimism": _optimism(scores, tables, labels, weights),
        "subjects": _subjects(cohort, scores, facts),
        "audit": facts.audit,
        "caveats": facts.caveats,
        "limits": facts.limits,
        "tripod": [],
        "sample_size": sample_size(first["metrics"]["auc"]["mean"], labels),
    }
    results["tripod"] = tripod_items(results)
    return results


def _headline(model: ModelResults) -> Headline:
    found = model["metrics"]["balanced_accuracy"]
    return {
        "model": model["name"],
        "protocol": model["protocol"],
        "metric": "balanced_accuracy",
        "mean": found["mean"],
        "interval": found["interval_nb"],
        "method": "Nadeau-Bengio corrected t over folds",
        "n_folds": len(model["per_fold"]),
    }


def _model(
    folder: Path,
    key: tuple[str, str],
    scores: Scores,
    table: Table,
    labels: np.ndarray,
    weights: np.ndarray,
    test_share: float,
    outcomes: Sequence[Outcome],
    seed: int,
) -> ModelFigures:
    protocol, name = key
    by_window = window_scores(table, labels)
    votes = Scores(
        labels, _share_above(table, len(labels)), np.full_like(scores.score, 0.5), scores.fold, scores.cluster
    )
    found = statistics.summary(scores, weights, test_share)
    found["balanced_accuracy_at_0.5"] = statistics.summary(scores.at(0.5), weights, test_share)["balanced_accuracy"]
    folds: list[FoldRow] = []
    details = {(o.repeat, o.fold): o for o in outcomes if (o.protocol, o.model) == key}
    for row in statistics.per_fold(scores):
        o = details[row["repeat"], row["fold"]]
        curve = read_curve(folder / CELLS / o.cell / "curve.csv")
        folds.append({**row, "settings": o.settings, "epochs": o.epochs, "curve": curve, "trials": o.trials})
    return {
        "name": name,
        "protocol": protocol,
        "metrics": found,
        "secondary": {
            "majority_vote_of_windows": _figures("subject", votes),
            "single_windows": _figures("window", by_window.at(0.5)),
        },
        "per_fold": folds,
        "roc": statistics.roc(scores, weights),
        "calibration": statistics.calibration(scores),
        "confusion": statistics.confusion(scores),
        "permutation": statistics.permutation_test(scores, _PERMUTATIONS, derive_seed(seed, "permutation", *key)),
        "stability": stability(scores, weights),
    }


def _comparisons(scores: dict[tuple[str, str], Scores], weights: np.ndarray, seed: int) -> list[Comparison]:
    """Compare the first nested model with each of the others; the comparisons of one metric are a family for Holm."""
    nested = [key for key in scores if key[0] == NESTED]
    rows: list[Comparison] = []
    for metric in ("balanced_accuracy", "auc"):
        family = []
        for other in nested[1:]:
            words = ("comparison", nested[0][1], other[1], metric)
            found = statistics.compare(
                scores[nested[0]], scores[other], metric, _PERMUTATIONS, weights, derive_seed(seed, *words)
            )
            family.append((other[1], found))
        adjusted = statistics.holm([found["p"] for _, found in family])
        for (b, found), p in zip(family, adjusted, strict=True):
            rows.append({"a": nested[0][1], "b": b, **found, "p_holm": p})
    return rows


def _optimism(
    scores: dict[tuple[str, str], Scores],
    tables: dict[tuple[str, str], Table],
    labels: np.ndarray,
    weights: np.ndarray,
) -> list[OptimismRow]:
    """A model under increasingly optimistic protocols, pooled over folds, with bootstrap intervals over subjects."""
    rows = []
    for model in dict.fromkeys(model for protocol, model in tables if protocol in (TEST_EPOCH, PUBLISHED)):
        for protocol in (NESTED, TEST_EPOCH, PUBLISHED):
            if (protocol, model) in scores:
                rows.append(
                    _optimism_row(model, protocol, _WHAT[protocol], scores[protocol, model], weights, "subject")
                )
            if (protocol, model) == (NESTED, model) in scores:
                what = "settings and epochs chosen in the inner folds, threshold 0.5"
                at_half = scores[protocol, model].at(0.5)
                rows.append(_optimism_row(model, protocol, what, at_half, weights, "subject"))
        if (RANDOM_WINDOWS, model) in tables:
            for protocol in (NESTED, RANDOM_WINDOWS):
                windows = window_scores(tables[protocol, model], labels).at(0.5)
                what = (
                    _WHAT[protocol]
                    if protocol == RANDOM_WINDOWS
                    else "as above, each window scored by itself, threshold 0.5"
                )
                rows.append(_optimism_row(model, protocol, what, windows, weights, "window"))
    return rows


def _optimism_row(model: str, protocol: str, what: str, scores: Scores, weights: np.ndarray, unit: str) -> OptimismRow:
    whole, resampled = statistics.pooled(scores), statistics.pooled(scores, weights[:, scores.cluster])
    return {
        "protocol": protocol,
        "model": model,
        "what": what,
        "balanced_accuracy": float(whole["balanced_accuracy"][0]),
        "auc": float(whole["auc"][0]),
        "interval": statistics.percentile_interval(resampled["balanced_accuracy"]),
        "unit": unit,
    }


def _subjects(cohort: Cohort, scores: dict[tuple[str, str], Scores], facts: Facts) -> list[SubjectRow]:
    means = {model: found.score.mean(0) for (protocol, model), found in scores.items() if protocol == NESTED}
    return [
        {
            "subject": name,
            "label": cohort.classes[cohort.labels[i]],
            "windows": int(facts.windows[i]),
            "seconds": float(facts.seconds[i]),
            "score": {model: float(mean[i]) for model, mean in means.items()},
            "extra": facts.extra[i],
        }
        for i, name in enumerate(cohort.subjects)
    ]


def _fold_row(split: Split, cohort: Cohort) -> FoldOfNames:
    train, test = ([cohort.subjects[i] for i in part] for part in (split["train"], split["test"]))
    counts = {c: sum(cohort.labels[i] == label for i in split["test"]) for label, c in enumerate(cohort.classes)}
    repeat, fold = split["repeat"], split["fold"]
    return {"repeat": repeat, "fold": fold, "train": train, "test": test, "test_per_class": counts}


def _figures(unit: str, scores: Scores) -> SecondaryFigures:
    pooled = statistics.pooled(scores)
    return {"unit": unit, **cast(Figures, {name: float(pooled[name][0]) for name in METRICS})}


def _share_above(table: Table, count: int) -> np.ndarray:
    """(repeats, subjects): the share of a subject's windows at or above 0.5; exactly one half counts as positive."""
    repeats = int(table.repeat.max()) + 1
    place = table.repeat * count + table.subject
    above = np.bincount(place, table.probability >= 0.5, minlength=repeats * count)
    return (above / np.bincount(place, minlength=repeats * count)).reshape(repeats, count)


def read_curve(path: Path) -> list[CurveRow]:
    """The learning curve of a fit, a row per epoch."""
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def _write_predictions(path: Path, plan: Plan, tables: dict[tuple[str, str], Table]) -> None:
    cohort = cohort_of(plan)
    header = ("protocol", "model", "repeat", "fold", "subject", "label", "window", "probability", "threshold")
    with atomic_path(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        for (protocol, model), table in tables.items():
            columns = (table.repeat, table.fold, table.subject, table.window, table.probability, table.threshold)
            for repeat, fold, subject, window, probability, threshold in zip(
                *map(np.ndarray.tolist, columns), strict=True
            ):
                label = cohort.classes[cohort.labels[subject]]
                name = cohort.subjects[subject]
                writer.writerow((protocol, model, repeat, fold, name, label, window, probability, threshold))
