"""A DICOM series becomes the right volume, or is refused with a reason."""

import shutil
import warnings
from copy import deepcopy

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
    generate_uid,
)
from scipy.spatial.transform import Rotation

from voxelwave.volumes import Volume, VolumeWarning, dicom_pixels, read_volume

ROWS, COLUMNS, SLICES = 5, 6, 7
AXIAL = np.eye(3)  # row direction, column direction, normal, as rows; LPS
SAGITTAL = np.array([[0, 1, 0], [0, 0, -1], [-1, 0, 0]], float)
OBLIQUE = (Rotation.from_euler("xyz", (10, -25, 40), degrees=True).as_matrix() @ SAGITTAL.T).T
ORIENTATIONS = {"axial": AXIAL, "sagittal": SAGITTAL, "oblique": OBLIQUE}


def images(axes=AXIAL, spacing=(1.5, 0.8, 3.0), origin=(-20.0, -30.0, 10.0), dtype=np.uint16, **tags):
    """A series of SLICES datasets with consecutive values; `spacing` is between rows, columns, slices."""
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 2000, (SLICES, ROWS, COLUMNS)).astype(dtype)
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    made = []
    for k in range(SLICES):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = MRImageStorage
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = series, study, frame
        ds.Modality, ds.SeriesDescription, ds.InstanceNumber = "MR", "test", k + 1
        ds.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = ROWS, COLUMNS, 1, "MONOCHROME2"
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.PixelRepresentation = 15, int(np.dtype(dtype).kind == "i")
        ds.ImageOrientationPatient = [float(f"{v:.10g}") for v in axes[:2].ravel()]
        ds.ImagePositionPatient = [float(f"{v:.10g}") for v in np.add(origin, k * spacing[2] * axes[2])]
        ds.PixelSpacing, ds.SliceThickness = list(spacing[:2]), spacing[2]
        ds.PixelData = stored[k].tobytes()
        for name, value in tags.items():
            setattr(ds, name, value)
        made.append(ds)
    return made


def folder_of(path, datasets, *, shuffle=True):
    """Save datasets under names that do not show their order."""
    path.mkdir(exist_ok=True)
    order = np.random.default_rng(1).permutation(len(datasets)) if shuffle else range(len(datasets))
    for name, ds in zip(order, datasets, strict=True):
        pydicom.dcmwrite(path / f"{name:03d}.dcm", ds, enforce_file_format=True)
    return path


def world_of(ds, row, column):
    """The RAS position of a pixel by the DICOM standard (PS3.3, C.7.6.2.1.1)."""
    along, down = np.array(ds.ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = map(float, ds.PixelSpacing)
    place = np.array(ds.ImagePositionPatient, float) + along * between_columns * column + down * between_rows * row
    return place * [-1, -1, 1]


def value_at(volume, point):
    index = np.linalg.inv(volume.affine) @ [*point, 1]
    np.testing.assert_allclose(index[:3], np.round(index[:3]), atol=1e-4)
    return volume.array[tuple(np.round(index[:3]).astype(int))]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_pixel_is_where_the_standard_says(tmp_path, orientation):
    series = images(ORIENTATIONS[orientation])
    volume = read_volume(folder_of(tmp_path / "s", series))
    assert volume.array.shape == (COLUMNS, ROWS, SLICES)
    assert volume.array.dtype == np.int16
    for ds in series[::3]:
        for row, column in ((0, 0), (ROWS - 1, 0), (2, COLUMNS - 1)):
            assert value_at(volume, world_of(ds, row, column)) == ds.pixel_array[row, column]


def test_rows_run_upwards_and_the_axes_are_left_handed_as_from_dcm2niix(tmp_path):
    volume = read_volume(folder_of(tmp_path / "s", images(AXIAL)))
    assert volume.orientation == "LAS"
    assert read_volume(folder_of(tmp_path / "t", images(SAGITTAL))).orientation == "PSR"


@pytest.mark.parametrize(
    ("slope", "intercept", "stored", "becomes"),
    [
        (1, -1024, np.uint16, np.int16),
        (1, 0, np.int16, np.int16),
        (1, 40000, np.uint16, np.uint16),
        (1, 100000, np.uint16, np.int32),
        (0.25, -3, np.int16, np.float32),
        (1, 0.5, np.int16, np.float32),
    ],
)
def test_rescaling_is_applied_and_whole_numbers_stay_whole(tmp_path, slope, intercept, stored, becomes):
    series = images(dtype=stored, RescaleSlope=slope, RescaleIntercept=intercept)
    volume = read_volume(folder_of(tmp_path / "s", series))
    assert volume.array.dtype == becomes
    expected = series[2].pixel_array * float(slope) + intercept
    np.testing.assert_allclose(volume.array[:, ::-1, 2].T, expected, rtol=1e-6)


@pytest.mark.parametrize(("bits", "stored"), [(8, 8), (8, 5), (16, 16), (16, 12), (32, 32), (32, 20)])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_unused_bits_do_not_count_as_in_pydicom(tmp_path, bits, stored, signed, syntax):
    series = images()
    rng = np.random.default_rng(0)
    for ds in series:
        ds.file_meta.TransferSyntaxUID = syntax
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, stored, stored - 1, signed
        ds.PixelData = rng.bytes(ROWS * COLUMNS * bits // 8)
    volume = read_volume(folder_of(tmp_path / "s", series))
    for k, ds in enumerate(series):
        np.testing.assert_array_equal(volume.array[:, ::-1, k].T, ds.pixel_array)


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"BitsStored": 17}, "Bits Stored"),
        ({"PixelRepresentation": 2}, "Pixel Representation"),
        ({"PixelData": bytes(2 * ROWS * COLUMNS - 2)}, "less than expected"),
        ({"FloatPixelData": bytes(4 * ROWS * COLUMNS)}, "one of"),
    ],
)
def test_pixels_that_their_header_does_not_describe_are_refused(tmp_path, tags, said):
    series = images(**tags)
    for ds in series:
        ds.PatientComments = "long enough for the file not to be cut off"
    with pytest.raises(ValueError, match=said):
        read_volume(folder_of(tmp_path / "s", series))


def test_each_slice_has_its_own_slope(tmp_path):
    series = images()
    for k, ds in enumerate(series):
        ds.RescaleSlope, ds.RescaleIntercept = 0.5 + k, 0
    volume = read_volume(folder_of(tmp_path / "s", series))
    for k, ds in enumerate(series):
        np.testing.assert_allclose(volume.array[:, ::-1, k].T, ds.pixel_array * (0.5 + k))


def test_run_length_encoded_series_are_read(tmp_path):
    series = images()
    plain = read_volume(folder_of(tmp_path / "a", series))
    for ds in series:
        ds.compress(RLELossless, generate_instance_uid=False)
    assert np.array_equal(read_volume(folder_of(tmp_path / "b", series)).array, plain.array)


@pytest.mark.parametrize("spacing", [0.5, 1.0, 4.8])
def test_a_hundredth_of_a_millimetre_of_jitter_passes(tmp_path, spacing):
    series = images(OBLIQUE, spacing=(1, 1, spacing))
    rng = np.random.default_rng(2)
    for ds in series:
        jitter = rng.uniform(-0.01, 0.01, 3) / np.sqrt(3)
        ds.ImagePositionPatient = (np.array(ds.ImagePositionPatient, float) + jitter).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        volume = read_volume(folder_of(tmp_path / "s", series))
    assert volume.spacing == pytest.approx((1, 1, spacing), abs=0.004)


def test_one_file_is_one_slice_and_a_folder_the_series(tmp_path):
    folder = folder_of(tmp_path / "s", images())
    with pytest.warns(VolumeWarning, match="holds one slice"):
        assert read_volume(folder / "003.dcm").array.shape == (COLUMNS, ROWS, 1)


# changes of a good series, and the error line that follows
def _missing(series):
    del series[3]


def _two_missing(series):
    del series[4], series[2]


def _twice(series):
    again = deepcopy(series[2])
    again.SOPInstanceUID = generate_uid()
    series.append(again)


def _same_uid(series):
    again = deepcopy(series[2])
    again.PixelData = bytes(ROWS * COLUMNS * 2)
    series.append(again)


def _all_twice(series):
    for ds in list(series):
        again = deepcopy(ds)
        again.SOPInstanceUID = generate_uid()
        series.append(again)


def _two_series(series):
    for ds in series[:2]:
        ds.SeriesInstanceUID, ds.SeriesDescription = "1.2.3", "other"


def _two_orientations(series):
    series[1].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


def _tilt(series):
    for k, ds in enumerate(series):
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, y + 0.5 * k, z]


def _slight_tilt(series):
    for k, ds in enumerate(series):
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x + 0.03 * k, y, z]


def _uneven(series):
    x, y, z = series[3].ImagePositionPatient
    series[3].ImagePositionPatient = [x, y, z + 0.7]


def _other_size(series):
    series[0].Rows, series[0].PixelData = ROWS - 1, bytes((ROWS - 1) * COLUMNS * 2)


def _other_spacing(series):
    series[0].PixelSpacing = [1.5, 1.5]


def _other_reference(series):
    series[0].FrameOfReferenceUID = "1.2.3.4"


def _no_position(series):
    del series[0].ImagePositionPatient


def _no_spacing(series):
    del series[0].PixelSpacing


def _zero_spacing(series):
    series[0].PixelSpacing = [0, 1]


def _skewed_axes(series):
    series[0].ImageOrientationPatient = [1, 0, 0, 0.5, 0.8, 0]


def _mosaic(series):
    series[0].ImageType = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]


def _colour(series):
    series[0].SamplesPerPixel, series[0].PhotometricInterpretation = 3, "RGB"
    series[0].PlanarConfiguration, series[0].PixelData = 0, bytes(ROWS * COLUMNS * 6)


def _few_pixels(series):
    series[0].PixelData = bytes(ROWS * COLUMNS)


def _huge(series):
    series[0].Rows = series[0].Columns = 65535
    for ds in series:
        ds.Rows, ds.Columns = 65535, 65535


def _side_by_side(series):
    again = deepcopy(series[2])
    again.SOPInstanceUID = generate_uid()
    x, y, z = again.ImagePositionPatient
    again.ImagePositionPatient = [x + 30, y, z]
    series.append(again)


def _infinite_slope(series):
    for ds in series:
        ds.RescaleSlope, ds.RescaleIntercept = "1e39", 0


BAD = {
    _missing: "1 of 7 slices are missing, between 16.00 and 22.00 mm",
    _two_missing: "2 of 7 slices are missing",
    _twice: r"every position must have 1 image\(s\), got 2 at 16.00 mm",
    _same_uid: "have one SOPInstanceUID but differ",
    _all_twice: "do not distinguish the volumes",
    _two_series: r'must hold one series, got 2: "test" \(5 files\), "other" \(2 files\)|"other" \(2 files\), "test"',
    _two_orientations: "got 2 slice orientations",
    _tilt: r"tilted by 9.5 degrees \(gantry tilt\)",
    _slight_tilt: r"tilted by 0.6 degrees \(gantry tilt\)",
    _uneven: "not evenly spaced: mostly 3 mm apart",
    _other_size: "got 2 image sizes",
    _other_spacing: "got 2 pixel spacings",
    _other_reference: "got 2 frames of reference",
    _no_position: "has no ImagePositionPatient",
    _no_spacing: "has no PixelSpacing",
    _zero_spacing: "PixelSpacing must be above 0 mm",
    _skewed_axes: "two perpendicular unit vectors",
    _mosaic: "Siemens mosaic",
    _colour: "got a colour image",
    _few_pixels: "damaged or cut off",
    _huge: "65535 x 65535 pixels need 8589672450 bytes",
    _side_by_side: "tilted|side by side",
    _infinite_slope: "not finite",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__.strip("_"))
def test_what_is_no_even_stack_is_refused_in_one_line(tmp_path, spoil):
    series = images()
    spoil(series)
    with pytest.raises(ValueError, match=BAD[spoil]) as caught:
        read_volume(folder_of(tmp_path / "s", series))
    assert "\n" not in str(caught.value)


def test_copies_of_a_file_and_other_files_are_left_out_and_said(tmp_path):
    series = images()
    folder = folder_of(tmp_path / "s", series)
    whole = read_volume(folder)
    shutil.copy(folder / "002.dcm", folder / "copy of 002.dcm")
    (folder / "notes.txt").write_text("a good scan")
    (folder / ".DS_Store").write_text("hidden")
    report = Dataset()
    report.file_meta = FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    report.SOPClassUID, report.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.11", generate_uid()
    pydicom.dcmwrite(folder / "report.dcm", report, enforce_file_format=True)
    with pytest.warns(VolumeWarning) as said:
        again = read_volume(folder)
    text = " ".join(str(w.message) for w in said)
    assert "1 files are copies" in text
    assert "copy of 002.dcm" in text
    assert "2 files are no DICOM images and were left out: notes.txt, report.dcm" in text
    assert np.array_equal(again.array, whole.array)


def test_a_damaged_dcm_file_is_not_left_out(tmp_path):
    folder = folder_of(tmp_path / "s", images())
    (folder / "006.dcm").write_bytes(b"not a DICOM file at all" * 20)
    with pytest.raises(ValueError, match=r"006.dcm is not a DICOM"):
        read_volume(folder)


@pytest.mark.parametrize("keep", [0, 100, 140, 300, 400, 700, -40, -1])
def test_a_cut_file_at_the_end_of_the_stack_is_refused(tmp_path, keep):
    folder = folder_of(tmp_path / "s", images(), shuffle=False)
    content = (folder / "006.dcm").read_bytes()
    (folder / "006.dcm").write_bytes(content[:keep])
    with pytest.raises(ValueError, match=r"006.dcm") as caught:
        read_volume(folder)
    assert "\n" not in str(caught.value)


def test_a_cut_compressed_file_is_refused(tmp_path):
    series = images()
    for ds in series:
        ds.compress(RLELossless, generate_instance_uid=False)
    folder = folder_of(tmp_path / "s", series)
    content = (folder / "002.dcm").read_bytes()
    (folder / "002.dcm").write_bytes(content[:-50])
    with pytest.raises(ValueError, match=r"002.dcm"):
        read_volume(folder)


def test_every_second_slice_missing_is_noticed_by_the_header(tmp_path):
    with pytest.warns(VolumeWarning, match="are 6 mm apart, the header gives 3 mm"):
        read_volume(folder_of(tmp_path / "s", images(SpacingBetweenSlices=3.0)[::2]))


def test_two_slices_are_read_with_a_warning(tmp_path):
    with pytest.warns(VolumeWarning, match="only two slices"):
        assert read_volume(folder_of(tmp_path / "s", images()[:2])).shape == (COLUMNS, ROWS, 2)


def repeated(count):
    """`count` volumes, to which 0, 1000, 2000, ... is added, numbered volume by volume."""
    series = []
    base = images()
    for t in range(count):
        for k, ds in enumerate(base):
            again = deepcopy(ds)
            again.SOPInstanceUID = generate_uid()
            again.InstanceNumber = t * SLICES + k + 1
            again.PixelData = (ds.pixel_array + 1000 * t).astype(np.uint16).tobytes()
            series.append(again)
    return series


def test_a_repeated_stack_is_a_series_of_volumes_in_order(tmp_path):
    volume = read_volume(folder_of(tmp_path / "s", repeated(3)))
    assert volume.array.shape == (COLUMNS, ROWS, SLICES, 3)
    for t in range(3):
        assert np.array_equal(volume.array[..., t], volume.array[..., 0] + 1000 * t)
    with pytest.raises(ValueError, match="must hold one volume, got 3"):
        read_volume(tmp_path / "s", ndim=3)


def test_b_values_keep_volumes_together_when_numbers_do_not(tmp_path):
    series = repeated(2)
    for i, ds in enumerate(series):
        ds.DiffusionBValue = 1000.0 * (i // SLICES)
    for ds in series[:SLICES:2]:  # for every second slice, b=0 was acquired after b=1000
        ds.InstanceNumber += 100
    volume = read_volume(folder_of(tmp_path / "s", series))
    assert np.array_equal(np.sort(volume.array.mean(axis=(0, 1, 2)))[1:], [volume.array.mean(axis=(0, 1, 2)).max()])
    low, high = sorted((volume.array[..., 0], volume.array[..., 1]), key=np.mean)
    assert np.array_equal(high, low + 1000)


def test_two_echoes_are_said(tmp_path):
    series = repeated(2)
    for i, ds in enumerate(series):
        ds.EchoTime = 10.0 + i // SLICES
    with pytest.warns(VolumeWarning, match="2 echo times"):
        read_volume(folder_of(tmp_path / "s", series))


def test_a_missing_decoder_is_named(tmp_path, monkeypatch, shared_data):
    from pydicom.pixels.decoders import JPEGLSLosslessDecoder

    monkeypatch.setattr(JPEGLSLosslessDecoder, "_available", {})
    with pytest.raises(ValueError, match=r"compressed as JPEG-LS.*no decoder is installed: pip install pylibjpeg"):
        read_volume(shared_data / "dicom/dicom2nifti/generic/compressed_jpegls/001")


def enhanced(axes=OBLIQUE, spacing=(1.5, 0.8, 3.0)):
    """The same series as one multi-frame file, with its frames in reverse order."""
    singles = images(axes, spacing)[::-1]
    ds = deepcopy(singles[0])
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(ds, name)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    ds.NumberOfFrames = len(singles)
    ds.PixelData = b"".join(s.PixelData for s in singles)
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(spacing[:2]), spacing[2]
    orientation.ImageOrientationPatient = singles[0].ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    ds.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k, single in enumerate(singles):
        place, value, group = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = single.ImagePositionPatient
        value.RescaleSlope, value.RescaleIntercept = 1 + k, 0
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [place], [value]
        frames.append(group)
    ds.PerFrameFunctionalGroupsSequence = frames
    return ds, singles


def test_an_enhanced_file_has_the_place_and_values_of_its_frames(tmp_path):
    ds, singles = enhanced()
    pydicom.dcmwrite(tmp_path / "enhanced", ds, enforce_file_format=True)
    volume = read_volume(tmp_path / "enhanced")
    assert volume.array.dtype == np.float32
    for k, single in enumerate(singles):
        assert value_at(volume, world_of(single, 1, 4)) == single.pixel_array[1, 4] * (1 + k)


def test_an_enhanced_file_with_too_few_descriptions_is_refused(tmp_path):
    ds, _ = enhanced()
    del ds.PerFrameFunctionalGroupsSequence[-1]
    pydicom.dcmwrite(tmp_path / "e.dcm", ds, enforce_file_format=True)
    with pytest.raises(ValueError, match="announces 7 frames but describes 6"):
        read_volume(tmp_path / "e.dcm")


def test_frames_without_places_are_refused(tmp_path):
    ds, _ = enhanced()
    del ds.PerFrameFunctionalGroupsSequence
    pydicom.dcmwrite(tmp_path / "e.dcm", ds, enforce_file_format=True)
    with pytest.raises(ValueError, match="no place for each"):
        read_volume(tmp_path / "e.dcm")


def test_folders_without_images_say_so(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="must hold a DICOM series"):
        read_volume(tmp_path / "empty")
    with pytest.raises(ValueError, match="give one of its folders: empty"):
        read_volume(tmp_path)


def test_ct_values_are_hounsfield_units(tmp_path):
    series = images(RescaleSlope=1, RescaleIntercept=-1024)
    for ds in series:
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    assert read_volume(folder_of(tmp_path / "s", series)).array.min() < -900


def canonical(volume):
    image = nib.as_closest_canonical(nib.Nifti1Image(volume.array.astype(np.float64), volume.affine))
    return Volume(image.get_fdata(), image.affine)


def test_the_siemens_series_is_its_nifti_voxel_by_voxel(shared_data):
    series = read_volume(shared_data / "dicom/siemens_t1_sag_35slices")
    converted = read_volume(shared_data / "mri_t1_dwi/sub-pose/ses-HFS/anat/sub-pose_ses-HFS_T1w.nii.gz")
    assert series.array.dtype == converted.array.dtype
    np.testing.assert_array_equal(series.array, converted.array)
    np.testing.assert_allclose(series.affine, converted.affine, atol=2e-4)  # NIfTI stores single precision


ENHANCED = {
    "t1": "anat/sub-xa30_T1w",
    "b0": "dwi/sub-xa30_dir-PA_TENSORB0",
    "adc": "dwi/sub-xa30_dir-PA_ADC",
    "fa": "dwi/sub-xa30_dir-PA_FA",
}


@pytest.mark.parametrize("name", ENHANCED)
def test_enhanced_files_are_their_niftis(shared_data, name):
    file = canonical(read_volume(shared_data / f"dicom/siemens_xa30_enhanced/{name}.dcm"))
    converted = canonical(read_volume(shared_data / f"mri_t1_dwi/sub-xa30/{ENHANCED[name]}.nii.gz"))
    np.testing.assert_array_equal(file.array, converted.array)
    np.testing.assert_allclose(file.affine, converted.affine, atol=2e-4)


@pytest.mark.parametrize("name", ["rle", "j2k", "jpeg", "jpegls"])
def test_compressed_series_equal_the_published_conversion(shared_data, name):
    folder = shared_data / f"dicom/dicom2nifti/generic/compressed_{name}"
    series, truth = canonical(read_volume(folder / "001")), canonical(read_volume(folder / "001_ground_truth.nii.gz"))
    np.testing.assert_array_equal(series.array, truth.array)
    np.testing.assert_allclose(series.affine, truth.affine, atol=1e-4)


READ = {
    "ge/anatomical/001": ((256, 256, 4), "PSR"),
    "ge/dti/001": ((128, 128, 4, 2), "LAS"),
    "ge/fmri/001": ((64, 64, 4, 2), "LAS"),
    "generic/anatomical/002_non_isotropic": ((64, 28, 4), "LAS"),
    "hitachi/anatomical/001": ((64, 64, 4), None),
    "hyperfine/anatomical/001": ((112, 138, 8), "LAS"),
    "philips/dti/001": ((128, 128, 2, 4), "LAS"),
    "philips_enhanced/anatomical/001": ((256, 256, 8), "PSR"),
    "siemens_multiframe/anatomical/001": ((256, 256, 8), "LAS"),
    "failing/slicecount/001": ((256, 256, 2), "PSR"),
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.filterwarnings("ignore:.*only two slices")
def test_series_of_many_makers_are_read(shared_data, name):
    volume = read_volume(shared_data / "dicom/dicom2nifti" / name)
    shape, orientation = READ[name]
    assert volume.array.shape == shape
    assert orientation in (None, volume.orientation)


@pytest.mark.parametrize(
    ("name", "said"), [("gantrytilting", "tilted by 14.0 degrees"), ("sliceorientation", "got 2 slice orientations")]
)
def test_series_that_are_no_volume_are_refused(shared_data, name, said):
    with pytest.raises(ValueError, match=said):
        read_volume(shared_data / "dicom/dicom2nifti/failing" / name / "001")


@pytest.mark.parametrize("stored", ["<u2", ">u2", "<i2", "u1", "<i4"])
@pytest.mark.parametrize("out", [np.int16, np.uint16, np.int32])
def test_sums_are_exact_for_every_pair_of_types(stored: str, out: type) -> None:
    image = np.array([[0, 100], [3, 255 if stored == "u1" else 4095]], stored)
    shift = -1024 if out is not np.uint16 else 1024
    sums = np.empty(image.shape, out)
    dicom_pixels._add(image[::-1], shift, out=sums)
    np.testing.assert_array_equal(sums, image[::-1].astype(int) + shift)
