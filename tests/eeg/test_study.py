"""Studies: tables, folders, archives and BIDS, the positive class, and errors of a broken table."""

import zipfile

import pytest

from voxelwave.eeg.study import LabelError, read_study, study_digest


@pytest.fixture
def table(tmp_path):
    """A function that writes subjects.tsv from rows."""

    def write(*rows, header=("subject", "file", "label"), name="subjects.tsv"):
        separator = "," if name.endswith(".csv") else "\t"
        (tmp_path / name).write_text("\n".join(separator.join(row) for row in (header, *rows)) + "\n")
        return tmp_path / name

    return write


def test_a_table_gives_subjects_files_labels_and_further_columns(table, tmp_path):
    header = ("subject", "file", "label", "site", "age")
    path = table(("a", "a.edf", "ADHD", "north", "9"), ("b", "x/b.edf", "control", "n/a", "8"), header=header)
    for given in (path, tmp_path):
        study = read_study(given)
        assert study.classes == ("control", "ADHD")
        assert study.labels == [1, 0]
        assert [s.file for s in study.subjects] == [tmp_path / "a.edf", tmp_path / "x" / "b.edf"]
        assert study.subjects[0].extra == {"site": "north", "age": "9"}
        assert study.subjects[1].extra["site"] == ""


def test_a_csv_and_two_runs_of_one_subject(table):
    path = table(("a", "1.edf", "case"), ("a", "2.edf", "case"), ("b", "3.edf", "control"), name="study.csv")
    study = read_study(path)
    assert [len(s.files) for s in study.subjects] == [2, 1]


def test_one_subject_with_two_labels_is_refused(table):
    with pytest.raises(LabelError, match="subject a must have one label, got case and control"):
        read_study(table(("a", "1.edf", "case"), ("a", "2.edf", "control")))


def test_folders_and_archives_of_classes_give_the_labels(tmp_path):
    for folder, names in (("ADHD_part1", "ab"), ("ADHD_part2", "c"), ("Control_part1", "d")):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.mat").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "Control_part2.zip", "w") as packed:
        packed.writestr("e.mat", b"")
        packed.writestr("readme.txt", b"")
    study = read_study(tmp_path)
    assert {s.subject: s.label for s in study.subjects} == {
        "a": "ADHD",
        "b": "ADHD",
        "c": "ADHD",
        "d": "Control",
        "e": "Control",
    }
    assert study.classes == ("Control", "ADHD")


def test_who_is_positive_is_asked_where_the_names_do_not_tell(table):
    path = table(("a", "a.edf", "left"), ("b", "b.edf", "right"))
    with pytest.raises(ValueError, match="has the classes left and right: name the positive one"):
        read_study(path)
    assert read_study(path, "left").classes == ("right", "left")
    with pytest.raises(ValueError, match="positive must be left or right, got up"):
        read_study(path, "up")


@pytest.mark.parametrize(
    ("rows", "header", "complaint"),
    [
        ([("a", "a.edf")], ("subject", "file"), "must have the columns subject, file and label, got subject, file"),
        ([], ("subject", "file", "label"), "got no rows"),
        ([("a", "", "x"), ("b", "b.edf", "y")], ("subject", "file", "label"), "line 2 must name file"),
        ([("a", "a.edf", "x")], ("subject", "file", "label"), "must have two classes, got x"),
    ],
)
def test_a_table_that_does_not_do_says_why(rows, header, complaint, table):
    with pytest.raises(ValueError, match=complaint):
        read_study(table(*rows, header=header))


def test_an_empty_folder_and_a_missing_one_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds neither"):
        read_study(tmp_path)
    with pytest.raises(FileNotFoundError, match="no study at"):
        read_study(tmp_path / "nowhere")


def test_bids_without_recordings_or_labels_says_so(tmp_path):
    (tmp_path / "participants.tsv").write_text("participant_id\tsex\nsub-1\tF\n")
    with pytest.raises(ValueError, match=r"must have participant_id and a label column \(group, diagnosis, label\)"):
        read_study(tmp_path)
    with pytest.raises(FileNotFoundError, match="lists sub-1, but there is no EEG recording"):
        read_study(tmp_path, label_column="sex")


def test_the_hash_of_a_study_sees_signals_labels_and_files_beside_headers(table, tmp_path):
    path = table(("a", "a.vhdr", "case"), ("b", "b.edf", "control"))
    for name in ("a.vhdr", "a.eeg", "b.edf"):
        (tmp_path / name).write_bytes(name.encode())
    before = study_digest(read_study(path))
    assert before == study_digest(read_study(path))
    (tmp_path / "a.eeg").write_bytes(b"other samples")
    samples = study_digest(read_study(path))
    table(("a", "a.vhdr", "control"), ("b", "b.edf", "case"))
    assert len({before, samples, study_digest(read_study(path))}) == 3


def test_the_97_children_are_found_by_table_and_by_folder(shared_data):
    by_table, by_folder = (read_study(shared_data / "eeg_adhd" / name) for name in ("subjects.tsv", ""))
    assert [len(by_table.subjects), sum(by_table.labels)] == [97, 49]
    assert by_table.classes[1] == "ADHD"
    assert {s.subject for s in by_table.subjects} == {s.subject for s in by_folder.subjects}


def test_a_person_column_joins_subjects_and_names_those_it_leaves_out(table):
    rows = [("a", "a.edf", "case", "P", ""), ("b", "b.edf", "case", "P ", "x"), ("c", "c.edf", "control", "", "x")]
    path = table(*rows, header=("subject", "file", "label", "person", "family"))
    study = read_study(path)
    assert study.persons == {"a": "P", "b": "P", "c": "c"}
    assert study.notes == ("column 'person' names no person for c: each counts as a person",)
    with pytest.raises(
        ValueError, match=r"column 'family' of the study must name a person for each subject; .* for a$"
    ):
        read_study(path, person_column="family")


def test_ids_that_a_spreadsheet_changed_are_one_subject(table):
    study = read_study(table(("1", "a.edf", "case"), ("1.0", "b.edf", "case"), ("01", "c.edf", "control")))
    assert {s.subject: len(s.files) for s in study.subjects} == {"1": 2, "01": 1}
    assert study.notes == (
        "people whose names differ only in case or leading zeros count as different people: 01 and 1",
    )


def test_bids_names_everyone_it_lacks(tmp_path):
    for name in ("sub-1", "sub-2", "sub-3"):
        (tmp_path / name / "eeg").mkdir(parents=True)
        (tmp_path / name / "eeg" / f"{name}_task-rest_eeg.edf").touch()
        (tmp_path / name / "eeg" / f"._{name}_task-rest_eeg.edf").touch()
    rows = "participant_id\tgroup\nsub-1\tADHD\nsub-2\tcontrol\n"
    (tmp_path / "participants.tsv").write_text(rows)
    study = read_study(tmp_path)
    assert [len(s.files) for s in study.subjects] == [1, 1]
    assert study.notes == ("sub-3 has recordings, but no row in participants.tsv, and is left out",)
    (tmp_path / "participants.tsv").write_text(rows + "sub-8\tADHD\nsub-9\tADHD\n")
    with pytest.raises(FileNotFoundError, match="lists sub-8, sub-9, but there is no EEG recording"):
        read_study(tmp_path)
