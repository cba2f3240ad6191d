"""Diagnose recordings with trained weights that stay in memory."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from ...eeg.networks import ModelCard
    from ..batch.case import Case
from ...runs.tables import write_json, write_table

DIAGNOSIS = "diagnosis.json"
NO_DEVICE = (
    "Research software and no medical device: a probability says how alike a recording is to those of a training "
    "group, and nothing about a person's health."
)


@dataclass(frozen=True)
class Diagnosis:
    """A trained network in memory and how its probabilities are read.

    Args:
        network: of the weights.
        card: what it was trained on.
        weights: their file.
        threshold: probability from which a recording counts as positive.
        abstain: half the width of the band without a decision.
    """

    network: "nn.Module"
    card: "ModelCard"
    weights: Path
    threshold: float
    abstain: float

    def __call__(self, case: "Case", folder: Path) -> dict[str, Any]:
        """Diagnose one recording of a batch."""
        row, windows = self.diagnose(case.inputs[0])
        for line in (row, *windows):
            line["subject"] = case.identifier
            del line["file"]
        write_table(folder / "windows.csv", windows)
        read_as = {"class": self.card.classes[1], "threshold": self.threshold}
        write_json(folder / DIAGNOSIS, {"note": NO_DEVICE, **read_as, **row, "window": windows})
        metrics = {name: row[name] for name in ("probability", "decision", "windows", "windows_above", "seconds")}
        return {"metrics": metrics, "warnings": [note for note in row["notes"].split("; ") if note]}

    def diagnose(self, file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """A row about the recording, and one about each window."""
        return _diagnose_one(file, self.network, self.card, self.threshold, self.abstain)

    def write_all(self, output: Path) -> None:
        """The tables of all recordings of a batch, from their folders."""
        from ..batch.manifest import read_manifest

        rows, window_rows, failed = [], [], []
        for name, entry in sorted(read_manifest(output).items()):
            if entry["status"] != "done":
                failed.append({"subject": name, "reason": entry["error"]})
                continue
            row = json.loads((output / name / DIAGNOSIS).read_text())
            file = entry["inputs"][0]["path"]
            window_rows += [{"subject": w.pop("subject"), "file": file, **w} for w in row.pop("window")]
            for key in ("note", "class", "threshold"):
                del row[key]
            rows.append({"subject": row.pop("subject"), "file": file, **row})
        self.write(output, rows, window_rows, failed)

    def write(
        self,
        output: Path,
        rows: list[dict[str, Any]],
        window_rows: list[dict[str, Any]],
        failed: list[dict[str, str]],
    ) -> None:
        """subjects.csv, windows.csv and diagnosis.json; the rows on the screen too."""
        _write_diagnosis(output, rows, window_rows, failed, self)
        for row in rows:
            words = f"{self.card.classes[1]} {row['probability']:.3f} ({row['decision']}; {row['windows']} windows)"
            print(f"{row['subject']}: {words}")
        print(f"{NO_DEVICE}\nwrote {output}/: subjects.csv, windows.csv, {DIAGNOSIS}; {len(failed)} recordings failed")


def batch_work(*, weights: str, threshold: float | None, abstain: float) -> Diagnosis:
    """A trained network made ready, from plain values."""
    from ...eeg.networks import load_network

    network, card = load_network(Path(weights))
    threshold = card.threshold if threshold is None else threshold
    if not 0 <= threshold <= 1 or not 0 <= abstain <= 1:
        raise ValueError(f"threshold and abstain must lie between 0 and 1, got {threshold} and {abstain}")
    return Diagnosis(network, card, Path(weights), threshold, abstain)


def diagnose_single(file: Path, output: Path, work: Diagnosis) -> int:
    try:
        row, windows = work.diagnose(file)
    except (ValueError, OSError) as error:
        raise ValueError(f"{file}: {error}") from error
    work.write(output, [row], windows, [])
    return 0


def _diagnose_one(
    file: Path, network: "nn.Module", card: "ModelCard", threshold: float, abstain: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from ...eeg.module import predict_windows
    from ...eeg.windows import cut, scaled

    options = card.window_options
    recording = options.read(file)
    if recording.file_sfreq < card.sfreq:
        raise ValueError(
            f"the weights need at least {card.sfreq:g} Hz, got {recording.file_sfreq:g} Hz, which holds no fast EEG"
        )
    if options.scaling in ("none", "fold") and recording.unit != card.unit:
        raise ValueError(f"the weights need recordings in {card.unit} as those of the training, got {recording.unit}")
    x, start = cut(recording, options)
    if len(x) == 0:
        raise ValueError(f"no window of {options.seconds:g} s free of bad spans in {recording.seconds:.1f} s")
    x = scaled(x, recording, options.scaling)
    scaler = card.fitted_scaler
    probability = predict_windows(network, x if scaler is None else scaler.apply(x))
    mean = float(probability.mean())
    notes = list(recording.notes)
    if {file.stem, file.stem.removesuffix("_raw"), file.stem.split("_")[0]} & set(card.subjects):
        notes.append("these weights were trained on a subject of this name, so its probability flatters")
    negative, positive = card.classes
    decision = positive if mean >= threshold else negative
    row = {
        "subject": file.stem,
        "file": str(file),
        "probability": mean,
        "decision": "uncertain" if abs(mean - threshold) < abstain else decision,
        "windows": len(x),
        "windows_above": int((probability >= threshold).sum()),
        "sd_over_windows": float(probability.std()),
        "seconds": round(recording.seconds, 3),
        "notes": "; ".join(notes),
    }
    return row, [
        {
            "subject": file.stem,
            "file": str(file),
            "start_s": round(float(first) / recording.sfreq, 3),
            "probability": float(value),
        }
        for first, value in zip(start, probability, strict=True)
    ]


def _write_diagnosis(
    output: Path,
    rows: list[dict[str, Any]],
    window_rows: list[dict[str, Any]],
    failed: list[dict[str, str]],
    work: Diagnosis,
) -> None:
    write_table(output / "subjects.csv", rows)
    write_table(output / "windows.csv", window_rows)
    content = {
        "note": NO_DEVICE,
        "positive": work.card.classes[1],
        "negative": work.card.classes[0],
        "threshold": work.threshold,
        "uncertain": [max(0.0, work.threshold - work.abstain), min(1.0, work.threshold + work.abstain)],
        "weights": str(work.weights),
        "network": work.card.network,
        "subjects": [row | {"window": [w for w in window_rows if w["subject"] == row["subject"]]} for row in rows],
        "failed": failed,
    }
    write_json(output / DIAGNOSIS, content)
