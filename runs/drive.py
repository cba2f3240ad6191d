"""Run groups of cells side by side; each group yields its next cells when its last ones are finished."""

import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .cells import Cell, Result, find_result
from .workers import Pool

T = TypeVar("T")
Group = Generator[Sequence[Cell], list[Result], T]


def drive(
    groups: Sequence[Group[T]], pool: Pool, folder: Path, tell: Callable[[Cell, Result, bool], None] | None = None
) -> list[T]:
    """Run groups of cells side by side until all are finished.

    A group is a generator: it yields the cells it needs next, receives their results in the same order, and returns its
    outcome. Its next cells depend only on results, never on the order in which cells finish.

    Args:
        groups: the generators, the most important ones first.
        pool: runs the cells.
        folder: the parent of the cells' folders.
        tell: called with each cell, its result, and True if the cell was finished before.

    Returns:
        The outcome of each group.

    Raises:
        ValueError, OSError: a cell failed; the message names it.
    """
    folder = folder.resolve()  # workers may have another working directory
    outcomes: dict[int, T] = {}
    asked: dict[int, Sequence[Cell]] = {}
    results: dict[str, Result] = {}
    queue: deque[tuple[int, Cell]] = deque()
    running: dict[str, tuple[int, Cell, Any]] = {}

    def advance(index: int, answers: list[Result] | None) -> None:
        while True:
            try:
                cells = next(groups[index]) if answers is None else groups[index].send(answers)
            except StopIteration as end:
                outcomes[index] = end.value
                asked.pop(index, None)
                return
            asked[index] = cells
            for cell in cells:
                found = find_result(folder, cell)
                if found is None:
                    queue.append((index, cell))
                else:
                    results[cell["id"]] = found
                    if tell:
                        tell(cell, found, True)
            if not all(cell["id"] in results for cell in cells):
                return
            answers = [results[cell["id"]] for cell in cells]

    for index in range(len(groups)):
        advance(index, None)
    while queue or running:
        fresh = [queue.popleft() for _ in range(min(pool.slots - len(running), len(queue)))]
        futures = pool.submit(folder, [cell for _, cell in fresh]) if fresh else []
        running |= {cell["id"]: (i, cell, f) for (i, cell), f in zip(fresh, futures, strict=True)}
        ended = [name for name, (_, _, future) in running.items() if future.done()]
        if not ended:
            time.sleep(pool.pause)
        for name in ended:
            index, cell, future = running.pop(name)
            try:
                results[name] = pool.result(future)
            except OSError as error:
                raise OSError(f"cell {name}: {error}") from error
            except (ValueError, MemoryError) as error:
                raise ValueError(f"cell {name}: {error}") from error
            if tell:
                tell(cell, results[name], False)
            if all(c["id"] in results for c in asked[index]):
                advance(index, [results[c["id"]] for c in asked[index]])
    return [outcomes[index] for index in range(len(groups))]


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary folders of killed cells."""
    for path in folder.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)
