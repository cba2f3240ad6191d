"""Run cells in parallel, including groups whose next cells depend on the results of the previous ones."""

import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from .cells import Cell, Result, find_result
from .workers import Pool

T = TypeVar("T")
Key = TypeVar("Key")
Group = Generator[Sequence[Cell], list[Result], T]


class RunningCells(Generic[Key]):
    """The cells that run in a pool, each with a key by which the caller identifies it.

    Args:
        pool: runs the cells.
        folder: the parent of the cells' folders.
    """

    def __init__(self, pool: Pool, folder: Path):
        self.pool, self._folder = pool, folder
        self._running: list[tuple[Key, Cell, Any]] = []

    def __len__(self) -> int:
        return len(self._running)

    def start(self, queue: deque[tuple[Key, Cell]]) -> None:
        """Move cells from the front of the queue into the free slots of the pool."""
        count = min(self.pool.slots - len(self), len(queue))
        fresh = [queue.popleft() for _ in range(count)]
        futures = self.pool.submit(self._folder, [cell for _, cell in fresh]) if fresh else []
        self._running += [(key, cell, future) for (key, cell), future in zip(fresh, futures, strict=True)]

    def take_ended(self) -> list[tuple[Key, Cell, Any]]:
        """Remove the finished cells and return key, cell and future of each; if there are none, wait for a moment."""
        ended = [one for one in self._running if one[2].done()]
        if not ended:
            time.sleep(self.pool.pause)
        self._running = [one for one in self._running if one not in ended]
        return ended

    def abandon(self) -> list[Key]:
        """Forget all running cells, and return their keys."""
        keys = [key for key, _, _ in self._running]
        self._running = []
        return keys


def drive(
    groups: Sequence[Group[T]], pool: Pool, folder: Path, tell: Callable[[Cell, Result, bool], None] | None = None
) -> list[T]:
    """Run groups of cells in parallel until all are finished.

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
    running: RunningCells[int] = RunningCells(pool, folder)

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
        running.start(queue)
        for index, cell, future in running.take_ended():
            try:
                results[cell["id"]] = pool.result(future)
            except OSError as error:
                raise OSError(f"cell {cell['id']}: {error}") from error
            except (ValueError, MemoryError) as error:
                raise ValueError(f"cell {cell['id']}: {error}") from error
            if tell:
                tell(cell, results[cell["id"]], False)
            if all(c["id"] in results for c in asked[index]):
                advance(index, [results[c["id"]] for c in asked[index]])
    return [outcomes[index] for index in range(len(groups))]


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary folders of killed cells."""
    for path in folder.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)
