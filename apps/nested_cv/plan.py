"""The plan of a nested run: design, units, splits and settings, fixed before anything is fitted."""

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...runs.files import atomic_path
from ...runs.functions import with_present_names
from ...runs.record import package_versions
from .seeds import derive_seed
from .splits import Cohort, Split, check_splits, make_splits
from .statistics import OBJECTIVES

if TYPE_CHECKING:
    pass
Settings = dict[str, int | float | str | bool]
EstimatorSpec = dict[str, Any]  # {"factory": "module:function", "arguments": {...}}, plain values

NESTED = "nested"
PUBLISHED = "published"  # test-fold selection, for demonstrating optimism
TEST_EPOCH = "test-epoch"  # settings from the inner folds, the epoch chosen on the test fold
RANDOM_WINDOWS = "random-windows"  # windows of one subject on both sides
LIKELIHOOD = "likelihood"  # the objective of estimators that give no class
PLAN, CELLS, PREDICTIONS, RESULTS = "plan.json", "cells", "predictions.csv", "results.json"


class PlanWarning(UserWarning):
    """Something about a run that its reader should know."""


@dataclass(frozen=True)
class Design:
    """How much is run.

    Args:
        outer: folds of which each is tested once.
        inner: folds within each outer training part.
        repeats: how often all is split anew.
        trials: settings tried for each model and outer fold.
        batch: settings asked for at once; more of them keep more workers busy and teach the sampler less.
        objective: of the search, mean over inner folds at subject level: "auc", "balanced_accuracy" or "brier"; or
            "likelihood" for estimators that give a `LikelihoodFit`: the mean per token.
        protocol: "nested", "published" (test-fold selection, for demonstrating optimism) or "both".
        published: the models that run under the published protocol.
        seed: all others follow from it.
        threads: of each fit.
    """

    outer: int = 5
    inner: int = 2
    repeats: int = 1
    trials: int = 4
    batch: int = 1
    objective: Literal["auc", "balanced_accuracy", "brier", "likelihood"] = "auc"
    protocol: Literal["nested", "published", "both"] = "nested"
    published: tuple[str, ...] = ()
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("trials", "batch", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.objective not in (*OBJECTIVES, LIKELIHOOD):
            raise ValueError(f"objective must be one of {', '.join((*OBJECTIVES, LIKELIHOOD))}, got {self.objective!r}")
        if self.protocol not in (NESTED, PUBLISHED, "both"):
            raise ValueError(f'protocol must be "nested", "published" or "both", got {self.protocol!r}')


@dataclass(frozen=True)
class WindowUnits:
    """Windows as if each were a subject of its own, for the row of the optimism table that splits windows at random.

    Args:
        subject: index of the real subject of each window.
        estimators: model -> estimator whose subjects are these windows.
    """

    subject: tuple[int, ...]
    estimators: dict[str, EstimatorSpec]


def make_plan(
    cohort: Cohort,
    models: dict[str, EstimatorSpec],
    design: Design,
    *,
    options: dict[str, Any] | None = None,
    data: str = "",
    windows: WindowUnits | None = None,
    published: dict[str, EstimatorSpec] | None = None,
    splits: list[Split] | None = None,
) -> dict[str, Any]:
    """All that is decided before anything is fitted, as plain values.

    Args:
        cohort: who takes part.
        models: name -> how a worker builds it; the first is the one that the headline is about.
        design: how much is run.
        options: of the program that asks, kept for the report.
        data: a hash of the data.
        windows: for the random split of windows, which runs beside the published protocol.
        published: how a worker builds those models that are built otherwise under the published protocol.
        splits: where the folds were made elsewhere; by default those of `make_splits`.

    Raises:
        ValueError: for folds that cannot have both classes, or a published model that is not among the models.
    """
    unknown = set(design.published) - set(models)
    if unknown:
        raise ValueError(f"published must be among the models ({', '.join(models)}), got {', '.join(sorted(unknown))}")
    if design.protocol != NESTED and not design.published:
        raise ValueError(f"protocol {design.protocol!r} needs published: the models that it runs")
    if splits is None:
        splits = make_splits(cohort, outer=design.outer, inner=design.inner, repeats=design.repeats, seed=design.seed)
    plan = {
        "design": asdict(design),
        "cohort": asdict(cohort),
        "models": models,
        "splits": splits,
        "seeds": [derive_seed(design.seed, "outer", repeat) for repeat in range(design.repeats)],
        "windows": None if windows is None or design.protocol == NESTED else asdict(windows),
        "published_models": published or {},
        "options": options or {},
        "data": data,
        "versions": package_versions(),
    }
    result: dict[str, Any] = json.loads(json.dumps(plan, default=str))
    return result


def check_plan(plan: dict[str, Any]) -> None:
    """What `check_splits` checks, on a plan from a file."""
    check_splits(cohort_of(plan), plan["splits"])


def open_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Write the plan into a new folder, or see that the folder's plan is the same. Splits are checked in both cases.

    Raises:
        ValueError: the folder holds a run that was planned otherwise; the line says what differs.
        LeakError: someone is on both sides of a split.
    """
    check_plan(plan)
    path = folder / PLAN
    if not path.exists():
        if folder.exists() and any(p for p in folder.iterdir() if not p.name.startswith(".")):
            raise ValueError(f"{folder} is not empty and holds no {PLAN}; choose a new folder for --output")
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(plan, indent=1) + "\n")
        return
    before = with_present_names(json.loads(path.read_text()))
    check_plan(before)
    differences = [text for part in ("design", "options") for text in _differences(before.get(part, {}), plan[part])]
    parts = ("cohort", "models", "published_models", "splits", "windows", "data")
    differences += [part for part in parts if before.get(part) != plan[part]]
    if differences:
        raise ValueError(
            f"{folder} holds a run planned otherwise ({'; '.join(differences[:4])});"
            " choose another --output, or go on with the same options and data"
        )
    if before["versions"] != plan["versions"]:
        changed = "; ".join(_differences(before["versions"], plan["versions"]))
        warnings.warn(
            f"this run began with other versions ({changed}): last digits may differ", PlanWarning, stacklevel=2
        )


def cohort_of(plan: dict[str, Any]) -> Cohort:
    """The cohort of a plan."""
    return Cohort(**{name: tuple(value) for name, value in plan["cohort"].items()})


def random_windows(plan: dict[str, Any], model: str) -> bool:
    return plan["design"]["protocol"] == "both" and model in (plan["windows"] or {"estimators": {}})["estimators"]


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{name} was {before.get(name)}, now {now.get(name)}" for name in names]
