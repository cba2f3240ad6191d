"""Progress of a batch on the screen."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from .case import Case


@dataclass
class Counts:
    """The number of cases that ended in each state."""

    done: int = 0
    found: int = 0
    failed: int = 0
    refused: int = 0

    def add(self, status: str) -> None:
        """Count one case that ended as "done", "found", "failed" or "refused"."""
        match status:
            case "done":
                self.done += 1
            case "found":
                self.found += 1
            case "failed":
                self.failed += 1
            case "refused":
                self.refused += 1
            case _:
                raise ValueError(f'status must be "done", "found", "failed" or "refused", got {status!r}')

    @property
    def ended(self) -> int:
        """The number of finished cases."""
        return self.done + self.found + self.failed + self.refused

    def words(self, everything: int) -> str:
        """The counts as one line of text."""
        parts = [f"{self.done} of {everything} done"]
        parts += [f"{self.found} done before and unchanged"] if self.found else []
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{self.refused} refused"] if self.refused else []
        return ", ".join(parts)


class Display:
    """Progress with the time left: a bar on a terminal, and a line for each case that ended."""

    def __init__(self, cases: Sequence[Case], counts: Counts):
        self.counts, self.everything = counts, len(cases)
        self.total = sum(max(case.size, 1) for case in cases)
        self.over, self.worked, self.clock = 0, 0, time.perf_counter()
        self.bar: Any = None

    def __enter__(self) -> "Display":
        self.clock = time.perf_counter()
        if sys.stderr.isatty():
            columns = (TextColumn("{task.fields[ended]}"), BarColumn(), TextColumn("{task.fields[left]}"))
            self.bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task("", total=self.total, ended=f"0 of {self.everything}", left="")
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def tell(self, case: Case, status: str, error: str | None, seconds: float | None) -> None:
        """Show that a case ended."""
        self.over += max(case.size, 1)
        if status != "found":
            self.worked += max(case.size, 1)
        left = self._left()
        place = f"[{self.counts.ended}/{self.everything}] {case.identifier}"
        if status in ("failed", "refused"):
            line = f"voxelwave: {status}: {place}: {error}"
        else:
            words = {"done": "done", "found": "done before and unchanged"}[status]
            line = f"{place}: {words}" + (f" in {seconds:.1f} s" if seconds is not None else "")
            line += f", {left} left" if left else ""
        if self.bar is None:
            print(line, file=sys.stderr if error else sys.stdout, flush=True)
        else:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
            self.bar.update(
                self.task,
                completed=self.over,
                ended=f"{self.counts.ended} of {self.everything}",
                left=f"{left} left" if left else "",
            )

    def _left(self) -> str:
        if not self.worked or self.over >= self.total:
            return ""
        return in_time((time.perf_counter() - self.clock) / self.worked * (self.total - self.over))


def in_time(seconds: float) -> str:
    """A duration as text.

    Example:
        >>> [in_time(seconds) for seconds in (8, 200, 9000)]
        ['about 8 s', 'about 3 min', 'about 2.5 h']
    """
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
