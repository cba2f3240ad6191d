"""Images go to other libraries and back without moving, and those libraries agree about places in the world."""

import sys

import nibabel as nib
import numpy as np
import pytest

from voxelwave.volumes import Volume, convert, read_volume, write_volume


def oblique(dtype=np.int16, series: int = 0) -> Volume:
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    shape = (4, 5, 6, *([series] if series else []))
    return Volume(rng.integers(0, 90, shape).astype(dtype), nib.affines.from_matvec(turn * [1.0, 2.0, 3.0], [7, -8, 9]))


LIBRARIES = {"nibabel": "nibabel", "sitk": "SimpleITK", "ants": "ants", "monai": "monai", "torchio": "torchio"}


@pytest.mark.parametrize("series", [0, 3])
@pytest.mark.parametrize("library", LIBRARIES)
def test_there_and_back(library, series):
    pytest.importorskip(LIBRARIES[library])
    volume = oblique(series=series)
    if library == "ants" and series:
        with pytest.raises(ValueError, match="must be 3-D for ANTs"):
            convert.to_ants(volume)
        return
    back = getattr(convert, f"from_{library}")(getattr(convert, f"to_{library}")(volume))
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-5)


def test_sitk_agrees_about_the_place_of_a_voxel():
    volume = oblique()
    image = convert.to_sitk(volume)
    x, y, z = image.TransformIndexToPhysicalPoint((1, 2, 3))
    np.testing.assert_allclose([-x, -y, z], (volume.affine @ [1, 2, 3, 1])[:3], atol=1e-5)
    assert image[1, 2, 3] == volume.array[1, 2, 3]


def test_ants_agrees_about_the_place_of_a_voxel():
    ants = pytest.importorskip("ants")
    volume = oblique(np.float32)
    x, y, z = ants.transform_index_to_physical_point(convert.to_ants(volume), (1, 2, 3))
    np.testing.assert_allclose([-x, -y, z], (volume.affine @ [1, 2, 3, 1])[:3], atol=1e-4)


def test_a_mask_becomes_numbers_and_a_shear_is_refused_by_itk():
    mask = oblique().with_array(oblique().array > 40)
    assert convert.from_nibabel(convert.to_nibabel(mask)).array.dtype == np.uint8
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    with pytest.raises(ValueError, match="perpendicular"):
        convert.to_sitk(Volume(np.zeros((2, 3, 4)), sheared))


def test_scaled_values_of_a_file_are_those_of_nibabel(tmp_path):
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "a.nii.gz")
    loaded = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(convert.from_nibabel(loaded).array, loaded.get_fdata())


def test_a_volume_is_shown_in_one_line_and_as_three_slices(tmp_path):
    write_volume(tmp_path / "a<b.nii.gz", oblique())
    volume = read_volume(tmp_path / "a<b.nii.gz")
    assert repr(volume).startswith("Volume(4 x 5 x 6 int16, 1 x 2 x 3 mm, ")
    shown = volume._repr_html_()
    assert shown.count("data:image/png;base64,") == 3
    assert "a&lt;b.nii.gz" in shown
    array = np.full((3, 4, 1, 2), np.nan, np.float32)
    assert Volume(array, np.eye(4))._repr_html_().count("<img") == 3


@pytest.mark.parametrize("library", ["sitk", "torchio", "ants", "monai"])
def test_a_missing_library_is_named_with_its_installation(library, monkeypatch):
    monkeypatch.setitem(sys.modules, LIBRARIES[library], None)
    with pytest.raises(ImportError, match=r"which is not installed: pip install"):
        getattr(convert, f"to_{library}")(Volume(np.zeros((2, 2, 2), np.float32), np.eye(4)))
