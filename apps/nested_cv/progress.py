"""A nested run with a progress bar."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.progress import Progress

from ...runs.cells import Cell, Result
from ...runs.drive import Group
from ...runs.json_files import write_json
from ...runs.workers import open_pool
from ..options import WorkerOptions
from .records import Plan
from .search import Outcome, run_plan

CLOCK = "time.json"


class Clock:
    """Wall time of a run over all its sessions, saved on disk so that a kill loses at most the time of the last fit."""

    def __init__(self, path: Path):
        self._path = path
        self._before = json.loads(path.read_text())["seconds"] if path.is_file() else 0.0
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._before + time.perf_counter() - self._started

    def tick(self) -> None:
        """Save the time."""
        write_json(self._path, {"seconds": round(self.seconds, 1)}, indent=None)


def run_with_progress(
    folder: Path,
    plan: Plan,
    workers: WorkerOptions,
    *,
    total: int,
    more: Sequence[Group[list[Outcome]]] = (),
    then: Callable[[list[Outcome]], Sequence[Group[list[Outcome]]]] | None = None,
    fitted: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Run all fits of a plan, and show how many are done.

    Args:
        folder: the folder of the run.
        plan: the plan of the run.
        workers: where to run the fits.
        total: the largest number of fits.
        more, then: further cells, see `run_plan`.
        fitted: called after each fit.
    """
    pool = open_pool(folder, jobs=workers.jobs, cluster=workers.cluster, slurm=workers.slurm)
    finished = False
    try:
        with Progress() as progress:
            bar = progress.add_task("fits", total=total)

            def show(cell: Cell, result: Result, finished_before: bool) -> None:
                progress.update(bar, advance=1, description=cell["id"])
                fitted()

            outcomes = run_plan(folder, plan, pool, show, more, then)
            progress.update(bar, total=1, completed=1, description="fits")
        finished = True
    finally:
        pool.close(now=not finished)
    return outcomes
