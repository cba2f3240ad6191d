"""Features of EDF+ and BDF+ that MNE does not read: gaps between records, and the encoding of annotations."""

import numpy as np
import pytest

from voxelwave.eeg.recording import read_recording
from voxelwave.eeg.windows import WindowOptions, cut

NAMES = ("Fz", "Cz", "Pz")
SECONDS = 20
GAP_AT, GAP_S = 8, 300


def _mark(onset, *annotations):
    """The annotation bytes of a record: its onset, followed by the annotations (onset, duration, text)."""
    text = f"+{onset:g}".encode() + b"\x14\x14\x00"
    for start, duration, words in annotations:
        text += f"+{start:g}\x15{duration:g}\x14".encode() + words + b"\x14\x00"
    return text


def _onsets(gap=GAP_S):
    return [second + (gap if second >= GAP_AT else 0) for second in range(SECONDS)]


def _write(path, write_edf, x, marks, kind):
    signals = dict(zip(NAMES, x, strict=True))
    return write_edf(path, signals, bdf=kind.startswith("BDF"), kind=kind, marks=marks)


@pytest.fixture
def signal(noise):
    return noise(seconds=SECONDS)


@pytest.mark.parametrize("kind", ["EDF+D", "BDF+D", "EDF+C"])
def test_a_gap_between_records_is_a_cut_and_annotations_keep_their_samples(kind, tmp_path, write_edf, signal):
    """If a file claims to have no gap (EDF+C), but the onsets of its records show one, the onsets are used."""
    marks = [_mark(onset) for onset in _onsets()]
    marks[12] = _mark(12 + GAP_S, (12.5 + GAP_S, 1, b"BAD_move"))
    file = _write(tmp_path / f"r.{kind[:3].lower()}", write_edf, signal, marks, kind)
    found = read_recording(file)
    assert found.bad_spans == [(8.0, 8.0), (12.5, 13.5)]
    _, start = cut(found, WindowOptions(seconds=3.0))
    assert (start / 128).tolist() == [0, 3, 9, 15]


def test_an_annotation_that_begins_in_a_gap_or_spans_it_covers_the_samples_on_either_side(tmp_path, write_edf, signal):
    marks = [_mark(onset) for onset in _onsets()]
    marks[0] = _mark(0, (7, GAP_S + 2, b"BAD_long"), (100, GAP_S - 100 + 9, b"BAD_from_gap"))
    found = read_recording(_write(tmp_path / "r.edf", write_edf, signal, marks, "EDF+D"))
    assert found.bad_spans == [(7.0, 9.0), (8.0, 8.0), (8.0, 9.0)]


@pytest.mark.parametrize("first", [0.0, 0.25])
def test_records_without_gaps_have_no_cut(first, tmp_path, write_edf, signal):
    """The first record may begin a fraction of a second after the time in the header."""
    marks = [_mark(second + first) for second in range(SECONDS)]
    found = read_recording(_write(tmp_path / "r.edf", write_edf, signal, marks, "EDF+D"))
    assert (found.bad_spans, found.notes) == ([], ())


def test_filters_and_resampling_carry_nothing_across_a_gap(tmp_path, write_edf, signal):
    """A step of 2 mV at the gap changes neither the first part nor the second part."""
    marks = [_mark(onset) for onset in _onsets()]
    step = 2000.0 * (np.arange(signal.shape[1]) >= GAP_AT * 128)
    options = {"band": (1.0, 30.0), "sfreq": 100.0}
    found = []
    for name, x in (("level.bdf", signal), ("step.bdf", signal + step)):
        file = _write(tmp_path / name, write_edf, x, marks, "BDF+D")
        found.append(read_recording(file, **options).signal)
    np.testing.assert_allclose(found[0], found[1], atol=1e-2)  # the wider range has coarser steps
    assert found[0].shape == (3, 2000)


def test_an_interrupted_file_whose_times_are_unusable_is_refused(tmp_path, write_edf, signal):
    backwards = [_mark(second if second < GAP_AT else second - 5) for second in range(SECONDS)]
    with pytest.raises(ValueError, match="the onsets of its records must rise by 1 s or more"):
        read_recording(_write(tmp_path / "r.edf", write_edf, signal, backwards, "EDF+D"))
    without = [_mark(0), *([b""] * (SECONDS - 1))]
    with pytest.raises(ValueError, match=r"is interrupted \(EDF\+D\) but lacks the onset of a record"):
        read_recording(_write(tmp_path / "r.edf", write_edf, signal, without, "EDF+D"))
    with pytest.raises(ValueError, match="lacks the onset of a record"):
        read_recording(_write(tmp_path / "r.edf", write_edf, signal, (), "EDF+D"))


def test_annotations_in_latin_1_are_read_and_said(tmp_path, write_edf, signal):
    marks = [_mark(second) for second in range(SECONDS)]
    marks[3] = _mark(3, (3, 1, "BAD_Stör".encode("latin-1")))
    found = read_recording(_write(tmp_path / "r.edf", write_edf, signal, marks, "EDF+C"))
    assert found.bad_spans == [(3.0, 4.0)]
    assert any("read as Latin-1" in note.text for note in found.notes)


def test_a_file_of_annotations_only_is_refused_with_that_reason(tmp_path, write_edf):
    whole = write_edf(tmp_path / "r.edf", {"Fz": np.ones(1280)}, kind="EDF+C", marks=[_mark(s) for s in range(10)])
    head = whole.read_bytes()
    fields, widths = head[256:768], (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)
    ends = np.cumsum([0, *(2 * width for width in widths)])
    last = b"".join(fields[end - width : end] for end, width in zip(ends[1:], widths, strict=True))
    (tmp_path / "a.edf").write_bytes(
        head[:184] + b"512     " + head[192:252] + b"1   " + last + _mark(0).ljust(1200, b"\0")
    )
    with pytest.raises(ValueError, match="holds annotations only, no signal"):
        read_recording(tmp_path / "a.edf")


@pytest.mark.parametrize("unit", ["ÂµV", "Î¼V"])
def test_a_microvolt_in_utf_8_is_a_microvolt(unit, tmp_path, write_edf, signal):
    """EDF headers are Latin-1; these are the UTF-8 bytes of µV, with the micro sign and with a Greek mu."""
    found = read_recording(write_edf(tmp_path / "r.edf", dict(zip(NAMES, signal, strict=True)), unit=unit))
    assert found.unit == "uV"
    np.testing.assert_allclose(found.signal, signal, atol=0.01)
