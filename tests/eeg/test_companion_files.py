"""Files beside a recording: the file that the header names and the file with the usual name; all count in the hash."""

import os
import zipfile
from pathlib import Path

import mne
import numpy as np
import pytest
import scipy.io

from voxelwave.eeg.companion_files import companion_files
from voxelwave.eeg.recording import read_recording
from voxelwave.eeg.study import Study, Subject
from voxelwave.eeg.windows import WindowOptions, load_windows

NAMES = ("Fz", "Cz", "Pz")


def write_brainvision(folder, stem, x, *, data=None, markers=None, unit="µV"):
    """A header with its data and marker file; `data` and `markers` are the names in the header."""
    lines = ["Brain Vision Data Exchange Header File Version 1.0", "[Common Infos]", "Codepage=UTF-8"]
    lines += [f"DataFile={data or f'{stem}.eeg'}", f"MarkerFile={markers or f'{stem}.vmrk'}", "DataFormat=BINARY"]
    lines += ["DataOrientation=MULTIPLEXED", "NumberOfChannels=3", f"SamplingInterval={1e6 / 128}"]
    lines += ["[Binary Infos]", "BinaryFormat=IEEE_FLOAT_32", "[Channel Infos]"]
    lines += [f"Ch{i}={name},,1,{unit}" for i, name in enumerate(NAMES, start=1)]
    (folder / f"{stem}.vhdr").write_text("\n".join(lines) + "\n", encoding="utf-8")
    marks = ["Brain Vision Data Exchange Marker File, Version 1.0", "[Marker Infos]", "Mk1=New Segment,,1,1,0"]
    (folder / f"{stem}.vmrk").write_text("\n".join(marks) + "\n")
    x.T.astype("<f4").tofile(folder / f"{stem}.eeg")
    return folder / f"{stem}.vhdr"


def write_eeglab(folder, stem, x, *, data=None):
    """A .set whose samples are in an .fdt; `data` is the name in the .set."""
    places = np.zeros(3, dtype=[("labels", object)])
    places["labels"] = NAMES
    content = {"setname": stem, "nbchan": 3, "trials": 1, "pnts": x.shape[1], "srate": 128.0, "xmin": 0.0}
    content |= {"xmax": (x.shape[1] - 1) / 128, "data": data or f"{stem}.fdt", "chanlocs": places, "ref": "common"}
    content |= dict.fromkeys(
        ("event", "epoch", "icawinv", "icasphere", "icaweights", "icaact", "icachansind"), np.array([])
    )
    scipy.io.savemat(folder / f"{stem}.set", {"EEG": content}, appendmat=False)
    x.T.astype("<f4").tofile(folder / f"{stem}.fdt")
    return folder / f"{stem}.set"


def write_split_fif(folder, stem, x):
    """A .fif in three parts."""
    folder.mkdir(exist_ok=True)
    raw = mne.io.RawArray(x * 1e-6, mne.create_info(list(NAMES), 128.0, "eeg"), verbose="error")
    raw.save(folder / f"{stem}_raw.fif", split_size="2MB", buffer_size_sec=60, verbose="error")
    return folder / f"{stem}_raw.fif"


WRITERS = {"brainvision": write_brainvision, "eeglab": write_eeglab}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_header_that_names_another_persons_file_beside_its_own_is_refused(kind, tmp_path, noise):
    ending = {"brainvision": "eeg", "eeglab": "fdt"}[kind]
    WRITERS[kind](tmp_path, "a", noise(seed=1))
    file = WRITERS[kind](tmp_path, "b", noise(seed=2), data=f"a.{ending}")
    with pytest.raises(ValueError, match=rf"names a\.{ending}, but the folder also holds b\.{ending}"):
        read_recording(file)


def test_a_marker_file_of_another_recording_is_refused_too(tmp_path, noise):
    write_brainvision(tmp_path, "a", noise(seed=1))
    with pytest.raises(ValueError, match=r"names a\.vmrk, but the folder also holds b\.vmrk: correct MarkerFile"):
        read_recording(write_brainvision(tmp_path, "b", noise(seed=2), markers="a.vmrk"))


def test_a_part_of_another_split_recording_is_refused(tmp_path):
    x = np.random.default_rng(0).normal(size=(3, 128 * 1500)) * 20
    write_split_fif(tmp_path, "a", x)
    write_split_fif(tmp_path, "b", x[:, ::-1])
    os.replace(tmp_path / "a_raw.fif", tmp_path / "b_raw.fif")  # its next part is called a_raw-1.fif
    with pytest.raises(ValueError, match=r"names a_raw-1\.fif, but the folder also holds b_raw-1\.fif"):
        read_recording(tmp_path / "b_raw.fif")


def test_a_split_recording_is_read_from_a_relative_path_too(tmp_path, monkeypatch):
    write_split_fif(tmp_path / "study", "a", np.random.default_rng(0).normal(size=(3, 128 * 1500)) * 20)
    whole = read_recording(tmp_path / "study/a_raw.fif")
    monkeypatch.chdir(tmp_path)
    again = read_recording(Path("study/a_raw.fif"))
    assert np.array_equal(again.signal, whole.signal)
    assert again.notes == whole.notes
    parts = companion_files(Path("study/a_raw.fif"))
    assert parts == [Path("study") / name for name in ("a_raw.fif", "a_raw-1.fif", "a_raw-2.fif")]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_of_another_name_is_used_and_said_if_there_is_no_other(kind, tmp_path, noise):
    x = noise(seed=1)
    ending = {"brainvision": "eeg", "eeglab": "fdt"}[kind]
    file = WRITERS[kind](tmp_path, "b", x, data=f"a.{ending}")
    (tmp_path / f"b.{ending}").rename(tmp_path / f"a.{ending}")
    found = read_recording(file)
    np.testing.assert_allclose(found.signal, x, atol=1e-3)
    assert any(f"from a.{ending}, a file of another name" in note.text for note in found.notes)


def test_a_data_file_that_is_not_there_is_named_with_the_one_beside_it(tmp_path, noise):
    file = write_brainvision(tmp_path, "b", noise(), data="a.eeg")
    with pytest.raises(FileNotFoundError, match=r"names a\.eeg, which is not in its folder, but .* holds b\.eeg"):
        read_recording(file)


@pytest.mark.parametrize("number", ["2", "4"])
def test_a_header_with_another_number_of_channels_than_it_lists_is_refused(number, tmp_path, noise):
    file = write_brainvision(tmp_path, "a", noise())
    file.write_text(file.read_text(encoding="utf-8").replace("NumberOfChannels=3", f"NumberOfChannels={number}"))
    with pytest.raises(ValueError, match=rf"announces {number} channels but lists 3; correct NumberOfChannels"):
        read_recording(file)


def test_the_dollar_in_a_header_is_its_own_name(tmp_path, noise):
    x = noise()
    file = write_brainvision(tmp_path, "b", x, data="$b.eeg", markers="$b.vmrk")
    assert tmp_path / "b.eeg" in companion_files(file)


def test_a_unit_with_a_greek_mu_is_a_microvolt(tmp_path, noise):
    x = noise()
    found = read_recording(write_brainvision(tmp_path, "b", x, unit="\N{GREEK SMALL LETTER MU}V"), reference="average")
    assert found.unit == "uV"
    np.testing.assert_allclose(found.signal, x - x.mean(axis=0), atol=1e-3)


@pytest.mark.parametrize("kind", ["brainvision", "eeglab", "fif"])
def test_a_changed_file_beside_the_header_is_read_again_in_place_of_the_cache(kind, tmp_path, noise):
    """The changed file is a later part, or its name differs from that of the header."""
    subjects = []
    for number in range(4):
        x = noise(seconds=1500 if kind == "fif" else 10, seed=number)
        name = f"s{number}"
        if kind == "fif":
            file, changing = write_split_fif(tmp_path, name, x), tmp_path / f"{name}_raw-1.fif"
        else:
            ending = {"brainvision": "eeg", "eeglab": "fdt"}[kind]
            file, changing = (
                WRITERS[kind](tmp_path, name, x, data=f"d{number}.{ending}"),
                tmp_path / f"d{number}.{ending}",
            )
            (tmp_path / f"{name}.{ending}").rename(changing)
        subjects.append(Subject(name, (file,), ("control", "case")[number % 2]))
        if number == 0:
            first = changing
    study, options = Study(tuple(subjects), ("control", "case"), tmp_path), WindowOptions(seconds=2.0)
    before = load_windows(study, options, tmp_path / "cache")
    content = bytearray(first.read_bytes())
    half = len(content) // 2
    content[half - 3000 : half - 2000] = content[half + 1000 : half + 2000]
    first.write_bytes(bytes(content))
    after = load_windows(study, options, tmp_path / "cache")
    np.testing.assert_array_equal(after.x, load_windows(study, options).x)
    assert not np.array_equal(after.x, before.x)


def test_recordings_of_several_files_are_read_from_an_archive(tmp_path, noise):
    x = noise()
    write_brainvision(tmp_path, "b", x)
    write_eeglab(tmp_path, "e", x)
    with zipfile.ZipFile(tmp_path / "ADHD.zip", "w") as packed:
        for name in ("b.vhdr", "b.eeg", "b.vmrk", "e.set", "e.fdt"):
            packed.write(tmp_path / name, f"ADHD/{name}")
    for name in ("b.vhdr", "e.set"):
        np.testing.assert_allclose(read_recording(tmp_path / "ADHD.zip" / "ADHD" / name).signal, x, atol=1e-3)


def test_channels_without_a_label_are_named_by_number(tmp_path, noise):
    file = write_eeglab(tmp_path, "e", noise())
    content = scipy.io.loadmat(file, squeeze_me=True, struct_as_record=True)["EEG"]
    eeg = {name: content[name].item() for name in content.dtype.names}
    eeg["chanlocs"]["labels"][1] = ""
    scipy.io.savemat(file, {"EEG": eeg}, appendmat=False)
    with pytest.raises(ValueError, match=r"must name all channels; channels without a label: number 2"):
        read_recording(file)
