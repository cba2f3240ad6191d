"""Run groups of cells side by side, each group asking for its next cells when the last ones are finished."""

import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .cells import Cell, Result, find_result
from .workers import Pool

T = TypeVar("T")
Group = Generator[list[Cell], list[Result], T]


def drive(
    groups: Sequence[Group[T]], pool: Pool, folder: Path, tell: Callable[[Cell, Result, bool], None] | None = None
) -> list[T]:
    """Run groups of cells side by side to their ends.

    A group is a generator: it yields the cells it needs next, is sent their results in the same order, and returns
    its outcome. What it asks for depends on results only, never on the order in which cells happen to finish.

    Args:
        groups: the generators, those that matter most first.
        pool: where cells run.
        folder: of the cells' folders.
        tell: called with each cell, its result, and whether it was found rather than run.

    Raises:
        ValueError, OSError: the first cell that failed, by name.
    """
    folder = folder.resolve()  # workers may have another working directory
    outcomes: dict[int, T] = {}
    asked: dict[int, list[Cell]] = {}
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
    """Take away what killed cells left behind."""
    for path in folder.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)
