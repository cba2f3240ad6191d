"""b-vectors that hold NaN if there is no direction."""

from pathlib import Path

import numpy as np
import pytest

from voxelwave.registration.diffusion import fractional_anisotropy, read_gradients, rotate_bvecs
from voxelwave.volumes import Volume


@pytest.fixture
def bvecs() -> np.ndarray:
    drawn = np.random.default_rng(1).normal(size=(9, 3))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    drawn[[0, 4]] = np.nan
    return drawn


BVALS = np.array([0.0, 1000, 1000, 1000, 5, 1000, 1000, 1000, 1000])


def test_fa_is_that_of_the_tensor_where_unweighted_volumes_have_no_direction(bvecs: np.ndarray) -> None:
    diffusivity = np.diag([1.6e-3, 0.4e-3, 0.4e-3])
    known = np.nan_to_num(bvecs)
    signal = 500 * np.exp(-BVALS * np.einsum("ti,ij,tj->t", known, diffusivity, known))
    series = Volume(np.broadcast_to(signal, (2, 2, 2, 9)).copy(), np.eye(4))
    expected = np.sqrt(1.5 * (0.8**2 + 0.4**2 + 0.4**2) / (1.6**2 + 0.4**2 + 0.4**2))
    np.testing.assert_allclose(fractional_anisotropy(series, BVALS, bvecs).array, expected, atol=1e-3)


def test_a_weighted_volume_needs_a_direction(bvecs: np.ndarray) -> None:
    bvecs[2] = np.nan
    series = Volume(np.ones((2, 2, 2, 9)), np.eye(4))
    with pytest.raises(ValueError, match=r"at \[2\]"):
        fractional_anisotropy(series, BVALS, bvecs)


def test_files_and_rotation_give_no_direction_as_zero(tmp_path: Path, bvecs: np.ndarray) -> None:
    np.savetxt(tmp_path / "a.bval", BVALS[None])
    np.savetxt(tmp_path / "a.bvec", bvecs.T)
    _, read = read_gradients(tmp_path / "a.bval", tmp_path / "a.bvec")
    np.testing.assert_allclose(read, np.nan_to_num(bvecs))
    turned = rotate_bvecs(bvecs, np.eye(3), moving_affine=np.eye(4), fixed_affine=np.eye(4))
    np.testing.assert_allclose(turned, np.nan_to_num(bvecs), atol=1e-12)
