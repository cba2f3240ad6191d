"""`voxelwave eeg planted`: a nested run on synthetic subjects with a known difference."""

import csv
import json
from pathlib import Path
from typing import TypedDict

import numpy as np

from ...eeg.study import read_rows
from ...eeg.synthetic import write_synthetic_study
from ...runs.exit import DONE, ERROR
from ...runs.files import atomic_path
from ...runs.json_files import write_json
from ...runs.record import command_line, package_versions
from ..nested_cv.records import BandImportance, ChannelImportance, Explanation, Metric
from ..nested_cv.report import read_results
from ..nested_cv.report_text import span
from .explanation import EXPLANATION
from .nested_cv import nested_cv
from .nested_options import FOLDER, NestedCV, Planted

PLANTED, SHUFFLED, RESULT = "planted", "shuffled", "planted.json"
CHANNELS, BAND = ("O1", "O2", "Pz"), "alpha"  # channels and band of the planted 10 Hz oscillation
WINDOWS = {"seconds": 2.0, "sfreq": 64.0, "scaling": "window"}
NETWORK = {
    "space": {"drop_prob": [0.3, 0.5]},
    "settings": {"F1": 4, "D": 2, "kernel_length": 32, "max_norm": 5.0, "lr": 5e-3},
    "epochs": 12,
    "patience": 12,
    "reduce_patience": 6,
    "batch": 16,  # the slow averages of batch normalisation need a few hundred steps
}


def planted(options: Planted) -> int:
    """Run the command and return its exit code."""
    study = options.output / "study"
    if not (study / "subjects.tsv").is_file():  # the table is written last, so a study with a table is complete
        write_synthetic_study(
            study,
            subjects=options.subjects,
            seconds=options.seconds,
            difference_uv=options.difference_uv,
            planted=CHANNELS,
            frequency=10.0,
            seed=options.seed,
        )
    runs = {PLANTED: study / "subjects.tsv", SHUFFLED: _shuffled(study, options.seed)}
    titles = {
        PLANTED: "Synthetic subjects, 10 Hz planted",
        SHUFFLED: "Synthetic subjects, shuffled labels",
    }
    for name, table in runs.items():
        run = NestedCV(
            table,
            output=options.output / name,
            positive="case",
            models=["adhdeepnet", "bandpower", "majority"],
            model_options={"adhdeepnet": NETWORK},
            windows=WINDOWS,
            outer=options.outer,
            inner=2,
            trials=options.trials,
            jobs=options.jobs,
            threads=options.threads,
            cache=options.output / "windows",
            no_audit=name == SHUFFLED,
            allow_leakage=True,  # an oscillation that raises the amplitude is planted on purpose
            no_explanation=name == SHUFFLED,
            title=titles[name],
            seed=options.seed,
        )
        nested_cv(run)
    found = _findings(options.output, options.seed)
    write_json(options.output / RESULT, found)
    for name, true in found["statements"].items():
        print(f"{'yes' if true else 'NO'}: {name}")
    print(f"wrote {options.output}/: {RESULT}, {PLANTED}/report.html, {SHUFFLED}/report.html")
    return DONE if all(found["statements"].values()) else ERROR


def _shuffled(study: Path, seed: int) -> Path:
    """Write the table of the study with shuffled labels."""
    rows = read_rows(study / "subjects.tsv")
    order = np.random.default_rng([seed, len(rows)]).permutation(len(rows))
    path = study / "shuffled.tsv"
    with atomic_path(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | {"label": rows[i]["label"]} for row, i in zip(rows, order, strict=True))
    return path


def _in_words(interval: list[float]) -> str:
    """The interval of the shuffled labels; that of equal folds has no width and is no estimate."""
    if interval[0] == interval[1]:
        return f"the interval is not estimable, since all folds give {interval[0]:.3f}, to compare with"
    return f"the interval {span(interval)} covers"


class Findings(TypedDict):
    """planted.json: whether each statement is true, and the figures behind it."""

    command: str
    created: str
    seed: int
    versions: dict[str, str]
    statements: dict[str, bool]
    planted: dict[str, Metric]
    shuffled: dict[str, Metric]
    bands: list[BandImportance]
    channels: list[ChannelImportance]
    seconds: dict[str, float]
    hardware: str


def _findings(output: Path, seed: int) -> Findings:
    """Figures of both runs, and the statements that must be true."""
    results = {name: read_results(output / name) for name in (PLANTED, SHUFFLED)}
    metrics = {name: content["models"][0]["metrics"] for name, content in results.items()}
    explanation: Explanation = json.loads((output / PLANTED / FOLDER / EXPLANATION).read_text())
    bands = sorted(explanation["bands"], key=lambda row: -row["importance"])
    channels = sorted(explanation["channels"], key=lambda row: -row["importance"])[: len(CHANNELS)]
    low = metrics[PLANTED]["balanced_accuracy"]["interval_nb"][0]
    chance = metrics[SHUFFLED]["balanced_accuracy"]["interval_nb"]
    return {
        "command": command_line(),
        "created": results[SHUFFLED]["created"],
        "seed": seed,
        "versions": package_versions(),
        "statements": {
            f"planted: the interval of balanced accuracy lies above 0.5 (lower end {low:.3f})": low > 0.5,
            f"the most important band is {bands[0]['band']}": bands[0]["band"] == BAND,
            f"the most important channels are {', '.join(row['channel'] for row in channels)}": {
                row["channel"] for row in channels
            }
            == set(CHANNELS),
            f"shuffled labels: {_in_words(chance)} 0.5": chance[0] <= 0.5 <= chance[1],
        },
        "planted": {k: metrics[PLANTED][k] for k in ("balanced_accuracy", "auc")},
        "shuffled": {k: metrics[SHUFFLED][k] for k in ("balanced_accuracy", "auc")},
        "bands": bands,
        "channels": explanation["channels"],
        "seconds": {name: content["seconds"] for name, content in results.items()},
        "hardware": results[PLANTED]["hardware"],
    }
