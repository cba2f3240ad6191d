"""Cohort and facts of an EEG study, for nested cross-validation and its report."""

from datetime import datetime

import numpy as np

from ...eeg.study import Study
from ...eeg.windows import Windows
from ...runs.record import command_line, hardware
from ..nested_cv.records import AuditRow, ClassFlow, Plan
from ..nested_cv.results import Facts
from ..nested_cv.splits import Cohort
from .guard import persons_of

TITLES = {
    "adhdeepnet": ("ADHDeepNet", "the network under study"),
    "eegnet": ("EEGNet", "network of Lawhern et al. 2018"),
    "shallow": ("ShallowConvNet", "network of Schirrmeister et al. 2017"),
    "long_recording": ("LongRecordingNet", "reads each recording at once"),
    "bandpower": ("band power", "logarithm of power by channel and band, logistic regression"),
    "riemann": ("Riemannian tangent space", "covariance of channels at its Riemannian mean, logistic regression"),
    "minirocket": ("random convolutions", "features in the manner of MiniRocket, logistic regression"),
    "amplitude": ("amplitude", "logarithm of variance by channel before any scaling, logistic regression"),
    "length": ("recording length", "only the length of the recording, logistic regression"),
    "majority": ("majority", "shares of the classes in the training part"),
}


def cohort_of(study: Study, data: Windows) -> Cohort:
    """The subjects with windows; subjects with equal recordings, or of one person, form a group.

    Raises:
        LabelError: a recording has two labels.
    """
    extra = {s.subject: s.extra for s in study.subjects}
    persons = persons_of(study, data)
    sites = tuple(extra[name].get("site", "") for name in data.subjects)
    return Cohort(
        subjects=data.subjects,
        labels=tuple(data.labels.tolist()),
        classes=data.classes,
        groups=() if persons == data.subjects else persons,
        sites=sites if all(sites) and len(set(sites)) > 1 else (),
    )


def facts_of(
    study: Study,
    data: Windows,
    plan: Plan,
    checks: list[AuditRow],
    seconds: float,
    title: str | None,
) -> Facts:
    """The facts of the report other than its figures: flow of subjects, audit, descriptions, limits."""
    extra = {s.subject: s.extra for s in study.subjects}
    windows = np.bincount(data.subject, minlength=len(data.subjects))
    positive = data.classes[1]
    design = plan["design"]
    limits = [
        *(
            ["The audit failed, and the run was continued with --allow-leakage: its results are too optimistic."]
            if any(c["outcome"] == "fail" for c in checks)
            else []
        ),
        "One study: the performance at other hospitals, with other devices, ages or severities is unknown.",
        f"Settings tried in each fold: {design['trials']}; more trials might find better settings.",
        "Research software, not a medical device.",
    ]
    if design["repeats"] == 1:
        limits.append("One partition of the subjects; --repeats shows how much the figures depend on it.")
    if plan["cohort"]["groups"]:
        limits.append("Rows of one person, and rows with equal recordings, are in the same fold.")
    return Facts(
        title=title or f"{positive} from EEG: nested cross-validation",
        command=command_line(),
        flow={
            "listed": len(study.subjects),
            "read": len(study.subjects),
            "excluded": [{"subject": name, "reason": reason} for name, reason in data.excluded],
            "analysed": len(data.subjects),
            "windows": len(data.x),
            "per_class": _flow_of_classes(data, windows),
        },
        windows=windows.tolist(),
        seconds=data.seconds.tolist(),
        extra=[extra[name] for name in data.subjects],
        audit=checks,
        caveats=[f"{c['check']}: {c['detail']}" for c in checks if c["outcome"] in ("warning", "fail")],
        limits=limits,
        description=[
            f"{len(data.channels)} channels ({', '.join(data.channels)}); unit of the files: {data.unit}.",
            *data.notes,
        ],
        models={m: {"title": TITLES[m][0], "description": TITLES[m][1]} for m in plan["models"]},
        hardware=hardware(),
        created=datetime.now().astimezone().isoformat(timespec="seconds"),
        seconds_run=round(seconds, 1),
    )


def _flow_of_classes(data: Windows, windows: np.ndarray) -> dict[str, ClassFlow]:
    """Counts and seconds of each class; `windows` holds the number of windows of each subject."""
    flow: dict[str, ClassFlow] = {}
    for label, name in enumerate(data.classes):
        own = data.labels == label
        flow[name] = {
            "subjects": int(own.sum()),
            "windows": int(windows[own].sum()),
            "seconds_median": float(np.median(data.seconds[own])),
            "seconds_range": [float(data.seconds[own].min()), float(data.seconds[own].max())],
        }
    return flow
