"""`voxelwave eeg audit`: look for leakage and confounds in a study and in a split of it."""

import json
from pathlib import Path
from typing import Any

# mne and scipy load in the function, so that --help answers at once


def audit(
    study: Path,
    *,
    splits: Path | None = None,
    output: Path | None = None,
    positive: str | None = None,
    label_column: str | None = None,
    seconds: float | None = None,
    overlap: float | None = None,
    sfreq: float | None = None,
    channels: list[str] | None = None,
    mat_order: str | None = None,
    permutations: int = 999,
    seed: int = 0,
) -> int:
    """Check a study and a split of it for leakage, and for confounds that predict the label alone.

    Looked for: the same EEG under two names, subjects or near-duplicate windows on both sides of a fold, inner folds
    outside the outer training part, folds without both classes, scaling or selection outside the fold; and whether the
    length of a recording, its amplitude, its file, site, age or sex tells the label. The exit code is 4 when a check
    fails. What an audit does not find may be there all the same.

    Args:
        study: subjects.tsv (columns subject, file, label; others such as site, age, sex are tested as confounds), its
            folder, a BIDS folder, or a folder with one sub-folder or .zip of recordings per class.
        splits: the folder of a nested run or its plan.json; a .csv or .tsv with columns subject, fold and optionally
            set (train, validation, test), repeat, start (first sample of a window); or a .json with folds.
        output: a folder for audit.json.
        positive: the class that is diagnosed.
        label_column: the column of the label.
        seconds: length of the windows; default that of the nested run, else 4.
        overlap: share of a window that the next one repeats; default that of the nested run, else 0.
        sfreq: sampling rate of the windows, Hz; default that of the nested run, else 128.
        channels: names, where recordings differ in theirs.
        mat_order: columns of .mat files: ced or text.
        permutations: of each confound's test.
        seed: of permutations and bootstraps.
    """
    from dataclasses import replace

    from ...eeg.audit import Check, failed
    from ...eeg.audit import audit as run_audit
    from ...eeg.split_file import read_splits
    from ...eeg.study import LabelError, read_study
    from ...eeg.windows import WindowOptions
    from ...runs.checks import at_least
    from ...runs.exit import DONE, REFUSED
    from ...runs.files import atomic_path

    at_least(1, permutations=permutations)
    split_file = None if splits is None else read_splits(splits)
    options = (split_file.windows if split_file is not None else None) or WindowOptions()
    given: dict[str, Any] = {
        "seconds": seconds,
        "overlap": overlap,
        "sfreq": sfreq,
        "channels": channels,
        "mat_order": mat_order,
    }
    options = replace(options, **{name: value for name, value in given.items() if value is not None})
    try:
        found = read_study(study, positive, label_column=label_column)
        checks = run_audit(found, options=options, splits=split_file, permutations=permutations, seed=seed)
    except LabelError as error:
        checks = [Check("one label per subject", "fail", str(error))]
    _print(checks)
    if output is not None:
        with atomic_path(output / "audit.json") as temporary:
            temporary.write_text(json.dumps([check.as_dict() for check in checks], indent=1) + "\n")
        print(f"wrote {output}/audit.json")
    return REFUSED if failed(checks) else DONE


def _print(checks) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("check", "outcome", "detail", title="leakage audit", title_justify="left")
    colours = {"ok": "green", "warning": "yellow", "fail": "bold red", "not checked": "dim"}
    for check in checks:
        table.add_row(check.check, f"[{colours[check.outcome]}]{check.outcome}[/]", escape(check.detail))
    Console().print(table)
    counts = {outcome: sum(check.outcome == outcome for check in checks) for outcome in colours}
    print(", ".join(f"{number} {outcome}" for outcome, number in counts.items() if number))
