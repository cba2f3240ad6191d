"""A derived series is read back with the values and the position with which it was written, by us and by others."""

from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from voxelwave.volumes import Volume, read_volume
from voxelwave.volumes.dicom_write import write_derived_series

_DESCRIPTION = "denoise by MaIR weights test.safetensors"


def test_the_same_values_come_back_at_the_same_place(write_ct: Callable[..., None], tmp_path: Path) -> None:
    write_ct(tmp_path / "in")
    source = read_volume(tmp_path / "in")
    write_derived_series(tmp_path / "out", source, tmp_path / "in", _DESCRIPTION)
    back = read_volume(tmp_path / "out")
    np.testing.assert_array_equal(back.array, source.array)
    assert back.array.dtype == source.array.dtype
    np.testing.assert_allclose(back.affine, source.affine, atol=1e-9)


def test_header_is_that_of_a_derived_image_of_the_same_study(write_ct: Callable[..., None], tmp_path: Path) -> None:
    write_ct(tmp_path / "in")
    write_derived_series(tmp_path / "out", read_volume(tmp_path / "in"), tmp_path / "in", _DESCRIPTION)
    before = {p.name: pydicom.dcmread(p) for p in (tmp_path / "in").iterdir()}
    after = {p.name: pydicom.dcmread(p) for p in (tmp_path / "out").iterdir()}
    assert len({image.SOPInstanceUID for image in after.values()}) == len(before)
    assert len({image.SeriesInstanceUID for image in after.values()}) == 1
    for name, image in after.items():
        source = before[name]
        assert image.SOPInstanceUID != source.SOPInstanceUID
        assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
        assert image.SeriesInstanceUID != source.SeriesInstanceUID
        for keyword in (
            "StudyInstanceUID",
            "FrameOfReferenceUID",
            "PatientID",
            "PatientName",
            "WindowCenter",
            "Modality",
        ):
            assert image[keyword].value == source[keyword].value
        assert list(image.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
        assert image.DerivationDescription == _DESCRIPTION
        assert image.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert image.LossyImageCompression == "01"
        assert "SmallestImagePixelValue" not in image


def test_values_below_what_unsigned_pixels_hold_are_kept(write_ct: Callable[..., None], tmp_path: Path) -> None:
    write_ct(tmp_path / "in")
    source = read_volume(tmp_path / "in")
    lower = source.with_array((source.array - 500).astype(np.int16))
    assert lower.array.min() < -1024
    write_derived_series(tmp_path / "out", lower, tmp_path / "in", _DESCRIPTION)
    np.testing.assert_array_equal(read_volume(tmp_path / "out").array, lower.array)


def test_float_values_are_rounded_to_the_source_slope(write_ct: Callable[..., None], tmp_path: Path) -> None:
    write_ct(tmp_path / "in", slope=0.25, intercept=3.0)
    source = read_volume(tmp_path / "in")
    moved = source.with_array(source.array + np.float32(0.1))
    write_derived_series(tmp_path / "out", moved, tmp_path / "in", _DESCRIPTION)
    back = read_volume(tmp_path / "out").array
    assert np.abs(back - moved.array).max() <= 0.125 + 1e-3  # half a step, and float32


def test_values_beyond_16_bits_get_a_slope_of_their_own(write_ct: Callable[..., None], tmp_path: Path) -> None:
    write_ct(tmp_path / "in")
    source = read_volume(tmp_path / "in")
    large = source.with_array(source.array.astype(np.float32) * 1000)
    write_derived_series(tmp_path / "out", large, tmp_path / "in", _DESCRIPTION)
    back = read_volume(tmp_path / "out").array
    assert np.abs(back - large.array).max() <= np.ptp(large.array) / 65534


def test_finer_pixels_cover_the_same_field_of_view(write_ct: Callable[..., None], tmp_path: Path) -> None:
    write_ct(tmp_path / "in")
    source = read_volume(tmp_path / "in")
    grid = np.diag([0.5, 0.5, 1.0, 1.0])
    grid[:2, 3] = -0.25
    fine = Volume(source.array.repeat(2, 0).repeat(2, 1), source.affine @ grid)
    write_derived_series(tmp_path / "out", fine, tmp_path / "in", _DESCRIPTION)
    back = read_volume(tmp_path / "out")
    np.testing.assert_allclose(back.affine, fine.affine, atol=1e-6)
    np.testing.assert_array_equal(back.array, fine.array)


def test_other_slices_and_a_full_folder_are_refused(write_ct: Callable[..., None], tmp_path: Path) -> None:
    write_ct(tmp_path / "in")
    source = read_volume(tmp_path / "in")
    with pytest.raises(ValueError, match="must have 4 slices"):
        write_derived_series(tmp_path / "out", source.with_array(source.array[:, :, 1:]), tmp_path / "in", "")
    shifted = Volume(source.array, source.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.5], [0, 0, 0, 1]]))
    with pytest.raises(ValueError, match="does not lie on the slices"):
        write_derived_series(tmp_path / "out", shifted, tmp_path / "in", "")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="must not exist or be empty"):
        write_derived_series(tmp_path / "in", source, tmp_path / "in", "")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        "siemens_t1_sag_35slices",
        pytest.param("siemens_xa30_enhanced/*adc*", marks=pytest.mark.slow),
        "dicom2nifti/generic/compressed_j2k/001",
        "dicom2nifti/ge/dti/001",
        "dicom2nifti/philips_enhanced/anatomical/001",
    ],
)
def test_real_series_come_back_unchanged(shared_data: Path, tmp_path: Path, name: str) -> None:
    (found,) = (shared_data / "dicom").glob(name)
    source = read_volume(found)
    write_derived_series(tmp_path / "out", source, found, _DESCRIPTION)
    back = read_volume(tmp_path / "out")
    np.testing.assert_allclose(back.array, source.array, rtol=1e-6)
    np.testing.assert_allclose(back.affine, source.affine, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("siemens_t1_sag_35slices", marks=pytest.mark.slow),
        pytest.param("siemens_xa30_enhanced/*adc*", marks=pytest.mark.slow),
        pytest.param("siemens_xa30_enhanced/*t1*", marks=pytest.mark.slow),
        "dicom2nifti/ge/dti/001",
        "dicom2nifti/generic/anatomical/002_non_isotropic",
        "dicom2nifti/generic/compressed_j2k/001",
        "dicom2nifti/hitachi/anatomical/001",
        "dicom2nifti/hyperfine/anatomical/001",
        "dicom2nifti/philips_enhanced/anatomical/001",
        "dicom2nifti/siemens_multiframe/anatomical/001",
    ],
)
def test_dciodvfy_finds_no_error_that_the_source_has_not(
    shared_data: Path, tmp_path: Path, dicom_errors: Callable[[Path], set[str]], name: str
) -> None:
    (found,) = (shared_data / "dicom").glob(name)
    source = read_volume(found)
    halved = source.with_array(source.array.astype(np.float32) / 2 + 0.25)
    write_derived_series(tmp_path / "out", halved, found, _DESCRIPTION)
    files = [found] if found.is_file() else sorted(p for p in found.iterdir() if p.is_file())
    derived = sorted((tmp_path / "out").iterdir())
    for before, after in {files[0]: derived[0], files[-1]: derived[-1]}.items():
        assert dicom_errors(after) <= dicom_errors(before)


@pytest.mark.filterwarnings("ignore")
def test_an_enhanced_image_names_its_source_and_stays_primary(shared_data: Path, tmp_path: Path) -> None:
    (found,) = (shared_data / "dicom").glob("dicom2nifti/philips_enhanced/anatomical/001/*.dcm")
    write_derived_series(tmp_path / "out", read_volume(found), found, _DESCRIPTION)
    (file,) = (tmp_path / "out").iterdir()
    source, derived = (pydicom.dcmread(path, stop_before_pixels=True) for path in (found, file))
    assert list(derived.ImageType[:2]) == ["DERIVED", "PRIMARY"]  # enhanced images do not have SECONDARY
    evidence = derived.SourceImageEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert evidence.SeriesInstanceUID == source.SeriesInstanceUID
    assert evidence.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID


def _same_in_the_world(affine: np.ndarray, array: np.ndarray, ours: Volume) -> None:
    """Whether another reader's array, with its own LPS affine, has our values at our positions."""
    index = np.stack(np.meshgrid(*map(np.arange, ours.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    lps = (index @ ours.affine[:3, :3].T + ours.affine[:3, 3]) * [-1, -1, 1]
    theirs = (lps - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    whole = np.rint(theirs).astype(int)
    assert np.abs(theirs - whole).max() < 1e-2
    assert sorted(array.shape) == sorted(ours.shape)
    np.testing.assert_allclose(array[tuple(whole.T)], ours.array.ravel(), rtol=1e-6, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("siemens_t1_sag_35slices", marks=pytest.mark.slow),
        pytest.param("siemens_xa30_enhanced/t1.dcm", marks=pytest.mark.slow),
        pytest.param("siemens_xa30_enhanced/adc.dcm", marks=pytest.mark.slow),
        "dicom2nifti/ge/anatomical/001",
        "dicom2nifti/generic/anatomical/002_non_isotropic",
        "dicom2nifti/philips_enhanced/anatomical/001",
    ],
)
def test_simpleitk_and_highdicom_read_what_we_wrote(shared_data: Path, tmp_path: Path, name: str) -> None:
    itk = pytest.importorskip("SimpleITK")
    found = shared_data / "dicom" / name
    source = read_volume(found)
    changed = source.with_array((source.array // 2).astype(source.array.dtype))
    write_derived_series(tmp_path / "out", changed, found, _DESCRIPTION)
    ours = read_volume(tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())
    if len(files) == 1:
        image = itk.ReadImage(str(files[0]))
    else:
        reader = itk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "out")))
        image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    _same_in_the_world(affine, itk.GetArrayFromImage(image).T, ours)
    images = [pydicom.dcmread(file) for file in files]
    if "FrameOfReferenceUID" not in images[0]:  # removed in the source; highdicom then requires that there is no volume
        return
    one = len(images) == 1
    volume = highdicom.imread(files[0]).get_volume() if one else highdicom.get_volume_from_series(images)
    _same_in_the_world(volume.affine, volume.array, ours)
