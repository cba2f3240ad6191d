"""Reading recordings: silent decisions of MNE are reported, in every format."""

import json
import shutil
import zipfile

import numpy as np
import pytest
import scipy.io

from voxelwave.eeg.channels import CED_ORDER, TEXT_ORDER, positions
from voxelwave.eeg.recording import read_recording

NAMES = ("Fz", "Cz", "Pz")


def _has_note(recording, text):
    return any(text in note.text for note in recording.notes)


def _named(signal, names=NAMES):
    return dict(zip(names, signal, strict=True))


# --- formats


def _as_edf(path, x, write_edf, write_fif):
    return write_edf(path / "r.edf", _named(x))


def _as_bdf(path, x, write_edf, write_fif):
    return write_edf(path / "r.bdf", _named(x), bdf=True)


def _as_fif(path, x, write_edf, write_fif):
    return write_fif(path / "r_raw.fif", x, NAMES)


def _as_brainvision(path, x, write_edf, write_fif, unit="µV"):
    lines = ["Brain Vision Data Exchange Header File Version 1.0", "[Common Infos]", "Codepage=UTF-8"]
    lines += ["DataFile=r.eeg", "MarkerFile=r.vmrk", "DataFormat=BINARY", "DataOrientation=MULTIPLEXED"]
    lines += ["NumberOfChannels=3", f"SamplingInterval={1e6 / 128}", "[Binary Infos]", "BinaryFormat=IEEE_FLOAT_32"]
    lines += ["[Channel Infos]", *(f"Ch{i}={name},,1,{unit}" for i, name in enumerate(NAMES, start=1))]
    (path / "r.vhdr").write_text("\n".join(lines) + "\n", encoding="utf-8")
    markers = ["Brain Vision Data Exchange Marker File, Version 1.0", "[Common Infos]", "DataFile=r.eeg"]
    markers += ["[Marker Infos]", "Mk1=New Segment,,1,1,0,20200101000000000000", "Mk2=New Segment,,513,1,0"]
    (path / "r.vmrk").write_text("\n".join(markers) + "\n", encoding="utf-8")
    x.T.astype("<f4").tofile(path / "r.eeg")
    return path / "r.vhdr"


def _as_eeglab(path, x, write_edf, write_fif):
    places = np.array([(name, 1.0, float(i), 1.0) for i, name in enumerate(NAMES)], dtype=object)
    chanlocs = np.zeros(3, dtype=[("labels", object), ("X", object), ("Y", object), ("Z", object)])
    for row, place in zip(chanlocs, places, strict=True):
        row["labels"], row["X"], row["Y"], row["Z"] = place
    content = {"setname": "r", "nbchan": 3, "trials": 1, "pnts": x.shape[1], "srate": 128.0, "xmin": 0.0}
    content |= {"xmax": (x.shape[1] - 1) / 128, "data": x.astype(np.float32), "chanlocs": chanlocs, "ref": "common"}
    content |= {"event": np.array([]), "epoch": np.array([]), "icawinv": np.array([]), "icasphere": np.array([])}
    content |= {"icaweights": np.array([]), "icaact": np.array([]), "icachansind": np.array([])}
    scipy.io.savemat(path / "r.set", {"EEG": content}, appendmat=False)
    return path / "r.set"


FORMATS = {"edf": _as_edf, "bdf": _as_bdf, "fif": _as_fif, "vhdr": _as_brainvision, "set": _as_eeglab}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_microvolts(kind, tmp_path, write_edf, write_fif, noise):
    x = noise()
    found = read_recording(FORMATS[kind](tmp_path, x, write_edf, write_fif))
    assert found.unit == "uV"
    assert found.sfreq == found.file_sfreq == 128
    assert found.channels == NAMES
    step = 2.2 * np.abs(x).max() / 2**16 if kind == "edf" else 1e-3  # EDF has 16 bits
    np.testing.assert_allclose(found.signal, x, atol=step)


def test_a_mat_of_the_adhd_data_loses_its_offset_and_has_no_unit(tmp_path, noise):
    x = np.round(noise(19) + 130)
    for kind in (np.int16, np.float64):
        scipy.io.savemat(tmp_path / "v10p.mat", {"v10p": x.T.astype(kind)})
        found = read_recording(tmp_path / "v10p.mat")
        assert (found.unit, found.sfreq, found.sample_type) == ("unknown", 128, np.dtype(kind).name)
        assert found.channels == CED_ORDER
        np.testing.assert_allclose(found.signal, x - x.mean(1, keepdims=True), atol=1e-3)
        assert _has_note(found, "carries no rate and no names: taken as 128 Hz")


def test_the_order_of_the_columns_of_a_mat_can_be_chosen(tmp_path, noise):
    x = noise(19)
    scipy.io.savemat(tmp_path / "a.mat", {"a": x.T})
    text = read_recording(tmp_path / "a.mat", mat_order="text")
    assert text.channels == TEXT_ORDER
    ordered = read_recording(tmp_path / "a.mat", mat_order="text", channels=CED_ORDER, mat_sfreq=256)
    assert (ordered.channels, ordered.sfreq) == (CED_ORDER, 256)
    np.testing.assert_array_equal(ordered.signal[0], text.signal[TEXT_ORDER.index("Fp1")])
    with pytest.raises(ValueError, match=r"must hold \(samples, 3\) as 3 channels are named, got \(1280, 19\)"):
        read_recording(tmp_path / "a.mat", mat_order=NAMES)


def test_a_recording_in_an_archive_is_read_like_one_beside_it(tmp_path, noise):
    scipy.io.savemat(tmp_path / "v1.mat", {"v1": noise(19).T})
    with zipfile.ZipFile(tmp_path / "ADHD.zip", "w") as packed:
        packed.write(tmp_path / "v1.mat", "ADHD/v1.mat")
    np.testing.assert_array_equal(
        read_recording(tmp_path / "ADHD.zip" / "ADHD" / "v1.mat").signal, read_recording(tmp_path / "v1.mat").signal
    )
    with pytest.raises(FileNotFoundError, match=r"no ADHD/v2\.mat in"):
        read_recording(tmp_path / "ADHD.zip" / "ADHD" / "v2.mat")


# --- units


@pytest.mark.parametrize(("unit", "factor"), [("uV", 1.0), ("mV", 1e-3)])
def test_units_of_a_file_are_followed(unit, factor, tmp_path, write_edf, noise):
    x = noise(sd=50.0)
    found = read_recording(write_edf(tmp_path / "r.edf", _named(x * factor), unit=unit))
    assert found.unit == "uV"
    np.testing.assert_allclose(found.signal, x, atol=0.05)


@pytest.mark.parametrize("unit", ["", "au", "mmHg"])
def test_a_missing_or_unknown_unit_is_said_and_numbers_stay(unit, tmp_path, write_edf, noise):
    x = noise()
    file = write_edf(tmp_path / "r.edf", _named(x), unit=unit)
    found = read_recording(file)
    assert found.unit == "unknown"
    assert _has_note(found, "gives no voltage unit")
    np.testing.assert_allclose(found.signal, x, atol=0.01)
    asked = read_recording(file, unit="uV")
    assert asked.unit == "uV"
    np.testing.assert_allclose(asked.signal, x, atol=0.01)


def test_microvolts_that_a_file_calls_volts_are_noticed(tmp_path, write_edf, noise):
    x = noise()
    file = write_edf(tmp_path / "r.edf", _named(x), unit="V")
    found = read_recording(file)
    assert found.unit == "unknown"
    assert _has_note(found, 'the file calls V: try unit "uV"')
    np.testing.assert_allclose(read_recording(file, unit="uV").signal, x, atol=0.01)


def test_a_unit_for_some_channels_only_is_refused(tmp_path, write_edf, noise):
    file = write_edf(tmp_path / "r.edf", _named(noise()), unit={"Fz": "uV", "Cz": "", "Pz": "uV"})
    with pytest.raises(ValueError, match="no voltage unit for Cz but does for the others"):
        read_recording(file)


# --- rates


def test_eeg_is_read_at_its_own_rate_beside_a_faster_channel(tmp_path, write_edf, noise):
    x = noise(2)
    fast = noise(1, sfreq=512)[0]
    signals = {"Fz": x[0], "ECG": fast, "Cz": x[1]}
    file = write_edf(tmp_path / "r.edf", signals, sfreq={"Fz": 128, "ECG": 512, "Cz": 128})
    found = read_recording(file)
    assert (found.channels, found.sfreq) == (("Fz", "Cz"), 128)
    np.testing.assert_allclose(found.signal, x, atol=0.01)  # not interpolated
    assert _has_note(found, "read at 128 Hz, the rate of the EEG")
    assert _has_note(found, "left out because they are not scalp EEG: ECG")


def test_two_rates_among_the_eeg_are_said(tmp_path, write_edf, noise):
    signals = {"Fz": noise(1)[0], "Cz": noise(1, sfreq=64)[0]}
    found = read_recording(write_edf(tmp_path / "r.edf", signals, sfreq={"Fz": 128, "Cz": 64}))
    assert found.sfreq == 128
    assert _has_note(found, "sampled at 64, 128 Hz in one file; MNE interpolates Cz to 128 Hz")


def test_resampling_keeps_a_slow_rhythm_and_says_what_was_not_measured(tmp_path, write_fif):
    t = np.arange(1280) / 128
    file = write_fif(tmp_path / "r_raw.fif", 20 * np.sin(2 * np.pi * 10 * t)[None], ["Cz"])
    up, down = read_recording(file, sfreq=256), read_recording(file, sfreq=64)
    assert up.signal.shape[1] == 2 * 1280
    assert down.signal.shape[1] == 640
    middle = slice(64, -64)  # without the ends, where resampling rings
    expected = 20 * np.sin(2 * np.pi * 10 * np.arange(640) / 64)
    np.testing.assert_allclose(down.signal[0, middle], expected[middle], atol=0.5)
    assert _has_note(up, "nothing above 64 Hz was recorded")


# --- names, order, montage


def test_names_are_made_standard_and_said(tmp_path, write_edf, noise):
    found = read_recording(write_edf(tmp_path / "r.edf", _named(noise(), ("FP1-REF", "t3-REF", "CZ-REF"))))
    assert found.channels == ("Fp1", "T7", "Cz")
    assert _has_note(found, "channels renamed: FP1-REF → Fp1, t3-REF → T7")
    assert _has_note(found, "the channel names carry the reference REF")


def test_channels_come_in_the_order_wanted_by_any_spelling(tmp_path, write_edf, noise):
    x = noise()
    file = write_edf(tmp_path / "r.edf", _named(x, ("T3", "Cz", "Pz")))
    found = read_recording(file, channels=["PZ", "T7"])
    assert found.channels == ("Pz", "T7")
    np.testing.assert_allclose(found.signal, x[[2, 0]], atol=0.01)
    assert _has_note(found, "channels reordered from the file's order T7 Pz")
    with pytest.raises(ValueError, match="must have the channels O1, but it has T7, Cz, Pz"):
        read_recording(file, channels=["Cz", "O1"])
    with pytest.raises(ValueError, match="channels must differ"):
        read_recording(file, channels=["T3", "T7"])


def test_two_channels_of_one_electrode_are_refused(tmp_path, write_edf, noise):
    with pytest.raises(ValueError, match="got T3 and T7, which are both T7"):
        read_recording(write_edf(tmp_path / "r.edf", _named(noise(), ("T3", "T7", "Cz"))))


@pytest.mark.parametrize("mixed_up", [False, True])
def test_positions_that_do_not_fit_the_names_are_said(mixed_up, tmp_path, write_fif, noise):
    import mne

    names = CED_ORDER[:8]
    places = [positions()[name] for name in (names[::-1] if mixed_up else names)]
    montage = mne.channels.make_dig_montage(dict(zip(names, places, strict=True)), coord_frame="head")
    found = read_recording(write_fif(tmp_path / "r_raw.fif", noise(8), names, montage=montage))
    assert _has_note(found, "positions in the file do not fit their names") == mixed_up


# --- quality


def test_flat_and_saturated_channels_are_named(tmp_path, write_fif, noise):
    x = noise(4)
    x[1] = 0
    x[2] = np.clip(x[2], -25, 25)
    found = read_recording(write_fif(tmp_path / "r_raw.fif", x, ("Fz", "Cz", "Pz", "Oz")))
    assert _has_note(found, "flat channels: Cz")
    assert [n.text for n in found.notes if n.text.startswith("saturated channels")] == [
        "saturated channels (plateaus at the largest or smallest value): Pz"
    ]


def test_a_sound_recording_has_no_complaint(tmp_path, write_fif, noise):
    assert read_recording(write_fif(tmp_path / "r_raw.fif", noise(), NAMES)).notes == ()


def test_bad_channels_and_annotations_of_the_file_are_kept_and_said(tmp_path, write_fif, noise):
    marks = [(2.0, 1.0, "BAD_move"), (6.0, 0.5, "blink"), (8.0, 0.0, "BAD boundary")]
    file = write_fif(tmp_path / "r_raw.fif", noise(), NAMES, annotations=marks, bads=["Cz"])
    found = read_recording(file)
    assert _has_note(found, "marked as bad channels in the file and kept: Cz")
    assert [(round(a, 2), round(b, 2)) for a, b in found.bad_spans] == [(2, 3), (8, 8)]


def test_a_new_segment_in_the_middle_is_a_cut(tmp_path, write_edf, write_fif, noise):
    found = read_recording(_as_brainvision(tmp_path, noise(), write_edf, write_fif))
    assert found.bad_spans == [(4.0, 4.0)]  # sample 513, counted from 1


def test_samples_without_numbers_are_bridged_and_marked(tmp_path, noise):
    x = noise(19)
    x[3, 256:384] = np.nan
    scipy.io.savemat(tmp_path / "a.mat", {"a": x.T})
    found = read_recording(tmp_path / "a.mat")
    assert np.isfinite(found.signal).all()
    assert found.bad_spans == [(2.0, 3.0)]
    assert _has_note(found, "1.0 s without numbers (NaN) are marked bad")


def test_a_recording_that_stands_still_is_marked(tmp_path, write_fif, noise):
    x = noise()
    x[:, 640:896] = x[:, 640:641]
    found = read_recording(write_fif(tmp_path / "r_raw.fif", x, NAMES))
    (start, stop) = found.bad_spans[0]
    assert (round(start, 1), round(stop, 1)) == (5.0, 7.0)
    assert _has_note(found, "all channels are constant")


def test_pauses_do_not_count_in_the_amplitude(tmp_path, write_fif, noise):
    x = noise()
    x[:, x.shape[1] // 3 :] = 0.0
    found = read_recording(write_fif(tmp_path / "r_raw.fif", x, NAMES), band=(1, 40))
    assert found.unit == "uV"
    assert not _has_note(found, "is not that of scalp EEG")


@pytest.mark.parametrize("level", [0.0, 37.5])
def test_a_recording_that_never_moves_is_bad_from_end_to_end(level, tmp_path, write_fif, noise):
    found = read_recording(write_fif(tmp_path / "r_raw.fif", np.full((3, 1280), level), NAMES))
    assert found.bad_spans == [(0.0, 10.0)]
    assert any(note.kind == "defect" and "all channels are constant" in note.text for note in found.notes)
    alike = np.tile(noise(1), (3, 1))  # after an average reference, only rounding errors are left of it
    assert read_recording(write_fif(tmp_path / "a_raw.fif", alike, NAMES), reference="average").bad_spans == [
        (0.0, 10.0)
    ]


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e30, 3e38])
def test_samples_that_no_amplifier_measures_are_bridged_and_marked(value, tmp_path, write_fif, noise):
    x = noise() * 1e-6
    x[1, 300] = value
    mne = pytest.importorskip("mne")
    raw = mne.io.RawArray(x, mne.create_info(list(NAMES), 128.0, "eeg"), verbose="error")
    raw.save(tmp_path / "r_raw.fif", fmt="double", verbose="error")
    found = read_recording(tmp_path / "r_raw.fif", reference="average", band=(1, 30))
    assert np.abs(found.signal).max() < 200
    assert found.bad_spans == [(300 / 128, 301 / 128)]


@pytest.mark.parametrize("date", [None, 1_600_000_000])
def test_bad_spans_of_a_cropped_recording_are_where_mne_rejects(date, tmp_path, noise):
    import mne

    raw = mne.io.RawArray(noise() * 1e-6, mne.create_info(list(NAMES), 128.0, "eeg"), verbose="error")
    raw.set_meas_date(date)
    raw.set_annotations(mne.Annotations([5.0, 8.0], [1.5, 0.0], ["BAD_move", "boundary"], raw.info["meas_date"]))
    raw.crop(3.0, None).save(tmp_path / "r_raw.fif", verbose="error")
    assert read_recording(tmp_path / "r_raw.fif").bad_spans == [(2.0, 3.5), (5.0, 5.0)]
    rejected = np.isnan(mne.io.read_raw_fif(tmp_path / "r_raw.fif").get_data(reject_by_annotation="NaN")[0])
    assert np.flatnonzero(rejected)[[0, -1]].tolist() == [256, 447]


@pytest.mark.parametrize(
    "option", [{"sfreq": np.inf}, {"sfreq": np.nan}, {"mat_sfreq": np.inf}, {"band": (1.0, np.inf)}]
)
def test_options_that_are_not_finite_are_refused(option, tmp_path, write_fif, noise):
    with pytest.raises(ValueError, match="finite"):
        read_recording(write_fif(tmp_path / "r_raw.fif", noise(), NAMES), **option)


# --- requests to MNE


def test_a_filter_keeps_10_hz_and_removes_50_hz(tmp_path, write_fif):
    t = np.arange(2560) / 128
    parts = [20 * np.sin(2 * np.pi * f * t) for f in (10, 50)]
    file = write_fif(tmp_path / "r_raw.fif", np.sum(parts, axis=0)[None], ["Cz"])
    found = read_recording(file, band=(1, 30)).signal[0]
    middle = slice(256, -256)
    np.testing.assert_allclose(found[middle], parts[0][middle], atol=0.5)
    with pytest.raises(ValueError, match="band must lie between 0 and 64 Hz"):
        read_recording(file, band=(1, 70))


def test_average_reference_leaves_no_mean_and_a_channel_as_reference_is_zero(tmp_path, write_fif, noise):
    x = noise()
    file = write_fif(tmp_path / "r_raw.fif", x, NAMES)
    np.testing.assert_allclose(read_recording(file, reference="average").signal, x - x.mean(0), atol=1e-3)
    np.testing.assert_allclose(read_recording(file, reference="cz").signal, x - x[1], atol=1e-3)
    with pytest.raises(ValueError, match="reference must name channels of the recording; O1 is not"):
        read_recording(file, reference="O1")


# --- files with a wrong extension or content


@pytest.mark.parametrize("name", ["a.edf", "a.bdf", "a.gdf", "a.vhdr", "a.set", "a_raw.fif", "a.mat"])
@pytest.mark.parametrize("content", [b"", b"no EEG at all " * 40], ids=["empty", "text"])
def test_a_file_that_is_not_what_its_name_says_is_refused_in_one_error(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError)) as error:
        read_recording(tmp_path / name)
    assert name in str(error.value)


def test_unknown_kinds_and_missing_files_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("1,2\n")
    with pytest.raises(ValueError, match=r"a\.csv must be one of \.edf \.bdf"):
        read_recording(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError, match="no recording at"):
        read_recording(tmp_path / "b.edf")


# --- BIDS


@pytest.fixture
def bids(tmp_path, write_edf, noise):
    """Two subjects written by mne-bids, one with a bad channel and a bad stretch."""
    mne_bids = pytest.importorskip("mne_bids")
    import mne

    root = tmp_path / "bids"
    for number in (1, 2):
        file = write_edf(tmp_path / f"{number}.edf", _named(noise(seed=number)))
        raw = mne.io.read_raw_edf(file, verbose="error")
        raw.info["line_freq"] = 50
        raw.set_annotations(mne.Annotations([2.0], [1.0], ["BAD_move"]) if number == 1 else None)
        raw.info["bads"] = ["Cz"] if number == 1 else []
        where = mne_bids.BIDSPath(subject=f"{number}", task="rest", root=root, datatype="eeg")
        mne_bids.write_raw_bids(raw, where, overwrite=True, verbose="error")
    table = (root / "participants.tsv").read_text(encoding="utf-8-sig").splitlines()
    groups = ["group", "ADHD", "control"]
    lines = [f"{line}\t{group}" for line, group in zip(table, groups, strict=True)]
    (root / "participants.tsv").write_text("\n".join(lines) + "\n")
    return root


def test_channels_and_events_of_a_bids_folder_count(bids):
    from voxelwave.eeg.study import read_study

    study = read_study(bids)
    assert [(s.subject, s.label) for s in study.subjects] == [("sub-1", "ADHD"), ("sub-2", "control")]
    found = [read_recording(subject.file) for subject in study.subjects]
    assert [len(r.bad_spans) for r in found] == [1, 0]
    assert _has_note(found[0], "marked as bad channels in the file and kept: Cz")
    assert json.loads((bids / "dataset_description.json").read_text())["BIDSVersion"]


# --- real recordings


@pytest.mark.parametrize(
    ("file", "channels", "sfreq"),
    [
        ("EDF/test_reduced.edf", 139, 512),
        ("EDF/chtypes_edf.edf", 42, 200),
        ("EDF/test_utf8_annotations.edf", 11, 200),
        ("BDF/test_bdf_stim_channel.bdf", 4, 500),
        ("Brainvision/test_NO.vhdr", 65, 5000),
        ("EEGLAB/test_raw_2021.set", 3, 128),
        ("GDF/test_1ch.gdf", 1, 150),
    ],
)
def test_real_recordings_of_every_format_open(file, channels, sfreq, shared_data):
    found = read_recording(shared_data / "eeg_formats" / file)
    assert found.file_sfreq == sfreq
    assert 1 <= len(found.channels) <= channels
    assert np.isfinite(found.signal).all()
    assert found.unit in ("uV", "unknown")


def test_a_cut_off_file_is_read_in_part_or_refused_by_name(tmp_path, shared_data):
    whole = shared_data / "eeg_formats" / "EEGLAB" / "test_raw_2021.set"
    (tmp_path / "cut.set").write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.set"):
        read_recording(tmp_path / "cut.set")


def test_the_order_of_the_ced_file_puts_alpha_at_the_back_of_the_head(shared_data):
    """The mean relative alpha power of twelve children; in the other order it is not higher at the back of the head."""
    from voxelwave.eeg.features import welch_band_power

    bands = {"alpha": (8.0, 13.0), "all": (1.0, 45.0)}
    files = sorted((shared_data / "eeg_adhd").glob("*/*.mat"))[::8]
    relative = []
    for file in files:
        power = welch_band_power(read_recording(file).signal[None], 128.0, bands)[0]
        relative.append(power[0] / power[1])
    mean = np.mean(relative, axis=0)

    def back_over_front(order):
        back, front = ([order.index(n) for n in names] for names in (("O1", "O2", "P7", "P8"), ("Fp1", "Fp2")))
        return mean[back].mean() / mean[front].mean()

    assert back_over_front(CED_ORDER) > 1.2
    assert back_over_front(TEXT_ORDER) < back_over_front(CED_ORDER)


def test_a_copy_elsewhere_reads_the_same(tmp_path, shared_data):
    whole = shared_data / "eeg_formats" / "Brainvision"
    shutil.copytree(whole, tmp_path / "copy")
    a, b = read_recording(whole / "test_NO.vhdr"), read_recording(tmp_path / "copy" / "test_NO.vhdr")
    np.testing.assert_array_equal(a.signal, b.signal)
