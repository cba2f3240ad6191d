"""Diagnosis of recordings with a trained network that stays in memory."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ...eeg.diagnosis import diagnose
from ...eeg.long_recording import LongRecordingNet
from ...eeg.networks import ModelCard, load_network
from ...eeg.stream import check_streams, stream_recording
from ...runs.files import outputs_together
from ...runs.json_files import write_json
from ...runs.outcome import add_outcome
from ...runs.tables import write_table
from ..batch.case import Case
from ..batch.manifest import read_manifest
from .people_table import PeopleTable, RecordingOf, means_of_people

DIAGNOSIS, PEOPLE = "diagnosis.json", "people.csv"
NO_DEVICE = (
    "Research software, not a medical device: a probability measures how similar a recording is to those of a training "
    "group; it is not a statement about a person's health."
)


@dataclass(frozen=True)
class RecordingRow:
    """The result for one recording; a row of subjects.csv.

    Args:
        subject: name of the recording.
        file: its path.
        probability: mean over the windows.
        decision: one of the classes, or "uncertain".
        windows: number of windows.
        windows_above: number of windows at or above the threshold.
        sd_over_windows: standard deviation of the probability over the windows.
        seconds: length of the recording.
        notes: found while reading, separated by "; ".
        trained_on: whether the weights were trained on a subject of this name.
    """

    subject: str
    file: str
    probability: float
    decision: str
    windows: int
    windows_above: int
    sd_over_windows: float
    seconds: float
    notes: str
    trained_on: bool = False


@dataclass(frozen=True)
class WindowRow:
    """The result for one window; a row of windows.csv.

    Args:
        subject: name of the recording.
        file: its path.
        start_s: start of the window in seconds.
        probability: probability of the positive class.
    """

    subject: str
    file: str
    start_s: float
    probability: float


Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Diagnosis:
    """A trained network in memory, and the threshold that turns its probabilities into decisions.

    Args:
        network: the network in evaluation mode.
        card: its model card.
        weights: the weight file.
        threshold: the probability from which a recording counts as positive.
        abstain: half the width of the band without a decision.
        people: the table of people, if given.
        stream: read recordings piece by piece.
    """

    network: nn.Module
    card: ModelCard
    weights: Path
    threshold: float
    abstain: float
    people: PeopleTable | None = None
    stream: bool = False

    def __call__(self, case: Case, folder: Path) -> dict[str, Any]:
        """Diagnose one recording of a batch, and write its files."""
        found, found_windows, notes = self.diagnose(case.inputs[0])
        row, windows = _without_file(asdict(found)), [_without_file(asdict(window)) for window in found_windows]
        for line in (row, *windows):
            line["subject"] = case.identifier
        write_table(folder / "windows.csv", windows)
        read_as = {"class": self.card.classes[1], "threshold": self.threshold}
        write_json(folder / DIAGNOSIS, {"note": NO_DEVICE, **read_as, **row, "window": windows})
        metrics = {name: row[name] for name in ("probability", "decision", "windows", "windows_above", "seconds")}
        return {"metrics": metrics, "warnings": notes}

    def diagnose(self, file: Path) -> tuple[RecordingRow, list[WindowRow], list[str]]:
        """The result for a recording, the results for its windows, and notes.

        Raises:
            ValueError: the recording does not fit the weights.
        """
        if self.stream:
            return self._diagnose_stream(file)
        found = diagnose(file, (self.network, self.card))
        seconds, texts = found.recording.seconds, [note.text for note in found.recording.notes]
        return self._rows(file, found.start_s, found.windows, seconds, texts)

    def _diagnose_stream(self, file: Path) -> tuple[RecordingRow, list[WindowRow], list[str]]:
        """The result for a recording that is read piece by piece."""
        assert isinstance(self.network, LongRecordingNet)  # `batch_work`
        found = stream_recording(self.network, self.card, file)
        if found is None:
            raise ValueError(f"no window of {self.card.window_options.seconds:g} s free of bad spans")
        texts = [note.text for note in found.notes]
        return self._rows(file, np.zeros(1), np.array([found.probability]), found.seconds, texts)

    def _rows(
        self, file: Path, start_s: np.ndarray, probability: np.ndarray, seconds: float, notes: list[str]
    ) -> tuple[RecordingRow, list[WindowRow], list[str]]:
        """The rows of a recording, for which each window or the whole recording has a probability."""
        mean = float(probability.mean())
        trained_on = bool(
            {file.stem, file.stem.removesuffix("_raw"), file.stem.split("_")[0]} & set(self.card.subjects)
        )
        if trained_on:
            notes.append("the weights were trained on a subject of this name, so this probability is optimistic")
        row = RecordingRow(
            subject=file.stem,
            file=str(file),
            probability=mean,
            decision=self.decide(mean),
            windows=len(probability),
            windows_above=int((probability >= self.threshold).sum()),
            sd_over_windows=float(probability.std()),
            seconds=round(seconds, 3),
            notes="; ".join(notes),
            trained_on=trained_on,
        )
        windows = [
            WindowRow(file.stem, str(file), round(float(first), 3), float(value))
            for first, value in zip(start_s, probability, strict=True)
        ]
        return row, windows, notes

    def decide(self, probability: float) -> str:
        """The class, or "uncertain" within `abstain` of the threshold."""
        if abs(probability - self.threshold) < self.abstain:
            return "uncertain"
        return self.card.classes[probability >= self.threshold]

    def write_all(self, output: Path) -> None:
        """Write the tables of all recordings of a batch, from their folders."""
        rows: Rows = []
        window_rows: Rows = []
        failed = []
        for name, entry in sorted(read_manifest(output).items()):
            if entry["status"] != "done":
                failed.append({"subject": name, "reason": entry["error"]})
                continue
            row = json.loads((output / name / DIAGNOSIS).read_text())
            file = entry["inputs"][0]["path"]
            window_rows += [{"subject": w.pop("subject"), "file": file, **w} for w in row.pop("window")]
            for key in ("note", "class", "threshold"):
                del row[key]
            row.setdefault("trained_on", False)  # not in results of earlier versions
            rows.append({"subject": row.pop("subject"), "file": file, **row})
        self.write(output, rows, window_rows, failed)

    def write(self, output: Path, rows: Rows, window_rows: Rows, failed: list[dict[str, str]]) -> None:
        """Write subjects.csv, windows.csv and diagnosis.json, and print a line per recording.

        Args:
            output: the folder.
            rows: fields of `RecordingRow`.
            window_rows: fields of `WindowRow`.
            failed: "subject" and "reason" of each recording without a result.
        """
        rows, people = self._with_people(rows)
        content = {
            "note": NO_DEVICE,
            "positive": self.card.classes[1],
            "negative": self.card.classes[0],
            "threshold": self.threshold,
            "uncertain": [max(0.0, self.threshold - self.abstain), min(1.0, self.threshold + self.abstain)],
            "weights": str(self.weights),
            "network": self.card.network,
            "subjects": [row | {"window": [w for w in window_rows if w["subject"] == row["subject"]]} for row in rows],
            "failed": failed,
        }
        with outputs_together(output, replaces=[PEOPLE]) as together:
            write_table(together / "subjects.csv", rows)
            write_table(together / "windows.csv", window_rows)
            if people is not None:
                write_table(together / PEOPLE, people)
            write_json(together / DIAGNOSIS, content)
        add_outcome(
            positive=self.card.classes[1], threshold=self.threshold, subjects=rows, failed=failed, note=NO_DEVICE
        )
        for row in rows:
            words = f"{self.card.classes[1]} {row['probability']:.3f} ({row['decision']}; {row['windows']} windows)"
            print(f"{row['subject']}: {words}")
        if known := [row["subject"] for row in rows if row["trained_on"]]:
            print(
                f"note: the weights were trained on subjects named like {', '.join(known)}: probabilities of these are"
                " optimistic"
            )
        print(f"{NO_DEVICE}\nwrote {output}/: subjects.csv, windows.csv, {DIAGNOSIS}; {len(failed)} recordings failed")

    def _with_people(self, rows: Rows) -> tuple[Rows, Rows | None]:
        """Add person and label from the table, if given, to the rows; return rows per person; print who is missing."""
        if self.people is None:
            return rows, None
        found = []
        for row in rows:
            known = self.people.row_of(Path(row["file"]))
            person, label = (row["subject"], "") if known is None else (known.person, known.label)
            found.append({**row, "person": person, "label": label})
        recordings = [RecordingOf(r["person"], r["label"], r["windows"], r["probability"]) for r in found]
        people = [asdict(mean) | {"decision": self.decide(mean.probability)} for mean in means_of_people(recordings)]
        for note in self.people.notes(Path(row["file"]) for row in rows):
            print(f"note: {note}")
        return found, people


def batch_work(*, weights: str, threshold: float | None, abstain: float, stream: bool = False) -> Diagnosis:
    """Load a trained network; the arguments are plain values, so that they can be sent to a worker.

    Raises:
        FileNotFoundError, ValueError: see `load_network`; or threshold or abstain is out of range.
    """
    network, card = load_network(Path(weights))
    threshold = card.threshold if threshold is None else threshold
    if not 0 <= threshold <= 1 or not 0 <= abstain <= 1:
        raise ValueError(f"threshold and abstain must be between 0 and 1, got {threshold} and {abstain}")
    if stream:
        check_streams(network, card)
    return Diagnosis(network, card, Path(weights), threshold, abstain, stream=stream)


def diagnose_single(file: Path, output: Path, work: Diagnosis) -> None:
    """Diagnose one recording and write its files.

    Raises:
        ValueError: the file cannot be diagnosed; the message names it.
    """
    try:
        row, windows, _ = work.diagnose(file)
    except (ValueError, OSError) as error:
        raise ValueError(f"{file}: {error}") from error
    work.write(output, [asdict(row)], [asdict(window) for window in windows], [])


def _without_file(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "file"}
