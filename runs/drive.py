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
    state = _Groups(groups, folder.resolve(), tell)  # workers may have another working directory
    running: RunningCells[int] = RunningCells(pool, state.folder)
    for index in range(len(groups)):
        state.advance(index, None)
    while state.queue or running:
        running.start(state.queue)
        for index, cell, future in running.take_ended():
            try:
                result = pool.result(future)
            except OSError as error:
                raise OSError(f"cell {cell['id']}: {error}") from error
            except (ValueError, MemoryError) as error:
                raise ValueError(f"cell {cell['id']}: {error}") from error
            state.take(index, cell, result)
    return [state.outcomes[index] for index in range(len(groups))]


class _Groups(Generic[T]):
    """Groups and the cells that they wait for, each group known by its index.

    Args:
        groups: the generators.
        folder: the parent of the cells' folders.
        tell: see `drive`.
    """

    def __init__(
        self, groups: Sequence[Group[T]], folder: Path, tell: Callable[[Cell, Result, bool], None] | None
    ) -> None:
        self.folder = folder
        self.outcomes: dict[int, T] = {}
        self.queue: deque[tuple[int, Cell]] = deque()  # cells to run
        self._groups, self._tell = groups, tell or (lambda *_: None)
        self._asked: dict[int, Sequence[Cell]] = {}
        self._results: dict[str, Result] = {}

    def advance(self, index: int, answers: list[Result] | None) -> None:
        """Continue a group until it ends, or needs cells that are not finished; these go into the queue."""
        while True:
            try:
                cells = next(self._groups[index]) if answers is None else self._groups[index].send(answers)
            except StopIteration as end:
                self.outcomes[index] = end.value
                self._asked.pop(index, None)
                return
            self._asked[index] = cells
            for cell in cells:
                found = find_result(self.folder, cell)
                if found is None:
                    self.queue.append((index, cell))
                else:
                    self._results[cell["id"]] = found
                    self._tell(cell, found, True)
            answers = self._answers(index)
            if answers is None:
                return

    def take(self, index: int, cell: Cell, result: Result) -> None:
        """Add the result of a cell, and continue its group if this was the last one that it needed."""
        self._results[cell["id"]] = result
        self._tell(cell, result, False)
        answers = self._answers(index)
        if answers is not None:
            self.advance(index, answers)

    def _answers(self, index: int) -> list[Result] | None:
        """The results of all cells that a group asked for; None if some are not finished."""
        names = [cell["id"] for cell in self._asked[index]]
        return [self._results[name] for name in names] if all(name in self._results for name in names) else None


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary folders of killed cells."""
    for path in folder.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)
