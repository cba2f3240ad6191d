"""Results of a BIDS data set as a BIDS derivative."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from voxelwave.apps.batch.bids_derivatives import write_derivatives
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


def test_a_pair_gets_its_image_both_transforms_and_their_sources(data, tmp_path, monkeypatch):
    (case,) = pairs_of_bids(data, "FLAIR", "T1w")
    results = tmp_path / "out" / case.identifier
    results.mkdir(parents=True)
    for name in ("warped", "forward", "inverse"):
        shutil.copy(data / "sub-01/anat/sub-01_T1w.nii.gz", results / f"{name}.nii.gz")
    assert write_derivatives([case], data, tmp_path / "out") is None  # not finished
    monkeypatch.setattr("voxelwave.apps.batch.bids_derivatives.finished_case", lambda *_: {})
    bids = write_derivatives([case], data, tmp_path / "out")
    names = {path.name for path in (bids / "sub-01" / "anat").glob("*.nii.gz")}
    assert names == {
        "sub-01_space-T1w_desc-registered_FLAIR.nii.gz",
        "sub-01_from-FLAIR_to-T1w_mode-image_xfm.nii.gz",
        "sub-01_from-T1w_to-FLAIR_mode-image_xfm.nii.gz",
    }
    facts = json.loads((bids / "sub-01/anat/sub-01_space-T1w_desc-registered_FLAIR.json").read_text())
    assert facts["SpatialReference"] == "bids:raw:sub-01/anat/sub-01_T1w.nii.gz"
    _check(bids)


def test_a_restored_data_set_is_a_derivative(data, tmp_path):
    assert main(["restoration", "restore", str(data), "-o", str(tmp_path / "out"), "--threads", "1"]) == 0
    names = {path.name for path in (tmp_path / "out/bids/sub-01/anat").glob("*.nii.gz")}
    assert names == {"sub-01_desc-restored_T1w.nii.gz", "sub-01_desc-restored_FLAIR.nii.gz"}
    _check(tmp_path / "out/bids")


def _check(bids):
    """The fields that the standard requires; and the validator of schemas where it is installed."""
    described = json.loads((bids / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert {"Name", "BIDSVersion", "GeneratedBy"} <= set(described)
    assert described["GeneratedBy"][0]["Name"] == "voxelwave"
    assert (bids / described["DatasetLinks"]["raw"] / "dataset_description.json").is_file()
    for image in bids.rglob("*.nii.gz"):
        assert json.loads(image.with_name(image.name.replace(".nii.gz", ".json")).read_text())["Sources"]
    program = shutil.which("bids-validator-deno")  # npm's bids-validator knows raw data sets only
    if program is not None:
        done = subprocess.run([program, str(bids), "--json"], capture_output=True, text=True)
        errors = [i for i in json.loads(done.stdout)["issues"]["issues"] if i.get("severity") == "error"]
        assert errors == []
