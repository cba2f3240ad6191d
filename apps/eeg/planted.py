"""`voxelwave eeg planted`: a nested run on people who do not exist, where it is known what there is to find."""

import csv
import json
from pathlib import Path
from typing import Any

PLANTED, SHUFFLED, RESULT = "planted", "shuffled", "planted.json"
CHANNELS, BAND = ("O1", "O2", "Pz"), "alpha"  # that carry the oscillation of 10 Hz
WINDOWS = {"seconds": 2.0, "sfreq": 64.0, "scaling": "window"}
NETWORK = {
    "space": {"drop_prob": [0.3, 0.5]},
    "settings": {"F1": 4, "D": 2, "kernel_length": 32, "max_norm": 5.0, "lr": 5e-3},
    "epochs": 12,
    "patience": 12,
    "reduce_patience": 6,
    "batch": 16,  # the slow averages of batch normalisation need a few hundred steps
}
# mne, torch and their friends load in the functions, so that --help answers at once


def planted(
    *,
    output: Path,
    subjects: int = 100,
    seconds: float = 12.0,
    difference_uv: float = 8.0,
    outer: int = 5,
    trials: int = 2,
    jobs: int | None = None,
    threads: int = 1,
    seed: int = 0,
) -> int:
    """Check the whole way from recordings to report where the truth is known.

    Synthetic subjects are written, half of whom carry an oscillation of 10 Hz on O1, O2 and Pz. Nested cross-validation
    of a small ADHDeepNet must tell them from the others, and its explanation must name the band and the channels; with
    the same recordings under shuffled labels, the interval must cover 0.5. OUTPUT receives the study, the two runs with
    their reports (planted/ and shuffled/), and planted.json. The exit code is 1 if one of these statements is false. A
    run that was killed goes on when the same command is given again.

    Args:
        output: the folder to write into.
        subjects: how many.
        seconds: mean length of a recording.
        difference_uv: standard deviation of the oscillation in microvolts; the background has 10 to 30.
        outer: folds of which each is tested once.
        trials: settings tried in each outer fold.
        jobs: processes on this machine.
        threads: of each fit.
        seed: of subjects, shuffle, folds and fits.
    """
    from ...eeg.synthetic import write_synthetic_study
    from ...runs.exit import DONE, ERROR
    from ...runs.files import atomic_path
    from .nested_cv import nested_cv

    study = output / "study"
    if not (study / "subjects.tsv").is_file():  # written last
        write_synthetic_study(
            study,
            subjects=subjects,
            seconds=seconds,
            difference_uv=difference_uv,
            planted=CHANNELS,
            frequency=10.0,
            seed=seed,
        )
    runs = {PLANTED: study / "subjects.tsv", SHUFFLED: _shuffled(study, seed)}
    for name, table in runs.items():
        nested_cv(
            table,
            output=output / name,
            positive="case",
            models=["adhdeepnet", "bandpower", "majority"],
            model_options={"adhdeepnet": NETWORK},
            windows=WINDOWS,
            outer=outer,
            inner=2,
            trials=trials,
            jobs=jobs,
            threads=threads,
            cache=output / "windows",
            no_audit=name == SHUFFLED,
            no_explanation=name == SHUFFLED,
            title=f"Synthetic subjects, {name} difference of 10 Hz"
            if name == PLANTED
            else "Synthetic subjects, shuffled labels",
            seed=seed,
        )
    found = _findings(output)
    with atomic_path(output / RESULT) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    for name, true in found["statements"].items():
        print(f"{'yes' if true else 'NO'}: {name}")
    print(f"wrote {output}/: {RESULT}, {PLANTED}/report.html, {SHUFFLED}/report.html")
    return DONE if all(found["statements"].values()) else ERROR


def _shuffled(study: Path, seed: int) -> Path:
    """The table of the study with its labels dealt out anew."""
    import numpy as np

    from ...eeg.study import read_rows
    from ...runs.files import atomic_path

    rows = read_rows(study / "subjects.tsv")
    order = np.random.default_rng([seed, len(rows)]).permutation(len(rows))
    path = study / "shuffled.tsv"
    with atomic_path(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | {"label": rows[i]["label"]} for row, i in zip(rows, order, strict=True))
    return path


def _findings(output: Path) -> dict[str, Any]:
    """Figures of both runs, and the statements that must hold."""
    from .explanation import EXPLANATION, FOLDER

    results = {name: json.loads((output / name / "results.json").read_text()) for name in (PLANTED, SHUFFLED)}
    metrics = {name: content["models"][0]["metrics"] for name, content in results.items()}
    explanation = json.loads((output / PLANTED / FOLDER / EXPLANATION).read_text())
    bands = sorted(explanation["bands"], key=lambda row: -row["importance"])
    channels = sorted(explanation["channels"], key=lambda row: -row["importance"])[: len(CHANNELS)]
    low = metrics[PLANTED]["balanced_accuracy"]["interval_nb"][0]
    chance = metrics[SHUFFLED]["balanced_accuracy"]["interval_nb"]
    return {
        "statements": {
            f"planted: balanced accuracy is above 0.5 with its whole interval (from {low:.3f})": low > 0.5,
            f"the band that counts most is {bands[0]['band']}": bands[0]["band"] == BAND,
            f"the channels that count most are {', '.join(row['channel'] for row in channels)}": {
                row["channel"] for row in channels
            }
            == set(CHANNELS),
            f"shuffled labels: the interval {chance[0]:.3f} to {chance[1]:.3f} covers 0.5": chance[0]
            <= 0.5
            <= chance[1],
        },
        **{name: {k: found[k] for k in ("balanced_accuracy", "auc")} for name, found in metrics.items()},
        "bands": bands,
        "channels": explanation["channels"],
        "seconds": {name: content["seconds"] for name, content in results.items()},
        "hardware": results[PLANTED]["hardware"],
    }
