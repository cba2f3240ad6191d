"""Results of cross-validation where nothing is fitted: settings chosen on training units, figures on held-out ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from . import statistics
from .measure import Grid, Measured
from .measured_records import (
    Figures,
    MeasuredComparison,
    MeasuredFlow,
    MeasuredFold,
    MeasuredMetric,
    MeasuredModel,
    MeasuredResults,
    MeasuredUnit,
    MetricText,
)
from .plan import cohort_of
from .records import AuditRow, ModelTexts, Plan, Settings, Split
from .seeds import derive_seed
from .splits import Cohort

_PERMUTATIONS = 10000


@dataclass(frozen=True)
class MeasuredFacts:
    """Facts from the command, which results.json holds unchanged; see `MeasuredResults`.

    Args:
        unit, group: what is measured and what folds keep together, such as "pair" and "person".
        metrics: the metrics, the objective first.
        models: method -> title and description.
    """

    title: str
    command: str
    description: list[str]
    seconds: float
    hardware: str
    unit: str
    group: str
    metrics: dict[str, MetricText]
    models: dict[str, ModelTexts]
    flow: MeasuredFlow
    audit: list[AuditRow]
    limits: list[str]


def measured_results(plan: Plan, grid: Grid, measured: Measured, facts: MeasuredFacts) -> MeasuredResults:
    """The content of results.json.

    Raises:
        ValueError: a method failed on all units of a fold.
    """
    cohort = cohort_of(plan)
    objective = next(iter(facts.metrics))
    found = {model: _held_out(plan, model, choices, measured, facts) for model, choices in grid.items()}
    folds = {model: own.folds for model, own in found.items()}
    tested = {model: own.tested for model, own in found.items()}
    failed = {model: own.failed for model, own in found.items()}
    share = 1 / (plan["design"]["outer"] - 1)
    models = [
        _model(name, facts.models[name], len(grid[name]), folds[name], tested[name], facts.metrics, share)
        for name in grid
    ]
    return {
        "kind": "measured",
        "title": facts.title,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": facts.command,
        "description": facts.description,
        "seconds": facts.seconds,
        "hardware": facts.hardware,
        "versions": plan["versions"],
        "options": {**plan["design"], **plan["options"]},
        "unit": facts.unit,
        "group": facts.group,
        "objective": objective,
        "metrics": facts.metrics,
        "flow": facts.flow,
        "folds": [
            {
                "fold": split["fold"],
                "train": len(split["train"]),
                "test": len(split["test"]),
                "test_groups": len({cohort.persons[unit] for unit in split["test"]}),
            }
            for split in plan["splits"]
        ],
        "models": models,
        "comparisons": _comparisons(plan, tested, folds, facts.metrics, share),
        "units": _units(cohort, plan["splits"], tested, failed),
        "audit": facts.audit,
        "limits": facts.limits,
    }


@dataclass(frozen=True)
class _HeldOut:
    """The held-out figures of one method: by fold, and by unit, with the reasons of those that failed."""

    folds: list[MeasuredFold]
    tested: dict[int, Figures]
    failed: dict[int, str]


def _held_out(
    plan: Plan, model: str, choices: Sequence[Settings], measured: Measured, facts: MeasuredFacts
) -> _HeldOut:
    objective = next(iter(facts.metrics))
    result = _HeldOut([], {}, {})
    for split in plan["splits"]:
        number, score = _choose(model, len(choices), split, measured, objective, facts.metrics)
        own = {unit: measured[model, number, unit] for unit in split["test"]}
        good = {unit: one["figures"] for unit, one in own.items() if "figures" in one}
        if not good:
            reason = next(one["failed"] for one in own.values())
            raise ValueError(f"{model} failed on every test {facts.unit} of fold {split['fold'] + 1}: {reason}")
        result.tested.update(good)
        result.failed.update({unit: one["failed"] for unit, one in own.items() if "failed" in one})
        result.folds.append(
            {
                "fold": split["fold"],
                "settings": choices[number],
                "training_score": score,
                "figures": {name: float(np.mean([one[name] for one in good.values()])) for name in facts.metrics},
                "tested": len(good),
                "failed": len(own) - len(good),
            }
        )
    return result


def _choose(
    model: str, count: int, split: Split, measured: Measured, objective: str, metrics: Mapping[str, MetricText]
) -> tuple[int, float]:
    """The settings that are best on the training units, the first of equally good ones; and their mean there.

    Settings under which fewer training units failed are preferred.
    """
    sign = 1.0 if metrics[objective]["higher"] else -1.0
    ranked = []
    for number in range(count):
        results = [measured[model, number, unit] for unit in split["train"]]
        values = [result["figures"][objective] for result in results if "figures" in result]
        if values:
            mean = float(np.mean(values))
            ranked.append((len(values), sign * mean, -number, mean))
    if not ranked:
        reason = next(measured[model, 0, unit]["failed"] for unit in split["train"])
        raise ValueError(f"{model} failed on every training unit of fold {split['fold'] + 1}: {reason}")
    _, _, number, mean = max(ranked)
    return -number, mean


def _model(
    name: str,
    texts: ModelTexts,
    tried: int,
    folds: list[MeasuredFold],
    tested: Mapping[int, Figures],
    metrics: Mapping[str, MetricText],
    share: float,
) -> MeasuredModel:
    found: dict[str, MeasuredMetric] = {}
    for metric in metrics:
        by_fold = [fold["figures"][metric] for fold in folds]
        by_unit = [figures[metric] for figures in tested.values()]
        found[metric] = {
            "mean": float(np.mean(by_fold)),
            "sd_folds": float(np.std(by_fold, ddof=1)),
            "interval_nb": list(statistics.nadeau_bengio(by_fold, share)),
            "over_units": float(np.mean(by_unit)),
            "sd_units": float(np.std(by_unit, ddof=1)) if len(by_unit) > 1 else 0.0,
        }
    return {"name": name, **texts, "settings_tried": tried, "metrics": found, "per_fold": folds}


def _comparisons(
    plan: Plan,
    tested: Mapping[str, Mapping[int, Figures]],
    folds: Mapping[str, Sequence[MeasuredFold]],
    metrics: Mapping[str, MetricText],
    share: float,
) -> list[MeasuredComparison]:
    """The first method against each of the others, on the units that both measured; Holm within a metric."""
    persons, names = cohort_of(plan).persons, list(tested)
    rows: list[MeasuredComparison] = []
    for metric in metrics:
        family = []
        for other in names[1:]:
            units = sorted(set(tested[names[0]]) & set(tested[other]))
            gains = np.array([tested[names[0]][u][metric] - tested[other][u][metric] for u in units])
            by_fold = [
                a["figures"][metric] - b["figures"][metric] for a, b in zip(folds[names[0]], folds[other], strict=True)
            ]
            seed = derive_seed(plan["design"]["seed"], "comparison", names[0], other, metric)
            p = _swap_test(gains, [persons[unit] for unit in units], seed)
            family.append((other, float(np.mean(by_fold)), list(statistics.nadeau_bengio(by_fold, share)), p))
        for (other, difference, interval, p), adjusted in zip(
            family, statistics.holm([row[3] for row in family]), strict=True
        ):
            rows.append(
                {
                    "a": names[0],
                    "b": other,
                    "metric": metric,
                    "difference": difference,
                    "interval": interval,
                    "p": p,
                    "p_holm": adjusted,
                }
            )
    return rows


def _swap_test(gains: np.ndarray, groups: Sequence[str], seed: int) -> float:
    """p of a mean gain over units, when the two methods are swapped for whole groups at random."""
    _, place = np.unique(groups, return_inverse=True)
    sums = np.bincount(place, gains)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(_PERMUTATIONS, len(sums)))
    null = np.abs(signs @ sums)
    return float((1 + (null >= abs(sums.sum()) - 1e-12).sum()) / (1 + _PERMUTATIONS))


def _units(
    cohort: Cohort,
    splits: Sequence[Split],
    tested: Mapping[str, Mapping[int, Figures]],
    failed: Mapping[str, Mapping[int, str]],
) -> list[MeasuredUnit]:
    fold_of = {unit: split["fold"] for split in splits for unit in split["test"]}
    return [
        {
            "unit": name,
            "group": cohort.persons[unit],
            "fold": fold_of[unit],
            "figures": {model: figures[unit] for model, figures in tested.items() if unit in figures},
            "failed": {model: reasons[unit] for model, reasons in failed.items() if unit in reasons},
        }
        for unit, name in enumerate(cohort.subjects)
    ]
