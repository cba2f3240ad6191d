"""Checks of an audit: how well quantities other than the EEG predict the label."""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..runs.words import tidy_name
from .audit_signals import SubjectSignal
from .check import Check
from .confounds import confound_auc
from .study import Subject
from .windows import Windows

Kind = Literal["number", "category", "names"]
Value = float | str

_SIGNIFICANT = 0.05
_SIGNIFICANT_OF_MANY = (
    0.005  # level for the many traits of files; at 0.05, one in twenty would be significant by chance
)
_DECISIVE = 0.9  # AUC of a confound from which any result is worthless
_MOSTLY = 0.75  # smallest share of numbers in a numeric column
_NUMBER = re.compile(r"[<>~=]*\s*([+-]?\d+(?:[.,]\d+)?(?:[eE][+-]?\d+)?)\s*(?:[a-zA-Zµ%]{1,6}\.?)?")


def check_confounds(
    subjects: Sequence[Subject],
    windows: Windows,
    signals: Sequence[SubjectSignal],
    *,
    permutations: int,
    seed: int,
) -> list[Check]:
    """Check how well length, amplitude, file traits, table columns and the order of rows predict the label.

    Args:
        subjects: the subjects that have windows, in the order of `windows`.
        windows: the windows with their labels.
        signals: summaries of the subjects' recordings.
        permutations: number of permutations in each test.
        seed: seed of folds and permutations.
    """
    quantities: dict[str, Sequence[Value]] = {"recording length": windows.seconds.tolist()}
    checks = []
    if len({signal.unit for signal in signals}) == 1:
        quantities["amplitude"] = [signal.amplitude for signal in signals]
    else:
        checks.append(Check("confound: amplitude", "not checked", "some recordings have a unit and some have none"))
    usual = len(quantities) + 4  # length, amplitude, and the four traits that every file has
    for trait in signals[0].traits:
        quantities[trait] = [signal.traits[trait] for signal in signals]
    of_many = set(list(quantities)[usual:])
    columns = dict.fromkeys(key for subject in subjects for key in subject.extra)
    for column in columns:
        if all(tidy_name(subject.extra.get(column, "")) == subject.person for subject in subjects):
            continue  # the person, who has one label
        quantities.setdefault(column, [subject.extra.get(column, "") for subject in subjects])
    seen: list[np.ndarray] = []
    for name, values in quantities.items():
        kept, kind, remark = as_quantity(values)
        order = np.unique([_sort_key(v) for v in kept], return_inverse=True)[1]
        if kind == "names":
            checks += [Check(f"confound: {name}", "not checked", remark)] if remark else []
            continue
        if len(set(order.tolist())) < 2 or any(_same_ranking(order, other) for other in seen):
            continue  # constant, or the same as an earlier quantity
        seen.append(order)
        level = _SIGNIFICANT_OF_MANY if name in of_many else _SIGNIFICANT
        checks.append(
            _check(name, kept, kind, windows.labels, subjects, permutations, seed, level=level, remark=remark)
        )
    return [*checks, _check_row_order(windows.labels, permutations, seed)]


def as_quantity(values: Sequence[Value]) -> tuple[list[Value], Kind, str]:
    """Convert values to a quantity that may predict the label.

    A column of numbers may contain a few words, decimal commas and units: "?", "7,5", "8 y". Words count as missing.

    Returns:
        The values: numbers (NaN if missing) or words (empty if missing); their kind: numbers, categories, or names that
        differ for each subject; and a remark on values that were left out, or the reason why nothing is checked.

    Example:
        >>> as_quantity(["7,5", "8", "9.25", "?"])
        ([7.5, 8.0, 9.25, nan], 'number', "1 value is no number and counts as missing: '?'")
    """
    given = [v for v in values if v != ""]
    numbers = [_number(v) for v in values]
    words = [str(v) for v, number in zip(values, numbers, strict=True) if v != "" and number is None]
    if given and len(words) <= (1 - _MOSTLY) * len(given):
        shown = ", ".join(repr(word[:20]) for word in list(dict.fromkeys(words))[:3])
        one = len(words) == 1
        count = "1 value is no number and counts" if one else f"{len(words)} values are no numbers and count"
        remark = f"{count} as missing: {shown}" if words else ""
        return [float("nan") if number is None else number for number in numbers], "number", remark
    kept = [str(v).strip().casefold() for v in values]
    levels = len({word for word in kept if word})
    if levels <= max(10, len(given) // 5):
        return [str(v) for v in values], "category", ""
    if levels == len(given):
        return [str(v) for v in values], "names", ""
    text = f"{levels} different words in {len(given)} subjects are too many to test"
    return [str(v) for v in values], "names", text


def _number(value: Value) -> float | None:
    if not isinstance(value, str):
        return float(value)
    found = _NUMBER.fullmatch(value.strip())
    return None if found is None else float(found[1].replace(",", "."))


def _sort_key(value: Value) -> Value:
    return value if isinstance(value, str) or value == value else -np.inf


def _same_ranking(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two quantities rank the subjects in the same order, up to direction and rounding."""
    return abs(float(np.corrcoef(a, b)[0, 1])) > 0.999


def _check(
    name: str,
    values: Sequence[Value],
    kind: Kind,
    all_labels: np.ndarray,
    subjects: Sequence[Subject],
    permutations: int,
    seed: int,
    *,
    level: float,
    remark: str,
) -> Check:
    check = f"confound: {name}"
    here = [i for i, v in enumerate(values) if v != "" and v == v]
    labels = all_labels[here]
    if len(here) < len(values) / 2 or min(np.bincount(labels, minlength=2)) < 2:
        return Check(check, "not checked", f"known for {len(here)} of {len(values)} subjects only")
    if kind == "category" and all(subjects[i].label.lower() in str(values[i]).lower() for i in here):
        return Check(check, "not checked", "the column repeats the label")
    found = confound_auc([values[i] for i in here], labels, permutations=permutations, seed=seed)
    low, high = found.interval
    detail = f"AUC {found.auc:.2f} (95 % {low:.2f} to {high:.2f}), permutation p {found.p:.3f}, {found.n} subjects"
    detail += f"; {remark}" if remark else ""
    if found.p < _SIGNIFICANT and found.auc >= _DECISIVE:
        return Check(check, "fail", f"{detail}: it predicts the label alone")
    if found.p >= level:
        return Check(check, "ok", detail)
    return Check(check, "warning", f"{detail}: report it beside every model")


def _check_row_order(labels: np.ndarray, permutations: int, seed: int) -> Check:
    """Check whether the order of the rows depends on the label; it is common to list one class after the other."""
    check = "confound: row order"
    if np.count_nonzero(np.diff(labels)) == 1:
        text = "the table lists one class after the other: harmless unless a split takes rows in order"
        return Check(check, "ok", text)
    if min(np.bincount(labels, minlength=2)) < 2:
        return Check(check, "not checked", "a class has fewer than 2 subjects")
    found = confound_auc(np.arange(len(labels), dtype=float).tolist(), labels, permutations=permutations, seed=seed)
    detail = f"AUC {found.auc:.2f}, permutation p {found.p:.3f}, {found.n} subjects"
    if found.p < _SIGNIFICANT_OF_MANY or (found.p < _SIGNIFICANT and found.auc >= _DECISIVE):
        return Check(check, "warning", f"{detail}: the classes were listed, or recorded, at different times")
    return Check(check, "ok", detail)
