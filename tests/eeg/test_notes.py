"""The kind of a note on a recording, not its wording, decides whether the audit reports it."""

import dataclasses

import numpy as np
import pytest

from voxelwave.eeg import windows as windows_module
from voxelwave.eeg.audit import audit
from voxelwave.eeg.note import Note
from voxelwave.eeg.recording import read_recording
from voxelwave.eeg.study import read_study
from voxelwave.eeg.windows import WindowOptions, load_windows

NAMES = ("Fz", "Cz", "Pz")


@pytest.fixture
def study(tmp_path, write_fif, noise):
    """Eight subjects; the first has a flat channel."""
    lines = ["subject\tfile\tlabel"]
    for number in range(8):
        signal = noise(seed=number)
        if number == 0:
            signal[1] = 0
        write_fif(tmp_path / f"s{number}_raw.fif", signal, NAMES)
        lines.append(f"s{number}\ts{number}_raw.fif\t{('control', 'case')[number % 2]}")
    (tmp_path / "subjects.tsv").write_text("\n".join(lines) + "\n")
    return read_study(tmp_path)


def _signal_quality(study):
    checks = audit(study, options=WindowOptions(seconds=2.0), permutations=9)
    return next(check for check in checks if check.check == "signal quality")


def test_a_flat_channel_is_a_defect_and_a_change_of_rate_is_not(study):
    windows = load_windows(study, WindowOptions(seconds=2.0, sfreq=64.0))
    assert windows.defects == ("s0: flat channels: Cz",)
    assert any("resampled from 128 to 64 Hz" in note for note in windows.notes)


def test_rewording_a_note_changes_no_outcome(study, monkeypatch):
    assert _signal_quality(study).outcome == "warning"

    def reworded(*arguments, **options):
        recording = read_recording(*arguments, **options)
        notes = tuple(Note("other words", note.kind) for note in recording.notes)
        return dataclasses.replace(recording, notes=notes)

    monkeypatch.setattr(windows_module, "read_recording", reworded)
    found = _signal_quality(study)
    assert (found.outcome, found.detail) == ("warning", "s0: other words")


def test_a_remark_in_the_words_of_a_defect_is_still_a_remark(study, monkeypatch):
    def harmless(*arguments, **options):
        recording = read_recording(*arguments, **options)
        return dataclasses.replace(recording, notes=(Note("flat channels, saturated, left out, no"),))

    monkeypatch.setattr(windows_module, "read_recording", harmless)
    assert _signal_quality(study).outcome == "ok"


def test_defects_survive_the_cache(study, tmp_path):
    options = WindowOptions(seconds=2.0)
    first, again = (load_windows(study, options, tmp_path / "cache") for _ in range(2))
    assert first.defects == again.defects == ("s0: flat channels: Cz",)
    assert first.digest == again.digest
    np.testing.assert_array_equal(first.x, again.x)
