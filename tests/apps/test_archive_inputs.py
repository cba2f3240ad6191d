"""A zip or tar file in place of a folder, through the commands."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np

from voxelwave.apps import cli
from voxelwave.apps.options import without_archives
from voxelwave.apps.registration.options import Apply
from voxelwave.apps.restoration.options import Restore
from voxelwave.runs.exit import DONE, ERROR
from voxelwave.volumes import Volume, read_volume, write_volume


def test_a_series_in_a_zip_is_described_like_its_folder(shared_data, tmp_path, capsys):
    series = shared_data / "dicom" / "siemens_t1_sag_35slices"
    shutil.make_archive(str(tmp_path / "series"), "zip", series.parent, series.name)
    shown = []
    for place in (series, tmp_path / "series.zip"):
        assert cli.main(["info", str(place), "--json"]) == DONE
        shown.append(json.loads(capsys.readouterr().out)["result"]["facts"])
    assert shown[0] == shown[1]


def test_restore_records_the_archive_as_its_input(tmp_path):
    write_volume(tmp_path / "in" / "a.nii.gz", Volume(np.arange(400, dtype=np.uint16).reshape(20, 20, 1), np.eye(4)))
    shutil.make_archive(str(tmp_path / "x"), "gztar", tmp_path / "in")
    words = ["restoration", "restore", str(tmp_path / "x.tar.gz"), "-o", str(tmp_path / "out.nii.gz")]
    assert cli.main(words) == DONE
    record = json.loads((tmp_path / "out.restoration.json").read_text())
    assert record["inputs"]["input"]["path"] == str(tmp_path / "x.tar.gz")


def test_an_unsafe_archive_is_one_line_and_nothing_is_written(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("../evil.nii.gz", b"")
    words = ["restoration", "restore", str(tmp_path / "x.zip"), "-o", str(tmp_path / "out")]
    assert cli.main(words) == ERROR
    assert "a path out of the folder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.zip"]


def test_the_options_name_the_archive_again_afterwards(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", b"")
    options = Restore(input=tmp_path / "x.zip", output=Path("out"))
    with without_archives(options) as inside:
        assert inside.input.name == "a.png"
    assert options.input == tmp_path / "x.zip"


def test_lines_and_errors_name_the_archive_and_not_the_place_of_its_content(shared_data, tmp_path, capsys):
    series = shared_data / "dicom" / "siemens_t1_sag_35slices"
    shutil.make_archive(str(tmp_path / "series"), "zip", series.parent, series.name)
    archive = str(tmp_path / "series.zip")
    assert cli.main(["info", archive]) == DONE
    shown = capsys.readouterr().out
    assert f"voxelwave restoration restore {archive} -o OUT" in shown
    assert "series.zip/" not in shown
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    words = ["restoration", "restore", str(tmp_path / "empty.zip"), "-o", str(tmp_path / "out")]
    assert cli.main(words) == ERROR
    shown = "".join([shown, *capsys.readouterr()])
    assert f"nothing to do in {tmp_path / 'empty.zip'}: it holds no files" in shown
    assert "voxelwave-" not in shown


def test_an_image_to_move_and_its_grid_may_be_archives(tmp_path, write_ct, capsys):
    write_ct(tmp_path / "series")
    shutil.make_archive(str(tmp_path / "series"), "zip", tmp_path, "series")
    (tmp_path / "unmoved.txt").write_text(
        "#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 1 0 0 0 1 0 0 0 1 0 0 0\nFixedParameters: 0 0 0\n"
    )
    results = []
    for name in ("series", "series.zip"):
        image, out = str(tmp_path / name), tmp_path / f"{name}.nii.gz"
        words = ["registration", "apply", str(tmp_path / "unmoved.txt"), image, "--like", image, "-o", str(out)]
        assert cli.main([*words, "--labels"]) == DONE
        results.append(read_volume(out))
    np.testing.assert_array_equal(results[0].array, results[1].array)
    assert "voxelwave-" not in capsys.readouterr().out


def test_several_images_keep_their_order_beside_an_archive(tmp_path):
    write_volume(tmp_path / "in" / "a.nii.gz", Volume(np.zeros((3, 3, 3), np.uint8), np.eye(4)))
    shutil.make_archive(str(tmp_path / "x"), "zip", tmp_path / "in")
    images = [tmp_path / "first.nii.gz", tmp_path / "x.zip", tmp_path / "last.nii.gz"]
    options = Apply(tmp_path / "t.mat", images, output=tmp_path / "out")
    with without_archives(options) as inside:
        assert [path.name for path in inside.image] == ["first.nii.gz", "a.nii.gz", "last.nii.gz"]
        assert inside.like is None
    assert options.image == tuple(images)
