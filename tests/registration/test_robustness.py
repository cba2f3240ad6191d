"""Large motions, partial views and artefacts: a known motion is found, from the images alone."""

import itertools

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from voxelwave.registration.affine import align_affine
from voxelwave.registration.mirror import warn_if_mirrored
from voxelwave.volumes import AffineTransform, Volume, VolumeWarning, read_volume, resample

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def brain(shared_data) -> Volume:
    """A real brain at 3 mm."""
    with np.load(shared_data / "mri_t1_labels/voxelmorph_test_scan/test_scan.npz", allow_pickle=False) as file:
        image = gaussian_filter(file["vol"].astype(np.float32), 1.2)[1::3, 1::3, 1::3]
    # the axes of the array point to the left, to the feet and to the front
    affine = np.array([[-3.0, 0, 0, 80], [0, 0, 3, -112], [0, -3, 0, 96], [0, 0, 0, 1]])
    return Volume(np.ascontiguousarray(100 * image), affine)


def motion(brain: Volume, degrees: float, axis: int, shift=(5.0, -8.0, 3.0)) -> np.ndarray:
    """A turn about an axis of the world through the middle of the grid, and a shift in mm."""
    angle = np.deg2rad(degrees)
    first, second = (k for k in range(3) if k != axis)
    world = np.eye(4)
    world[first, first] = world[second, second] = np.cos(angle)
    world[first, second], world[second, first] = -np.sin(angle), np.sin(angle)
    middle = brain.affine[:3] @ [*(np.array(brain.shape) - 1) / 2, 1]
    world[:3, 3] = middle - world[:3, :3] @ middle + shift
    return world


def moved(brain: Volume, world: np.ndarray) -> Volume:
    """The brain after a motion, on an upright grid that holds all of it."""
    corners = np.array(list(itertools.product((0, 1), repeat=3))) * (np.array(brain.shape) - 1)
    points = (world @ brain.affine @ np.c_[corners, np.ones(8)].T)[:3]
    low, high = points.min(axis=1), points.max(axis=1)
    affine = np.diag([3.0, 3, 3, 1])
    affine[:3, 3] = low
    grid = Volume(np.broadcast_to(np.float32(0), tuple(np.ceil((high - low) / 3).astype(int) + 1)), affine)
    return resample(brain, grid, AffineTransform(world).inverse())


def cut(volume: Volume, axis: int, start: int, stop: int) -> Volume:
    affine = volume.affine.copy()
    affine[:3, 3] += start * affine[:3, axis]
    return Volume(np.ascontiguousarray(volume.array.take(range(start, stop), axis)), affine)


def error_mm(found: np.ndarray, true: np.ndarray, brain: Volume) -> float:
    """The mean distance inside the brain."""
    voxels = np.argwhere(brain.array > 10)[::29]
    points = np.c_[voxels, np.ones(len(voxels))] @ brain.affine.T
    return float(np.linalg.norm((points @ (found - true).T)[:, :3], axis=1).mean())


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("degrees", [15, 30, 60, 90])
def test_turns_about_each_axis(brain, degrees, axis):
    true = motion(brain, degrees, axis)
    assert error_mm(align_affine(moved(brain, true), brain, kind="rigid"), true, brain) < 0.3


@pytest.mark.parametrize("shift", [40.0, 210.0])
def test_shifts_beyond_the_head(brain, shift):
    true = motion(brain, 5, 0, (shift, 0, 0))
    assert error_mm(align_affine(moved(brain, true), brain, kind="rigid"), true, brain) < 0.3


def _left_half(image):
    return cut(image, 0, 0, image.shape[0] // 2)


def _top_half(image):
    return cut(image, 2, image.shape[2] // 2, image.shape[2])


def _bottom_half(image):
    return cut(image, 2, 0, image.shape[2] // 2)


def _thick_slices(image):
    n = image.shape[2] // 2
    pairs = image.array[:, :, : 2 * n].reshape(*image.shape[:2], n, 2).mean(axis=3)
    affine = image.affine @ np.diag([1.0, 1, 2, 1])
    affine[:3, 3] += 0.5 * image.affine[:3, 2]
    return Volume(np.ascontiguousarray(pairs), affine)


def _bias_field(image):
    return image.with_array(image.array * np.exp(0.6 * np.linspace(-1, 1, image.shape[1]))[:, None].astype(np.float32))


def _noise(image):
    noise = np.random.default_rng(0).standard_normal(image.shape, dtype=np.float32)
    return image.with_array(image.array + 0.2 * image.array.max() * noise)


def _block(image, value):
    array = image.array.copy()
    d, h, w = (n // 3 for n in image.shape)
    array[d : d + 12, h : h + 12, w : w + 12] = value
    return image.with_array(array)


DAMAGES = {
    "left half": (_left_half, 0.5),
    "top half": (_top_half, 0.5),
    "bottom half": (_bottom_half, 0.5),
    "slices of 6 mm": (_thick_slices, 0.5),
    "bias field": (_bias_field, 1.0),
    "noise of 20 %": (_noise, 0.6),
    "hole": (lambda image: _block(image, 0.0), 0.5),
    "bright tumour": (lambda image: _block(image, 200.0), 0.5),
    "inverted contrast": (lambda image: image.with_array(np.where(image.array > 5, 105 - image.array, 0)), 0.5),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_partial_views_and_artefacts(brain, name):
    damage, at_most = DAMAGES[name]
    true = motion(brain, 10, 1, (5, 5, 5))
    assert error_mm(align_affine(damage(moved(brain, true)), brain, kind="rigid"), true, brain) < at_most


def test_a_scan_without_its_skull_finds_the_head(shared_data):
    folder = shared_data / "mri_t1_labels/mrtrix_sub-01"
    head, mask = read_volume(folder / "native_T1w.nii.gz"), read_volume(folder / "native_brainmask.nii.gz")
    stripped = head.with_array(head.array * (mask.array > 0))
    true = motion(head, 12, 0)
    assert error_mm(align_affine(moved(stripped, true), head, kind="rigid"), true, stripped) < 1.0
    assert error_mm(align_affine(moved(head, true), stripped, kind="rigid"), true, stripped) < 1.0


def test_exchanged_sides_are_noticed_and_right_ones_are_not(brain, recwarn):
    true = motion(brain, 8, 2)
    straight = moved(brain, true)
    warn_if_mirrored(straight, brain, true, kind="rigid")
    assert not recwarn.list
    wrong = Volume(np.ascontiguousarray(straight.array[::-1]), straight.affine)  # the header's x axis is reversed
    found = align_affine(wrong, brain, kind="affine")
    with pytest.warns(VolumeWarning, match="left and right may be exchanged"):
        warn_if_mirrored(wrong, brain, found, kind="affine")
