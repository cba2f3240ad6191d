"""Mosaics and grids become volumes whose slices are at their acquired positions, with their gradients."""

import shutil
import struct
import subprocess

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from scipy.spatial.transform import Rotation

from voxelwave.apps.registration.scans import writes_dicom
from voxelwave.registration.pairs import Pair
from voxelwave.registration.series import load_fixed, reference_image
from voxelwave.restoration.images import check_target, read_image
from voxelwave.volumes import read_volume
from voxelwave.volumes.dicom_gradients import read_dicom_gradients, write_dicom_gradients
from voxelwave.volumes.mosaic import read_csa, read_mosaic

ROWS, COLUMNS, SLICES = 6, 8, 7  # 3 x 3 tiles, two of them empty
SPACING = (2.0, 1.5, 3.0)  # between rows, columns, slices
AXIAL = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
SAGITTAL = np.array([[0.0, 1, 0], [0, 0, -1], [1, 0, 0]])  # slices run against row x column
OBLIQUE = AXIAL @ Rotation.from_euler("xyz", (12, -8, 5), degrees=True).as_matrix().T
FIRST = np.array([-20.0, -30.0, 10.0])  # first pixel of the first slice, LPS mm
GRADIENTS = [(0, None), (1000, (1.0, 0, 0)), (1000, (0.6, 0.8, 0)), (2000, (-0.48, 0.6, 0.64))]
needs_dcm2niix = pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed")


def csa(*, version=2, **tags):
    """A CSA header with these tags, as bytes."""
    parts = [b"SV10\4\3\2\1" if version == 2 else b"", struct.pack("<2I", len(tags), 77)]
    first_items = None
    for name, values in tags.items():
        values = [values] if isinstance(values, str) else values
        items = max(6, len(values))
        first_items = items if first_items is None else first_items
        parts.append(struct.pack("<64si4siii", name.encode(), len(values), b"FD", 4, items, 77))
        for k in range(items):
            text = values[k].encode() + b"\0" if k < len(values) else b""
            length = len(text)
            lengths = (length, length, 77, length) if version == 2 else (length + first_items, length, 77, 0)
            parts.append(struct.pack("<4i", *lengths) + text + b"\0" * (-length % 4))
    data = b"".join(parts)
    return data + b"\0" * (len(data) % 2)


def texts(numbers):
    return [f"{v:.8f}" for v in numbers]


def base(number, axes, image):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = MRImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = "1.2.3", "1.2.4", "1.2.5"
    ds.Modality, ds.SeriesDescription, ds.SeriesNumber, ds.InstanceNumber = "MR", "test", 3, number
    ds.AcquisitionNumber, ds.AcquisitionTime = number, f"1200{number:02d}.000000"
    ds.SeriesTime = ds.StudyTime = "120000.000000"
    ds.AcquisitionDate = ds.SeriesDate = ds.StudyDate = "20240101"
    ds.MRAcquisitionType, ds.EchoTime, ds.RepetitionTime = "2D", 60.0, 3000.0
    ds.Rows, ds.Columns = image.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 0
    ds.ImageOrientationPatient = [float(f"{v:.10g}") for v in axes[:2].ravel()]
    ds.PixelSpacing, ds.SliceThickness, ds.SpacingBetweenSlices = list(SPACING[:2]), 2.5, SPACING[2]
    ds.PixelData = image.tobytes()
    return ds


def tiled(slices, down):
    image = np.zeros((down * ROWS, 3 * COLUMNS), np.uint16)
    for k, tile in enumerate(slices):
        row, column = k // 3 * ROWS, k % 3 * COLUMNS
        image[row : row + ROWS, column : column + COLUMNS] = tile
    return image


def values(count):
    return np.random.default_rng(0).integers(1, 2000, (count, SLICES, ROWS, COLUMNS)).astype(np.uint16)


def siemens(axes=AXIAL, gradients=GRADIENTS, version=2, without=(), **more):
    """One mosaic for each gradient; `without` names CSA tags to leave out, and `more` holds additional tags."""
    made = []
    for number, ((b, direction), slices) in enumerate(zip(gradients, values(len(gradients)), strict=True), 1):
        ds = base(number, axes, tiled(slices, down=3))
        ds.Manufacturer = "SIEMENS"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "DIFFUSION", "NONE", "MOSAIC"]
        corner = FIRST - axes[0] * SPACING[1] * COLUMNS - axes[1] * SPACING[0] * ROWS  # (3 - 1) / 2 tiles away
        ds.ImagePositionPatient = [float(f"{v:.10g}") for v in corner]
        tags = {
            "NumberOfImagesInMosaic": str(SLICES),
            "SliceNormalVector": texts(axes[2]),
            "MosaicRefAcqTimes": texts(np.arange(SLICES) * 100.0 + 5),
            "B_value": str(b),
            "DiffusionDirectionality": "DIRECTIONAL" if direction else "NONE",
            **more,
        }
        if direction:
            tags["DiffusionGradientDirection"] = texts(direction)
            tags["B_matrix"] = texts(b * np.outer(direction, direction)[np.triu_indices(3)])
        header = csa(version=version, **{name: v for name, v in tags.items() if name not in without})
        ds.private_block(0x29, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", header)
        made.append(ds)
    return made


def siemens_in_reverse(axes=AXIAL):
    """The scanner numbers its slices in reverse, so they run against the normal."""
    return siemens(axes * [[1], [1], [np.sign(np.linalg.det(axes)) * -1]], ProtocolSliceNumber=str(SLICES - 1))


def uih(axes=AXIAL, gradients=GRADIENTS):
    made = []
    for number, ((b, direction), slices) in enumerate(zip(gradients, values(len(gradients)), strict=True), 1):
        ds = base(number, axes, tiled(slices, down=3))
        ds.Manufacturer = "UIH"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "DIFFUSION", "VFRAME"]
        block = ds.private_block(0x65, "Image Private Header", create=True)
        block.add_new(0x09, "FD", float(b))
        block.add_new(0x37, "FD", list(direction or (0.0, 0, 0)))
        block.add_new(0x50, "DS", str(SLICES))
        items = []
        for k in range(SLICES):
            item = Dataset()
            item.ImagePositionPatient = [float(f"{v:.10g}") for v in FIRST + k * SPACING[2] * axes[2]]
            item.AcquisitionTime = f"1200{number:02d}.{k:02d}0000"
            items.append(item)
        block.add_new(0x51, "SQ", Sequence(items))
        made.append(ds)
    return made


def folder_of(path, datasets):
    path.mkdir()
    for k, ds in enumerate(reversed(datasets)):
        ds.save_as(path / f"{k}.dcm", enforce_file_format=True)
    return path


@pytest.mark.parametrize("axes", [AXIAL, SAGITTAL, OBLIQUE], ids=["axial", "sagittal", "oblique"])
@pytest.mark.parametrize("maker", [siemens, uih])
def test_every_tile_is_where_its_slice_was_made(tmp_path, axes, maker):
    volume = read_volume(folder_of(tmp_path / "s", maker(axes)))
    assert volume.array.shape == (COLUMNS, ROWS, SLICES, 4)
    stored = values(4)
    for t, k, row, column in ((0, 0, 0, 0), (1, 3, 5, 7), (3, 6, 2, 1)):
        place = FIRST + axes[0] * column * SPACING[1] + axes[1] * row * SPACING[0] + axes[2] * k * SPACING[2]
        index = np.linalg.inv(volume.affine) @ [*(place * [-1, -1, 1]), 1]
        i, j, level = np.round(index[:3]).astype(int)
        np.testing.assert_allclose(index[:3], [i, j, level], atol=1e-4)
        assert volume.array[i, j, level, t] == stored[t, k, row, column]


@pytest.mark.parametrize("axes", [AXIAL, SAGITTAL, OBLIQUE], ids=["axial", "sagittal", "oblique"])
@pytest.mark.parametrize("version", [1, 2])
def test_directions_along_the_voxel_axes_are_those_of_the_world(tmp_path, axes, version):
    folder = folder_of(tmp_path / "s", siemens(axes, version=version))
    volume = read_volume(folder)
    bvals, bvecs = read_dicom_gradients(folder)
    np.testing.assert_array_equal(bvals, [b for b, _ in GRADIENTS])
    assert not bvecs[0].any()
    voxel_axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    if np.linalg.det(voxel_axes) > 0:  # FSL's rule
        voxel_axes[:, 0] *= -1
    for bvec, (_, direction) in zip(bvecs[1:], GRADIENTS[1:], strict=True):
        world = voxel_axes @ bvec * [-1, -1, 1]
        assert abs(world @ direction) == pytest.approx(1, abs=1e-6)  # opposite directions are equivalent


def test_direction_from_the_b_matrix_where_it_is_all_there_is(tmp_path):
    bvals, bvecs = read_dicom_gradients(folder_of(tmp_path / "a", siemens(without=["DiffusionGradientDirection"])))
    _, expected = read_dicom_gradients(folder_of(tmp_path / "b", siemens()))
    assert bvals.tolist() == [0, 1000, 1000, 2000]
    np.testing.assert_allclose(np.abs((bvecs * expected).sum(axis=1)), [0, 1, 1, 1], atol=1e-6)


def test_one_mosaic_is_a_3d_volume_and_a_functional_series_has_no_gradients(tmp_path):
    folder = folder_of(tmp_path / "s", siemens(gradients=GRADIENTS[:1], without=["B_value"]))
    assert read_volume(folder).array.shape == (COLUMNS, ROWS, SLICES)
    assert read_dicom_gradients(folder) is None
    assert not write_dicom_gradients(folder, tmp_path / "dwi")


@pytest.mark.parametrize(("maker", "step"), [(siemens, 100.0), (uih, 10.0)])
def test_slice_times_begin_at_the_first_slice(tmp_path, maker, step):
    file = sorted(folder_of(tmp_path / "s", maker()).iterdir())[0]
    times = read_mosaic(file, pydicom.dcmread(file)).times
    np.testing.assert_allclose(times, np.arange(SLICES) * step, atol=1e-3)


def _no_direction(ds):
    return siemens(without=["SliceNormalVector"])


def _no_count(ds):
    return siemens(without=["NumberOfImagesInMosaic"])


def _no_spacing(made):
    del made[0].SpacingBetweenSlices
    return made[:1]


def _too_many(made):
    made[0].private_block(0x29, "SIEMENS CSA HEADER")[0x10].value = csa(NumberOfImagesInMosaic="17")
    return made[:1]


def _damaged(made):
    block = made[0].private_block(0x29, "SIEMENS CSA HEADER")
    block[0x10].value = block[0x10].value[:300]
    return made[:1]


REFUSED = {
    _no_direction: "slice direction is missing",
    _no_count: "number of slices is missing",
    _no_spacing: "without SpacingBetweenSlices",
    _too_many: "must hold 5 x 5 tiles for 17 slices",
    _damaged: "number of slices is missing",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda f: f.__name__)
def test_a_mosaic_that_cannot_be_placed_is_refused_in_one_line(tmp_path, change):
    with pytest.raises(ValueError, match=REFUSED[change]) as error:
        read_volume(folder_of(tmp_path / "s", change(siemens())))
    assert "\n" not in str(error.value)


def test_a_grid_without_all_positions_is_refused(tmp_path):
    made = uih()
    made[0].private_block(0x65, "Image Private Header")[0x50].value = "9"
    with pytest.raises(ValueError, match="9 slices but gives 7 positions"):
        read_volume(folder_of(tmp_path / "s", made))


def test_csa_header_cut_anywhere_is_empty_or_right(tmp_path):
    whole = csa(NumberOfImagesInMosaic="7", B_value="1000")
    for size in range(0, len(whole), 7):
        ds = Dataset()
        ds.private_block(0x29, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", whole[:size])
        assert read_csa(ds) in ({}, {"NumberOfImagesInMosaic": ["7"], "B_value": ["1000"]})


def test_registration_takes_the_b0_and_the_directions_from_the_headers(tmp_path):
    folder = folder_of(tmp_path / "s", siemens())
    volume = read_volume(folder)
    np.testing.assert_array_equal(reference_image(volume, folder).array, volume.array[..., 0])
    b0 = load_fixed(Pair(moving=folder, fixed=folder, subject="a", contrast="b0"))
    np.testing.assert_array_equal(b0.array, volume.array[..., 0])
    with pytest.raises(ValueError, match="six directions"):  # three are given, but there are directions
        load_fixed(Pair(moving=folder, fixed=folder, subject="a", contrast="fa"))


def test_dicom_results_for_a_mosaic_are_refused_before_the_work(tmp_path):
    folder = folder_of(tmp_path / "s", siemens(gradients=GRADIENTS[:1]))
    assert not writes_dicom(folder, folder, always=False)
    with pytest.raises(ValueError, match="cannot write for a mosaic"):
        writes_dicom(folder, folder, always=True)
    with pytest.raises(ValueError, match="whose result cannot be a DICOM series"):
        check_target(tmp_path / "out", read_image(folder))
    check_target(tmp_path / "out.nii.gz", read_image(folder))


@needs_dcm2niix
@pytest.mark.parametrize("axes", [AXIAL, SAGITTAL, OBLIQUE], ids=["axial", "sagittal", "oblique"])
@pytest.mark.parametrize("maker", [siemens, siemens_in_reverse, uih])
def test_equal_to_dcm2niix(tmp_path, axes, maker):
    folder = folder_of(tmp_path / "s", maker(axes))
    subprocess.run(
        ["dcm2niix", "-b", "n", "-f", "x", "-o", tmp_path, folder], check=True, capture_output=True, timeout=60
    )
    theirs, ours = nib.load(tmp_path / "x.nii"), read_volume(folder)
    np.testing.assert_array_equal(np.asarray(theirs.dataobj), ours.array)
    np.testing.assert_allclose(theirs.affine, ours.affine, atol=1e-3)
    write_dicom_gradients(folder, tmp_path / "ours")
    for suffix in (".bval", ".bvec"):
        ours_text, theirs_text = np.loadtxt(tmp_path / f"ours{suffix}"), np.loadtxt(tmp_path / f"x{suffix}")
        np.testing.assert_allclose(ours_text, theirs_text, atol=2e-6)
