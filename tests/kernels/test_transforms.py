"""The compiled transforms agree with the plain versions in `volumes`, for any shape, level and number of threads."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from voxelwave.kernels import native, transforms
from voxelwave.volumes import AffineTransform, CompositeTransform, DisplacementField, Volume, VolumeWarning, resample

pytestmark = pytest.mark.skipif(not native.levels(), reason="the compiled kernels were not built")

OBLIQUE = np.array([[0.1, 1.9, 0.2, -9.0], [-1.5, 0.2, 0.3, 12.0], [0.2, -0.3, 2.5, -20.0], [0, 0, 0, 1]])
SHIFTED = np.array([[1.4, 0, 0, -8.0], [0, 1.6, 0, -6.0], [0, 0, -2.0, 15.0], [0, 0, 0, 1]])
TURN = AffineTransform(np.array([[0.9, -0.3, 0, 2.0], [0.3, 0.95, 0.1, -1.0], [0, -0.1, 1.05, 3.0], [0, 0, 0, 1]]))


@pytest.fixture(params=native.levels() or ("none",))
def level(request):
    with native.use_level(request.param):
        yield request.param


def field(shape=(12, 11, 13), affine=OBLIQUE, size=3.0, seed=0):
    noise = np.random.default_rng(seed).standard_normal((*shape, 3)).astype(np.float32)
    smooth = gaussian_filter(noise, (2, 2, 2, 0))
    return DisplacementField(size * smooth / np.abs(smooth).max(), affine)


def image(shape=(10, 9, 14), affine=SHIFTED, dtype=np.float32):
    values = 100 * np.random.default_rng(1).random(shape)
    return Volume(values.astype(dtype), affine, background=-7.0)


def plain(monkeypatch, call):
    with monkeypatch.context() as without:
        without.setattr(transforms, "available", lambda: False)
        return call()


MAPS = {
    "grid": None,
    "affine": TURN,
    "field": field(),
    "chain": CompositeTransform((TURN, field(size=2.0), TURN.inverse())),
}


@pytest.mark.filterwarnings("ignore::voxelwave.volumes.VolumeWarning")
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("order", ["linear", "nearest"])
def test_reading_through_a_transform_agrees_with_the_plain_version(name, order, level, monkeypatch):
    moving, like = image(), Volume(np.empty((11, 12, 8)), OBLIQUE @ np.diag([0.9, 1.1, 1.3, 1]))
    found = resample(moving, like, MAPS[name], order=order)
    expected = plain(monkeypatch, lambda: resample(moving, like, MAPS[name], order=order))
    assert 0.1 < (expected.array == -7).mean() < 0.9  # some points lie outside
    close = np.isclose(found.array, expected.array, rtol=1e-4, atol=1e-3)
    assert close.mean() > (0.999 if order == "nearest" else 0.9999)  # rounding decides at the border and half-way


def test_voxels_outside_the_field_are_counted_alike(monkeypatch):
    moving, like = image(), Volume(np.empty((30, 12, 8)), OBLIQUE)

    def said():
        with pytest.warns(VolumeWarning, match="outside the displacement field") as warned:
            resample(moving, like, MAPS["field"])
        return str(warned[0].message)

    assert said() == plain(monkeypatch, said)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.int32, np.float64])
def test_the_own_grid_gives_the_same_numbers_of_any_type_and_shape(dtype, level):
    for shape in ((5, 6, 7), (1, 6, 7), (5, 1, 1), (4, 3, 5, 2)):
        values = np.random.default_rng(2).integers(0, 200, shape).astype(dtype)
        volume = Volume(values, OBLIQUE)
        for order in ("linear", "nearest"):
            found = resample(volume, volume, order=order).array
            exact = order == "nearest" or found.dtype == np.float32  # the plain version rounds in double precision
            assert np.array_equal(found, values) if exact else np.allclose(found, values, rtol=1e-12)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_inverse_takes_every_point_back(threads, level):
    forward, like = field(size=4.0), Volume(np.empty((10, 12, 9)), SHIFTED)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        backward = forward.inverse(like, tolerance_mm=1e-3)
    finally:
        torch.set_num_threads(before)
    assert backward.residual_mm < 1e-3
    points = np.argwhere(np.ones(like.shape)) @ SHIFTED[:3, :3].T + SHIFTED[:3, 3]
    found = points + backward.vectors_mm.reshape(-1, 3)
    returned = forward.map(found)
    voxels = (found - OBLIQUE[:3, 3]) @ np.linalg.inv(OBLIQUE[:3, :3]).T
    inner = ((voxels >= 0) & (voxels <= np.array(forward.shape) - 1)).all(axis=1)
    assert inner.sum() > 100
    # the map is sampled in single precision, with errors of about 1e-5 mm
    assert np.abs(returned - points)[inner].max() < 2e-3


def test_the_inverse_agrees_with_the_plain_version_and_does_not_depend_on_threads(level, monkeypatch):
    forward, like = field(size=4.0), Volume(np.empty((10, 12, 9)), SHIFTED)
    found = forward.inverse(like, tolerance_mm=1e-4)
    expected = plain(monkeypatch, lambda: forward.inverse(like, tolerance_mm=1e-4))
    np.testing.assert_allclose(found.vectors_mm, expected.vectors_mm, atol=2e-3)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert np.array_equal(forward.inverse(like, tolerance_mm=1e-4).vectors_mm, found.vectors_mm)
    finally:
        torch.set_num_threads(before)


def test_a_large_rotation_is_inverted(level):
    angle = np.deg2rad(75)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    waves = field(shape=(20, 20, 20), affine=np.diag([2.0, 2, 2, 1]), size=2.0)
    whole = DisplacementField.from_voxels(waves.to_voxels(), waves.affine, pre=AffineTransform(turned))
    like = Volume(np.empty((8, 8, 8)), np.diag([3.0, 3, 3, 1]) + np.array([[0, 0, 0, -12], *[[0] * 4] * 3]))
    assert whole.inverse(like, tolerance_mm=1e-3).residual_mm < 1e-3
