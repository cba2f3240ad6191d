"""Audit of a study and a split: checks for faults that would make a result too optimistic."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..runs.persons import join_persons
from .audit_signals import SubjectSignal
from .check import Check, Outcome
from .confound_checks import check_confounds
from .duplicates import near_duplicate_windows, shared_stretches
from .split_file import WHOLE, Fold, Part, SplitFile
from .study import Study
from .windows import WindowOptions, Windows, load_windows

SELECTION = "selection inside the fold"  # names of checks by which other modules find them
APART = "no subject on both sides"
SHARED = "no near-duplicate windows on both sides"

_DUPLICATE = 0.95  # correlation; windows of different children in the ADHD data reach 0.78 through blinks


def audit(
    study: Study,
    *,
    options: WindowOptions | None = None,
    splits: SplitFile | None = None,
    cache: str | Path | None = None,
    permutations: int = 999,
    seed: int = 0,
    confounds: bool = True,
    finished: bool = True,
) -> list[Check]:
    """Check a study and, if given, a split of it.

    Args:
        study: the subjects and their recordings.
        options: how recordings are read and cut; if `splits` is the plan of a nested run, the options of that run.
        splits: the split to check.
        cache: a folder for windows, as in `load_windows`.
        permutations: number of permutations in the test of each confound.
        seed: seed of permutations, bootstraps and projections.
        confounds: whether to test how well other quantities than the EEG predict the label.
        finished: whether to check the fits and predictions in the folder of the nested run.
    """
    options = options or (splits.windows if splits is not None else None) or WindowOptions()
    windows = load_windows(study, replace(options, scaling="window"), cache)
    by_name = {subject.subject: subject for subject in study.subjects}
    subjects = [by_name[name] for name in windows.subjects]
    signals = [SubjectSignal.of(subject, options, windows.channels, traits=confounds) for subject in subjects]
    pairs = near_duplicate_windows(windows.x, threshold=_DUPLICATE, seed=seed)
    stretches = shared_stretches([s.low for s in signals], signals[0].low_sfreq, threshold=_DUPLICATE)
    persons = _known_persons(study, splits)
    checks = [*_check_reading(study, windows), _check_duplicates(windows, pairs, stretches, persons)]
    if splits is not None:
        labels = {s.subject: s.label for s in study.subjects}
        splits = replace(splits, persons=persons)
        checks += check_splits(splits, labels, analysed=windows.subjects)
        checks.append(_check_both_sides(splits, windows, pairs, stretches))
        checks += check_declared(splits)
        checks += check_run(splits, windows) if finished else []
    if not confounds:
        return checks
    return checks + check_confounds(subjects, windows, signals, permutations=permutations, seed=seed)


def _known_persons(study: Study, splits: SplitFile | None) -> dict[str, str]:
    """Subject -> person, from the study's person column and from the split file."""
    names = [subject.subject for subject in study.subjects]
    by_split = {} if splits is None else splits.persons
    persons = join_persons([study.persons[name] for name in names], [by_split.get(name, name) for name in names])
    return dict(zip(names, persons, strict=True))


def _check_reading(study: Study, windows: Windows) -> list[Check]:
    counts = Counter(s.label for s in study.subjects)
    read = f"{len(study.subjects)} subjects (" + ", ".join(f"{c} {counts[c]}" for c in study.classes) + ")"
    checks = [Check("one label per subject", "ok", read)]
    checks += [Check("people of the study", "warning", note) for note in study.notes]
    if windows.excluded:
        lost = ", ".join(f"{name} ({reason})" for name, reason in windows.excluded[:3])
        checks.append(Check("windows", "warning", f"{len(windows.excluded)} subjects without a window: {lost}"))
    else:
        checks.append(Check("windows", "ok", f"{len(windows.x)} windows, at least one of each subject"))
    outcome: Outcome = "warning" if windows.defects else "ok"
    detail = "; ".join(windows.defects[:4]) or f"notes on reading: {len(windows.notes)}, none about a defect"
    checks.append(Check("signal quality", outcome, detail))
    return checks


def _check_duplicates(
    windows: Windows,
    pairs: Sequence[tuple[int, int, float]],
    stretches: Sequence[tuple[int, int, float]],
    persons: Mapping[str, str],
) -> Check:
    """Check for subjects that share EEG. Subjects of one known person with one label are a warning only."""
    found = {(int(windows.subject[i]), int(windows.subject[j])): r for i, j, r in pairs}
    found |= {(i, j): r for i, j, r in stretches}
    between = {pair: r for pair, r in found.items() if pair[0] != pair[1]}
    if not between:
        return Check(
            "duplicate recordings", "ok", f"no two subjects share a stretch of EEG (correlation {_DUPLICATE:g} or more)"
        )
    shown = []
    for (i, j), r in sorted(between.items(), key=lambda item: -item[1])[:5]:
        how = "identical" if windows.digests[i] == windows.digests[j] else f"correlation {r:.3f}"
        shown.append(f"{windows.subjects[i]} and {windows.subjects[j]} ({how})")
    known = all(
        persons[windows.subjects[i]] == persons[windows.subjects[j]] and windows.labels[i] == windows.labels[j]
        for i, j in between
    )
    detail = f"{len(between)} pairs of subjects share EEG: {', '.join(shown)}"
    if known:
        return Check("duplicate recordings", "warning", f"{detail}; they are kept together as one person")
    return Check("duplicate recordings", "fail", detail)


def check_splits(splits: SplitFile, labels: dict[str, str], analysed: Sequence[str] | None = None) -> list[Check]:
    """Checks of a split that need only names and labels.

    Args:
        splits: the split to check.
        labels: subject -> class, of the whole study.
        analysed: the subjects that have windows; by default all.
    """
    return [
        _check_known(splits, labels, analysed or list(labels)),
        _check_apart(splits),
        _check_inner(splits),
        _check_tested_once(splits),
        _check_classes(splits, labels),
    ]


def _names(part: Part) -> set[str]:
    return {subject for subject, _ in part}


def _outcome(check: str, problems: Sequence[str], fine: str) -> Check:
    if not problems:
        return Check(check, "ok", fine)
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return Check(check, "fail", "; ".join(problems[:3]) + more)


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")


def _check_known(splits: SplitFile, labels: dict[str, str], analysed: Sequence[str]) -> Check:
    if not splits.folds:
        return Check("subjects of the split", "fail", "the split has no folds: nothing is trained or tested")
    listed = {name for fold in splits.folds for part in fold.parts.values() for name in _names(part)}
    unknown, missing = listed - set(labels), set(analysed) - listed
    if unknown:
        return Check("subjects of the split", "fail", f"not in the study: {_some(unknown)}")
    if missing:
        return Check("subjects of the split", "warning", f"in the study, in no fold: {_some(missing)}")
    return Check("subjects of the split", "ok", f"{len(listed)} subjects, all of the study")


def _check_apart(splits: SplitFile) -> Check:
    problems = []
    for fold in splits.folds:
        for place, parts in [(fold.place, fold.parts), *_inner_places(fold)]:
            names = list(parts)
            for a, b in ((a, b) for k, a in enumerate(names) for b in names[k + 1 :]):
                both = _persons(splits, parts[a]) & _persons(splits, parts[b])
                if both:
                    problems.append(f"{place}: {_some(both)} in {a} and {b}")
    return _outcome(APART, problems, f"{len(splits.folds)} folds")


def _inner_places(fold: Fold) -> list[tuple[str, dict[str, Part]]]:
    return [(f"{fold.place}, inner fold {number}", parts) for number, parts in enumerate(fold.inner)]


def _persons(splits: SplitFile, part: Part) -> set[str]:
    return {splits.persons.get(name, name) for name in _names(part)}


def _check_inner(splits: SplitFile) -> Check:
    check = "inner folds inside the outer training part"
    if not any(fold.inner for fold in splits.folds):
        return Check(check, "not checked", "the split has no inner folds; report how settings were chosen")
    problems = []
    for fold in splits.folds:
        for place, parts in _inner_places(fold):
            outside = set().union(*(_names(p) for p in parts.values())) - _names(fold.parts.get("train", frozenset()))
            if outside:
                problems.append(f"{place}: {_some(outside)} not in the outer training part")
    return _outcome(check, problems, f"{sum(len(f.inner) for f in splits.folds)} inner folds")


def _check_tested_once(splits: SplitFile) -> Check:
    problems = []
    repeats = sorted({fold.repeat for fold in splits.folds})
    for repeat in repeats:
        folds = [fold for fold in splits.folds if fold.repeat == repeat]
        tested = Counter(unit for fold in folds for unit in fold.parts.get("test", frozenset()))
        listed = set().union(*(part for fold in folds for part in fold.parts.values()))
        twice = {name for (name, _), count in tested.items() if count > 1}
        if twice:
            problems.append(f"repeat {repeat}: {_some(twice)} tested more than once")
        if len(folds) > 1 and listed - set(tested):
            problems.append(f"repeat {repeat}: {_some(name for name, _ in listed - set(tested))} never tested")
    return _outcome("each subject tested once per repeat", problems, f"{len(repeats)} repeats")


def _check_classes(splits: SplitFile, labels: dict[str, str]) -> Check:
    problems = []
    classes = sorted(set(labels.values()))
    for fold in splits.folds:
        if not {"train", "test"} <= set(fold.parts):
            problems.append(f"{fold.place}: needs a train and a test part, has {', '.join(fold.parts)}")
        for place, parts in [(fold.place, fold.parts), *_inner_places(fold)]:
            for name, part in parts.items():
                present = {labels[s] for s in _names(part) if s in labels}
                lacking = [c for c in classes if c not in present]
                if lacking:
                    problems.append(f"{place}: no {' and no '.join(lacking)} in {name}")
    return _outcome("both classes in every part", problems, "all parts")


def _check_both_sides(
    splits: SplitFile,
    windows: Windows,
    pairs: Sequence[tuple[int, int, float]],
    stretches: Sequence[tuple[int, int, float]],
) -> Check:
    """Check for windows that are nearly equal or overlap in time but are in different parts of one fold."""
    units = [(windows.subjects[s], int(b)) for s, b in zip(windows.subject, windows.start, strict=True)]
    names = windows.subjects
    problems = []
    for fold in splits.folds:
        side = {unit: name for name, part in fold.parts.items() for unit in part}
        sides = [side.get(unit, side.get((unit[0], WHOLE))) for unit in units]
        alike = [(i, j) for i, j, _ in pairs if sides[i] and sides[j] and sides[i] != sides[j]]
        if alike:
            i, j = alike[0]
            example = f"{units[i][0]} at sample {units[i][1]} ({sides[i]}), {units[j][0]} at {units[j][1]} ({sides[j]})"
            problems.append(f"{fold.place}: {len(alike)} pairs of windows, e.g. {example}")
        whole = [{name for name, part in fold.parts.items() if s in _names(part)} for s in names]
        problems += [
            f"{fold.place}: {names[i]} and {names[j]} share a stretch (correlation {r:.3f})"
            for i, j, r in stretches
            if whole[i] and whole[j] and len(whole[i] | whole[j]) > 1
        ]
        overlapping = _overlaps(fold, windows.x.shape[2])
        if overlapping:
            problems.append(f"{fold.place}: {overlapping} windows overlap a window of another part")
    return _outcome(SHARED, problems, f"{len(windows.x)} windows compared; none correlate at {_DUPLICATE:g} or more")


def _overlaps(fold: Fold, times: int) -> int:
    """Number of windows that share samples with a window of the same subject in another part."""
    starts: dict[str, list[tuple[int, str]]] = {}
    for name, part in fold.parts.items():
        for subject, start in part:
            if start != WHOLE:
                starts.setdefault(subject, []).append((start, name))
    count = 0
    for items in starts.values():
        items.sort()
        for k, (start, name) in enumerate(items):
            near = (other for other in items[k + 1 :] if other[0] < start + times)
            count += any(other_name != name for _, other_name in near)
    return count


_SCALING = {  # declared -> how windows are scaled without looking at the test part
    "each window by itself": ("window", "windows", "epoch", "trial", "segment"),
    "each recording by itself": ("recording", "subject", "file", "run"),
    "fitted on the training part of each fold": ("fold", "train", "training", "training part", "training fold"),
    "none": ("none", "no", "raw"),
}
_SCALED_ON_ALL = ("all", "global", "study", "dataset", "data set", "everything", "whole", "whole data", "test")
_SELECTED_INSIDE = ("train", "training", "validation", "valid", "val", "dev", "development", "inner", "none", "nothing")


def check_declared(splits: SplitFile) -> list[Check]:
    """Check the declarations of the split file about scaling and selection; case and spelling may vary."""
    scaling, selected = splits.declared.get("scaling"), splits.declared.get("selected_on")
    return [_check_scaling(scaling), _check_selection(selected, splits)]


def _check_scaling(scaling: str | None) -> Check:
    check = "scaling inside the fold"
    if scaling is None:
        return Check(check, "not checked", "the split file does not declare how windows were scaled")
    how = next((how for how, words in _SCALING.items() if scaling in words), None)
    if how is not None:
        return Check(check, "ok", how)
    if scaling in _SCALED_ON_ALL:
        return Check(check, "fail", f"declared as {scaling!r}: fitted on more than the training part")
    return Check(check, "fail", f"declared as {scaling!r}, which is none of window, recording, fold, none and all")


def _check_selection(selected: str | None, splits: SplitFile) -> Check:
    if selected is None:
        text = "the split file does not declare on which part epochs and settings were chosen"
        return Check(SELECTION, "not checked", text)
    words = re.findall(r"[a-z]+", selected)
    if any(word.startswith("test") or word in ("all", "everything", "holdout", "heldout", "held") for word in words):
        text = "epochs and settings are chosen on the test part: results are optimistic"
        return Check(SELECTION, "fail", text)
    if "published" in splits.protocols:
        text = "the published protocol in this run selects on the test part, to show the optimism only"
        return Check(SELECTION, "warning", text)
    if not any(word in _SELECTED_INSIDE for word in words):
        text = f"declared as {selected!r}, which is none of train, validation, test and none"
        return Check(SELECTION, "not checked", text)
    return Check(SELECTION, "ok", f"epochs and settings are chosen on: {selected}")


def check_run(splits: SplitFile, windows: Windows) -> list[Check]:
    """Compare the cells and predictions that a nested run has written so far with its plan."""
    folder = splits.source.parent
    folds = {(fold.repeat, fold.fold): fold for fold in splits.folds}
    checks = []
    cells = sorted((folder / "cells").glob("*/cell.json"))
    if splits.protocols and cells:
        names = json.loads(splits.source.read_text())["cohort"]["subjects"]
        problems = [p for path in cells for p in _cell_problems(json.loads(path.read_text()), folds, names)]
        checks.append(_outcome("no test subject reached a nested fit", problems, f"{len(cells)} fits"))
    table = folder / "predictions.csv"
    if splits.protocols and table.is_file():
        checks.append(_check_predictions(table, folds, windows))
    return checks


def _cell_problems(cell: dict[str, Any], folds: dict[tuple[int, str], Fold], names: Sequence[str]) -> list[str]:
    if not any(kind in cell["id"] for kind in ("-nested-", "-refit-")):
        return []
    fold = folds.get((cell["repeat"], str(cell["fold"])))
    if fold is None:
        return [f"{cell['id']}: its fold is not in the plan"]
    seen = {names[i] for i in [*cell["train"], *(cell["validation"] or [])]}
    leaked = seen & _names(fold.parts["test"])
    return [f"{cell['id']}: {_some(leaked)} of the test part"] if leaked else []


def _check_predictions(table: Path, folds: dict[tuple[int, str], Fold], windows: Windows) -> Check:
    expected = Counter(windows.subjects[s] for s in windows.subject)
    index = {name: number for number, name in enumerate(windows.subjects)}
    counts: Counter[tuple[str, int, str]] = Counter()
    problems: list[str] = []
    with table.open(newline="") as stream:
        for row in csv.DictReader(stream):
            if row["protocol"] != "nested":
                continue
            name, repeat = row["subject"], int(row["repeat"])
            counts[row["model"], repeat, name] += 1
            fold = folds.get((repeat, row["fold"]))
            if fold is None or (name, WHOLE) not in fold.parts["test"]:
                problems.append(f"{name} predicted in fold {row['fold']}, which does not test it")
            elif name in index and row["label"] not in (str(windows.labels[index[name]]), _label(windows, index[name])):
                problems.append(f"{name} has label {row['label']} in the table")
    for model, repeat in {(m, r) for m, r, _ in counts}:
        wrong = [n for n in expected if counts[model, repeat, n] != expected[n]]
        if wrong:
            problems.append(f"{model}, repeat {repeat}: {_some(wrong)} not predicted once per window")
    problems = list(dict.fromkeys(problems))
    return _outcome("predictions complete", problems, f"{sum(counts.values())} nested predictions, one per window")


def _label(windows: Windows, index: int) -> str:
    return windows.classes[int(windows.labels[index])]
