"""Class folders: the assignment of files to people."""

import mne
import numpy as np
import pytest

from voxelwave.eeg.file_people import without_later_parts
from voxelwave.eeg.study import is_control, read_study


@pytest.fixture
def people(tmp_path):
    """Write empty files into class folders, and return the people that `read_study` finds: name -> number of files."""

    def read(*names):
        for name in (*names, "Control/z.edf"):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return {s.subject: len(s.files) for s in read_study(tmp_path).subjects if s.subject != "z"}

    return read


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["sub-a_run-1_eeg.edf", "sub-a_run-2_eeg.edf", "sub-b_eeg.edf"], {"sub-a": 2, "sub-b": 1}),
        (["sub-a/ses-1/eeg/sub-a_ses-1_eeg.edf", "sub-a/ses-2/eeg/sub-a_ses-2_eeg.edf"], {"sub-a": 2}),
        (["anna_EO.edf", "anna_EC.edf", "ben_EO.edf"], {"anna": 2, "ben_EO": 1}),
        (["p01/EC.edf", "p01/EO.edf", "p02/EC.edf"], {"p01": 2, "p02": 1}),
        (["p01/rec1.edf", "p02/rec1.edf"], {"p01": 1, "p02": 1}),
        (["p01/anna.edf", "p02/anna.edf", "p03/ben.edf"], {"p01": 1, "p02": 1, "ben": 1}),
        (["session1/v7.edf", "session2/v7.edf"], {"v7": 2}),
        (["S001R01.edf", "S001R02.edf", "S002R01.edf"], {"S001": 2, "S002R01": 1}),
        (["subject03_1.edf", "subject03_2.edf"], {"subject03": 2}),
        (["site1/00.edf", "site2/00.edf"], {"site1/00": 1, "site2/00": 1}),
        (["v1p.mat", "v10p.mat", "v12.mat"], {"v1p": 1, "v10p": 1, "v12": 1}),
        (["ADHD_1.edf", "ADHD_2.edf"], {"ADHD_1": 1, "ADHD_2": 1}),
        (["._v1.edf", "v1.edf", ".hidden/v2.edf"], {"v1": 1}),
    ],
)
def test_runs_and_sessions_are_of_one_person_and_equal_names_at_sites_are_not(names, expected, people):
    found = people(*(f"ADHD/{name}" for name in names))
    assert {name.removeprefix("ADHD/"): count for name, count in found.items()} == expected


@pytest.mark.parametrize(
    "names",
    [
        ["chb01_01.edf", "chb01_02.edf"],  # either runs of chb01, or two people at chb01
        ["anna/x.edf", "anna/y.edf"],  # two recordings of Anna?
        ["ADHD_rec1.edf", "ADHD_rec2.edf"],
        ["anna_20200101.edf", "anna_20210505.edf"],
        ["anna.edf", "anna (1).edf"],
        ["anna.edf", "anna - Copy.edf"],
    ],
)
def test_names_that_leave_the_person_open_are_refused_with_the_way_to_say_it(names, people):
    with pytest.raises(ValueError, match=r"may be two recordings of one person or of two people: .* subjects\.tsv"):
        people(*(f"ADHD/{name}" for name in names))


def test_one_name_in_two_classes_is_two_people(people):
    assert people("ADHD/01.edf", "Control/01.edf") == {"ADHD/01": 1, "Control/01": 1}


def test_parts_of_a_split_fif_are_one_recording(tmp_path):
    raw = mne.io.RawArray(np.zeros((19, 60000), np.float32), mne.create_info(19, 128.0, "eeg"), verbose="ERROR")
    raw.save(tmp_path / "a_raw.fif", split_size="2MB", verbose="ERROR")
    raw.copy().crop(0, 9).save(tmp_path / "b_raw.fif", verbose="ERROR")
    raw.copy().crop(0, 9).save(tmp_path / "b_raw-1.fif", verbose="ERROR")  # a separate recording
    files = sorted(tmp_path.glob("*.fif"))
    assert len(files) > 4
    assert {f.name for f in without_later_parts(files)} == {"a_raw.fif", "b_raw.fif", "b_raw-1.fif"}


@pytest.mark.parametrize("label", ["control", "Controls", "healthy", "Healthy controls", "HC", "NormalEEG", "control2"])
def test_words_for_a_control_group(label):
    assert is_control(label)


@pytest.mark.parametrize("label", ["HCM", "Normal pressure hydrocephalus", "uncontrolled", "abnormal", "group", "hcv"])
def test_diseases_that_begin_like_a_control_group_are_none(label):
    assert not is_control(label)
