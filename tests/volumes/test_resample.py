"""An image on another grid has the right values, positions and types."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.processing import resample_from_to

from voxelwave.volumes import AffineTransform, DisplacementField, Volume, VolumeWarning, read_volume, resample


@pytest.fixture
def image():
    values = np.random.default_rng(0).integers(-50, 1000, (7, 8, 9)).astype(np.int16)
    return Volume(values, np.array([[0, -0.3, 2.0, 5], [1.5, 0, 0, -7], [0, 1.9, 0.4, 3], [0, 0, 0, 1]]))


@pytest.mark.parametrize("order", ["linear", "nearest"])
def test_the_own_grid_leaves_the_image(image, order):
    same = resample(image, image, order=order)
    np.testing.assert_allclose(same.array, image.array, atol=2e-3)  # coordinates in single precision, steps of 1000
    assert np.array_equal(same.affine, image.affine)


@pytest.mark.parametrize(("order", "number"), [("linear", 1), ("nearest", 0)])
def test_inside_the_image_nibabel_agrees(image, order, number):
    like = Volume(np.zeros((6, 6, 6)), np.array([[1.1, 0, 0.2, 5], [0, 1.2, 0, -6], [-0.2, 0, 1.3, 4], [0, 0, 0, 1]]))
    theirs = resample_from_to(nib.Nifti1Image(image.array, image.affine), (like.shape, like.affine), number, cval=-9999)
    inner = np.asarray(theirs.dataobj) > -1000
    ours = resample(image, like, order=order).array
    assert inner.sum() > 30
    assert np.abs(ours - np.asarray(theirs.dataobj, np.float64))[inner].max() <= 1  # nibabel rounds to int16


def test_labels_keep_their_type_and_their_values(image):
    labels = image.with_array(np.array([0, 3, 2_000_000_011], np.int64)[np.abs(image.array) % 3])
    moved = resample(labels, Volume(np.zeros((5, 5, 5)), image.affine + 0.1 * np.eye(4, 4, 3)), order="nearest")
    assert moved.array.dtype == np.int64
    assert set(np.unique(moved.array)) <= {0, 3, 2_000_000_011}


@pytest.mark.parametrize(
    ("dtype", "becomes"), [("int16", "float32"), ("uint8", "float32"), ("int32", "float64"), ("float64", "float64")]
)
def test_linear_values_are_not_rounded_to_whole_numbers(image, dtype, becomes):
    assert resample(image.with_array(np.abs(image.array).astype(dtype) // 5), image).array.dtype == np.dtype(becomes)


def test_whole_numbers_beyond_single_precision_stay_exact(image):
    large = image.with_array(np.full(image.array.shape, 2**24 + 1, np.int32))
    assert (resample(large, image).array == 2**24 + 1).all()


def test_outside_the_image_is_zero(image):
    far = image.affine.copy()
    far[:3, 3] += 500
    assert not resample(image, Volume(image.array, far)).array.any()


def test_a_series_is_moved_volume_by_volume(image):
    like = Volume(np.zeros((4, 5, 6)), image.affine)
    series = image.with_array(np.stack([image.array, 2 * image.array, image.array[::-1]], axis=-1))
    moved = resample(series, like).array
    assert moved.shape == (4, 5, 6, 3)
    for number in range(3):
        one = resample(image.with_array(series.array[..., number]), like).array
        np.testing.assert_array_equal(moved[..., number], one)


def test_a_shift_by_a_transform_is_a_shift_of_the_grid(image):
    shift = np.eye(4)
    shift[:3, 3] = 1.5, -2, 0.7
    by_transform = resample(image, image, AffineTransform(shift)).array
    by_grid = resample(image, Volume(image.array, shift @ image.affine)).array
    np.testing.assert_allclose(by_transform, by_grid, atol=1e-3)
    vectors = np.broadcast_to(shift[:3, 3], (*image.shape, 3))
    np.testing.assert_allclose(
        resample(image, image, DisplacementField(vectors, image.affine)).array, by_grid, atol=1e-3
    )


def test_voxels_outside_the_field_are_zero_and_counted(image):
    small = DisplacementField(np.zeros((3, 8, 9, 3)), image.affine)
    with pytest.warns(VolumeWarning, match=f"{4 * 72} of {7 * 72} voxels lie outside"):
        moved = resample(image, image, small).array
    assert not moved[3:].any()
    np.testing.assert_allclose(moved[:3], image.array[:3], atol=2e-3)


def test_pieces_give_what_the_whole_gives(image, monkeypatch):
    like = Volume(np.zeros((11, 6, 5)), image.affine)
    whole = resample(image, like).array
    monkeypatch.setattr("voxelwave.volumes.sampling._BLOCK", 40)
    np.testing.assert_array_equal(resample(image, like).array, whole)


def test_one_slice_is_an_image_too():
    slab = Volume(np.full((4, 4, 1), 7.0), np.diag([1.0, 1.0, 5.0, 1.0]))
    assert (resample(slab, Volume(np.zeros((4, 4, 5)), np.diag([1.0, 1.0, 1.0, 1.0]))).array[..., :2] == 7).all()


def test_another_order_is_refused(image):
    with pytest.raises(ValueError, match='order must be "linear", "nearest" or "cubic", got "quintic"'):
        resample(image, image, order="quintic")


def test_a_diffusion_scan_lands_on_the_t1_of_the_same_person(shared_data):
    folder = shared_data / "mri_t1_dwi/sub-xa30"
    t1 = read_volume(folder / "anat/sub-xa30_T1w.nii.gz")
    b0 = read_volume(folder / "dwi/sub-xa30_dir-PA_TENSORB0.nii.gz")
    moved = resample(b0, t1).array
    brain = moved > 0.3 * np.percentile(moved, 98)
    # the diffusion signal lies over heads, not over air
    assert t1.array[brain].mean() > 3 * t1.array[~brain].mean()


def test_cubic_is_closer_than_linear_and_exact_on_the_grid():
    """Compared with the formula of a smooth image."""

    def wave(x: np.ndarray) -> np.ndarray:
        return np.sin(x / 2.0)

    x = np.arange(30.0)
    image = Volume(np.broadcast_to(wave(x)[:, None, None], (30, 5, 5)).copy(), np.eye(4))
    between = np.eye(4)
    between[0, 3] = 0.5
    like = Volume(np.zeros((20, 5, 5)), np.diag([1.0, 1, 1, 1]) @ between)
    inner = slice(4, 16)
    errors = {
        order: np.abs(resample(image, like, order=order).array[inner, 2, 2] - wave(x[:20] + 0.5)[inner]).max()
        for order in ("linear", "cubic")
    }
    assert errors["cubic"] < 0.1 * errors["linear"]
    np.testing.assert_allclose(resample(image, image, order="cubic").array, image.array, atol=1e-6)


def test_cubic_refuses_values_that_are_not_finite():
    array = np.ones((4, 4, 4), np.float32)
    array[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="cubic interpolation needs finite values"):
        resample(Volume(array, np.eye(4)), Volume(array, np.eye(4)), order="cubic")
