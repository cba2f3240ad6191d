"""A row of the tables of speed, and the clock with which rows are measured."""

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

with contextlib.suppress(ImportError):  # not on Windows
    import resource


@dataclass(frozen=True, kw_only=True)
class Row:
    """A figure, beside that of a peer in the same run.

    Args:
        what: what was measured.
        unit: unit of both figures, such as "CPU s".
        ours: our figure.
        peer: the peer; "" if there is none.
        theirs: the peer's figure.
        most: the goal: the largest figure.
        least: the goal: the smallest figure.
        most_of_peer: the goal: the largest ratio of our figure to the peer's.
    """

    what: str
    unit: str
    ours: float
    peer: str = ""
    theirs: float | None = None
    most: float | None = None
    least: float | None = None
    most_of_peer: float | None = None

    @property
    def ratio(self) -> float | None:
        """Our figure divided by the peer's."""
        return self.ours / self.theirs if self.theirs else None

    @property
    def goal(self) -> str:
        """The goal in words, "" without one."""
        words = []
        if self.most is not None:
            words.append(f"≤ {self.most:g} {self.unit}")
        if self.least is not None:
            words.append(f"≥ {self.least:g} {self.unit}")
        if self.most_of_peer is not None:
            words.append(f"ratio ≤ {self.most_of_peer:g}")
        return ", ".join(words)

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal."""
        checks = []
        if self.most is not None:
            checks.append(self.ours <= self.most)
        if self.least is not None:
            checks.append(self.ours >= self.least)
        if self.most_of_peer is not None:
            checks.append(self.ratio is not None and self.ratio <= self.most_of_peer)
        return all(checks) if checks else None

    def record(self) -> dict[str, str]:
        """The row as words, for a table."""
        return {
            "what": self.what,
            "ours": f"{self.ours:.3g} {self.unit}",
            "peer": self.peer,
            "its figure": "" if self.theirs is None else f"{self.theirs:.3g} {self.unit}",
            "ratio": "" if self.ratio is None else f"{self.ratio:.2f}",
            "goal": self.goal,
            "met": {None: "", True: "yes", False: "no"}[self.met],
        }


def cpu_seconds(work: Callable[[], object], repeats: int, *, warm: int = 1) -> float:
    """The median CPU time of a call, in seconds, after some calls that are not timed."""
    for _ in range(warm):
        work()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return statistics.median(times)


def cpu_seconds_of_child(work: Callable[[], object]) -> float:
    """The CPU time of the child processes that a call starts and waits for, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
