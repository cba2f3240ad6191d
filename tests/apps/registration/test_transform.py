"""`registration transform`, `apply` to points and several images, and `register --initial`."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from voxelwave.apps import cli
from voxelwave.apps.arguments import parse_arguments
from voxelwave.apps.registration.options import Apply
from voxelwave.apps.registration.scans import read_labels
from voxelwave.runs.exit import DONE, ERROR, USAGE
from voxelwave.volumes import (
    AffineTransform,
    DisplacementField,
    Volume,
    read_transform,
    read_volume,
    resample,
    write_transform,
    write_volume,
)

TURN = np.array([[0.98, -0.17, 0.0, 3.0], [0.17, 0.98, 0.0, -2.0], [0.0, 0.0, 1.0, 1.0], [0, 0, 0, 1]])


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    fixed = Volume(rng.integers(0, 100, (12, 13, 14)).astype(np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))
    write_volume(tmp_path / "fixed.nii.gz", fixed)
    write_volume(tmp_path / "moving.nii.gz", Volume(fixed.array[::-1].copy(), np.diag([2.0, 2.0, 1.5, 1.0])))
    write_transform(tmp_path / "affine.mat", AffineTransform(TURN))
    vectors = np.zeros((12, 13, 14, 3), np.float32)
    vectors[..., 0] = 0.1 * (2.0 * np.arange(12))[:, None, None]
    write_transform(tmp_path / "field.nii.gz", DisplacementField(vectors, fixed.affine))
    return tmp_path


def run(*words) -> int:
    return cli.main(["registration", *map(str, words)])


@pytest.mark.parametrize("name", ["out.txt", "out.tfm", "out.mat", "out.lta", "out.h5"])
def test_an_affine_is_converted_and_read_back(files, name):
    images = ["--fixed", files / "fixed.nii.gz", "--moving", files / "moving.nii.gz"]
    assert run("transform", files / "affine.mat", "-o", files / name, *images) == DONE
    points = np.random.default_rng(1).normal(size=(5, 3)) * 20
    expected = AffineTransform(TURN).map(points)
    np.testing.assert_allclose(read_transform(files / name).map(points), expected, atol=1e-4)
    if name.endswith(("txt", "tfm")):  # as another program reads it
        flip = np.array([-1, -1, 1])
        itk = sitk.ReadTransform(str(files / name))
        np.testing.assert_allclose([flip * itk.TransformPoint(tuple(flip * p)) for p in points], expected, atol=1e-4)


def test_an_affine_becomes_a_field_on_the_grid_of_the_fixed_image(files, capsys):
    assert run("transform", files / "affine.mat", "-o", files / "out.nii.gz") == ERROR
    assert "give the fixed image as --fixed" in capsys.readouterr().err
    assert run("transform", files / "affine.mat", "-o", files / "out.nii.gz", "--fixed", files / "fixed.nii.gz") == DONE
    field = read_transform(files / "out.nii.gz")
    np.testing.assert_allclose(
        field.map(np.array([[4.0, 6, 8]])), AffineTransform(TURN).map(np.array([[4.0, 6, 8]])), atol=1e-4
    )


def test_a_field_is_no_linear_transform_unless_its_linear_part_is_wanted(files, capsys):
    assert run("transform", files / "field.nii.gz", "-o", files / "out.txt") == ERROR
    assert "add --linear" in capsys.readouterr().err
    assert run("transform", files / "field.nii.gz", "-o", files / "out.txt", "--linear") == DONE
    np.testing.assert_allclose(read_transform(files / "out.txt").matrix, np.diag([1.1, 1, 1, 1]), atol=1e-4)


def test_the_jacobian_map_is_the_change_of_volume(files):
    assert run("transform", files / "field.nii.gz", "--jacobian", files / "j.nii.gz") == DONE
    np.testing.assert_allclose(read_volume(files / "j.nii.gz").array, 1.1, atol=1e-4)
    words = ["transform", files / "affine.mat", "--jacobian", files / "k.nii.gz", "--fixed", files / "fixed.nii.gz"]
    assert run(*words) == DONE
    np.testing.assert_allclose(read_volume(files / "k.nii.gz").array, np.linalg.det(TURN[:3, :3]), atol=1e-3)


def test_the_inverse_of_a_field_needs_the_moving_image(files, capsys):
    assert run("transform", files / "field.nii.gz", "--inverse", "-o", files / "out.nii.gz") == ERROR
    assert "needs --moving" in capsys.readouterr().err
    words = ["transform", files / "field.nii.gz", "--inverse", "--moving", files / "fixed.nii.gz"]
    assert run(*words, "-o", files / "out.nii.gz") == DONE
    there = read_transform(files / "field.nii.gz").map(np.array([[10.0, 10, 10]]))
    np.testing.assert_allclose(read_transform(files / "out.nii.gz").map(there), [[10, 10, 10]], atol=0.02)


def test_a_transform_is_described(files, capsys):
    assert run("transform", files / "affine.mat", "--json") == DONE
    assert json.loads(capsys.readouterr().out)["result"]["transform"]["rotation"].startswith("9.8")


@pytest.mark.parametrize("name", ["out.png", "affine.mat"])
def test_a_target_that_cannot_be_is_wrong_usage(files, name):
    assert run("transform", files / "affine.mat", "-o", files / name) == USAGE


@pytest.mark.parametrize("space", ["ras", "lps"])
@pytest.mark.parametrize("inverse", [False, True])
def test_points_move_as_the_image_does(files, space, inverse):
    """A transform maps points of the fixed image to the moving one; the points of the image go the other way."""
    points = np.array([[3.0, 4, 5], [10, 11, 12]])
    (files / "p.csv").write_text("x,y,z\n" + "\n".join(",".join(map(str, row)) for row in points.tolist()) + "\n")
    words = ["apply", files / "affine.mat", "--points", files / "p.csv", "-o", files / "q.csv", "--points-space", space]
    assert run(*words, *(["--inverse"] if inverse else [])) == DONE
    moved = np.loadtxt(files / "q.csv", delimiter=",", skiprows=1)
    flip = np.array([-1, -1, 1]) if space == "lps" else np.ones(3)
    matrix = TURN if inverse else np.linalg.inv(TURN)
    np.testing.assert_allclose(moved, flip * (flip * points @ matrix[:3, :3].T + matrix[:3, 3]), atol=1e-3)


def test_a_bright_voxel_and_its_point_move_to_the_same_place(files):
    array = np.zeros((30, 30, 30), np.float32)
    array[18, 12, 14] = 1000
    blob = Volume(array, np.eye(4))
    vectors = np.zeros((30, 30, 30, 3), np.float32)
    vectors[..., 1] = np.linspace(3, 7, 30)[:, None, None]
    field = DisplacementField(vectors, np.eye(4))
    write_transform(files / "f.nii.gz", field)
    warped = resample(blob, blob, field)
    brightest = np.unravel_index(warped.array.argmax(), warped.array.shape)
    (files / "p.tsv").write_text("name\tx\ty\tz\npeak\t18\t12\t14\n")
    assert run("apply", files / "f.nii.gz", "--points", files / "p.tsv", "-o", files / "q.tsv") == DONE
    moved = [float(v) for v in (files / "q.tsv").read_text().splitlines()[1].split("\t")[1:]]
    assert np.abs(np.array(moved) - brightest).max() <= 1


def test_points_outside_have_no_place(files, capsys):
    (files / "p.csv").write_text("x,y,z\n10,10,10\n900,0,0\n")
    assert run("apply", files / "field.nii.gz", "--points", files / "p.csv", "-o", files / "q.csv") == DONE
    assert (files / "q.csv").read_text().splitlines()[2] == ",,"
    assert "1 of 2 points have no place" in capsys.readouterr().out
    (files / "p.csv").write_text("x,y,z\n900,0,0\n")
    assert run("apply", files / "field.nii.gz", "--points", files / "p.csv", "-o", files / "r.csv") == ERROR
    assert "no point of" in capsys.readouterr().err
    assert not (files / "r.csv").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--points", "p.csv", "-o", "q.tsv.gz"],
        ["--points", "p.csv", "-o", "p.csv"],
        ["--points", "p.csv", "-o", "q.csv", "--like", "p.csv"],
        ["-o", "q.nii.gz"],
        ["p.csv", "--like", "p.csv", "-o", "q.nii.gz", "--labels", "--interpolation", "cubic"],
        ["a/x.nii.gz", "b/x.nii.gz", "--like", "p.csv", "-o", "out"],
    ],
)
def test_wrong_use_of_apply(words, files, monkeypatch):
    monkeypatch.chdir(files)
    (files / "p.csv").write_text("x,y,z\n1,2,3\n")
    for folder in "ab":
        write_volume(files / folder / "x.nii.gz", Volume(np.zeros((2, 2, 2), np.int16), np.eye(4)))
    assert run("apply", "affine.mat", *words) == USAGE


def test_several_images_and_cubic_interpolation_in_one_call(files):
    names = ["fixed.nii.gz", "moving.nii.gz"]
    words = ["apply", files / "affine.mat", *(files / n for n in names), "--like", files / "fixed.nii.gz"]
    assert run(*words, "-o", files / "out", "--interpolation", "cubic") == DONE
    assert sorted(path.name for path in (files / "out").iterdir()) == names
    expected = resample(
        read_volume(files / names[1]), read_volume(files / names[0]), AffineTransform(TURN), order="cubic"
    )
    np.testing.assert_allclose(read_volume(files / "out" / names[1]).array, expected.array, atol=1e-3)


@pytest.mark.parametrize(
    "words", [["T", "a", "b", "--like", "f", "-o", "o"], ["T", "--like", "f", "a", "--labels", "b", "-o", "o"]]
)
def test_images_may_stand_between_the_options(words):
    found = Apply(**parse_arguments(Apply, words, prog="voxelwave registration apply"))
    assert [str(path) for path in found.image] == ["a", "b"]


def test_an_image_of_intensities_is_no_label_map(tmp_path):
    rng = np.random.default_rng(0)
    write_volume(tmp_path / "image.nii.gz", Volume(rng.integers(0, 4000, (20, 20, 20)).astype(np.int16), np.eye(4)))
    with pytest.raises(ValueError, match="must be a label map"):
        read_labels(tmp_path / "image.nii.gz")
    parcels = np.kron(np.arange(1, 513).reshape(8, 8, 8), np.ones((3, 3, 3))).astype(np.int16)
    write_volume(tmp_path / "labels.nii.gz", Volume(parcels, np.eye(4)))
    assert read_labels(tmp_path / "labels.nii.gz") is not None


@pytest.mark.slow
def test_a_registration_starts_from_an_initial_transform(scans, tmp_path):
    """Far apart, and with a start that undoes it: the result is as if the scans were close."""
    far = np.eye(4)
    far[:3, 3] = [0, 300, 0]
    moving = read_volume(scans / "moving.nii.gz")
    write_volume(tmp_path / "far.nii.gz", Volume(moving.array, far @ moving.affine))
    write_transform(tmp_path / "start.mat", AffineTransform(far))
    near = ["register", scans / "moving.nii.gz", scans / "fixed.nii.gz", "--transform", "rigid"]
    assert run(*near, "-o", tmp_path / "near") == DONE
    words = ["register", tmp_path / "far.nii.gz", scans / "fixed.nii.gz", "--transform", "rigid", "--jacobian"]
    assert run(*words, "--initial", tmp_path / "start.mat", "-o", tmp_path / "out") == DONE
    expected, found = (read_transform(tmp_path / name / "affine.mat").matrix for name in ("near", "out"))
    np.testing.assert_allclose(found, far @ expected, atol=1e-3)
    warped = [read_volume(tmp_path / name / "warped.nii.gz").array for name in ("near", "out")]
    np.testing.assert_allclose(warped[1], warped[0], atol=0.02 * warped[0].max())
    there = read_transform(tmp_path / "out" / "forward.nii.gz").map(np.array([[0.0, 0, 0]]))
    np.testing.assert_allclose(read_transform(tmp_path / "out" / "inverse.nii.gz").map(there), [[0, 0, 0]], atol=0.1)
    np.testing.assert_allclose(read_volume(tmp_path / "out" / "jacobian.nii.gz").array, 1, atol=1e-3)
