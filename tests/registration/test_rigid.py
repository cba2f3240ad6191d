"""Rigid alignment of two scans of one person, and the stages for a pair of T1w and diffusion."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from voxelwave.registration.acquisition import Acquisition, PairFacts
from voxelwave.registration.register import register
from voxelwave.registration.rigid import MOST_MM, affine_candidate, align_one_subject, motion_of, slab_normal
from voxelwave.registration.series import reference_image
from voxelwave.registration.settings import RegistrationSettings
from voxelwave.registration.stages import align_in_stages, works_on_moving
from voxelwave.volumes import AffineTransform, Volume, read_volume, resample

SESSION = PairFacts("session", Acquisition("t1"), Acquisition("b0", "j"))


def head_pair(shape=(52, 60, 44), mm=3.0):
    """A head with folded tissue, in two contrasts on one grid."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*[np.linspace(-1.3, 1.3, n) for n in shape], indexing="ij")
    inside = sum((a * s) ** 2 for a, s in zip(axes, (1.15, 1.0, 1.1), strict=True)) < 1
    tissue = gaussian_filter(rng.normal(size=shape), 1.5)
    first = gaussian_filter(inside * (2 + tissue / tissue.std() * 0.6), 0.5)
    second = inside * (4 - first) + rng.normal(size=shape) * 0.05
    affine = np.diag([-mm, mm, mm, 1.0])
    affine[:3, 3] = [mm * shape[0] / 2, -mm * shape[1] / 2, -mm * shape[2] / 2]
    return Volume(first.astype(np.float32), affine), Volume(second.astype(np.float32), affine)


def motion(degrees: float, mm: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", [degrees, -degrees / 2, degrees / 2], degrees=True).as_matrix()
    matrix[:3, 3] = [mm, -mm / 2, mm]
    return matrix


def moved(image: Volume, matrix: np.ndarray) -> Volume:
    """The same image in another world, which the matrix maps to its own."""
    return Volume(image.array, np.linalg.inv(matrix) @ image.affine)


def distance_mm(found: np.ndarray, true: np.ndarray) -> float:
    corners = 60 * np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)
    return float(np.linalg.norm(AffineTransform(found).map(corners) - AffineTransform(true).map(corners), axis=1).max())


def test_a_small_motion_is_found_and_the_identity_is_kept():
    first, second = head_pair()
    true = motion(5, 6)
    found, tried = align_one_subject(first, moved(second, true))
    assert distance_mm(found, true) < 1.0
    assert any(candidate.kept for candidate in tried)
    found, _ = align_one_subject(first, second)
    np.testing.assert_array_equal(found, np.eye(4))


def test_a_slab_is_not_shrunk_and_hardly_moves_where_it_shows_nothing():
    first, second = head_pair()
    slab = Volume(
        second.array[:, :, 12:22], second.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 12], [0, 0, 0, 1.0]])
    )
    true = motion(2, 3)
    found, _ = align_one_subject(first, moved(slab, true))
    np.testing.assert_allclose(np.linalg.svd(found[:3, :3], compute_uv=False), 1, atol=1e-9)
    assert distance_mm(found, true) < 2.5


def test_no_session_moves_a_head_by_half_a_metre():
    """For noise and a head, the motion that is found stays within the range of a head's motion."""
    first, second = head_pair()
    noise = second.with_array(np.random.default_rng(3).normal(size=second.shape).astype(np.float32))
    found, _ = align_one_subject(first, noise)
    degrees, mm = motion_of(found, np.zeros(3))
    assert mm <= MOST_MM + 5
    assert degrees <= 20


def test_a_lost_origin_is_found_again():
    first, second = head_pair()
    far = np.eye(4)
    far[:3, 3] = [300, -200, 100]
    found, _ = align_one_subject(first, moved(second, far))
    assert distance_mm(found, far) < 1.5


def test_the_work_is_done_on_the_diffusion_image_whichever_is_moved():
    first, second = head_pair()
    assert not works_on_moving(first, second, SESSION)
    assert works_on_moving(second, first, PairFacts("session", SESSION.fixed, SESSION.moving))
    half = Volume(second.array[:26], second.affine)
    assert works_on_moving(half, first, PairFacts("session")) != works_on_moving(first, half, PairFacts("session"))


def along_j(image: Volume, peak_mm: float) -> tuple[Volume, np.ndarray]:
    """An image with a smooth shift along its second axis, and the shift in mm."""
    shift = gaussian_filter(np.random.default_rng(5).normal(size=image.shape), 6)
    shift *= peak_mm / np.abs(shift).max()
    grid = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in image.shape], indexing="ij"))
    grid[1] += shift / image.spacing[1]
    points = np.moveaxis(grid, 0, -1).reshape(-1, 3)
    return image.with_array(map_coordinates(image.array, points.T, order=1).reshape(image.shape)), shift


@pytest.mark.slow
def test_a_distortion_along_the_phase_encoding_axis_is_found_and_moves_nothing_else():
    first, second = head_pair()
    distorted, shift = along_j(second, 8.0)
    result = align_in_stages(first, distorted, RegistrationSettings(), SESSION)
    kept = [stage.name for stage in result.stages if stage.kept]
    assert kept[-1] == "distortion along the phase-encoding axis"
    inside = distorted.array > 1
    rest = result.forward.vectors_mm - (
        AffineTransform(result.linear.matrix).map(grid_points(distorted)) - grid_points(distorted)
    ).reshape(*distorted.shape, 3)
    assert np.abs(rest[..., [0, 2]]).max() < 0.02 * np.abs(rest[..., 1]).max() + 0.3
    error = np.abs(result.forward.vectors_mm[..., 1] - shift)[inside].mean()
    assert error < 0.5 * np.abs(shift)[inside].mean()


def grid_points(image: Volume) -> np.ndarray:
    index = np.stack(np.meshgrid(*[np.arange(n) for n in image.shape], indexing="ij"), axis=-1).reshape(-1, 3)
    return index @ image.affine[:3, :3].T + image.affine[:3, 3]


@pytest.mark.slow
def test_swapping_the_images_inverts_the_map():
    first, second = head_pair()
    distorted, _ = along_j(second, 6.0)
    settings = RegistrationSettings(transform="deformable")
    there = register(first, distorted, settings, facts=SESSION)
    back = register(distorted, first, settings, facts=PairFacts("session", SESSION.fixed, SESSION.moving))
    inside = (distorted.array > 1).ravel()
    points = grid_points(distorted)[inside]
    returned = back.forward.map(there.forward.map(points))
    assert np.nanpercentile(np.linalg.norm(returned - points, axis=1), 99) < 0.3
    assert there.choice.similarity == "context"
    assert str(there.choice).startswith("kept: ")


@pytest.mark.slow
def test_a_pair_without_distortion_keeps_the_scanners_geometry():
    first, second = head_pair()
    result = register(first, second, RegistrationSettings(), facts=SESSION)
    assert not any(stage.kept for stage in result.choice.stages)
    assert str(result.choice).startswith("kept: the geometry of the scanner; ")
    np.testing.assert_array_equal(result.warped.array, resample(first, second).array)


@pytest.mark.slow
@pytest.mark.parametrize("turned", [False, True])
def test_the_slab_of_a_real_session_stays_rigid_and_within_a_few_millimetres(shared_data, turned):
    """T1w and a tilted slab of 20 slices: an affine fit shrank it by 2.6 %, and the fit of the slab to T1w diverged."""
    folder = shared_data / "mri_t1_dwi/sub-uih1"
    series = folder / "dwi" / "sub-uih1_acq-rot_dir-PA_dwi.nii.gz"
    t1 = read_volume(folder / "anat" / "sub-uih1_T1w.nii.gz")
    b0 = reference_image(read_volume(series), series)
    facts = PairFacts("session", Acquisition("t1"), Acquisition("b0"))
    images = (b0, t1) if turned else (t1, b0)
    facts = replace(facts, moving=facts.fixed, fixed=facts.moving) if turned else facts
    result = register(*images, RegistrationSettings(), facts=facts)
    np.testing.assert_allclose(np.linalg.svd(result.affine[:3, :3], compute_uv=False), 1, atol=1e-9)
    degrees, mm = motion_of(result.affine, np.zeros(3))
    assert degrees < 2
    assert mm < 6


def test_a_slab_has_a_normal_and_a_head_has_none():
    first, second = head_pair()
    below = np.eye(4)
    below[2, 3] = 12
    slab = Volume(second.array[:, :, 12:22], second.affine @ below)
    assert slab_normal(first) is None
    np.testing.assert_allclose(slab_normal(slab), [0, 0, 1])


def test_an_affine_fit_to_a_slab_keeps_the_length_along_its_normal():
    first, second = head_pair()
    below = np.eye(4)
    below[2, 3] = 12
    slab = Volume(second.array[:, :, 12:22], second.affine @ below)
    wide = np.diag([1.06, 1.06, 1.0, 1.0])
    found = affine_candidate(first, moved(slab, wide), np.eye(4))
    assert found.kept
    normal = found.matrix[:3, :3] @ np.array([0.0, 0, 1])
    assert np.linalg.norm(normal) == pytest.approx(1, abs=1e-6)
    assert np.linalg.norm(found.matrix[:3, 0]) == pytest.approx(1.06, abs=0.02)
