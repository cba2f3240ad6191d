"""A nested run of toys, `python toy_run.py OUT JOBS PAUSE`, which a test may kill."""

import json
import sys
from pathlib import Path

from voxelwave.apps.nested_cv.plan import Design, WindowUnits, make_plan, open_plan
from voxelwave.apps.nested_cv.records import Plan, Results
from voxelwave.apps.nested_cv.results import Facts, write_predictions, write_results
from voxelwave.apps.nested_cv.search import run_plan
from voxelwave.apps.nested_cv.splits import Cohort
from voxelwave.runs.workers import Pool, open_pool

SUBJECTS, WINDOWS = 24, 4
LABELS = [i % 2 for i in range(SUBJECTS)]


def toy(**arguments) -> dict:
    return {"factory": "toy_estimator:factory", "arguments": {"labels": LABELS, **arguments}}


def toy_plan(models: dict | None = None, *, labels: list[int] | None = None, pause: float = 0.0, **design) -> Plan:
    """Two toys, of which by default the first also runs with the published protocol."""
    labels = labels or LABELS
    cohort = Cohort(tuple(f"s{i:03d}" for i in range(len(labels))), tuple(labels), ("control", "case"))
    by_window = [label for label in labels for _ in range(WINDOWS)]
    units = WindowUnits(
        tuple(i for i in range(len(labels)) for _ in range(WINDOWS)), {"good": toy(labels=by_window, effect=0.9)}
    )
    models = models or {"good": toy(effect=1.5, pause=pause, seed=1), "poor": toy(effect=0.0, pause=pause)}
    given = {"outer": 3, "inner": 2, "trials": 3, "protocol": "both", "published": ("good",), "seed": 5, **design}
    return make_plan(cohort, models, Design(**given), windows=units if "good" in given["published"] else None)


def run(folder: Path, plan: Plan, pool: Pool) -> Results:
    """Run the missing fits, and write predictions and results."""
    open_plan(folder, plan)
    finished = False
    try:
        outcomes = run_plan(folder, plan, pool)
        finished = True
    finally:
        pool.close(now=not finished)
    tables = write_predictions(folder, plan, outcomes)
    subjects = len(plan["cohort"]["subjects"])
    return write_results(folder, plan, outcomes, tables, facts_of(plan, subjects))


def facts_of(plan: Plan, subjects: int) -> Facts:
    per_class = {
        name: {
            "subjects": plan["cohort"]["labels"].count(label),
            "windows": WINDOWS * plan["cohort"]["labels"].count(label),
            "seconds_median": 60.0,
            "seconds_range": [60.0, 60.0],
        }
        for label, name in enumerate(plan["cohort"]["classes"])
    }
    return Facts(
        title="toys",
        command="toy_run.py",
        flow={
            "listed": subjects,
            "read": subjects,
            "excluded": [],
            "analysed": subjects,
            "windows": WINDOWS * subjects,
            "per_class": per_class,
        },
        windows=[WINDOWS] * subjects,
        seconds=[60.0] * subjects,
        extra=[{}] * subjects,
        audit=[],
        limits=["Toys."],
        description=["Random numbers."],
        models={name: {"title": f"the {name} toy", "description": "random numbers"} for name in plan["models"]},
        caveats=[],
        hardware="none",
        created="today",
        seconds_run=1.0,
    )


if __name__ == "__main__":
    output, jobs, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    print(json.dumps(run(output, toy_plan(pause=pause), open_pool(output, jobs=jobs))["headline"]))
