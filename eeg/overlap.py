"""Overlap of two studies: the same people or the same EEG in both."""

from collections.abc import Sequence
from dataclasses import dataclass

from .audit_signals import SubjectSignal
from .duplicates import shared_stretches
from .study import Study
from .windows import WindowOptions, Windows

_DUPLICATE = 0.95  # correlation, as in the audit


@dataclass(frozen=True)
class Overlap:
    """What two studies share.

    Args:
        people: names of people in both.
        recordings: (subject of the first study, subject of the second) with a common stretch of EEG.
    """

    people: tuple[str, ...]
    recordings: tuple[tuple[str, str], ...]


def find_overlap(first: tuple[Study, Windows], second: tuple[Study, Windows], options: WindowOptions) -> Overlap:
    """What two studies share: names of people, equal recordings, and stretches of EEG at any position.

    Args:
        first, second: a study with its windows.
        options: how their recordings are read.
    """
    persons = [{study.persons[name] for name in windows.subjects} for study, windows in (first, second)]
    names = [set(windows.subjects) for _, windows in (first, second)]
    people = (persons[0] | names[0]) & (persons[1] | names[1])
    pairs = {
        (a, b)
        for a, own in zip(first[1].subjects, first[1].digests, strict=True)
        for b, other in zip(second[1].subjects, second[1].digests, strict=True)
        if own == other
    }
    signals = [*_signals(*first, options), *_signals(*second, options)]
    count = len(first[1].subjects)
    for i, j, _ in shared_stretches([s.low for s in signals], signals[0].low_sfreq, threshold=_DUPLICATE):
        a, b = sorted((i, j))
        if a < count <= b:
            pairs.add((first[1].subjects[a], second[1].subjects[b - count]))
    return Overlap(tuple(sorted(people)), tuple(sorted(pairs)))


def _signals(study: Study, windows: Windows, options: WindowOptions) -> Sequence[SubjectSignal]:
    by_name = {subject.subject: subject for subject in study.subjects}
    return [SubjectSignal.of(by_name[name], options, windows.channels, traits=False) for name in windows.subjects]
