"""`registration apply`, from the command line to the files."""

from pathlib import Path

import numpy as np
import pytest

from voxelwave.apps import cli
from voxelwave.runs.exit import DONE, ERROR, USAGE
from voxelwave.volumes import DisplacementField, Volume, read_volume, resample, write_transform, write_volume


@pytest.mark.slow
def test_apply_repeats_and_inverts_a_registration(result, scans, tmp_path):
    def apply(image: Path, like: Path, out: str, *options: str) -> Volume:
        words = ["registration", "apply", str(result), str(image), "--like", str(like), "-o", str(tmp_path / out)]
        assert cli.main([*words, *options]) == DONE
        return read_volume(tmp_path / out)

    again = apply(scans / "moving.nii.gz", scans / "fixed.nii.gz", "again.nii.gz")
    np.testing.assert_allclose(again.array, read_volume(result / "warped.nii.gz").array, atol=1e-3)
    back = apply(scans / "fixed.nii.gz", scans / "moving.nii.gz", "back.nii.gz", "--inverse")
    assert np.corrcoef(back.array.ravel(), read_volume(scans / "moving.nii.gz").array.ravel())[0, 1] > 0.98
    labels = apply(scans / "moving_labels.nii.gz", scans / "fixed.nii.gz", "labels.nii.gz", "--labels")
    assert labels.array.dtype == np.int16
    assert set(np.unique(labels.array)) == {0, 1, 2}


def test_a_single_transform_file_is_inverted(scans, tmp_path):
    fixed, moving = (read_volume(scans / f"{name}.nii.gz") for name in ("fixed", "moving"))
    bend = np.sin(np.arange(fixed.shape[1]) / 4)[None, :, None, None] * [1.0, 2.0, 0.0]
    field = DisplacementField(np.broadcast_to(np.add(bend, [-4.0, 0.0, 0.0]), (*fixed.shape, 3)), fixed.affine)
    write_transform(tmp_path / "forward.nii.gz", field)
    write_volume(tmp_path / "warped.nii.gz", resample(moving, fixed, field))
    words = ["registration", "apply", str(tmp_path / "forward.nii.gz"), str(tmp_path / "warped.nii.gz"), "--inverse"]
    words += ["--like", str(scans / "moving.nii.gz"), "-o", str(tmp_path / "back.nii.gz")]
    assert cli.main(words) == DONE
    back = read_volume(tmp_path / "back.nii.gz")
    assert np.corrcoef(back.array.ravel(), moving.array.ravel())[0, 1] > 0.98
    assert np.corrcoef(read_volume(tmp_path / "warped.nii.gz").array.ravel(), moving.array.ravel())[0, 1] < 0.97


def test_a_missing_transform_is_named(scans, tmp_path, capsys):
    image = str(scans / "fixed.nii.gz")
    words = ["registration", "apply", str(tmp_path / "gone"), image, "--like", image, "-o", str(tmp_path / "o.nii.gz")]
    assert cli.main(words) == ERROR
    assert "no transform at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "complaint", "code"),
    [
        ("image.nii.gz", "--output must be another path than the inputs", USAGE),
        ("out.png", "--output must end in .nii, .nii.gz or .mgz", USAGE),
        ("folder.nii.gz", "must be a file to write, got a folder", ERROR),
        ("image.nii.gz/out.nii.gz", "image.nii.gz is a file, not a folder", ERROR),
    ],
)
def test_what_cannot_be_written_is_reported_before_the_work(tmp_path, capsys, output, complaint, code):
    image = tmp_path / "image.nii.gz"
    image.write_text("no image, so that reading it would be another error")
    (tmp_path / "folder.nii.gz").mkdir()
    words = ["registration", "apply", str(tmp_path), str(image), "--like", str(image), "-o", str(tmp_path / output)]
    assert cli.main(words) == code
    assert complaint in capsys.readouterr().err


@pytest.fixture
def shifted(tmp_path) -> Path:
    """A folder of transforms, as `register` writes it, between two images whose grids differ."""
    fixed = Volume(np.arange(8 * 9 * 10, dtype=np.float32).reshape(8, 9, 10), np.eye(4))
    apart = np.eye(4)
    apart[:3, 3] = 1
    moving = Volume(np.ones((10, 9, 8), np.float32), apart)
    for transform, name, image in (("forward", "fixed", fixed), ("inverse", "moving", moving)):
        unmoved = DisplacementField(np.zeros((*image.shape, 3)), image.affine)
        write_transform(tmp_path / f"result/{transform}.nii.gz", unmoved)
        write_volume(tmp_path / f"{name}.nii.gz", image)
    return tmp_path


def test_the_wrong_direction_is_an_error(shifted, capsys):
    words = ["registration", "apply", str(shifted / "result"), str(shifted / "fixed.nii.gz")]
    words += ["-o", str(shifted / "out.nii.gz"), "--overwrite", "--like", str(shifted / "moving.nii.gz")]
    assert cli.main(words) == ERROR
    assert "add --inverse" in capsys.readouterr().err
    assert not (shifted / "out.nii.gz").exists()
    assert cli.main([*words, "--inverse"]) == DONE
    words[-1] = str(shifted / "fixed.nii.gz")
    assert cli.main([*words, "--inverse"]) == ERROR
    assert "leave out --inverse" in capsys.readouterr().err


def test_an_image_that_is_already_there_is_not_moved_again(shifted, capsys):
    words = ["registration", "apply", str(shifted / "result"), str(shifted / "fixed.nii.gz")]
    words += ["-o", str(shifted / "out.nii.gz"), "--like", str(shifted / "fixed.nii.gz")]
    assert cli.main(words) == ERROR
    assert "has the grid of the fixed image" in capsys.readouterr().err
    assert not (shifted / "out.nii.gz").exists()
    words[3], words[-1] = str(shifted / "moving.nii.gz"), str(shifted / "moving.nii.gz")
    assert cli.main([*words, "--inverse"]) == ERROR
    assert "has the grid of the moving image" in capsys.readouterr().err


def test_a_grid_outside_the_transform_is_an_error(shifted, capsys):
    far = np.eye(4)
    far[:3, 3] = 500
    write_volume(shifted / "far.nii.gz", Volume(np.ones((5, 5, 5), np.float32), far))
    words = ["registration", "apply", str(shifted / "result"), str(shifted / "moving.nii.gz")]
    assert cli.main([*words, "--like", str(shifted / "far.nii.gz"), "-o", str(shifted / "out.nii.gz")]) == ERROR
    assert "--like must overlap the grid" in capsys.readouterr().err


def test_each_image_of_a_folder_is_moved(shifted):
    around = np.eye(4)
    around[:3, 3] = -1
    images = [Volume(np.full((10, 11, 12), value, np.int16), around) for value in (3, 4)]
    for name, image in zip(("a.nii", "b.nii.gz"), images, strict=True):
        write_volume(shifted / "many" / name, image)
    (shifted / "many/notes.txt").write_text("no image")
    words = ["registration", "apply", str(shifted / "result"), str(shifted / "many"), "--labels"]
    assert cli.main([*words, "--like", str(shifted / "fixed.nii.gz"), "-o", str(shifted / "moved")]) == DONE
    assert sorted(path.name for path in (shifted / "moved").iterdir()) == ["a.nii", "b.nii.gz"]
    assert (read_volume(shifted / "moved/b.nii.gz").array == 4).all()


@pytest.mark.parametrize("target", ["like", "transform"])
def test_a_folder_of_images_overwrites_no_input(shifted, capsys, target):
    name = "fixed.nii.gz" if target == "like" else "forward.nii.gz"
    output = shifted if target == "like" else shifted / "result"
    write_volume(shifted / "many" / name, Volume(np.ones((8, 9, 10), np.int16), np.eye(4)))
    before = (output / name).read_bytes()
    words = ["registration", "apply", str(shifted / "result"), str(shifted / "many")]
    assert cli.main([*words, "--like", str(shifted / "fixed.nii.gz"), "-o", str(output)]) == USAGE
    assert "--output must be another path than the inputs" in capsys.readouterr().err
    assert (output / name).read_bytes() == before


def test_points_without_a_place_stay_without_one(shifted, capsys):
    table = shifted / "points.csv"
    table.write_text("name,x,y,z\na,2,3,4\nb,,,\nfar,900,900,900\n")
    words = ["registration", "apply", str(shifted / "result"), "--points"]
    assert cli.main([*words, str(table), "-o", str(shifted / "moved.csv")]) == DONE
    assert "2 of 3 points have no place" in capsys.readouterr().out
    assert (shifted / "moved.csv").read_text() == "name,x,y,z\na,2.0000,3.0000,4.0000\nb,,,\nfar,,,\n"
    words += [str(shifted / "moved.csv"), "--inverse", "-o", str(shifted / "back.csv")]
    assert cli.main(words) == DONE  # its own result is read again
    assert (shifted / "back.csv").read_text() == (shifted / "moved.csv").read_text()
