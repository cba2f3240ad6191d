"""Results of a BIDS data set as a BIDS derivative."""

import json
import os
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest

from voxelwave.apps.batch.bids_derivatives import write_derivatives
from voxelwave.apps.batch.case import Case
from voxelwave.apps.batch.manifest import append_line
from voxelwave.apps.batch.pairs import pairs_of_bids
from voxelwave.apps.cli import main
from voxelwave.volumes import Volume, write_volume


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "raw" / "sub-01" / "anat"
    folder.mkdir(parents=True)
    (tmp_path / "raw" / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.10.0"}')
    values = np.random.default_rng(0).random((16, 16, 2)).astype(np.float32)
    for suffix in ("T1w", "FLAIR"):
        write_volume(folder / f"sub-01_{suffix}.nii.gz", Volume(values, np.eye(4)))
    return tmp_path / "raw"


def finish(output, case, *names, content=None):
    """Write results of a case, and its line in the manifest."""
    folder = output / case.identifier
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(content or case.identifier.encode() + name.encode())
    outputs = [f"{case.identifier}/{name}" for name in names]
    sizes = [(output / name).stat().st_size for name in outputs]
    (folder / "case.json").write_text(json.dumps({"outputs": outputs, "bytes": sizes}))
    append_line(output, {"case": case.identifier, "status": "done"})


RESULTS = ("warped.nii.gz", "forward.nii.gz", "inverse.nii.gz")


def test_a_pair_gets_its_image_both_transforms_and_their_sources(data, tmp_path):
    (case,) = pairs_of_bids(data, "FLAIR", "T1w")
    output = tmp_path / "out"
    assert write_derivatives([case], data, output) is None  # not finished
    finish(output, case, *RESULTS)
    found = write_derivatives([case], data, output)
    assert found == (output / "bids", 1, 0)
    place = found.folder / "sub-01" / "anat"
    assert {path.name for path in place.glob("*.nii.gz")} == {
        "sub-01_space-T1w_desc-registered_FLAIR.nii.gz",
        "sub-01_from-FLAIR_to-T1w_mode-image_xfm.nii.gz",
        "sub-01_from-T1w_to-FLAIR_mode-image_xfm.nii.gz",
    }
    facts = json.loads((place / "sub-01_space-T1w_desc-registered_FLAIR.json").read_text())
    assert facts["SpatialReference"] == "bids:raw:sub-01/anat/sub-01_T1w.nii.gz"
    _check(found.folder)
    assert len(pairs_of_bids(tmp_path / "raw", "FLAIR", "T1w", output=output)) == 1

    append_line(output, {"case": case.identifier, "status": "failed"})  # the results of the first run still lie there
    assert write_derivatives([case], data, output) is None
    assert not list(place.iterdir())


def pair(identifier, moving, fixed):
    return Case(identifier, (moving, fixed), "nifti", "a pair", roles=("moving", "fixed"))


def test_two_people_two_runs_and_several_targets_keep_all_their_transforms(data, tmp_path):
    anat, output = data / "sub-01" / "anat", tmp_path / "out"
    t1w, other = anat / "sub-01_T1w.nii.gz", data / "sub-02" / "anat" / "sub-02_T1w.nii.gz"
    cases = [
        pair("a", t1w, other),
        pair("b", t1w, data / "sub-03" / "anat" / "sub-03_T1w.nii.gz"),
        pair("c", anat / "sub-01_run-1_FLAIR.nii.gz", t1w),
        pair("d", anat / "sub-01_run-2_FLAIR.nii.gz", t1w),
        pair("e", anat / "sub-01_run-2_FLAIR.nii.gz", t1w),  # the same pair again has the same names
    ]
    for case in cases:
        finish(output, case, *RESULTS)
    found = write_derivatives(cases, data, output)
    assert (found.cases, found.left_out) == (4, 1)
    written = {path.name: path.read_bytes() for path in found.folder.rglob("*.nii.gz")}
    assert len(written) == 12
    assert written["sub-02_from-sub01T1w_to-sub02T1w_mode-image_xfm.nii.gz"] == b"aforward.nii.gz"
    assert written["sub-02_from-sub02T1w_to-sub01T1w_mode-image_xfm.nii.gz"] == b"ainverse.nii.gz"
    assert written["sub-01_from-run2FLAIR_to-T1w_mode-image_xfm.nii.gz"] == b"dforward.nii.gz"


def test_nothing_is_written_outside_and_no_name_of_a_person_is_repeated(data, tmp_path):
    output, fixed = tmp_path / "out", data / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    outside = pair("a", data / ".." / ".." / "elsewhere" / "sub-09_T1w.nii.gz", fixed)
    named = pair("b", data / "Doe_John" / "sub-05_T1w.nii.gz", fixed)
    for case in (outside, named):
        finish(output, case, *RESULTS)
    assert write_derivatives([outside, named], data, output) is None
    found = write_derivatives([outside, named], data, output, keep_identifiers=True)
    assert (found.cases, found.left_out) == (1, 1)
    assert {path.name for path in output.iterdir()} - {".voxelwave"} == {"a", "b", "bids", "manifest.jsonl"}


def test_the_validator_finds_no_errors_in_registered_and_restored_scans(data, tmp_path):
    anat, dwi = data / "sub-01" / "anat", data / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"
    series = nib.Nifti1Image(np.zeros((4, 4, 2, 2), np.float32), np.eye(4))
    series.header.set_xyzt_units("mm", "sec")
    dwi.parent.mkdir()
    nib.save(series, dwi)
    gradients = {".bval": "0 1000\n", ".bvec": "0 1\n0 0\n0 0\n"}
    registered = pair("registered", dwi, anat / "sub-01_T1w.nii.gz")
    restored = Case("restored", (dwi,), "nifti", "an image")
    output = tmp_path / "out"
    for case, names in ((registered, RESULTS), (restored, ("restored.nii.gz",))):
        finish(output, case, *names, content=dwi.read_bytes())
    for ending, text in gradients.items():
        (output / "registered" / f"warped{ending}").write_text(text)
        (dwi.parent / f"sub-01_dwi{ending}").write_text(text)
    found = write_derivatives([registered, restored], data, output)
    assert found.cases == 2
    assert (found.folder / "sub-01/dwi/sub-01_desc-restored_dwi.bval").read_text() == gradients[".bval"]
    assert _errors(found.folder) == []


@pytest.mark.slow
def test_the_validator_finds_no_errors_after_both_commands(data, tmp_path):
    options = ["--bids", "FLAIR,T1w", "--transform", "affine", "--effort", "fast", "--guard", "warn", "--threads", "1"]
    assert main(["registration", "register", "-i", str(data), "-o", str(tmp_path / "registered"), *options]) == 0
    assert main(["restoration", "restore", str(data), "-o", str(tmp_path / "restored"), "--threads", "1"]) == 0
    names = {path.name for path in (tmp_path / "restored/bids/sub-01/anat").glob("*.nii.gz")}
    assert names == {"sub-01_desc-restored_T1w.nii.gz", "sub-01_desc-restored_FLAIR.nii.gz"}
    for command in ("registered", "restored"):
        _check(tmp_path / command / "bids")
        assert _errors(tmp_path / command / "bids") == []


def _check(bids):
    """The fields that the standard requires."""
    described = json.loads((bids / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert {"Name", "BIDSVersion", "GeneratedBy"} <= set(described)
    assert described["GeneratedBy"][0]["Name"] == "voxelwave"
    assert (bids / described["DatasetLinks"]["raw"] / "dataset_description.json").is_file()
    for image in bids.rglob("*.nii.gz"):
        assert json.loads(image.with_name(image.name.replace(".nii.gz", ".json")).read_text())["Sources"]


def _errors(bids):
    """What the validator of the standard refuses."""
    program = shutil.which("bids-validator-deno")  # npm's bids-validator knows raw data sets only
    if program is None:
        pytest.skip("needs the BIDS validator: pip install bids-validator-deno")
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run([program, str(bids), "--format", "json"], capture_output=True, text=True, env=environment)
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [(i["code"], i["location"]) for i in issues if i["severity"] == "error"]
