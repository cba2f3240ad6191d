"""The EEG part of `voxelwave demo`: synthetic recordings with and without a rhythm, diagnosed by a small network."""

import csv
from pathlib import Path

from matplotlib.figure import Figure

from ...eeg.recording import read_recording
from ...eeg.synthetic import write_synthetic_study
from ...runs.files import atomic_path
from ..eeg.diagnose import diagnose
from ..eeg.options import Diagnose
from .page import Shown

WEIGHTS, SEED = "rhythm-demo", 12
_CHANNELS = ("Fz", "Pz", "O1", "O2")


def demo_eeg(output: Path) -> Shown:
    """Make four recordings, two of which have a planted 10 Hz rhythm, diagnose them, and draw four seconds of each.

    Args:
        output: the folder of the demo.
    """
    recordings, results = output / "eeg" / "recordings", output / "eeg" / "diagnosis"
    write_synthetic_study(recordings, subjects=4, seconds=20, difference_uv=8, seed=SEED)
    diagnose(Diagnose(input=recordings, output=results, weights=Path(WEIGHTS), threads=1))
    with (results / "subjects.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    _draw(output / "eeg.png", recordings, rows)
    return Shown(
        "Two of four synthetic recordings hold a planted 10 Hz rhythm at the back of the head (O1, O2, Pz). The weights"
        f" {WEIGHTS}, which know this rhythm and no disease, find it; the page of the run has a row per recording.",
        "eeg.png",
        f"voxelwave eeg diagnose -i {recordings} -o {results} --weights {WEIGHTS}",
        {"page of the run": "eeg/diagnosis/index.html", "table": "eeg/diagnosis/subjects.csv"},
    )


def _draw(path: Path, recordings: Path, rows: list[dict[str, str]]) -> None:
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    for axis, row in zip(figure.subplots(1, len(rows), sharey=True), rows, strict=True):
        recording = read_recording(recordings / Path(row["file"]).name)
        picked = [recording.channels.index(name) for name in _CHANNELS]
        signal = recording.signal[picked, : round(4 * recording.sfreq)]  # uV
        seconds = [k / recording.sfreq for k in range(signal.shape[1])]
        for k, line in enumerate(signal):
            axis.plot(seconds, line - line.mean() - 120 * k, color="#0b63a5", linewidth=0.7)
        axis.set_title(
            f"{row['subject'].removesuffix('_raw')}: {row['decision']}\nprobability of the rhythm"
            f" {float(row['probability']):.2f}",
            fontsize=11,
        )
        axis.set_xlabel("seconds")
        axis.set_yticks([-120 * k for k in range(len(_CHANNELS))], _CHANNELS)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90)
