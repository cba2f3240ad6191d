"""`voxelwave info` and `voxelwave doctor`."""

import json
from pathlib import Path

import numpy as np
import pytest

from voxelwave.apps import cli
from voxelwave.eeg.synthetic import write_synthetic_study
from voxelwave.runs.exit import DONE, ERROR
from voxelwave.volumes import AffineTransform, DisplacementField, Volume, write_transform, write_volume
from voxelwave.volumes.describe import describe_transform

DATA = Path(cli.__file__).parent / "demo" / "data"


def facts(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict, list[str]]:
    assert cli.main(["info", str(path), "--json"]) == DONE
    result = json.loads(capsys.readouterr().out)["result"]
    return result["facts"], result["uses"]


def test_an_image_has_its_geometry_and_the_commands_that_take_it(capsys):
    found, uses = facts(DATA / "sub-01_b0.nii.gz", capsys)
    assert (found["orientation"], found["contrast"], found["phase encoding"]) == ("LAS", "b0", "j")
    assert found["size"] == "51 x 65 x 39 int16"
    assert any("registration register" in use for use in uses)


def test_a_ct_is_not_offered_to_weights_that_rule_it_out(tmp_path, capsys):
    values = np.full((16, 16, 4), -1000, np.int16)
    values[4:12, 4:12] = 400
    write_volume(tmp_path / "a.nii.gz", Volume(values, np.eye(4)))
    _, uses = facts(tmp_path / "a.nii.gz", capsys)
    assert [use for use in uses if "restoration restore" in use] == []
    assert any(use.startswith("not restored") for use in uses)


def test_transforms_are_told_from_images_and_recordings(tmp_path, capsys):
    turn = np.eye(4)
    turn[:2, :2] = [[0.0, -1.0], [1.0, 0.0]]
    write_transform(tmp_path / "a.mat", AffineTransform(turn))
    found, _ = facts(tmp_path / "a.mat", capsys)
    assert (found["form"], found["rotation"]) == ("rigid", "90.00 degrees")
    write_transform(tmp_path / "f.nii.gz", DisplacementField(np.full((3, 4, 5, 3), 2.0, np.float32), np.eye(4)))
    found, _ = facts(tmp_path / "f.nii.gz", capsys)
    assert found["displacement"] == "3.46 mm on average, 3.46 mm at most"


@pytest.mark.parametrize("angle", [0.0, 30.0, 120.0, 179.0])
def test_the_rotation_of_a_mirrored_map_is_that_without_the_mirror(angle):
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    turn = np.eye(4)
    turn[:2, :2] = [[c, -s], [s, c]]
    assert describe_transform(AffineTransform(turn))["rotation"] == f"{angle:.2f} degrees"
    assert "mirrored" in describe_transform(AffineTransform(-turn * [1, 1, 1, -1]))["rotation"]


def test_recordings_scenes_weights_and_folders_are_described(tmp_path, capsys):
    write_synthetic_study(tmp_path / "study", subjects=4, seconds=5)
    found, _ = facts(tmp_path / "study" / "s001_raw.fif", capsys)
    assert found["sampling rate"] == "128 Hz"
    found, uses = facts(tmp_path / "study", capsys)
    assert found["cases"] == "4 eeg"
    assert any("eeg diagnose" in use for use in uses)
    assert facts(DATA / "shelf.json", capsys)[0]["objects"] == "14 per scene"
    assert facts(DATA.parents[2] / "eeg" / "shipped" / "rhythm-demo.safetensors", capsys)[0]["kind"] == "weights"


@pytest.mark.parametrize("name", ["a.nii.gz", "a.safetensors", "a.json", "a.mat", "a.edf", "a.png", "a"])
def test_a_damaged_file_is_one_line(name, tmp_path, capsys):
    (tmp_path / name).write_bytes(b"not what the name says")
    assert cli.main(["info", str(tmp_path / name)]) == ERROR
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_doctor_says_what_each_field_needs(capsys, tmp_path):
    assert cli.main(["doctor", "-o", str(tmp_path), "--json"]) == DONE
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["missing"] == {field: [] for field in ("registration", "restoration", "eeg", "scanpath")}
    assert {"versions", "gpu", "disk", "kernels", "compiler"} <= set(result)


def test_points_fixations_and_registrations_name_the_commands_that_take_them(tmp_path, capsys):
    (tmp_path / "points.csv").write_text("name,x,y,z\na,1,2,3\nb,-4,0,5\nlost,,,\n")
    found, uses = facts(tmp_path / "points.csv", capsys)
    assert (found["points"], found["extent"]) == (3, "-4 to 1, 0 to 2, 3 to 5 (x, y, z)")
    assert uses == [f"voxelwave registration apply TRANSFORM --points {tmp_path / 'points.csv'} -o OUT.csv"]
    (tmp_path / "fixations.tsv").write_text("image\tsubject\tx\ty\nk\ta\t1\t2\n")
    (tmp_path / "a.asc").write_text("MSG 1 TRIALID 1\nEFIX R 10 20 10 100.0 50.0 900\n")
    for name in ("fixations.tsv", "a.asc"):
        found, uses = facts(tmp_path / name, capsys)
        assert (found["fixations"], found["people"]) == (1, 1)
        assert uses[0].startswith("voxelwave scanpath import")
    for name in ("forward", "inverse"):
        unmoved = DisplacementField(np.zeros((2, 3, 4, 3)), np.eye(4))
        write_transform(tmp_path / "out" / f"{name}.nii.gz", unmoved)
    found, uses = facts(tmp_path / "out", capsys)
    assert found["kind"] == "result of a registration"
    assert f"voxelwave registration apply {tmp_path / 'out'} IMAGE --like FIXED -o OUT" in uses
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert cli.main(["info", str(tmp_path / "other.csv")]) == ERROR
    assert "for fixations, columns for the scene, x and y" in capsys.readouterr().err
