"""NIfTI and MGH files are read back as they were written, and errors in broken files are named."""

import gzip
import warnings
from typing import Any

import ants
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from voxelwave.volumes import Volume, VolumeWarning, read_volume, write_volume


def grid(orientation="RAS", spacing=(1.0, 2.0, 3.5), angles=(0, 0, 0), origin=(-11.0, 7.0, 23.0)):
    """An affine with the given axis order and flips, rotated by `angles` in degrees."""
    turn = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(orientation), (1, 1, 1))[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.linalg.inv(turn) * spacing
    affine[:3, 3] = origin
    return affine


AFFINES = [grid(), grid("LAS"), grid("PSR"), grid("LIA", angles=(3, -8, 14)), grid("IPL", angles=(20, 11, -5))]
TYPES = ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]


def loaded(path) -> Any:
    return nib.load(path)


def numbers(shape=(3, 4, 5), dtype="int16", seed=0):
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def saved(path, array, affine=None, **header):
    """A file written by nibabel alone."""
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine, dtype=array.dtype)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_nifti_comes_back_with_values_type_and_place(tmp_path, suffix, dtype):
    volume = Volume(numbers(dtype=dtype), AFFINES[3])
    write_volume(tmp_path / f"a{suffix}", volume)
    back = read_volume(tmp_path / f"a{suffix}")
    assert back.array.dtype == volume.array.dtype
    assert np.array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-5)  # stored in single precision


@pytest.mark.parametrize(
    ("dtype", "stored"), [("uint8", "uint8"), ("int16", "int16"), ("uint16", "int32"), ("float32", "float32")]
)
def test_an_mgz_comes_back_with_values_and_place(tmp_path, dtype, stored):
    volume = Volume(numbers(dtype=dtype), AFFINES[4])
    write_volume(tmp_path / "a.mgz", volume)
    back = read_volume(tmp_path / "a.mgz")
    assert back.array.dtype == np.dtype(stored)
    assert np.array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.05, 20)] * 3),
)
def test_any_grid_survives_the_file(tmp_path_factory, shape, angles, spacing):
    path = tmp_path_factory.mktemp("grid") / "a.nii"
    volume = Volume(numbers(shape), grid(angles=angles, spacing=spacing))
    write_volume(path, volume)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(read_volume(path).affine, volume.affine, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("affine", AFFINES)
def test_ants_simpleitk_and_nibabel_see_the_same_place(tmp_path, affine):
    path = str(tmp_path / "a.nii.gz")
    volume = Volume(numbers(), affine)
    write_volume(path, volume)
    image, itk, nibabel = ants.image_read(path), sitk.ReadImage(path), loaded(path)
    world = affine[:3, :3] @ [1, 2, 3] + affine[:3, 3]
    lps = world * [-1, -1, 1]
    np.testing.assert_allclose(itk.TransformIndexToPhysicalPoint((1, 2, 3)), lps, atol=1e-4)
    np.testing.assert_allclose(ants.transform_index_to_physical_point(image, (1, 2, 3)), lps, atol=1e-4)
    np.testing.assert_allclose(nibabel.affine, affine, atol=1e-5)
    assert np.array_equal(image.numpy(), volume.array)
    assert nibabel.header["sform_code"] == nibabel.header["qform_code"] == 1


def test_an_aligned_image_says_so(tmp_path):
    write_volume(tmp_path / "a.nii", Volume(numbers(), np.eye(4)), space="aligned")
    header = loaded(tmp_path / "a.nii").header
    assert header["sform_code"] == header["qform_code"] == 2


def test_a_series_keeps_its_fourth_axis_and_one_volume_loses_it(tmp_path):
    series = read_volume(saved(tmp_path / "a.nii", numbers((3, 4, 5, 2))))
    assert series.array.shape == (3, 4, 5, 2)
    assert read_volume(saved(tmp_path / "b.nii", numbers((3, 4, 5, 1))), ndim=3).array.shape == (3, 4, 5)
    with pytest.raises(ValueError, match="must hold one volume, got 2"):
        read_volume(tmp_path / "a.nii", ndim=3)


def test_scaled_integers_are_scaled(tmp_path):
    image = nib.Nifti1Image(numbers(), np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "a.nii")
    back = read_volume(tmp_path / "a.nii").array
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, loaded(tmp_path / "a.nii").get_fdata(), rtol=1e-6)


def test_big_endian_files_are_read(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    nib.save(nib.Nifti1Image(numbers(), np.eye(4), header), tmp_path / "a.nii")
    assert np.array_equal(read_volume(tmp_path / "a.nii").array, numbers())
    assert read_volume(tmp_path / "a.nii").array.dtype.isnative


def broken_files(folder):
    """Broken files: (name, file, part of the expected error line)."""
    whole = saved(folder / "whole.nii", numbers((20, 20, 20))).read_bytes()
    packed = gzip.compress(whole, mtime=0)
    lying = bytearray(whole)
    lying[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    negative = bytearray(whole)
    negative[42:44] = np.array([-5], "<i2").tobytes()
    flipped = bytearray(packed)
    flipped[len(flipped) // 2] ^= 0xFF
    cases = {
        "cut.nii": (whole[:-100], "cut off"),
        "cut_header.nii": (whole[:200], "not a readable|damaged or cut-off header"),
        "cut.nii.gz": (packed[:-50], "cut off or damaged|damaged"),
        "cut_trailer.nii.gz": (packed[:-4], "cut off or damaged"),
        "cut_early.nii.gz": (packed[:60], "not a readable|damaged or cut-off|cut off"),
        "flipped.nii.gz": (bytes(flipped), "damaged"),
        "lying.nii": (bytes(lying), "cut off: its header gives"),
        "lying.nii.gz": (gzip.compress(bytes(lying)), "cut off: its header gives"),
        "negative.nii": (bytes(negative), "at least one voxel|damaged"),
        "empty.nii.gz": (b"", "empty"),
        "text.nii": (b"hello " * 100, "not a readable"),
        "text.nii.gz": (b"hello " * 100, "not a readable"),
        "text.mgz": (b"hello " * 100, "not a readable|damaged"),
        "cut.mgz": (gzip.compress(b"\x00\x00\x00\x01" * 10), "not a readable|damaged|cut off"),
    }
    for name, (content, said) in cases.items():
        (folder / name).write_bytes(content)
        yield name, folder / name, said


def test_broken_files_give_one_clear_line(tmp_path):
    for name, path, said in broken_files(tmp_path):
        with pytest.raises(ValueError, match=said) as caught:
            read_volume(path)
        assert "\n" not in str(caught.value), name
        assert name in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*nothing.nii"):
        read_volume(tmp_path / "nothing.nii")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((2, 2, 2), np.complex64), "real number"),
        (np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "real number"),
        (np.zeros((2, 2, 2, 1, 3), np.float32), "read_transform"),
        (np.full((2, 2, 2), np.nan, np.float32), "no finite value"),
    ],
)
def test_what_is_not_one_number_per_voxel_is_refused(tmp_path, array, said):
    with pytest.raises(ValueError, match=said):
        read_volume(saved(tmp_path / "a.nii", array))


def test_nan_and_infinity_become_zero_and_are_counted(tmp_path):
    array = np.ones((3, 3, 3), np.float32)
    array[0, 0, :2] = np.nan, np.inf
    with pytest.warns(VolumeWarning, match="2 of 27 values are NaN or infinite"):
        back = read_volume(saved(tmp_path / "a.nii", array)).array
    assert back.sum() == 25


def test_large_finite_values_are_not_called_infinite(tmp_path):
    array = np.full((3, 3, 3), 1e308)
    assert read_volume(saved(tmp_path / "a.nii", array)).array[0, 0, 0] == 1e308


def test_no_sform_and_no_qform_is_warned_about(tmp_path):
    image = nib.Nifti1Image(numbers(), None)
    nib.save(image, tmp_path / "a.nii")
    with pytest.warns(VolumeWarning, match="left and right are unknown"):
        volume = read_volume(tmp_path / "a.nii")
    np.testing.assert_allclose(volume.affine, loaded(tmp_path / "a.nii").affine)


def test_disagreeing_sform_and_qform_are_warned_about_and_the_sform_counts(tmp_path):
    image = nib.Nifti1Image(numbers(), np.eye(4))
    image.set_sform(grid(origin=(5, 0, 0)), 1)
    image.set_qform(grid(origin=(0, 0, 0)), 1)
    nib.save(image, tmp_path / "a.nii")
    with pytest.warns(VolumeWarning, match="disagree by up to 5 mm"):
        assert read_volume(tmp_path / "a.nii").origin == (5.0, 0.0, 0.0)


@pytest.mark.parametrize("code", ["sform", "qform"])
def test_one_form_is_enough(tmp_path, code):
    image = nib.Nifti1Image(numbers(), None)
    getattr(image, f"set_{code}")(AFFINES[3], 1)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").affine, AFFINES[3], atol=1e-4)


def with_srow_x(path, value, *, qform_code):
    """A file with equal values in the first row of its sform; nibabel would correct it, so the bytes are changed."""
    content = bytearray(saved(path, numbers(), AFFINES[0]).read_bytes())
    content[252:256] = np.array([qform_code, 1], "<i2").tobytes()
    content[280:296] = np.full(4, value, "<f4").tobytes()
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_an_unusable_sform_gives_way_to_the_qform(tmp_path, value):
    path = with_srow_x(tmp_path / "a.nii", value, qform_code=1)
    with pytest.warns(VolumeWarning, match="sform is unusable"):
        volume = read_volume(path)
    np.testing.assert_allclose(volume.spacing, (1, 2, 3.5))


def test_a_lone_unusable_sform_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no usable place in the world.*invertible"):
        read_volume(with_srow_x(tmp_path / "a.nii", 0.0, qform_code=0))


def test_metres_become_millimetres(tmp_path):
    image = nib.Nifti1Image(numbers(), np.diag([0.001, 0.002, 0.003, 1.0]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii")
    with pytest.warns(VolumeWarning, match="meters"):
        assert read_volume(tmp_path / "a.nii").spacing == pytest.approx((1, 2, 3))


def test_a_sheared_grid_is_warned_about_and_written_back_exactly(tmp_path):
    sheared = np.eye(4)
    sheared[0, 2] = 0.3
    write_volume(tmp_path / "a.nii", Volume(numbers(), sheared))
    with pytest.warns(VolumeWarning, match="not perpendicular"):
        np.testing.assert_allclose(read_volume(tmp_path / "a.nii").affine, sheared, atol=1e-6)


def test_a_2d_image_is_one_slice(tmp_path):
    with pytest.warns(VolumeWarning, match="2-D image"):
        assert read_volume(saved(tmp_path / "a.nii", numbers((3, 4)))).array.shape == (3, 4, 1)


def test_an_mgz_without_orientation_is_warned_about(tmp_path):
    write_volume(tmp_path / "a.mgh", Volume(numbers(dtype="uint8"), np.eye(4)))
    content = bytearray((tmp_path / "a.mgh").read_bytes())
    content[28:30] = b"\0\0"
    (tmp_path / "a.mgh").write_bytes(content)
    with pytest.warns(VolumeWarning, match="goodRASFlag"):
        read_volume(tmp_path / "a.mgh")


def test_whole_numbers_too_large_for_mgz_are_refused(tmp_path):
    with pytest.raises(ValueError, match="32 bits at most"):
        write_volume(tmp_path / "a.mgz", Volume(np.full((2, 2, 2), 2**40), np.eye(4)))
    assert list(tmp_path.iterdir()) == []


def test_masks_are_written_as_bytes_and_other_endings_refused(tmp_path):
    mask = Volume(np.ones((2, 2, 2), bool), np.eye(4))
    write_volume(tmp_path / "deep" / "er" / "a.nii.gz", mask)
    assert read_volume(tmp_path / "deep" / "er" / "a.nii.gz").array.dtype == np.uint8
    with pytest.raises(ValueError, match=r"must end in .nii, .nii.gz or .mgz, got a.png"):
        write_volume(tmp_path / "a.png", mask)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.nii"
    write_volume(path, Volume(numbers(), np.eye(4)))

    def fail(image):
        image.file_map["image"].fileobj.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("voxelwave.volumes.nifti.nib.Nifti1Image.to_file_map", fail)
    with pytest.raises(OSError, match="disk full"):
        write_volume(path, Volume(numbers(seed=1), np.eye(4)))
    assert np.array_equal(read_volume(path).array, numbers())
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii"]


def test_published_scans_are_read_without_a_word(shared_data):
    files = [
        "mri_t1_dwi/sub-xa30/dwi/sub-xa30_dir-PA_FA.nii.gz",
        "mri_t1_dwi/sub-uih1/dwi/sub-uih1_acq-rot_dir-PA_dwi.nii.gz",
        "mri_t1_labels/mrtrix_sub-01/native2mm_aparc+aseg.mgz",
        "mri_t1_labels/mrtrix_sub-01/native_T1w.nii.gz",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in files:
            volume, reference = read_volume(shared_data / name), loaded(shared_data / name)
            np.testing.assert_allclose(volume.affine, reference.affine)
            np.testing.assert_array_equal(volume.array, np.asanyarray(reference.dataobj))


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mgz"])
def test_equal_images_give_equal_files_that_gzip_reads(tmp_path, name):
    image = Volume(numbers().astype(np.float32), np.eye(4))
    for folder in ("first", "second"):
        write_volume(tmp_path / folder / name, image)
    first, second = ((tmp_path / folder / name).read_bytes() for folder in ("first", "second"))
    assert first == second
    assert numbers().astype(">f4" if name.endswith("mgz") else "<f4").tobytes(order="F") in gzip.decompress(first)
