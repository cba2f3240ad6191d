"""Facts about scans, read from their names, .json files and DICOM headers."""

import json
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from voxelwave.registration.acquisition import _dicom_axis, _dicom_relation, acquisition_of, phase_axis_of, relation_of


@pytest.mark.parametrize(
    ("first", "second", "relation"),
    [
        ("sub-1/anat/sub-1_T1w.nii.gz", "sub-1/dwi/sub-1_dwi.nii.gz", "session"),
        ("sub-1/ses-a/anat/sub-1_ses-a_T1w.nii.gz", "sub-1/ses-a/dwi/sub-1_ses-a_dwi.nii.gz", "session"),
        ("sub-1/ses-a/anat/sub-1_ses-a_T1w.nii.gz", "sub-1/ses-b/anat/sub-1_ses-b_T1w.nii.gz", "subject"),
        ("sub-1/anat/t1.nii.gz", "sub-1/dwi/dwi.nii.gz", "session"),  # by their folders
        ("sub-1_T1w.nii.gz", "sub-2_T1w.nii.gz", "unknown"),
        ("sub-1_T1w.nii.gz", "sub-1_space-MNI152_T1w.nii.gz", "unknown"),  # in the space of a template
        ("sub-1_T1w.nii.gz", "sub-1_to_sub-2_T1w.nii.gz", "unknown"),
        ("t1.nii.gz", "dwi.nii.gz", "unknown"),
        ("sub-12_T1w.nii.gz", "sub-1_T1w.nii.gz", "unknown"),
    ],
)
def test_names_relate_scans(tmp_path, first, second, relation):
    assert relation_of(tmp_path / first, tmp_path / second) == relation
    assert relation_of(tmp_path / second, tmp_path / first) == relation


def headers(**values) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def test_dicom_headers_relate_scans():
    first = headers(FrameOfReferenceUID="1.2.3", PatientID="7", PatientName="A")
    assert _dicom_relation(first, headers(FrameOfReferenceUID="1.2.3")) == "session"
    assert _dicom_relation(first, headers(FrameOfReferenceUID="1.2.4", PatientID="7", PatientName="A")) == "subject"
    assert _dicom_relation(first, headers(PatientID="7", PatientName="B")) == "unknown"
    nameless = headers(PatientID="anonymous", PatientName="anonymous")
    assert _dicom_relation(nameless, nameless) == "unknown"  # two people may share a placeholder


def test_phase_axis_is_read_from_json_and_dicom(tmp_path):
    image = tmp_path / "sub-1_dwi.nii.gz"
    assert phase_axis_of(image) is None
    beside = tmp_path / "sub-1_dwi.json"
    beside.write_text(json.dumps({"PhaseEncodingDirection": "j-"}))
    assert phase_axis_of(image) == "j-"
    assert acquisition_of(image).diffusion
    beside.write_text(json.dumps({"PhaseEncodingDirection": "y"}))
    with pytest.raises(ValueError, match="one of i, i-, j"):
        phase_axis_of(image)
    assert _dicom_axis(headers(InPlanePhaseEncodingDirection="COL")) == "j"
    assert _dicom_axis(headers(InPlanePhaseEncodingDirection="ROW")) == "i"
    enhanced = headers(
        SharedFunctionalGroupsSequence=[
            headers(MRFOVGeometrySequence=[headers(InPlanePhaseEncodingDirection="COLUMN")])
        ]
    )
    assert _dicom_axis(enhanced) == "j"
    assert _dicom_axis(headers()) is None


@pytest.mark.parametrize(
    ("name", "contrast"), [("sub-1_T1w", "t1"), ("a_FA", "fa"), ("a_TRACEW", "dwi"), ("x", "image")]
)
def test_suffix_names_the_contrast(name, contrast):
    assert acquisition_of(Path(f"{name}.nii.gz")).contrast == contrast
