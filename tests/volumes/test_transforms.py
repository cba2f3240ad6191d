"""Transforms have the same meaning in our code, in ANTs and on disk."""

from typing import Any

import ants
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from voxelwave.volumes import (
    AffineTransform,
    CompositeTransform,
    DisplacementField,
    Volume,
    VolumeWarning,
    compose_to_field,
    invert,
    read_transform,
    resample,
    write_transform,
    write_volume,
)


def affine_of(matrix, angles, origin):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.asarray(matrix, float)
    affine[:3, 3] = origin
    return affine


# fixed grids: plain, flipped, permuted and oblique, with unequal spacing
GRIDS = {
    "RAS": affine_of(np.diag([2.0, 2.0, 2.0]), (0, 0, 0), (-20, -22, -24)),
    "LAS": affine_of(np.diag([-1.5, 2.5, 3.0]), (0, 0, 0), (14, -25, -30)),
    "PSR, oblique": affine_of([[0, 0, 3.0], [-2, 0, 0], [0, 1.5, 0]], (10, -20, 5), (-30, 20, -10)),
}


def smooth(shape, seed, sigma):
    return gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)


@pytest.fixture
def moving():
    array = 100 * smooth((40, 30, 34), 1, 2) + 20
    return Volume(array.astype(np.float32), affine_of(np.diag([-1.6, 2.1, 1.9]), (-7, 4, 15), (36, -30, -36)))


def fixed_on(name):
    return Volume(np.zeros((20, 21, 22), np.float32), GRIDS[name])


def field_on(fixed, *, peak_mm=6.0, seed=2):
    vectors = smooth((*fixed.shape, 3), seed, (3, 3, 3, 0))
    return DisplacementField(peak_mm * vectors / np.abs(vectors).max(), fixed.affine)


TILT = AffineTransform(affine_of(1.05 * np.eye(3), (5, 3, 2), (2, -3, 4)))

# the written forms, and the files that ANTs receives for each (the first file is applied to the fixed point first)
FORMS = {
    "field, nii.gz": lambda field: (field, ["f.nii.gz"]),
    "field, h5": lambda field: (field, ["f.h5"]),
    "affine, mat": lambda field: (TILT, ["a.mat"]),
    "affine, txt": lambda field: (TILT, ["a.txt"]),
    "affine, h5": lambda field: (TILT, ["a.h5"]),
    "field then affine, h5": lambda field: (CompositeTransform((field, TILT)), ["c.h5"]),
    "affine then field, h5": lambda field: (CompositeTransform((TILT, field)), ["c.h5"]),
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("order", "interpolator"), [("linear", "linear"), ("nearest", "nearestNeighbor")])
@pytest.mark.filterwarnings("ignore:.*outside the displacement field")
def test_ants_moves_the_image_as_we_do(tmp_path, moving, grid, form, order, interpolator):
    fixed = fixed_on(grid)
    transform, names = FORMS[form](field_on(fixed))
    write_transform(tmp_path / names[0], transform)
    write_volume(tmp_path / "fixed.nii", fixed)
    write_volume(tmp_path / "moving.nii", moving)
    theirs = ants.apply_transforms(
        ants.image_read(str(tmp_path / "fixed.nii")),
        ants.image_read(str(tmp_path / "moving.nii")),
        [str(tmp_path / name) for name in names],
        interpolator=interpolator,
    ).numpy()
    ours = resample(moving, fixed, transform, order=order).array
    # beyond the field, ANTs continues without displacement; we read 0 there
    both = (ours != 0) & (theirs != 0)
    assert both.mean() > 0.3
    if form != "affine then field, h5":
        assert np.array_equal(ours != 0, theirs != 0)
    off = np.abs(ours - theirs)[both]
    if order == "linear":
        assert off.max() < 1e-4 * np.abs(theirs).max()  # single precision; the guaranteed accuracy is 1e-3
    else:
        assert (off > 0).mean() < 1e-3  # points half-way between two voxels


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_transform_comes_back_from_its_file(tmp_path, grid, form):
    fixed = fixed_on(grid)
    transform, names = FORMS[form](field_on(fixed))
    write_transform(tmp_path / names[0], transform)
    back = read_transform(tmp_path / names[0])
    assert type(back) is type(transform)
    inner = np.random.default_rng(3).uniform(4, 16, (50, 3)) @ fixed.affine[:3, :3].T + fixed.affine[:3, 3]
    np.testing.assert_allclose(back.map(inner), transform.map(inner), atol=1e-4)  # single precision at about 50 mm


def test_the_field_on_disk_is_what_itk_calls_a_displacement_field(tmp_path):
    field = field_on(fixed_on("PSR, oblique"))
    write_transform(tmp_path / "f.nii.gz", field)
    image: Any = nib.load(tmp_path / "f.nii.gz")
    header = image.header
    assert header["intent_code"] == 1007
    assert header.get_data_shape() == (20, 21, 22, 1, 3)
    vectors = sitk.ReadImage(str(tmp_path / "f.nii.gz"), sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(vectors)
    point = field.affine[:3, :3] @ [9.3, 10.1, 11.7] + field.affine[:3, 3]
    moved = np.array(transform.TransformPoint(tuple(point * [-1, -1, 1]))) * [-1, -1, 1]
    np.testing.assert_allclose(field.map(point[None])[0], moved, atol=1e-4)


def test_transforms_that_ants_estimates_are_read(tmp_path, moving):
    write_volume(tmp_path / "m.nii", moving)
    image = ants.image_read(str(tmp_path / "m.nii"))
    for name in ("Euler3DTransform", "Similarity3DTransform", "AffineTransform"):
        made = ants.create_ants_transform(
            transform_type=name, dimension=3, center=[3.0, 4.0, 5.0], translation=[1.0, 2, 3]
        )
        ants.write_transform(made, str(tmp_path / "t.mat"))
        read = read_transform(tmp_path / "t.mat")
        np.testing.assert_allclose(read.map(np.array([[7.0, 8.0, 9.0]])), [[6.0, 6.0, 12.0]], atol=1e-4)
    assert image.dimension == 3


def test_an_affine_undoes_itself():
    points = np.random.default_rng(0).normal(size=(5, 3)) * 50
    np.testing.assert_allclose(TILT.inverse().map(TILT.map(points)), points)


@pytest.mark.parametrize("grid", GRIDS)
def test_voxel_displacements_and_millimetres_are_two_words_for_one_field(grid):
    displacement = smooth((1, 3, 8, 9, 10), 4, (0, 0, 2, 2, 2)).astype(np.float32) * 8
    field = DisplacementField.from_voxels(displacement[0], GRIDS[grid])
    np.testing.assert_allclose(field.to_voxels(), displacement[0], atol=1e-5)
    moved = field.map((GRIDS[grid] @ [1, 2, 3, 1])[None, :3])[0]
    target = np.array([1, 2, 3]) + displacement[0, :, 1, 2, 3]
    np.testing.assert_allclose(moved, (GRIDS[grid] @ [*target, 1])[:3], atol=1e-4)


def test_a_voxel_displacement_through_an_affine_reads_the_original_image(moving):
    """One interpolation of the original equals the application of the map in two steps."""
    fixed = fixed_on("PSR, oblique")
    displacement = smooth((3, *fixed.shape), 5, (0, 3, 3, 3)) * 10
    whole = DisplacementField.from_voxels(displacement, fixed.affine, pre=TILT)
    steps = CompositeTransform((DisplacementField.from_voxels(displacement, fixed.affine), TILT))
    one, two = resample(moving, fixed, whole).array, resample(moving, fixed, steps).array
    np.testing.assert_allclose(one, two, atol=1e-3 * np.abs(two).max())
    direct = DisplacementField.from_voxels(displacement, fixed.affine, moving_affine=moving.affine)
    np.testing.assert_allclose(direct.to_voxels(moving_affine=moving.affine), displacement, atol=1e-4)


def test_composition_into_one_field_maps_points_as_the_parts_do():
    fixed = fixed_on("LAS")
    field = field_on(fixed)
    whole = compose_to_field([field, TILT], fixed)
    voxels = np.array([[3.0, 4, 5], [10, 11, 12]])
    points = voxels @ fixed.affine[:3, :3].T + fixed.affine[:3, 3]
    np.testing.assert_allclose(whole.map(points), TILT.map(field.map(points)), atol=1e-4)
    with pytest.raises(ValueError, match="must lie inside every displacement field"):
        compose_to_field([TILT, field], fixed)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_inverse_takes_points_back(grid):
    fixed = fixed_on(grid)
    field = field_on(fixed)
    back = field.inverse(fixed)
    assert back.residual_mm is not None
    assert back.residual_mm < 0.01
    inner = np.random.default_rng(3).uniform(6, 14, (50, 3)) @ fixed.affine[:3, :3].T + fixed.affine[:3, 3]
    # the inverse is sampled on the same coarse grid, so between voxels it is only approximate
    np.testing.assert_allclose(back.map(field.map(inner)), inner, atol=0.25)


def test_a_field_with_a_large_rotation_is_inverted():
    fixed = fixed_on("PSR, oblique")
    turn = AffineTransform(affine_of(1.2 * np.eye(3), (60, -30, 80), (15, -40, 10)))
    field = compose_to_field([field_on(fixed, peak_mm=3), turn], fixed)
    centre = turn.map((fixed.affine @ [10, 10, 11, 1])[None, :3])[0]
    like = Volume(np.zeros((12, 12, 12)), affine_of(np.eye(3), (0, 0, 0), centre - 6))
    back = field.inverse(like)
    assert back.residual_mm is not None
    assert back.residual_mm < 0.01
    np.testing.assert_allclose(field.map(back.map(centre[None])), centre[None], atol=0.05)


def test_in_a_fold_one_of_the_places_is_found():
    fixed = fixed_on("RAS")
    vectors = np.zeros((*fixed.shape, 3), np.float32)
    vectors[..., 0] = 6 * np.sin(np.arange(20) * 1.2)[:, None, None]
    field = DisplacementField(vectors, fixed.affine)
    back = field.inverse(fixed)
    assert back.residual_mm is not None
    assert back.residual_mm < 0.01
    inner = (np.random.default_rng(0).integers(4, 16, (50, 3)) * 2.0) + fixed.affine[:3, 3]  # voxel centres, 2 mm apart
    np.testing.assert_allclose(field.map(back.map(inner)), inner, atol=0.02)


def test_a_field_that_misses_points_says_that_it_has_no_inverse():
    fixed = fixed_on("RAS")
    vectors = np.zeros((*fixed.shape, 3), np.float32)
    vectors[..., 0] = -2.0 * (np.arange(20) - 9.5)[:, None, None]  # all points are mapped onto one plane
    with pytest.warns(VolumeWarning, match="too steep"):
        assert DisplacementField(vectors, fixed.affine).inverse(fixed).residual_mm > 0.1


def test_a_composite_is_inverted_part_by_part(moving):
    fixed = fixed_on("LAS")
    both = CompositeTransform((field_on(fixed, peak_mm=3), TILT))
    like = Volume(np.zeros(fixed.shape), TILT.matrix @ fixed.affine)
    back = invert(both, like)
    points = np.random.default_rng(3).uniform(6, 14, (20, 3)) @ fixed.affine[:3, :3].T + fixed.affine[:3, 3]
    np.testing.assert_allclose(back.map(both.map(points)), points, atol=0.2)
    np.testing.assert_allclose(invert(TILT, like).map(TILT.map(points)), points)


def test_points_outside_the_field_have_no_image():
    field = field_on(fixed_on("RAS"))
    assert np.isnan(field.map(np.array([[500.0, 0, 0]]))).all()


@pytest.mark.parametrize(
    ("vectors", "affine", "said"),
    [
        (np.zeros((2, 2, 3)), np.eye(4), r"must have shape \(D, H, W, 3\)"),
        (np.zeros((3, 2, 2, 2)), np.eye(4), r"must have shape \(D, H, W, 3\)"),
        (np.full((2, 2, 2, 3), np.nan), np.eye(4), "must be finite"),
        (np.zeros((2, 2, 2, 3)), np.zeros((4, 4)), "affine must be"),
    ],
)
def test_what_is_no_field_is_refused(vectors, affine, said):
    with pytest.raises(ValueError, match=said):
        DisplacementField(vectors, affine)


@pytest.mark.parametrize("matrix", [np.zeros((4, 4)), np.eye(3), np.full((4, 4), np.inf)])
def test_what_is_no_affine_is_refused(matrix):
    with pytest.raises(ValueError, match="matrix must be"):
        AffineTransform(matrix)


def test_broken_transform_files_give_one_clear_line(tmp_path, capfd):
    field = field_on(fixed_on("LAS"))
    for name, transform in (("f.nii.gz", field), ("f.h5", field), ("a.mat", TILT), ("a.txt", TILT)):
        write_transform(tmp_path / name, transform)
        whole = (tmp_path / name).read_bytes()
        cut = {"half": whole[: len(whole) // 2], "cut": whole[:-30]}
        for part, content in {**cut, "empty": b"", "text": b"hello " * 50}.items():
            path = tmp_path / f"{part}_{name}"
            path.write_bytes(content)
            with pytest.raises(ValueError, match=path.name) as caught:
                read_transform(path)
            assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # the HDF5 library would print pages
    with pytest.raises(FileNotFoundError, match=r"no such transform file: .*none.h5"):
        read_transform(tmp_path / "none.h5")


def test_an_image_is_no_transform_and_an_affine_no_nifti(tmp_path):
    write_volume(tmp_path / "image.nii.gz", fixed_on("RAS"))
    with pytest.raises(ValueError, match="must be a displacement field of shape"):
        read_transform(tmp_path / "image.nii.gz")
    (tmp_path / "a.xfm").write_text("x")
    with pytest.raises(ValueError, match=r"ends in .nii, .nii.gz, .h5, .mat, .txt, .tfm or .lta, got a.xfm"):
        read_transform(tmp_path / "a.xfm")
    with pytest.raises(ValueError, match=r"cannot hold this AffineTransform: use .h5 for any"):
        write_transform(tmp_path / "a.nii.gz", TILT)


def test_a_sheared_grid_is_not_written_for_itk(tmp_path):
    sheared = np.eye(4)
    sheared[0, 1] = 0.2
    field = DisplacementField(np.zeros((2, 2, 2, 3)), sheared)
    for name in ("f.nii.gz", "f.h5"):
        with pytest.raises(ValueError, match="perpendicular"):
            write_transform(tmp_path / name, field)


def test_published_affines_are_read(shared_data):
    folder = shared_data / "mri_ms_multimodal/raw/patient01"
    for path in sorted(folder.glob("*.txt")):
        if "licen" in path.name.lower() or "Transform" not in path.read_text():
            continue
        ours = read_transform(path)
        theirs = sitk.ReadTransform(str(path))
        point = np.array([10.0, -20.0, 30.0])
        np.testing.assert_allclose(
            ours.map(point[None])[0] * [-1, -1, 1], theirs.TransformPoint(tuple(point * [-1, -1, 1])), atol=1e-3
        )
