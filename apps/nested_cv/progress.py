"""A nested run with a progress bar."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.progress import Progress

from ...runs.cells import Cell, Result
from ...runs.drive import Group
from ...runs.workers import open_pool
from ..options import WorkerOptions
from .records import Plan
from .search import Outcome, run_plan


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
