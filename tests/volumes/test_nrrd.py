"""NRRD images, against SimpleITK."""

import nrrd
import numpy as np
import pytest
import SimpleITK as sitk

from voxelwave.volumes import read_volume


@pytest.mark.parametrize("compressed", [False, True])
def test_simpleitk_places_the_same_values_at_the_same_points(tmp_path, compressed):
    values = np.random.default_rng(0).integers(-500, 3000, (5, 6, 7)).astype(np.int16)  # z, y, x
    image = sitk.GetImageFromArray(values)
    image.SetOrigin((10.0, -20.0, 30.0))
    image.SetSpacing((1.5, 2.0, 2.5))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"), useCompression=compressed)
    volume = read_volume(tmp_path / "a.nrrd")
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, values.transpose(2, 1, 0))
    for index in ((0, 0, 0), (3, 2, 1), (6, 5, 4)):
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], lps * [-1, -1, 1], atol=1e-6)


def test_a_slice_without_a_space_keeps_its_spacings(tmp_path):
    values = np.random.default_rng(0).random((9, 8)).astype(np.float32)
    nrrd.write(str(tmp_path / "a.nrrd"), values, {"spacings": [0.5, 2.0]})
    volume = read_volume(tmp_path / "a.nrrd")
    assert np.array_equal(volume.array, values[..., None])
    assert volume.spacing == (0.5, 2.0, 1.0)


def test_other_axes_are_refused_in_one_line(tmp_path):
    place = {"space directions": np.eye(3), "space origin": [0, 0, 0]}
    nrrd.write(str(tmp_path / "space.nrrd"), np.ones((3, 4, 5), np.float32), {"space": "scanner-xyz", **place})
    nrrd.write(str(tmp_path / "axes.nrrd"), np.ones((2, 3, 4, 5), np.float32))
    (tmp_path / "none.nrrd").write_bytes(
        b"NRRD0004\ntype: float\ndimension: 2\nspace: left-posterior-superior\nsizes: 2 2\n"
        b"space directions: (1,0,0) none\nendian: little\nencoding: raw\n\n" + bytes(16)
    )
    nrrd.write(str(tmp_path / "colour.nrrd"), np.ones((3, 4, 5)), {"kinds": ["RGB-color", "domain", "domain"]})
    nrrd.write(str(tmp_path / "unit.nrrd"), np.ones((4, 5)), {"spacings": [1.0, 1.0], "units": ["inch", "inch"]})
    for name, words in (
        ("colour", "those of space, got RGB-color"),
        ("unit", "unit must be one of"),
        ("space", "its space must be one of"),
        ("axes", "2 or 3 axes"),
        ("none", "a direction in 3-D"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            read_volume(tmp_path / f"{name}.nrrd")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"NRRD0004\n",
        b"NRRD0004\ntype: float\ndimension: 3\nsizes: 4 4 4\nencoding: raw\nendian: little\n\nshort",
        b"NRRD0004\ntype: float\ndimension: 2\nsizes: 4 4\nencoding: gzip\nendian: little\n\nno gzip",
        b"NRRD0004\ntype: float\ndimension: 2\nsizes: 4 4\nencoding: raw\nendian: little\ndata file: /etc/hostname\n\n",
        b"NRRD0004\ntype: float\ndimension: 3\nsizes: 99999999 99999999 9\nencoding: raw\nendian: little\n\n",
    ],
)
def test_damaged_and_detached_files_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "a.nrrd").write_bytes(content)
    with pytest.raises((ValueError, OSError)) as error:
        read_volume(tmp_path / "a.nrrd")
    assert "\n" not in str(error.value)


def test_other_units_become_millimetres(tmp_path):
    place = {
        "space": "lps",
        "space directions": 500 * np.eye(3),
        "space origin": [1000, 0, 0],
        "space units": ["um"] * 3,
    }
    nrrd.write(str(tmp_path / "a.nrrd"), np.ones((3, 4, 5), np.float32), place)
    volume = read_volume(tmp_path / "a.nrrd")
    assert volume.spacing == (0.5, 0.5, 0.5)
    assert volume.affine[:3, 3].tolist() == [-1, 0, 0]
