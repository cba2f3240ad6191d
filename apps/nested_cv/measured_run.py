"""A run of cross-validation where nothing is fitted, from its plan to its report; shared by the fields."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ...runs.record import command_line, hardware
from ...runs.tables import show_table
from ..options import WorkerOptions
from .measure import Grid, run_measurements
from .measured_records import MeasuredFlow, MeasuredResults, MetricText
from .measured_report import write_measured_results
from .measured_results import MeasuredFacts, measured_results
from .plan import SCORE, Design, make_plan, open_plan
from .progress import CLOCK, Clock
from .records import AuditRow, EstimatorSpec, ModelTexts, Split
from .report_text import span
from .splits import Cohort


@dataclass(frozen=True)
class MeasuredStudy:
    """What a field says about its units, methods and metrics.

    Args:
        cohort: the units, without classes; their groups are kept together.
        splits: the outer folds.
        spec: how a worker builds the `Measure`.
        grid: the settings of each method; the first method is that of the headline.
        options: options of the command, for plan and report.
        data: a hash of the data.
        title, description, unit, group, metrics, models, flow, audit, limits: see `MeasuredFacts`.
        seed: seed of folds and tests.
    """

    cohort: Cohort
    splits: list[Split]
    spec: EstimatorSpec
    grid: Grid
    options: dict[str, Any]
    data: str
    title: str
    description: list[str]
    unit: str
    group: str
    metrics: dict[str, MetricText]
    models: dict[str, ModelTexts]
    flow: MeasuredFlow
    audit: list[AuditRow]
    limits: list[str]
    seed: int


def run_measured(output: Path, study: MeasuredStudy, workers: WorkerOptions) -> MeasuredResults:
    """Run whatever is missing, write results and report, and print a table."""
    design = Design(outer=len(study.splits), objective=SCORE, trials=1, seed=study.seed, threads=workers.threads)
    plan = make_plan(
        study.cohort,
        dict.fromkeys(study.grid, study.spec),
        design,
        options={**study.options, "settings": study.grid},
        data=study.data,
        splits=study.splits,
    )
    plan = open_plan(output, plan)
    clock = Clock(output / CLOCK)
    measured = run_measurements(output, plan, study.grid, workers, clock.tick)
    clock.tick()
    facts = MeasuredFacts(
        title=study.title,
        command=command_line(),
        description=study.description,
        seconds=round(clock.seconds, 1),
        hardware=hardware(),
        unit=study.unit,
        group=study.group,
        metrics=study.metrics,
        models=study.models,
        flow=study.flow,
        audit=[*_audit(study), *study.audit],
        limits=[*study.limits, "Research software, not a medical device."],
    )
    results = measured_results(plan, study.grid, measured, facts)
    write_measured_results(output, results)
    _print(results)
    print(f"wrote {output}/: report.html, results.json, units.csv")
    return results


def settings_grid(space: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All combinations of the values of a space.

    Example:
        >>> settings_grid({"a": [1, 2], "b": [3]})
        [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]
    """
    found: list[dict[str, Any]] = [{}]
    for name, values in space.items():
        found = [{**one, name: value} for one in found for value in values]
    return found


def _audit(study: MeasuredStudy) -> list[AuditRow]:
    """What the plan guarantees: `open_plan` has checked the folds."""
    groups = len(set(study.cohort.persons))
    apart = f"{len(study.splits)} folds of {groups} groups"
    return [
        {"check": f"no {study.group} on both sides", "outcome": "ok", "detail": apart},
        {
            "check": f"each {study.unit} held out once",
            "outcome": "ok",
            "detail": f"{len(study.cohort.subjects)} {study.unit}s",
        },
        {
            "check": "settings chosen outside the held-out fold",
            "outcome": "ok",
            "detail": "results.json lists the settings of each fold with their score on the other folds",
        },
    ]


def _print(results: MeasuredResults) -> None:
    table = Table("method", *(f"{t['title']} {t['unit']}".strip() for t in results["metrics"].values()))
    for model in results["models"]:
        cells = []
        for name, text in results["metrics"].items():
            found = model["metrics"][name]
            digits = 2 if text["unit"] else 3
            cells.append(f"{found['mean']:.{digits}f} ({span(found['interval_nb'], digits)})")
        table.add_row(model["title"], *cells)
    show_table(table)
    print("Mean over folds with the 95 % interval by Nadeau and Bengio.")
