"""b0, mean DWI and FA from a series with known tensors, and b-vectors that rotate with the head."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from voxelwave.registration.diffusion import (
    fractional_anisotropy,
    mean_b0,
    mean_dwi,
    read_gradients,
    rotate_bvecs,
    write_bvecs,
)
from voxelwave.volumes import Volume

BVALS = np.array([0.0, *[1000.0] * 12, 5.0])
RNG = np.random.default_rng(0)
BVECS = RNG.normal(size=(14, 3))
BVECS /= np.linalg.norm(BVECS, axis=1, keepdims=True)
BVECS[[0, 13]] = 0


def turn(degrees: float, axis: int) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    i, j = [a for a in range(3) if a != axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix


def signal(tensor: np.ndarray, directions: np.ndarray = BVECS) -> np.ndarray:
    return 900 * np.exp(-BVALS * np.einsum("ti,ij,tj->t", directions, tensor, directions))


def test_mean_b0_and_mean_dwi_take_their_volumes() -> None:
    series = Volume(np.broadcast_to(np.arange(14.0), (2, 3, 4, 14)).copy(), np.eye(4))
    assert mean_b0(series, BVALS).array[0, 0, 0] == (0 + 13) / 2
    assert mean_dwi(series, BVALS).array[0, 0, 0] == np.mean(np.arange(1, 13))
    with pytest.raises(ValueError, match="bvals must have a volume with b <= 50"):
        mean_b0(series, np.full(14, 1000.0))
    with pytest.raises(ValueError, match=r"series must have shape \(D, H, W, 3\)"):
        mean_b0(series, np.zeros(3))


@pytest.mark.parametrize("eigenvalues", [(1.7e-3, 0.3e-3, 0.3e-3), (1e-3, 1e-3, 1e-3), (1.2e-3, 0.9e-3, 0.2e-3)])
def test_fa_of_a_known_tensor(eigenvalues: tuple[float, float, float]) -> None:
    axes = turn(33, 0) @ turn(-50, 2)
    tensor = axes @ np.diag(eigenvalues) @ axes.T
    series = Volume(np.broadcast_to(signal(tensor), (2, 2, 2, 14)).copy(), np.eye(4))
    spread = np.array(eigenvalues) - np.mean(eigenvalues)
    expected = np.sqrt(1.5 * np.sum(spread**2) / np.sum(np.square(eigenvalues)))
    np.testing.assert_allclose(fractional_anisotropy(series, BVALS, BVECS).array, expected, atol=1e-5)


def test_fa_needs_six_directions() -> None:
    series = Volume(np.ones((2, 2, 2, 4)), np.eye(4))
    with pytest.raises(ValueError, match="six directions"):
        fractional_anisotropy(series, BVALS[:4], BVECS[:4])


def test_fa_agrees_with_the_scanner(shared_data: Path) -> None:
    folder = shared_data / "mri_t1_dwi/sub-xa30/dwi"
    image = nib.load(folder / "sub-xa30_dir-PA_dwi.nii.gz")
    series = Volume(np.asarray(image.dataobj, np.float32), image.affine)
    gradients = read_gradients(folder / "sub-xa30_dir-PA_dwi.bval", folder / "sub-xa30_dir-PA_dwi.bvec")
    ours = fractional_anisotropy(series, *gradients).array
    scanner = nib.load(folder / "sub-xa30_dir-PA_FA.nii.gz").get_fdata() / 1000
    b0 = mean_b0(series, gradients[0]).array
    inside = (scanner > 0) & (b0 > 0.15 * np.percentile(b0, 99))
    assert np.corrcoef(ours[inside], scanner[inside])[0, 1] > 0.998
    assert np.median(np.abs(ours[inside] - scanner[inside])) < 0.003


def test_rotating_the_head_and_its_table_leaves_the_tensor_fit_unchanged() -> None:
    """The signal of a rotated head, fitted with rotated b-vectors, gives the rotated tensor in the world."""
    moving_affine = np.diag([-2.0, 2, 3, 1])
    moving_affine[:3, :3] = turn(10, 1) @ moving_affine[:3, :3]
    fixed_affine = np.diag([2.0, 2, 2, 1])  # other handedness
    fixed_affine[:3, :3] = turn(-20, 2) @ fixed_affine[:3, :3]
    fixed_to_moving = turn(25, 0) @ np.diag([1.1, 0.9, 1.0])
    rotated = rotate_bvecs(BVECS, fixed_to_moving, moving_affine=moving_affine, fixed_affine=fixed_affine)

    fibre_moving_world = np.array([0.6, 0.0, 0.8])
    to_world = moving_affine[:3, :3] / np.linalg.norm(moving_affine[:3, :3], axis=0)  # det < 0: no component is negated
    along = (BVECS @ to_world.T) @ fibre_moving_world
    fibre_fixed_world = turn(25, 0).T @ fibre_moving_world
    to_world = fixed_affine[:3, :3] / np.linalg.norm(fixed_affine[:3, :3], axis=0) @ np.diag([-1, 1, 1])
    np.testing.assert_allclose((rotated @ to_world.T) @ fibre_fixed_world, along, atol=1e-12)


def test_unweighted_volumes_keep_a_zero_vector() -> None:
    rotated = rotate_bvecs(BVECS, turn(90, 2), moving_affine=np.eye(4), fixed_affine=np.eye(4))
    assert not rotated[[0, 13]].any()
    np.testing.assert_allclose(np.linalg.norm(rotated[1:13], axis=1), 1.0)


def test_tables_are_read_back_and_bad_ones_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.bval").write_text(" ".join(map(str, BVALS)))
    write_bvecs(tmp_path / "a.bvec", BVECS)
    bvals, bvecs = read_gradients(tmp_path / "a.bval", tmp_path / "a.bvec")
    np.testing.assert_array_equal(bvals, BVALS)
    np.testing.assert_allclose(bvecs, BVECS, atol=1e-8)
    (tmp_path / "short.bval").write_text("0 1000")
    with pytest.raises(ValueError, match=r"must hold 3 rows of 2 numbers to match short\.bval"):
        read_gradients(tmp_path / "short.bval", tmp_path / "a.bvec")
    (tmp_path / "bad.bval").write_text("0 b0")
    with pytest.raises(ValueError, match=r"bad\.bval must hold numbers"):
        read_gradients(tmp_path / "bad.bval", tmp_path / "a.bvec")
