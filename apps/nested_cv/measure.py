"""Cross-validation of methods that are not fitted: every method is measured under each of its settings on each unit.

A unit is an image or a pair of scans. A figure depends on the unit and the settings only, so each is measured once, in
a cell of its own (see `runs.cells`); for each outer fold the settings with the best mean on the training units are
chosen, and their figures on the test units count. Test units therefore choose nothing.
"""

import functools
import json
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

from filelock import FileLock, Timeout
from rich.progress import Progress

from ...runs.cells import Cell, Result
from ...runs.drive import drive, remove_unfinished
from ...runs.functions import load_function
from ...runs.words import one_line
from ...runs.workers import open_pool
from ..options import WorkerOptions
from .measured_records import Figures, MeasureCell, MeasureResult
from .plan import CELLS
from .records import EstimatorSpec, Plan, Settings

Grid = Mapping[str, Sequence[Settings]]  # method -> its settings
Measured = dict[tuple[str, int, int], MeasureResult]  # (method, index of its settings, unit) -> result


class Measure(Protocol):
    """What a factory of a plan makes: figures of a method on a unit."""

    def __call__(self, model: str, unit: int, settings: Settings) -> Figures:
        """The figures; a ValueError is a failure of this unit, which the results list."""


@functools.lru_cache(maxsize=2)
def _measure_of(spec: str) -> Measure:
    content = json.loads(spec)
    made: Measure = load_function(content["factory"])(**content["arguments"])
    return made


def measure_cell(cell: MeasureCell, folder: Path) -> MeasureResult:
    """Measure one method on one unit; the function of a cell."""
    measure = _measure_of(json.dumps(cell["measure"], sort_keys=True))
    try:
        figures = measure(cell["model"], cell["unit"], cell["settings"])
    except ValueError as error:
        return {"failed": one_line(error)}
    undefined = [name for name, value in figures.items() if not math.isfinite(value)]
    if undefined:
        return {"failed": f"{', '.join(undefined)} is not finite"}
    return {"figures": figures}


def run_measurements(
    folder: Path, plan: Plan, grid: Grid, workers: WorkerOptions, fitted: Callable[[], object] = lambda: None
) -> Measured:
    """Measure whatever is not measured yet, and return all results.

    Args:
        folder: the folder of the run, in which only one run can work at a time.
        plan: a plan that `open_plan` accepted.
        grid: the settings of each method.
        workers: where to measure.
        fitted: called after each cell.

    Raises:
        ValueError, OSError: a cell failed, or another run works in the folder.
    """
    cells = folder / CELLS
    cells.mkdir(exist_ok=True)
    pool = open_pool(folder, jobs=workers.jobs, cluster=workers.cluster, slurm=workers.slurm)
    finished = False
    try:
        with FileLock(folder / ".lock", timeout=0), Progress() as progress:
            if not pool.shared:
                remove_unfinished(cells)
            wanted = [_cells(plan, model, choices) for model, choices in grid.items()]
            bar = progress.add_task("measurements", total=sum(len(part) for part in wanted))

            def show(cell: Cell, result: Result, finished_before: bool) -> None:
                progress.update(bar, advance=1, description=cell["id"])
                fitted()

            found = drive([_asked(part) for part in wanted], pool, cells, show)
            progress.update(bar, description="measurements")
        finished = True
    except Timeout as error:
        raise OSError(f"another run works in {folder}; wait for it, or choose another --output") from error
    finally:
        pool.close(now=not finished)
    return {key: result for part in found for key, result in part.items()}


def _asked(cells: dict[tuple[str, int, int], MeasureCell]) -> Generator[Sequence[Cell], list[Result], Measured]:
    results = yield list(cells.values())
    return dict(zip(cells, cast(list[MeasureResult], results), strict=True))


def _cells(plan: Plan, model: str, choices: Sequence[Settings]) -> dict[tuple[str, int, int], MeasureCell]:
    spec: EstimatorSpec = plan["models"][model]
    return {
        (model, number, unit): {
            "id": f"{model}-s{number}-u{unit}",
            "function": "measure",
            "threads": plan["design"]["threads"],
            "measure": spec,
            "model": model,
            "unit": unit,
            "settings": settings,
        }
        for number, settings in enumerate(choices)
        for unit in range(len(plan["cohort"]["subjects"]))
    }
