"""Outer and inner folds over subjects, and the check that no person is on both sides of a split."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold

from .records import InnerSplit, Split
from .seeds import derive_seed


class LeakError(ValueError):
    """Raised if a person is on both sides of a split."""


@dataclass(frozen=True)
class Cohort:
    """The subjects of a run.

    Args:
        subjects: names, one for each predicted unit.
        labels: 0 or 1 for each subject, 1 for the positive class; empty, like `classes`, without classification.
        classes: (negative, positive).
        groups: the person (or family, or ward) of each subject; folds keep a group together. By default each subject is
            a group.
        sites: the site of each subject; if given, each fold has the same share of each site.
    """

    subjects: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, str] | tuple[()]
    groups: tuple[str, ...] = ()
    sites: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if len(set(self.subjects)) != len(self.subjects):
            twice = next(s for s in self.subjects if self.subjects.count(s) > 1)
            raise ValueError(f"each subject must be listed once, {twice!r} occurs {self.subjects.count(twice)} times")
        for name in ("labels", "groups", "sites"):
            given = getattr(self, name)
            if len(given) != len(self.subjects) and (given or (name == "labels" and self.classes)):
                raise ValueError(
                    f"{name} must have one entry for each of {len(self.subjects)} subjects, got {len(given)}"
                )
        if self.classes and set(self.labels) != {0, 1}:
            raise ValueError(f"labels must hold both 0 ({self.classes[0]}) and 1 ({self.classes[1]})")

    @property
    def persons(self) -> tuple[str, ...]:
        """The group of each subject."""
        return self.groups or self.subjects


def make_splits(cohort: Cohort, *, outer: int, inner: int, repeats: int = 1, seed: int = 0) -> list[Split]:
    """Outer folds with inner folds in their training part, stratified by class (and site); persons stay together.

    Args:
        cohort: the subjects.
        outer: number of outer folds; each is tested once per repeat.
        inner: number of folds within each outer training part.
        repeats: number of partitions into outer folds.
        seed: seed of the partitions.

    Returns:
        One split for each repeat and outer fold, with indices into `cohort.subjects`, checked by `check_splits`.

    Raises:
        ValueError: there are too few subjects for both classes in every part.
    """
    for name, count, least in (("outer", outer, 2), ("inner", inner, 2), ("repeats", repeats, 1)):
        if count < least:
            raise ValueError(f"{name} must be at least {least}, got {count}")
    everyone = np.arange(len(cohort.subjects))
    splits: list[Split] = []
    for repeat in range(repeats):
        folds = _folds(cohort, everyone, outer, derive_seed(seed, "outer", repeat), "outer")
        for fold, (train, test) in enumerate(folds):
            inside = _folds(cohort, train, inner, derive_seed(seed, "inner", repeat, fold), "inner")
            parts: list[InnerSplit] = [{"train": a.tolist(), "validation": b.tolist()} for a, b in inside]
            splits.append(
                {"repeat": repeat, "fold": fold, "train": train.tolist(), "test": test.tolist(), "inner": parts}
            )
    check_splits(cohort, splits)
    return splits


def group_splits(cohort: Cohort, *, outer: int, seed: int = 0) -> list[Split]:
    """Outer folds without inner ones, for methods that are not fitted; groups stay together, folds are of similar size.

    Args:
        cohort: units without classes.
        outer: number of outer folds; each is tested once.
        seed: seed of the partition.

    Raises:
        ValueError: there are fewer groups than folds.
    """
    groups = len(set(cohort.persons))
    if not 2 <= outer <= groups:
        raise ValueError(f"outer must be from 2 to {groups}, the number of groups kept together, got {outer}")
    folder = GroupKFold(outer, shuffle=True, random_state=derive_seed(seed, "outer", 0))
    everyone = np.arange(len(cohort.subjects))
    splits: list[Split] = [
        {"repeat": 0, "fold": fold, "train": train.tolist(), "test": test.tolist(), "inner": []}
        for fold, (train, test) in enumerate(folder.split(everyone, groups=cohort.persons))
    ]
    check_splits(cohort, splits)
    return splits


def check_splits(cohort: Cohort, splits: Sequence[Split]) -> None:
    """Refuse splits with a leak or a gap; called before every run and every resumed run.

    In each split, no person may be on both sides, the inner folds must cover the outer training part exactly once and
    nothing else, and every part must have both classes. In each repeat, every subject must be tested exactly once.

    Raises:
        LeakError: a person is on both sides, or a tested subject is in an inner fold.
        ValueError: a part lacks a class, an index is out of range, or a subject is not tested exactly once.
    """
    repeats: dict[int, list[int]] = {}
    for split in splits:
        place = f"repeat {split['repeat']}, outer fold {split['fold']}"
        train, test = split["train"], split["test"]
        _check_parts(cohort, place, train=train, test=test)
        repeats.setdefault(split["repeat"], []).extend(test)
        validated: list[int] = []
        for number, part in enumerate(split["inner"]):
            where = f"{place}, inner fold {number}"
            _check_parts(cohort, where, train=part["train"], validation=part["validation"])
            _check_apart(
                cohort, where, part["train"] + part["validation"], test, "its inner folds", "the outer test part"
            )
            validated += part["validation"]
        without_fit = not split["inner"] and not cohort.classes  # settings are chosen on the training part as a whole
        if sorted(validated) != sorted(train) and not without_fit:
            raise ValueError(f"{place}: the inner folds must validate each training subject exactly once")
    for repeat, tested in repeats.items():
        if sorted(tested) != list(range(len(cohort.subjects))):
            raise ValueError(f"repeat {repeat}: every subject must be tested exactly once")


def _check_parts(cohort: Cohort, place: str, **parts: list[int]) -> None:
    (first, a), (second, b) = parts.items()
    _check_apart(cohort, place, a, b, f"its {first} part", f"its {second} part")
    for name, part in parts.items():
        if len(set(part)) != len(part) or not set(part) <= set(range(len(cohort.subjects))):
            raise ValueError(
                f"{place}: the {name} part must hold each index once, from 0 to {len(cohort.subjects) - 1}"
            )
        for label, title in enumerate(cohort.classes):
            if not any(cohort.labels[i] == label for i in part):
                raise ValueError(
                    f"{place}: its {name} part has no subject of class {title!r}; use fewer folds or more subjects"
                )


def _check_apart(cohort: Cohort, place: str, a: list[int], b: list[int], name_a: str, name_b: str) -> None:
    both = {cohort.persons[i] for i in a} & {cohort.persons[i] for i in b}
    if both:
        shown = ", ".join(sorted(both)[:3]) + (" ..." if len(both) > 3 else "")
        raise LeakError(f"{place}: {len(both)} of the same people are in {name_a} and in {name_b} ({shown})")


def _folds(cohort: Cohort, among: np.ndarray, count: int, seed: int, kind: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """`count` pairs (rest, held out) of the indices in `among`."""
    labels, persons = np.array(cohort.labels)[among], np.array(cohort.persons)[among]
    for label, title in enumerate(cohort.classes):
        people = len(set(persons[labels == label]))
        if people < count:
            raise ValueError(
                f"{count} {kind} folds need at least {count} people of each class,"
                f" got {people} of class {title!r} to split; lower --{kind}"
            )
    strata = [f"{cohort.labels[i]}" + (f"/{cohort.sites[i]}" if cohort.sites else "") for i in among]
    if cohort.sites and min(strata.count(s) for s in set(strata)) < count:
        strata = [str(label) for label in labels]  # a site has too few subjects for every fold
    alone = len(set(persons)) == len(among)
    splitter = (StratifiedKFold if alone else StratifiedGroupKFold)(count, shuffle=True, random_state=seed)
    return [(among[a], among[b]) for a, b in splitter.split(among, strata, None if alone else persons)]
