"""`voxelwave eeg audit`: look for leakage and confounds in a study and in a split of it."""

from collections.abc import Sequence
from dataclasses import replace

from rich.markup import escape
from rich.table import Table

from ...eeg.audit import audit as audit_study
from ...eeg.check import Check, failed
from ...eeg.split_file import read_splits
from ...eeg.study import LabelError
from ...eeg.windows import WindowOptions
from ...runs.exit import DONE, REFUSED
from ...runs.json_files import write_json
from ...runs.outcome import add_outcome
from ...runs.tables import show_table
from .guard import read_study_of
from .options import Audit

_COLOURS = {"ok": "green", "warning": "yellow", "fail": "bold red", "not checked": "dim"}


def audit(options: Audit) -> int:
    """Run the command and return its exit code."""
    splits = None if options.splits is None else read_splits(options.splits)
    windows = (None if splits is None else splits.windows) or WindowOptions()
    windows = replace(windows, **options.given_windows)
    try:
        study = read_study_of(options)
        checks = audit_study(
            study, options=windows, splits=splits, permutations=options.permutations, seed=options.seed
        )
    except LabelError as error:
        checks = [Check("one label per subject", "fail", str(error))]
    add_outcome(checks=[check.as_dict() for check in checks])
    _print(checks)
    if options.output is not None:
        write_json(options.output / "audit.json", [check.as_dict() for check in checks])
        print(f"wrote {options.output}/audit.json")
    return REFUSED if failed(checks) else DONE


def _print(checks: Sequence[Check]) -> None:
    table = Table("check", "outcome", "detail", title="leakage audit", title_justify="left")
    for check in checks:
        table.add_row(check.check, f"[{_COLOURS[check.outcome]}]{check.outcome}[/]", escape(check.detail))
    show_table(table)
    counts = {outcome: sum(check.outcome == outcome for check in checks) for outcome in _COLOURS}
    print(", ".join(f"{number} {outcome}" for outcome, number in counts.items() if number))
