"""Audit of a study and of a split for everything that would make a result too optimistic."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.signal import butter, resample, sosfiltfilt

from .confounds import confound_auc
from .duplicates import near_duplicate_windows, shared_stretches
from .persons import join_persons
from .recording import Recording
from .split_file import WHOLE, Fold, Part, SplitFile
from .study import Study, Subject
from .windows import WindowOptions, Windows, load_windows

Outcome = Literal["ok", "warning", "fail", "not checked"]

SELECTION = "selection inside the fold"  # names of checks that others choose by
APART = "no subject on both sides"
SHARED = "no near-duplicate windows on both sides"

_LOW_RATE = 32.0  # Hz: enough to know a recording again
_LOW_BAND = (1.0, 12.0)
_DUPLICATE = 0.95  # correlation; windows of different children in the ADHD data reach 0.78 through blinks
_SIGNIFICANT = 0.05
_DECISIVE = 0.9  # AUC from which a confound alone makes any figure worthless


@dataclass(frozen=True)
class Check:
    """One line of an audit."""

    check: str
    outcome: Outcome
    detail: str

    def as_dict(self) -> dict[str, str]:
        """The check as plain values, for JSON."""
        return asdict(self)


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
    """All checks of a study and, where given, of a split of it.

    Args:
        study: who and where.
        options: how recordings are read and cut; those of the run where `splits` is a plan of ours.
        splits: to check.
        cache: a folder for windows, as in `load_windows`.
        permutations: of each confound's test.
        seed: of permutations, bootstraps and projections.
        confounds: whether to test what else predicts the label.
        finished: whether to check the fits and predictions in the folder of a run of ours.
    """
    options = options or (splits.windows if splits is not None else None) or WindowOptions()
    windows = load_windows(study, replace(options, scaling="window"), cache)
    signals = [_Signal.of(study, name, options, windows.channels) for name in windows.subjects]
    pairs = near_duplicate_windows(windows.x, threshold=_DUPLICATE, seed=seed)
    stretches = shared_stretches([s.low for s in signals], _LOW_RATE, threshold=_DUPLICATE, seed=seed)
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
    return checks + _check_confounds(study, windows, signals, permutations=permutations, seed=seed)


def _known_persons(study: Study, splits: SplitFile | None) -> dict[str, str]:
    """Subject -> person, by the study's column and by what the split says."""
    names = [subject.subject for subject in study.subjects]
    by_split = {} if splits is None else splits.persons
    persons = join_persons([study.persons[name] for name in names], [by_split.get(name, name) for name in names])
    return dict(zip(names, persons, strict=True))


@dataclass(frozen=True, eq=False)
class _Signal:
    """Summary of one subject's recordings."""

    low: np.ndarray  # (channels, samples) at _LOW_RATE
    amplitude: float  # natural logarithm of the median absolute value
    unit: str
    traits: dict[str, str]

    @classmethod
    def of(cls, study: Study, name: str, options: WindowOptions, channels: tuple[str, ...]) -> "_Signal":
        subject = next(s for s in study.subjects if s.subject == name)
        recordings = [replace(options, channels=channels).read(file) for file in subject.files]
        first = recordings[0]
        centred = [np.abs(r.signal - np.median(r.signal, axis=1, keepdims=True)) for r in recordings]
        amplitude = float(np.log(max(float(np.median(np.concatenate(centred, axis=1))), 1e-12)))
        traits = {
            "sampling rate of the file": f"{first.file_sfreq:g} Hz",
            "number type of the file": first.sample_type,
            "file format": first.source.suffix.lower(),
            "unit of the file": first.unit,
        }
        return cls(np.concatenate([_low_rate(r) for r in recordings], axis=1), amplitude, first.unit, traits)


def _low_rate(recording: Recording) -> np.ndarray:
    high = min(_LOW_BAND[1], 0.4 * recording.sfreq)
    sos = butter(2, (min(_LOW_BAND[0], high / 4), high), "bandpass", fs=recording.sfreq, output="sos")
    filtered = sosfiltfilt(sos, recording.signal, axis=1, padlen=min(60, recording.signal.shape[1] - 1))
    count = max(1, round(recording.seconds * _LOW_RATE))
    return np.asarray(resample(filtered, count, axis=1), np.float32)


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
    """Subjects that share EEG; those that are known to be one person, with one label, are a warning only."""
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
    """Checks that need only names and labels.

    Args:
        splits: to check.
        labels: subject -> class, of the whole study.
        analysed: those who have windows; by default all.
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
        return Check(check, "not checked", "the split has no inner folds; say how settings were chosen")
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
    """Windows that nearly agree or overlap in time, one in a part and one in another part of the same fold."""
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
            problems.append(f"{fold.place}: {overlapping} windows overlap one on the other side")
    return _outcome(SHARED, problems, f"{len(windows.x)} windows compared, correlation {_DUPLICATE:g} or more sought")


def _overlaps(fold: Fold, times: int) -> int:
    """Windows whose samples are also in a window of the same subject in another part."""
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


def check_declared(splits: SplitFile) -> list[Check]:
    """Check the declarations of the split file about scaling and selection."""
    scaling, selected = splits.declared.get("scaling"), splits.declared.get("selected_on")
    fitted = {
        "window": "each window by itself",
        "recording": "each recording by itself",
        "fold": "fitted on the training part of each fold",
        "none": "none",
    }
    if scaling is None:
        first = Check("scaling inside the fold", "not checked", "the split file does not say how windows were scaled")
    elif scaling in fitted:
        first = Check("scaling inside the fold", "ok", fitted[scaling])
    else:
        first = Check(
            "scaling inside the fold", "fail", f"declared as {scaling!r}: fitted on more than the training part"
        )
    name = SELECTION
    if selected is None:
        second = Check(name, "not checked", "the split file does not say on what epochs and settings were chosen")
    elif selected == "test":
        second = Check(name, "fail", "epochs and settings are chosen on the test part: figures are too good")
    elif "published" in splits.protocols:
        text = "the published protocol runs too, which chooses on the test part; its figures show optimism only"
        second = Check(name, "warning", text)
    else:
        second = Check(name, "ok", f"epochs and settings are chosen on: {selected}")
    return [first, second]


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
    if "-nested-" not in cell["id"]:
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


def _check_confounds(
    study: Study, windows: Windows, signals: Sequence[_Signal], *, permutations: int, seed: int
) -> list[Check]:
    by_name = {s.subject: s for s in study.subjects}
    subjects = [by_name[name] for name in windows.subjects]
    quantities: dict[str, list[Any]] = {"recording length": windows.seconds.tolist()}
    checks = []
    if len({signal.unit for signal in signals}) == 1:
        quantities["amplitude"] = [signal.amplitude for signal in signals]
    else:
        checks.append(Check("confound: amplitude", "not checked", "some recordings have a unit and some have none"))
    for trait in signals[0].traits:
        quantities[trait] = [signal.traits[trait] for signal in signals]
    columns = dict.fromkeys(key for subject in subjects for key in subject.extra)
    for column in columns:
        quantities.setdefault(column, [subject.extra.get(column, "") for subject in subjects])
    seen: list[np.ndarray] = []
    for name, values in quantities.items():
        kept, kind = _as_quantity(values)
        order = np.unique([_sort_key(v) for v in kept], return_inverse=True)[1]
        if kind == "" or len(set(order.tolist())) < 2 or any(_same_ranking(order, other) for other in seen):
            continue  # constant, or the same as an earlier quantity
        seen.append(order)
        checks.append(_check_confound(name, kept, kind, windows, subjects, permutations=permutations, seed=seed))
    return checks


def _as_quantity(values: Sequence[Any]) -> tuple[list[Any], str]:
    """Values as numbers if all are numbers, and their kind: "number", "category", or "" for names of subjects."""
    given = [v for v in values if v != ""]
    try:
        return [float("nan") if v == "" else float(v) for v in values], "number"
    except ValueError:
        levels = len(set(given))
        return [str(v) for v in values], "category" if levels <= max(10, len(given) // 5) else ""


def _sort_key(value: float | str) -> float | str:
    return value if isinstance(value, str) or value == value else -np.inf


def _same_ranking(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two quantities rank the subjects alike, up to direction and rounding."""
    return abs(float(np.corrcoef(a, b)[0, 1])) > 0.999


def _check_confound(
    name: str,
    values: Sequence[Any],
    kind: str,
    windows: Windows,
    subjects: Sequence[Subject],
    *,
    permutations: int,
    seed: int,
) -> Check:
    check = f"confound: {name}"
    here = [i for i, v in enumerate(values) if v != "" and v == v]
    labels = windows.labels[here]
    if len(here) < len(values) / 2 or min(np.bincount(labels, minlength=2)) < 2:
        return Check(check, "not checked", f"known for {len(here)} of {len(values)} subjects only")
    if kind == "category" and all(subjects[i].label.lower() in str(values[i]).lower() for i in here):
        return Check(check, "not checked", "the column spells the label out")
    found = confound_auc([values[i] for i in here], labels, permutations=permutations, seed=seed)
    low, high = found.interval
    detail = f"AUC {found.auc:.2f} (95 % {low:.2f} to {high:.2f}), permutation p {found.p:.3f}, {found.n} subjects"
    if found.p >= _SIGNIFICANT:
        return Check(check, "ok", detail)
    if found.auc >= _DECISIVE:
        return Check(check, "fail", f"{detail}: it predicts the label alone")
    return Check(check, "warning", f"{detail}: report it beside every model")


def failed(checks: Sequence[Check]) -> bool:
    """Whether any check failed."""
    return any(check.outcome == "fail" for check in checks)
