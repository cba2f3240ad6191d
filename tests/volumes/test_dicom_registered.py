"""A registration in DICOM moves the image as in memory, for our reader and for code that follows only the standard."""

from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from scipy.ndimage import gaussian_filter

from voxelwave.volumes import (
    AffineTransform,
    DisplacementField,
    Volume,
    read_volume,
    resample,
    write_transform,
    write_volume,
)
from voxelwave.volumes.dicom_registered import (
    _rotation,
    _turn_gradients,
    common_frame_of_reference,
    is_dicom,
    write_deformable_registration,
    write_registered_series,
)

itk = pytest.importorskip("SimpleITK")

_DESCRIPTION = "registered by a test"


def _grid_like(moving: Volume, shape: tuple[int, int, int], *, mirrored: bool) -> Volume:
    """An empty oblique grid around the middle of an image; `mirrored` gives left-handed axes, as in the DICOM files."""
    angle = 0.3
    turn = np.array([[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.6, 0.55, -1.3 if mirrored else 1.3])
    middle = (moving.affine @ [*(np.array(moving.shape) - 1) / 2, 1])[:3]
    affine[:3, 3] = middle - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return Volume(np.zeros(shape, np.float32), affine)


def _some_field(like: Volume, amplitude_mm: float) -> DisplacementField:
    """A smooth random displacement after a rotation by 0.1 about the grid's middle."""
    rng = np.random.default_rng(1)
    noise = np.stack([gaussian_filter(rng.normal(size=like.shape), 2) for _ in range(3)], axis=-1)
    noise *= amplitude_mm / np.abs(noise).max()
    index = np.stack(np.meshgrid(*map(np.arange, like.shape), indexing="ij"), axis=-1)
    points = index @ like.affine[:3, :3].T + like.affine[:3, 3]
    middle = points.reshape(-1, 3).mean(axis=0)
    turn = np.array([[np.cos(0.1), -np.sin(0.1), 0], [np.sin(0.1), np.cos(0.1), 0], [0, 0, 1]])
    return DisplacementField((points - middle) @ turn.T + middle - points + noise, like.affine)


def _write_both(
    folder: Path, moving: Path, fixed: Path | None, forward: DisplacementField, warped: Volume
) -> tuple[Path, Path]:
    frame = generate_uid() if fixed is None else common_frame_of_reference(moving, fixed)
    series = write_registered_series(
        folder / "warped", warped, moving, _DESCRIPTION, frame_of_reference=frame, fixed=fixed
    )
    return series, write_deformable_registration(
        folder / "registration.dcm",
        forward,
        moving=moving,
        fixed=fixed,
        frame_of_reference=frame,
        description=_DESCRIPTION,
    )


def _itk_series(folder: Path):
    reader = itk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def _itk_transform(registration: Path):
    """The transform in a Deformable Spatial Registration, computed only from the text of PS3.3 C.20.3.1."""
    grid = pydicom.dcmread(registration).DeformableRegistrationSequence[0].DeformableRegistrationGridSequence[0]
    x, y, z = (int(n) for n in grid.GridDimensions)
    row, column = np.array([float(v) for v in grid.ImageOrientationPatient]).reshape(2, 3)
    field = itk.GetImageFromArray(
        np.frombuffer(grid.VectorGridData, "<f4").reshape(z, y, x, 3).astype(np.float64), isVector=True
    )
    field.SetOrigin([float(v) for v in grid.ImagePositionPatient])
    field.SetSpacing([float(v) for v in grid.GridResolution])
    field.SetDirection(np.column_stack([row, column, np.cross(row, column)]).ravel().tolist())
    return itk.DisplacementFieldTransform(field)


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_transform_object_moves_the_image_as_we_did(
    write_ct: Callable[..., None], tmp_path: Path, mirrored: bool
) -> None:
    write_ct(tmp_path / "moving", slices=8)
    moving = read_volume(tmp_path / "moving")
    grid = _grid_like(moving, (7, 5, 6), mirrored=mirrored)
    forward = _some_field(grid, 0.4)
    warped = resample(moving, grid, forward)
    series, registration = _write_both(tmp_path, tmp_path / "moving", None, forward, warped)

    written = _itk_series(series)
    again = itk.Resample(
        itk.Cast(_itk_series(tmp_path / "moving"), itk.sitkFloat64),
        written,
        _itk_transform(registration),
        itk.sitkLinear,
        -9999.0,
    )
    ours, theirs = itk.GetArrayFromImage(written), itk.GetArrayFromImage(again)
    inside = theirs > -9999
    assert inside.mean() > 0.5
    # single precision of coordinates, times steps of about 4,000 between neighbours, and rounding to integers
    assert np.abs(ours - theirs)[inside].max() < 0.6
    assert ours[inside].std() > 300


def test_the_transform_object_is_the_displacement_field_that_itk_reads(
    write_ct: Callable[..., None], tmp_path: Path
) -> None:
    write_ct(tmp_path / "moving", slices=8)
    grid = _grid_like(read_volume(tmp_path / "moving"), (7, 5, 6), mirrored=True)
    forward = _some_field(grid, 0.4)
    write_transform(tmp_path / "forward.nii.gz", forward)
    _, registration = _write_both(tmp_path, tmp_path / "moving", None, forward, grid)
    ours = _itk_transform(registration)
    theirs = itk.DisplacementFieldTransform(itk.ReadImage(str(tmp_path / "forward.nii.gz"), itk.sitkVectorFloat64))
    for voxel in ([3, 2, 2.5], [1.2, 3.4, 4.5], [5.5, 0.5, 1]):
        point = ((grid.affine @ [*voxel, 1])[:3] * [-1, -1, 1]).tolist()
        np.testing.assert_allclose(ours.TransformPoint(point), theirs.TransformPoint(point), atol=1e-4)
        assert np.linalg.norm(np.array(ours.TransformPoint(point)) - point) > 0.05


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_moved_series_is_read_back_at_the_fixed_image_place(
    write_ct: Callable[..., None], tmp_path: Path, mirrored: bool
) -> None:
    write_ct(tmp_path / "moving", slices=4)
    moving = read_volume(tmp_path / "moving")
    grid = _grid_like(moving, (7, 5, 6), mirrored=mirrored)
    warped = resample(moving, grid)
    series, _ = _write_both(tmp_path, tmp_path / "moving", None, _some_field(grid, 0.1), warped)
    back = read_volume(series)
    again = resample(back, grid, order="nearest")  # the same positions, whatever the order of the axes
    assert np.abs(again.array - warped.array).max() <= 0.5 + 1e-3
    assert back.array.dtype == moving.array.dtype
    theirs = highdicom.get_volume_from_series([pydicom.dcmread(p) for p in series.iterdir()])
    centre = (theirs.affine @ [*(np.array(theirs.spatial_shape) - 1) / 2, 1])[:3] * [-1, -1, 1]
    np.testing.assert_allclose(centre, (grid.affine @ [3, 2, 2.5, 1])[:3], atol=1e-6)
    assert theirs.array.sum() == back.array.sum()


def test_headers_say_whose_image_it_is_and_what_it_came_from(write_ct: Callable[..., None], tmp_path: Path) -> None:
    write_ct(tmp_path / "moving", slices=4)
    write_ct(tmp_path / "fixed", slices=6)
    fixed = read_volume(tmp_path / "fixed")
    series, registration = _write_both(
        tmp_path, tmp_path / "moving", tmp_path / "fixed", _some_field(fixed, 0.3), fixed.with_array(fixed.array + 1)
    )
    source, target = (pydicom.dcmread(next((tmp_path / name).iterdir())) for name in ("moving", "fixed"))
    images = [pydicom.dcmread(p) for p in sorted(series.iterdir())]
    transform = pydicom.dcmread(registration)
    sources = {pydicom.dcmread(p).SOPInstanceUID for p in (tmp_path / "moving").iterdir()}
    assert len(images) == 6
    for image in images:
        assert list(image.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
        assert {item.ReferencedSOPInstanceUID for item in image.SourceImageSequence} == sources
        assert {item.SpatialLocationsPreserved for item in image.SourceImageSequence} == {"NO"}
        assert image.DerivationDescription == _DESCRIPTION
        assert image.LossyImageCompression == "01"
        assert image.SliceThickness == target.SliceThickness
    for made in (*images, transform):
        assert made.FrameOfReferenceUID == target.FrameOfReferenceUID != source.FrameOfReferenceUID
        for keyword in ("StudyInstanceUID", "PatientID", "PatientName"):
            assert made[keyword].value == source[keyword].value
    uids = [made.SeriesInstanceUID for made in (images[0], transform, source, target)]
    assert len(set(uids)) == 4
    moved, stays = transform.DeformableRegistrationSequence
    assert moved.SourceFrameOfReferenceUID == source.FrameOfReferenceUID
    assert stays.SourceFrameOfReferenceUID == target.FrameOfReferenceUID
    assert {item.ReferencedSOPInstanceUID for item in moved.ReferencedImageSequence} == sources


def test_a_frame_of_reference_is_shared_by_one_person_alone(write_ct: Callable[..., None], tmp_path: Path) -> None:
    for name in ("moving", "fixed", "other"):
        write_ct(tmp_path / name)
    for file in (tmp_path / "other").iterdir():
        image = pydicom.dcmread(file)
        image.PatientID = "p2"
        image.save_as(file)
    write_volume(tmp_path / "atlas.nii.gz", read_volume(tmp_path / "fixed"))
    frames = {
        name: pydicom.dcmread(next((tmp_path / name).iterdir())).FrameOfReferenceUID
        for name in ("moving", "fixed", "other")
    }
    found = [common_frame_of_reference(tmp_path / "moving", tmp_path / n) for n in ("fixed", "other", "atlas.nii.gz")]
    assert found[0] == frames["fixed"]
    assert len(set(found)) == 3
    assert not set(found[1:]) & set(frames.values())
    assert common_frame_of_reference(tmp_path / "moving", tmp_path / "other") == found[1]


def test_the_same_registration_gives_the_same_files(
    write_ct: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for name in ("moving", "fixed"):
        write_ct(tmp_path / name)
    fixed = read_volume(tmp_path / "fixed")
    written = []
    for shift in (0.3, 0.3, 0.2):
        folder = tmp_path / f"out{len(written)}"
        forward = _some_field(fixed, shift)
        warped = resample(read_volume(tmp_path / "moving"), fixed, forward)
        _write_both(folder, tmp_path / "moving", tmp_path / "fixed", forward, warped)
        written.append({p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert written[0] == written[1]
    uids = [pydicom.dcmread(tmp_path / f"out{n}/registration.dcm").SOPInstanceUID for n in (1, 2)]
    assert uids[0] != uids[1]


def test_gradients_turn_with_the_head() -> None:
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # x of the fixed world is y of the moving one
    inner, diffusion, image = Dataset(), Dataset(), Dataset()
    inner.DiffusionGradientOrientation = [0.0, 1.0, 0.0]
    diffusion.DiffusionGradientDirectionSequence = [inner]
    matrix = Dataset()
    for name, value in {"XX": 0, "XY": 0, "XZ": 0, "YY": 1000, "YZ": 0, "ZZ": 0}.items():
        setattr(matrix, f"DiffusionBValue{name}", float(value))
    diffusion.DiffusionBMatrixSequence = [matrix]
    image.MRDiffusionSequence = [diffusion]
    _turn_gradients(image, _rotation(quarter))
    np.testing.assert_allclose(inner.DiffusionGradientOrientation, [1, 0, 0], atol=1e-12)
    assert matrix.DiffusionBValueXX == 1000
    assert matrix.DiffusionBValueYY == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("moving", "fixed"),
    [
        pytest.param("siemens_t1_sag_35slices", "siemens_xa30_enhanced/b0.dcm", marks=pytest.mark.slow),
        pytest.param("siemens_xa30_enhanced/b0.dcm", "siemens_xa30_enhanced/t1.dcm", marks=pytest.mark.slow),
        ("dicom2nifti/ge/dti/001", "dicom2nifti/ge/anatomical/001"),
        ("dicom2nifti/siemens_multiframe/anatomical/001", "dicom2nifti/ge/anatomical/001"),
    ],
)
def test_real_series_come_back_and_dciodvfy_agrees(
    shared_data: Path, tmp_path: Path, dicom_errors: Callable[[Path], set[str]], moving: str, fixed: str
) -> None:
    moving_path, fixed_path = shared_data / "dicom" / moving, shared_data / "dicom" / fixed
    source, target = read_volume(moving_path), read_volume(fixed_path)
    shift = np.eye(4)
    for volume, sign in ((source, 1), (target, -1)):
        shift[:3, 3] += sign * (volume.affine @ [*(np.array(volume.shape) - 1) / 2, 1])[:3]
    corners = np.zeros((*target.shape, 3), np.float32) + shift[:3, 3].astype(np.float32)
    warped = resample(source, target, AffineTransform(shift))
    series, registration = _write_both(
        tmp_path, moving_path, fixed_path, DisplacementField(corners, target.affine), warped
    )
    back = read_volume(series)
    np.testing.assert_allclose(back.affine, target.affine, atol=1e-5)
    assert np.abs(back.array.astype(np.float64) - warped.array).max() <= 0.5 + 1e-3
    assert np.ptp(warped.array) > 50
    files = sorted(series.iterdir())
    if len(files) == 1:  # enhanced
        others = itk.GetArrayFromImage(itk.ReadImage(str(files[0]))), highdicom.imread(files[0]).get_volume().array
        assert [int(array.sum()) for array in others] == [int(back.array.sum(dtype=np.int64))] * 2
    first = moving_path if moving_path.is_file() else sorted(moving_path.iterdir())[0]
    assert dicom_errors(files[0]) <= dicom_errors(first)
    assert dicom_errors(registration) == set()


def test_a_folder_is_dicom_only_if_it_holds_a_dicom_file(tmp_path, write_ct):
    write_ct(tmp_path / "ct")
    (tmp_path / "ct" / "notes.txt").write_text("a note")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "scan.nii.gz").write_bytes(b"no DICOM")
    assert is_dicom(tmp_path / "ct")
    assert is_dicom(next((tmp_path / "ct").glob("*.dcm")))
    assert not is_dicom(tmp_path / "ct" / "notes.txt")
    assert not is_dicom(tmp_path / "other")
    assert not is_dicom(tmp_path / "missing")
