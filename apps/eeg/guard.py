"""Reading of the study and reaction to its audit, before every training."""

from collections.abc import Sequence

from ...eeg.check import Check, failed
from ...eeg.study import LabelError, Study, read_study
from ...eeg.windows import Windows
from ...runs.persons import join_persons
from .options import GuardOptions, StudyOptions


def read_study_of(options: StudyOptions) -> Study:
    """Read the study of a command, and print its notes."""
    study = read_study(
        options.study, options.positive, label_column=options.label_column, person_column=options.person_column
    )
    for note in study.notes:
        print(f"note: {note}")
    return study


def persons_of(study: Study, data: Windows) -> tuple[str, ...]:
    """The person of each subject with windows; subjects with equal recordings are one person.

    Raises:
        LabelError: a recording has two labels.
    """
    label: dict[str, tuple[str, int]] = {}
    for name, digest, own in zip(data.subjects, data.digests, data.labels.tolist(), strict=True):
        first, other = label.setdefault(digest, (name, own))
        if other != own:
            raise LabelError(
                f"{first} and {name} are the same recording, with the labels {data.classes[other]} and "
                f"{data.classes[own]}: correct the study"
            )
    persons = study.persons
    return join_persons([persons[name] for name in data.subjects], data.digests)


def may_train(checks: Sequence[Check], options: GuardOptions) -> bool:
    """Whether training may begin after an audit; failed checks are printed."""
    for check in checks:
        if check.outcome == "fail":
            print(f"audit: {check.check}: {check.detail}")
    if not failed(checks):
        return True
    if options.allow_leakage:
        print("the audit failed; training continues because of --allow-leakage: the results are too optimistic")
        return True
    print("nothing was trained, because the audit failed: correct the study, or continue with --allow-leakage")
    return False
