"""Finding cases in folders as hospitals have them: mixed, nested, damaged, and without file names that help."""

import json
import os
import re
import shutil
from pathlib import Path

import pydicom
import pytest
from pydicom.fileset import FileSet
from pydicom.uid import generate_uid

from voxelwave.apps import cli
from voxelwave.apps.batch.case import Case
from voxelwave.apps.batch.find import choose, find_cases
from voxelwave.apps.batch.names import bids_entities, is_harmless, shown_path
from voxelwave.apps.batch.pairs import pairs_of_bids, pairs_of_table
from voxelwave.runs.exit import DONE, ERROR

KINDS = ("dicom", "nifti", "image", "eeg")
SUFFIXES = {"image": (".png",), "eeg": (".edf",)}


def find(folder: Path, **options):
    return find_cases(folder, KINDS, suffixes=SUFFIXES, **options)


@pytest.fixture
def series(write_ct):
    """`series(folder, ...)` writes a CT series whose header can be changed, as files without an extension."""

    def write(folder: Path, *, slices: int = 4, ending: str = "", **changes) -> list[Path]:
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_ct(folder, slices=slices)
        written = []
        for number, path in enumerate(sorted(folder.glob("*.dcm"))):
            dataset = pydicom.dcmread(path)
            for keyword, value in changes.items():
                setattr(dataset, keyword, value)
            path.unlink()
            written.append(folder / f"IM{number:04d}{ending}")
            dataset.save_as(written[-1], enforce_file_format=True)
        return written

    return write


def flatten(folder: Path, *folders: Path) -> None:
    """Move all files into one folder, with numbers as names."""
    folder.mkdir(exist_ok=True)
    paths = [path for some in folders for path in sorted(some.rglob("*")) if path.is_file()]
    for number, path in enumerate(paths):
        path.rename(folder / f"{number:05d}")


def test_patients_studies_and_series_are_told_apart_wherever_they_lie(series, tmp_path):
    root = tmp_path / "in"
    series(tmp_path / "a", PatientID="one", SeriesDescription="T1 MPRAGE", Modality="MR")
    series(tmp_path / "b", PatientID="two", SeriesDescription="T2 TSE", slices=3)
    flatten(root, tmp_path / "a", tmp_path / "b")
    split = series(tmp_path / "c", PatientID="three", slices=6)  # one series in two deep folders
    for number, path in enumerate(split):
        target = root / f"DISC{number % 2}" / "DICOM" / "ST0" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    found = find(root)
    assert sorted(len(case.inputs) for case in found.cases) == [3, 4, 6]
    assert all(case.reason is None for case in found.cases)
    assert len({case.identifier for case in found.cases}) == 3
    assert sorted(case.modality for case in found.cases) == ["CT", "CT", "MR"]
    assert [case.identifier for case in find(root).cases] == [case.identifier for case in found.cases]


def test_one_series_uid_in_two_patients_is_two_cases(series, tmp_path):
    series(tmp_path / "in" / "a", PatientID="one", SeriesInstanceUID="1.2.3", StudyInstanceUID="1.2")
    series(tmp_path / "in" / "b", PatientID="two", SeriesInstanceUID="1.2.3", StudyInstanceUID="1.2")
    assert [len(case.inputs) for case in find(tmp_path / "in").cases] == [4, 4]


def test_a_localizer_becomes_a_case_per_orientation(series, tmp_path):
    root = tmp_path / "in"
    for number, orientation in enumerate(([1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1])):
        same = {"SeriesInstanceUID": "1.2.3", "StudyInstanceUID": "1.2", "FrameOfReferenceUID": "1.4"}
        series(root / str(number), ImageOrientationPatient=orientation, **same)
    cases = find(root).cases
    assert [len(case.inputs) for case in cases] == [4, 4, 4]
    assert [case.identifier.rpartition("-")[2] for case in cases] == ["1", "2", "3"]
    assert len({case.identifier.rpartition("-")[0] for case in cases}) == 1


def test_orientations_that_differ_by_rounding_are_one(series, tmp_path):
    files = series(tmp_path / "in", ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    dataset = pydicom.dcmread(files[2])
    dataset.ImageOrientationPatient = [0.999999, 0.0004, 0, -0.0004, 0.999999, 0]
    dataset.save_as(files[2])
    assert len(find(tmp_path / "in").cases) == 1


def test_what_is_no_scan_is_left_out_and_counted(series, tmp_path):
    root = tmp_path / "in"
    files = series(root / "a", ending=".dcm")
    report = pydicom.dcmread(files[0])
    for keyword in ("Rows", "Columns", "PixelData", "ImagePositionPatient"):
        del report[keyword]
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID = pydicom.uid.BasicTextSRStorage
    report.SeriesInstanceUID = generate_uid()
    report.save_as(root / "report", enforce_file_format=True)
    screenshot = pydicom.dcmread(files[0])
    del screenshot.ImagePositionPatient
    screenshot.file_meta.MediaStorageSOPClassUID = screenshot.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    screenshot.save_as(root / "screenshot", enforce_file_format=True)
    (root / "README").write_text("nothing")
    (root / ".hidden.nii.gz").write_bytes(b"")
    found = find(root)
    assert [len(case.inputs) for case in found.cases] == [4]
    assert sum(found.left_out.values()) == 3
    assert any("Basic Text SR" in note for note in found.notes)


def test_a_dicomdir_is_no_case_and_its_missing_images_break_their_series(series, tmp_path):
    source, root = tmp_path / "source", tmp_path / "in"
    fileset = FileSet()
    for number in range(2):
        for path in series(source / str(number), StudyDate="20200101", StudyTime="120000", StudyID="1"):
            fileset.add(path)
    fileset.write(root)
    found = find(root)
    assert [(len(case.inputs), case.reason) for case in found.cases] == [(4, None), (4, None)]
    assert found.left_out["DICOMDIR"] == 1
    found.cases[0].inputs[-1].unlink()
    first, second = find(root).cases
    assert first.reason == "DICOMDIR lists 1 more images, which are missing"
    assert second.reason is None
    for path in first.inputs:
        path.unlink()
    found = find(root)
    assert [case.reason for case in found.cases] == [None]
    assert any("4 left out: images of whole series" in note for note in found.notes)


@pytest.mark.parametrize("how", ["the folder is renamed", "the files have endings"])
def test_images_that_a_dicomdir_lists_are_known_by_their_uid(series, tmp_path, how):
    source, root = tmp_path / "source", tmp_path / "in"
    fileset = FileSet()
    for path in series(source, StudyDate="20200101", StudyTime="120000", StudyID="1"):
        fileset.add(path)
    fileset.write(root)
    before = find(root).cases[0]
    if how == "the folder is renamed":
        for folder in [path for path in root.iterdir() if path.is_dir()]:
            folder.rename(root / f"copy of {folder.name}")
    else:
        for path in before.inputs:
            path.rename(path.with_suffix(".dcm"))
    cases = find(root).cases
    assert [(len(case.inputs), case.reason) for case in cases] == [(4, None)]
    cases[0].inputs[0].unlink()
    assert find(root).cases[0].reason == "DICOMDIR lists 1 more images, which are missing"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "is to be an image, but has no Rows|damaged DICOM"),
        (lambda path: path.write_bytes(path.read_bytes()[132:]), "has no DICOM file header"),
        (lambda path: path.write_bytes(b"\x00" * 3000), "is not a DICOM file"),
    ],
)
def test_a_damaged_file_breaks_its_series_if_it_can_be_of_no_other(series, tmp_path, damage, words):
    root = tmp_path / "in"
    files = series(root / "a", ending=".dcm")
    series(root / "b", ending=".dcm")
    damage(files[-1])
    cases = find(root).cases
    assert sorted(len(case.inputs) for case in cases) == [3, 4]
    broken = [case for case in cases if case.reason]
    assert [len(case.inputs) for case in broken] == [3]
    assert re.search(words, broken[0].reason)


def test_a_damaged_file_among_several_series_is_a_case_and_a_warning(series, tmp_path):
    root = tmp_path / "in"
    for name in "ab":
        series(tmp_path / name)
    flatten(root, tmp_path / "a", tmp_path / "b")
    (root / "99999.dcm").write_bytes(b"x" * 500)
    cases = find(root).cases
    assert sorted((len(case.inputs), case.reason is None) for case in cases) == [(1, False), (4, True), (4, True)]
    assert all("may be missing" in case.warnings[0] for case in cases if case.reason is None)


def test_odd_files_and_links_are_no_trouble(series, tmp_path):
    root = tmp_path / "in"
    series(root / "with space", ending=".dcm")
    series(root / "line\nbreak", ending=" ü.dcm")
    (root / "loop").symlink_to(root)
    (root / "with space" / "up").symlink_to(root / "line\nbreak")
    (root / "nowhere").symlink_to(tmp_path / "gone")
    (root / "itself").symlink_to(root / "itself")
    os.mkfifo(root / "pipe.nii")
    (root / os.fsdecode(b"bytes\xff.nii.gz")).write_bytes(b"")
    cases = find(root).cases
    assert sorted((case.kind, len(case.inputs)) for case in cases) == [("dicom", 4), ("dicom", 4), ("nifti", 1)]
    assert all(case.identifier.isprintable() and "\n" not in case.description for case in cases)
    for case in cases:
        assert Case.from_dict(json.loads(json.dumps(case.as_dict()))) == case


def test_a_link_to_another_disk_is_followed_once(series, tmp_path):
    series(tmp_path / "disk" / "a")
    (tmp_path / "in").mkdir()
    for name in ("one", "two"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "disk")
    assert [len(case.inputs) for case in find(tmp_path / "in").cases] == [4]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_must_not_be_read_is_a_broken_case(series, tmp_path):
    root = tmp_path / "in"
    series(root / "a")
    (root / "closed").mkdir(mode=0)
    assert sorted(case.reason is None for case in find(root).cases) == [False, True]


def test_volumes_pictures_and_recordings_by_their_names(tmp_path):
    root = tmp_path / "in"
    for name in (
        "sub-01/anat/sub-01_T1w.nii.gz",
        "scan_12.nii.gz",
        "a/scan.png",
        "b/scan.png",
        "Doe_John.edf",
        "results/scan_12.nii.gz",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    cases = find(root, output=root / "results").cases
    names = [case.identifier for case in cases]
    assert {"sub-01_T1w", "scan_12"} <= set(names)
    assert len(set(names)) == 5
    assert sum(name.startswith("scan-") for name in names) == 2  # cases of two folders
    assert not any("Doe" in name or "John" in name for name in names)
    assert "Doe_John" in [case.identifier for case in find(root, keep_identifiers=True).cases]
    assert {case.modality for case in cases} == {"MR", "EEG", None}


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({}, 4),
        ({"include": "t1*"}, 2),
        ({"include": "T1*,*flair*"}, 3),
        ({"series": "t1*"}, 1),
        ({"modality": "CT"}, 2),
        ({"modality": "ct, mr"}, 4),
        ({"modality": "CT", "series": "*"}, 2),
        ({"include": "deep/*"}, 1),
    ],
)
def test_filters_choose(tmp_path, filters, count):
    def case(name: str, modality: str, description: str, place: str) -> Case:
        return Case(name, (tmp_path / place,), "dicom", "", modality=modality, label=f"{description}\t{place}")

    cases = [
        case("a", "CT", "T1 like", "IM1"),
        case("b", "CT", "abdomen", "x/IM2"),
        case("c", "MR", "AX FLAIR", "deep/er/IM3"),
        case("d", "MR", "", "T1w.nii.gz"),
    ]
    assert len(choose(cases, **filters)) == count
    with pytest.raises(ValueError, match="no case fits --include nothing, --modality MR"):
        choose(cases, include="nothing", modality="MR")
    assert choose([], include="nothing") == []  # that the folder holds nothing is told elsewhere


@pytest.mark.parametrize(
    ("name", "harmless"),
    [
        ("sub-0012_ses-1_task-rest_eeg", True),
        ("IM000123", False),  # this could be a patient's number
        ("IM00123", True),
        ("t1_mprage_sag", True),
        ("v10p", True),
        ("slice 12", True),
        ("Müller", False),
        ("Smith", False),
        ("Li", False),
        ("1957-02-04", False),
        ("T1 Smith", False),
    ],
)
def test_names_that_may_be_shown(name, harmless):
    assert is_harmless(name) is harmless
    assert (shown_path(Path("/in") / name, Path("/in")) == name) is harmless


def test_a_description_is_shown_only_if_it_says_nothing(series, tmp_path):
    series(tmp_path / "in" / "a", SeriesDescription="t1 mprage sag")
    series(tmp_path / "in" / "b", SeriesDescription="for Dr. Smith")
    shown = " ".join(case.description for case in find(tmp_path / "in").cases)
    assert "t1 mprage sag" in shown
    assert "Smith" not in shown
    kept = find(tmp_path / "in", keep_identifiers=True).cases
    assert "Smith" in " ".join(case.description for case in kept)
    assert all(case.identifier.startswith("p1_3_") for case in kept)


def test_pairs_of_a_bids_folder(tmp_path):
    def image(name: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    for name in (
        "sub-1/ses-1/anat/sub-1_ses-1_T1w.nii.gz",
        "sub-1/ses-1/anat/sub-1_ses-1_FLAIR.nii.gz",
        "sub-1/ses-2/anat/sub-1_ses-2_FLAIR.nii.gz",
        "sub-2/anat/sub-2_acq-low_T1w.nii.gz",
        "sub-2/anat/sub-2_acq-high_T1w.nii.gz",
        "sub-2/anat/sub-2_FLAIR.nii.gz",
        "derivatives/x/sub-2/anat/sub-2_T1w.nii.gz",
    ):
        image(name)
    found = {case.identifier: case.reason for case in pairs_of_bids(tmp_path, "T1w", "FLAIR")}
    assert found["sub-1_ses-1_T1w-to-FLAIR"] is None
    assert found["sub-1_ses-2_T1w-to-FLAIR"] == "there is no image named T1w"
    assert found["sub-2_T1w-to-FLAIR"].startswith("2 images are named T1w")
    found = {case.identifier: case for case in pairs_of_bids(tmp_path, "acq-high_T1w", "FLAIR")}
    assert found["sub-2_acq-high_T1w-to-FLAIR"].reason is None
    found = {case.identifier: case for case in pairs_of_bids(tmp_path, "ses-1_T1w", "FLAIR")}
    assert [p.name for p in found["sub-1_ses-2_ses-1_T1w-to-FLAIR"].inputs] == [
        "sub-1_ses-1_T1w.nii.gz",
        "sub-1_ses-2_FLAIR.nii.gz",
    ]
    with pytest.raises(ValueError, match="got neither in 6"):
        pairs_of_bids(tmp_path, "PDw", "inplaneT2")
    assert bids_entities("sub-1_ses-2_T1w") == {"sub": "1", "ses": "2", "suffix": "T1w"}


def test_pairs_of_a_table_keep_a_missing_file_as_a_broken_case(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz", "Doe.nii.gz"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "pairs.csv").write_text("moving,fixed\na.nii.gz,b.nii.gz\ngone.nii.gz,b.nii.gz\nDoe.nii.gz,a.nii.gz\n")
    cases = pairs_of_table(tmp_path / "pairs.csv")
    assert "a-to-b" in [case.identifier for case in cases]
    reasons = [case.reason for case in cases if case.reason]
    assert len(reasons) == 1
    assert re.fullmatch(r"there is no ~[0-9a-f]{8}\.nii\.gz", reasons[0])  # "gone" is not a term of imaging
    assert not any("Doe" in case.identifier for case in cases)


def test_pairs_of_a_table_have_masks(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz", "mask.nii.gz", "seg.nii.gz"):
        (tmp_path / name).write_bytes(b"x")
    rows = [
        "a.nii.gz,b.nii.gz,,mask.nii.gz,",
        "b.nii.gz,a.nii.gz,seg.nii.gz,,mask.nii.gz",
        "a.nii.gz,a.nii.gz,,gone.nii,",
    ]
    header = "moving,fixed,fixed_labels,moving_mask,fixed_mask"
    (tmp_path / "pairs.csv").write_text("\n".join([header, *rows]))
    cases = {case.identifier: case for case in pairs_of_table(tmp_path / "pairs.csv")}
    assert cases["a-to-b"].roles == ("moving", "fixed", "moving_mask")
    assert cases["a-to-b"].description == "pair with masks"
    assert cases["b-to-a"].roles == ("moving", "fixed", "fixed_labels", "fixed_mask")
    assert cases["b-to-a"].description == "pair with labels and masks"
    assert (cases["a-to-a"].reason or "").startswith("there is no ")


def test_real_series_of_many_makers_in_one_heap(shared_data, tmp_path):
    """Original folders are found again as cases after all files are put into one folder, under meaningless names."""
    source = shared_data / "dicom" / "dicom2nifti"
    folders = [
        source / name
        for name in ("ge/anatomical", "ge/dti", "philips_enhanced/anatomical", "hitachi/anatomical", "ge/fmri")
    ]
    heap = tmp_path / "heap"
    heap.mkdir()
    wanted = []
    for folder in folders:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".gz"]
        wanted.append(len(files))
        for path in files:
            shutil.copy(path, heap / f"{len(list(heap.iterdir())):05d}")
    cases = find(heap).cases
    assert sorted(len(case.inputs) for case in cases) == sorted(wanted)
    assert all(case.reason is None for case in cases)


def test_the_command_shows_a_plan_of_a_real_folder(shared_data, tmp_path, capsys):
    words = ["restoration", "restore", "-i", str(shared_data / "dicom"), "-o", str(tmp_path / "out")]
    assert cli.main([*words, "--weights", "denoise-grey", "--dry-run", "--modality", "MR"]) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("MR-") for line in lines) > 10
    assert not (tmp_path / "out").exists()
    words[3] = str(shared_data / "dicom" / "siemens_xa30_enhanced")
    assert cli.main([*words, "--weights", "denoise-grey", "--dry-run", "--include", "nothing*"]) == ERROR
