"""Tables of the task benchmark: means with intervals, the composite index of each pattern, the benefit of attention."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from .benchmark_tasks import Recall
from .benchmark_training import CONTROL, Trial, all_methods

# the 0.975 quantile of Student's t distribution, by degrees of freedom
_STUDENT = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


class Estimate(NamedTuple):
    """The mean over seeds, and half of the width of its 95 % interval; None with a single seed."""

    mean: float
    half: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of values and its interval by Student's t distribution.

    Example:
        >>> estimate([1.0, 2.0, 3.0])
        Estimate(mean=2.0, half=2.484...)
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, None)
    quantile = _STUDENT[min(len(values) - 1, len(_STUDENT) - 1)]
    return Estimate(mean, quantile * statistics.stdev(values) / math.sqrt(len(values)))


def composite_index(tasks: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """The mean z-score of each method over the measures of a task, then over tasks (CAB, arXiv 2210.07661).

    A measure that is equal for all methods counts as 0. A method needs values in all tasks.

    Args:
        tasks: for each task: measure -> method -> value, where larger is better.

    Example:
        >>> composite_index([{"accuracy": {"a": 1.0, "b": 0.5}}])
        {'a': 1.0, 'b': -1.0}
    """
    by_task: list[dict[str, float]] = []
    for measures in tasks:
        scores = [z_scores(values) for values in measures.values()]
        common = set.intersection(*(set(each) for each in scores)) if scores else set()
        by_task.append({m: statistics.fmean(each[m] for each in scores) for m in scores[0] if m in common})
    if not by_task:
        return {}
    return {m: statistics.fmean(each[m] for each in by_task) for m in by_task[0] if all(m in each for each in by_task)}


def z_scores(values: Mapping[str, float]) -> dict[str, float]:
    """(value - mean) / standard deviation over the methods; 0 if all are equal to nine digits."""
    mean, spread = statistics.fmean(values.values()), statistics.pstdev(values.values())
    if spread <= 1e-9 * max(1.0, abs(mean)):
        return dict.fromkeys(values, 0.0)
    return {method: (value - mean) / spread for method, value in values.items()}


class Scores:
    """The trials of a benchmark, arranged for tables.

    Args:
        trials: all trained models.
        patterns: the pattern of each task.
    """

    def __init__(self, trials: Sequence[Trial], patterns: Mapping[str, str]) -> None:
        self.trials, self.patterns = trials, dict(patterns)
        order = [method.label for method in all_methods()]
        found = dict.fromkeys(t.method for t in trials)
        self.methods = sorted(found, key=lambda method: order.index(method) if method in order else len(order))
        self.tasks = [task for task in patterns if any(t.task == task for t in trials)]

    def of(self, method: str, task: str) -> list[Trial]:
        """The trials of a method in a task; empty if it does not support the pattern."""
        return [t for t in self.trials if (t.method, t.task) == (method, task)]

    def measures(self, task: str) -> list[str]:
        """The measures of a task."""
        return list(next(t for t in self.trials if t.task == task).scores)

    def value(self, method: str, task: str, read: Callable[[Trial], float | None]) -> Estimate | None:
        """The mean of a number over the seeds; None if the method has none."""
        found = [value for t in self.of(method, task) if (value := read(t)) is not None]
        return estimate(found) if found else None

    def main(self, method: str, task: str) -> Estimate | None:
        """The main score of a method in a task, see `main_score`."""
        return self.value(method, task, main_score)

    def index(self, pattern: str) -> dict[str, float]:
        """The composite index of each mechanism that supports a pattern; the control does not enter it."""
        tasks = []
        for task in (t for t in self.tasks if self.patterns[t] == pattern):
            measures: dict[str, dict[str, float]] = {}
            for measure in self.measures(task):
                found = {m: self.value(m, task, lambda t, n=measure: t.scores.get(n)) for m in self.methods}  # type: ignore[misc]
                measures[measure] = {m: e.mean for m, e in found.items() if e is not None and m != CONTROL}
            tasks.append(measures)
        return composite_index(tasks)

    def benefit(self, method: str, task: str) -> Estimate | None:
        """By how much a method exceeds the control without token mixing, paired by seed."""
        control = {t.seed: main_score(t) for t in self.of(CONTROL, task)}
        if method == CONTROL:
            return None
        return self.value(method, task, lambda t: _difference(main_score(t), control.get(t.seed)))


def main_score(trial: Trial) -> float | None:
    """The mean over the sizes of recall, and the first measure of any other task; None if the training diverged."""
    values = list(trial.scores.values()) if trial.task == Recall.name else [next(iter(trial.scores.values()))]
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
