"""2-D images: a known motion and a known deformation are found, whatever the plane and the scale."""

import importlib

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from voxelwave.registration.planar import is_planar
from voxelwave.registration.register import register
from voxelwave.registration.settings import RegistrationSettings
from voxelwave.volumes import Volume

SHAPE = (120, 100)


def slice_of_tissue() -> np.ndarray:
    """A textured disc."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(*[np.linspace(-1.3, 1.3, n) for n in SHAPE], indexing="ij")
    texture = gaussian_filter(rng.standard_normal(SHAPE), 3)
    return ((x**2 + 1.4 * y**2 < 1) * (1 + 4 * texture)).astype(np.float32)


def read_at(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    return map_coordinates(image, points, order=1).astype(np.float32)


def turned(degrees: float) -> np.ndarray:
    """(2, A, B): where the moved slice reads the original, in pixels."""
    angle = np.deg2rad(degrees)
    middle = (np.array(SHAPE)[:, None, None] - 1) / 2
    x, y = np.indices(SHAPE) - middle
    return np.stack([np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y]) + middle + 3


def as_volume(image: np.ndarray, axis: int, spacing: float) -> Volume:
    order = [k for k in range(3) if k != axis]
    affine = np.zeros((4, 4))
    affine[order[0], order[0]], affine[order[1], order[1]] = spacing, -spacing
    affine[axis, axis], affine[3, 3] = 5 * spacing, 1
    affine[:3, 3] = (7, -2, 4)
    return Volume(np.expand_dims(image, axis), affine)


@pytest.mark.parametrize(("axis", "spacing"), [(2, 1.0), (0, 0.002)])  # a slice of a head, and microscopy
@pytest.mark.parametrize("degrees", [20, 100])
def test_a_turn_is_found(axis, spacing, degrees):
    fixed_image = slice_of_tissue()
    moving, fixed = (as_volume(im, axis, spacing) for im in (read_at(fixed_image, turned(degrees)), fixed_image))
    result = register(moving, fixed, RegistrationSettings(transform="rigid"))
    inside = np.expand_dims(fixed_image > 0.3, axis)
    away = np.abs(result.warped.array - fixed.array)[inside].mean()
    assert away < 0.12 * fixed_image[fixed_image > 0.3].std()
    # forward and inverse undo each other, in pixels
    points = np.argwhere(inside)[::50] @ fixed.affine[:3, :3].T + fixed.affine[:3, 3]
    back = result.inverse.map(result.forward.map(points))
    known = np.isfinite(back[:, 0])
    assert known.mean() > 0.9
    assert np.abs(back - points)[known].max() < 0.1 * spacing
    # a single file is inverted as well
    again = result.forward.inverse(moving, tolerance_mm=0.01 * spacing).map(result.forward.map(points))
    assert np.nanmax(np.abs(again - points)) < 0.1 * spacing
    np.testing.assert_allclose(result.forward.linear_part().map(points), result.forward.map(points), atol=1e-3)


def test_an_alignment_of_slices_is_judged_and_a_right_one_raises_no_doubt(monkeypatch):
    fixed_image = slice_of_tissue()
    settings = RegistrationSettings(transform="rigid")
    moving, fixed = (as_volume(image, 2, 1.0) for image in (read_at(fixed_image, turned(20)), fixed_image))
    assert register(moving, fixed, settings).doubt == ""
    module = importlib.import_module("voxelwave.registration.register")
    monkeypatch.setattr(module, "doubt_about", lambda *_: "different objects")
    assert register(moving, fixed, settings).doubt == "different objects"


def test_a_deformation_is_found():
    fixed_image = slice_of_tissue()
    x, y = np.indices(SHAPE)
    bend = np.stack([3 * np.sin(y / 16), 3 * np.cos(x / 18)])
    moving, fixed = (as_volume(im, 1, 1.0) for im in (read_at(fixed_image, np.indices(SHAPE) + bend), fixed_image))
    result = register(moving, fixed, RegistrationSettings(similarity="ncc"))
    inside = np.expand_dims(fixed_image > 0.3, 1)

    def apart(values):
        return np.abs(values - fixed.array)[inside].mean()

    assert apart(result.warped.array) < 0.35 * apart(moving.array)
    assert result.metrics["jacobian_min"] > 0
    assert not result.forward.vectors_mm[..., 1].any()  # nothing moves across the plane


def test_a_slice_and_a_volume_are_not_aligned():
    one = as_volume(slice_of_tissue(), 2, 1.0)
    with pytest.raises(ValueError, match="is a single slice, so the other image must be one too"):
        register(one, Volume(np.random.default_rng(0).random((20, 20, 20)), np.eye(4)))
    assert is_planar(one)
    assert not is_planar(Volume(np.zeros((1, 1, 9)), np.eye(4)))


def test_the_thickness_and_direction_of_slices_are_no_part_of_the_map():
    image = slice_of_tissue()
    fixed = Volume(image[:, :, None], np.diag([1.0, 1, 5, 1]))
    moving = Volume(read_at(image, turned(20))[:, :, None], np.diag([1.0, 1, -3, 1]))
    result = register(moving, fixed, RegistrationSettings(transform="rigid"))
    np.testing.assert_allclose(result.affine[:3, :3] @ result.affine[:3, :3].T, np.eye(3), atol=1e-9)
    assert np.linalg.det(result.affine) == pytest.approx(1)


def test_slices_in_other_planes_are_inverted_too():
    """A picture against a sagittal slice: the map turns one plane into the other."""
    image = slice_of_tissue()
    fixed, moving = as_volume(image, 0, 1.0), as_volume(read_at(image, turned(10)), 2, 1.0)
    result = register(moving, fixed, RegistrationSettings(transform="rigid"))
    points = np.argwhere(np.expand_dims(image > 0.3, 0))[::50] @ fixed.affine[:3, :3].T + fixed.affine[:3, 3]
    moved = result.forward.map(points)
    np.testing.assert_allclose(result.forward.linear_part().map(points), moved, atol=1e-3)
    again = result.forward.inverse(moving, tolerance_mm=0.01).map(moved)
    assert np.nanmax(np.abs(again - points)) < 0.1
