"""The plan of a nested run: design, cohort, splits and models, fixed before the first fit."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ...runs.functions import with_present_names
from ...runs.json_files import write_json
from ...runs.json_types import check_record
from ...runs.record import package_versions
from ..options import PLAN, must_be_run_or_new
from .records import EstimatorSpec, Plan, Split
from .seeds import derive_seed
from .splits import Cohort, check_splits, make_splits
from .statistics import OBJECTIVES

NESTED = "nested"
PUBLISHED = "published"  # selection on the test fold, to demonstrate optimism
TEST_EPOCH = "test-epoch"  # settings from the inner folds, the epoch chosen on the test fold
RANDOM_WINDOWS = "random-windows"  # a subject has windows on both sides
REFIT = "refit"  # settings, epochs and threshold of the nested run, on altered data or fewer subjects
SCORE: Literal["score"] = "score"  # the objective of methods that are not fitted, see `measure`
LIKELIHOOD = "likelihood"  # the objective of estimators without classes
CELLS, PREDICTIONS, RESULTS = "cells", "predictions.csv", "results.json"


class PlanWarning(UserWarning):
    """A remark about a run for readers of its results."""


@dataclass(frozen=True)
class Design:
    """Folds, search and protocol of a run.

    Args:
        outer: number of outer folds; each is tested once.
        inner: number of folds within each outer training part.
        repeats: number of partitions into outer folds.
        trials: settings tried for each model and outer fold.
        batch: number of settings drawn at once; a larger batch keeps more workers busy, but the sampler learns less.
        startup: number of random settings with which the search starts; all settings differ, if there are enough.
        objective: the figure by which the search chooses settings, computed per subject and averaged over inner folds:
            "auc", "balanced_accuracy" or "brier"; or "likelihood", the mean log-likelihood per token, for estimators
            with a `LikelihoodFit`; or "score" for methods that are not fitted.
        protocol: "nested", "published" (selection on the test fold, to demonstrate optimism) or "both".
        published: the models that run under the published protocol.
        seed: the seed from which all others are derived.
        threads: CPU threads of each fit.
    """

    outer: int = 5
    inner: int = 2
    repeats: int = 1
    trials: int = 4
    batch: int = 1
    objective: Literal["auc", "balanced_accuracy", "brier", "likelihood", "score"] = "auc"
    protocol: Literal["nested", "published", "both"] = "nested"
    published: tuple[str, ...] = ()
    seed: int = 0
    threads: int = 1
    startup: int = 10

    def __post_init__(self) -> None:
        for name in ("trials", "batch", "threads", "startup"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.objective not in (*OBJECTIVES, LIKELIHOOD, SCORE):
            known = ", ".join((*OBJECTIVES, LIKELIHOOD, SCORE))
            raise ValueError(f"objective must be one of {known}, got {self.objective!r}")
        if self.protocol not in (NESTED, PUBLISHED, "both"):
            raise ValueError(f'protocol must be "nested", "published" or "both", got {self.protocol!r}')


@dataclass(frozen=True)
class WindowUnits:
    """Windows as units, for the row of the optimism table that splits windows at random.

    Args:
        subject: index of the subject of each window.
        estimators: model -> an estimator that treats each window as a subject.
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
) -> Plan:
    """All decisions that are made before the first fit, as plain values.

    Args:
        cohort: the subjects.
        models: name -> how a worker builds the model; the headline of the report is about the first model.
        design: folds, search and protocol.
        options: further options of the command, for the report.
        data: a hash of the data.
        windows: units of the random split of windows, which runs in addition to the published protocol.
        published: name -> how a worker builds the model under the published protocol, if this differs.
        splits: the folds; by default those of `make_splits`.

    Raises:
        ValueError: a fold cannot contain both classes, or a published model is not among the models.
    """
    unknown = set(design.published) - set(models)
    if unknown:
        raise ValueError(f"published must be among the models ({', '.join(models)}), got {', '.join(sorted(unknown))}")
    if design.protocol != NESTED and not design.published:
        raise ValueError(f"protocol {design.protocol!r} needs published: the models that it runs")
    if splits is None:
        splits = make_splits(cohort, outer=design.outer, inner=design.inner, repeats=design.repeats, seed=design.seed)
    plan = {  # the keys of `Plan`
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
    return cast(Plan, json.loads(json.dumps(plan, default=str)))


def read_plan(path: Path) -> Plan:
    """Read plan.json, also of version 0.1.0.

    Raises:
        ValueError: the file is not a plan.
    """
    try:
        plan = with_present_names(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path} must be a JSON file: {error}") from error
    check_record(plan, Plan, path)
    return cast(Plan, plan)


def check_plan(plan: Plan) -> None:
    """Check the splits of a plan by `check_splits`."""
    check_splits(cohort_of(plan), plan["splits"])


def open_plan(folder: Path, plan: Plan) -> Plan:
    """Write the plan into a new folder, or compare it with the plan of the folder. Splits are checked in both cases.

    Returns:
        The plan to run: the given one, but with the search of the version that began the run.

    Raises:
        ValueError: the folder holds a run with another plan; the message lists the differences.
        LeakError: a person is on both sides of a split.
    """
    check_plan(plan)
    path = folder / PLAN
    if not path.exists():
        must_be_run_or_new(folder)
        write_json(path, plan)
        return plan
    before = read_plan(path)
    check_plan(before)
    if "startup" not in before["design"]:
        plan = cast(Plan, {**plan, "design": {k: v for k, v in plan["design"].items() if k != "startup"}})
    differences = _differences(before["design"], plan["design"]) + _differences(before["options"], plan["options"])
    now: dict[str, Any] = {**plan}
    then: dict[str, Any] = {**before}
    parts = [p for p in ("cohort", "models", "published_models", "splits", "windows") if now[p] != then[p]]
    differences += [_first_difference(part, then[part], now[part]) for part in parts]
    if now["data"] != then["data"]:
        differences.append("the recordings differ")
    if differences:
        read_otherwise = {"cohort", "splits"} & {*parts} or now["data"] != then["data"]
        hint = ", with the version that began it" if read_otherwise else ""
        raise ValueError(
            f"{folder} holds a run with another plan ({'; '.join(differences[:4])});"
            f" choose another --output, or continue with the same options and data{hint}"
        )
    if before["versions"] != plan["versions"]:
        changed = "; ".join(_differences(before["versions"], plan["versions"]))
        warnings.warn(
            f"this run began with other versions ({changed}): last digits may differ", PlanWarning, stacklevel=2
        )
    return plan


def cohort_of(plan: Plan) -> Cohort:
    """The cohort of a plan."""
    return Cohort(**{name: tuple(cast(list[Any], value)) for name, value in plan["cohort"].items()})


def random_windows(plan: Plan, model: str) -> bool:
    """Whether the model also runs on a random split of windows."""
    windows = plan["windows"]
    return plan["design"]["protocol"] == "both" and windows is not None and model in windows["estimators"]


def _first_difference(name: str, before: object, now: object) -> str:
    """The first place where two plans differ, with both values."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
        return _first_difference(f"{name}.{key}", before.get(key), now.get(key))
    if isinstance(before, list | tuple) and isinstance(now, list | tuple):
        if len(before) != len(now):
            return f"{name} had {len(before)} entries, now {len(now)}"
        place = next(i for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
        return _first_difference(f"{name}.{place}", before[place], now[place])
    return f"{name} was {str(before)[:60]}, now {str(now)[:60]}"


def _differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{name} was {before.get(name)}, now {now.get(name)}" for name in names]
