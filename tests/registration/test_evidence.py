"""Comparison of alignments on held-out voxels."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from voxelwave.registration.evidence import Evidence, blocks, head_mask, seen_mask, strain_of
from voxelwave.volumes import AffineTransform, Volume

SHAPE = (48, 52, 40)
AFFINE = np.array([[-2.0, 0, 0, 50], [0, 2, 0, -50], [0, 0, 2.5, -40], [0, 0, 0, 1]])


def shifted(mm: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[0, 3] = mm
    return matrix


@pytest.fixture(scope="module")
def pair() -> tuple[Volume, Volume]:
    """A head in two contrasts, each with independent noise."""
    rng = np.random.default_rng(0)
    tissue = gaussian_filter(rng.normal(size=SHAPE), 3.0)
    axes = np.meshgrid(*[np.linspace(-1.3, 1.3, n) for n in SHAPE], indexing="ij")
    head = sum(a**2 for a in axes) < 1
    first = head * (2 + tissue / tissue.std() * 0.5)
    second = head * (3 - 0.8 * first + 0.1 * first**2)
    noise = rng.normal(size=(2, *SHAPE)) * 0.1
    return Volume((first + noise[0]).astype(np.float32), AFFINE), Volume((second + noise[1]).astype(np.float32), AFFINE)


def evidence_of(pair) -> Evidence:
    return Evidence(*pair, head_mask(pair[1]))


def test_the_right_map_is_better_than_a_wrong_one(pair):
    evidence = evidence_of(pair)
    right, wrong = AffineTransform(np.eye(4)).map, AffineTransform(shifted(4)).map
    assert evidence.compare(right, wrong).accepted
    assert not evidence.compare(wrong, right).accepted


def test_equal_maps_and_maps_of_noise_are_not_accepted(pair):
    evidence = evidence_of(pair)
    same = AffineTransform(np.eye(4)).map
    assert evidence.compare(same, same).gain == 0
    assert not evidence.compare(same, same).accepted
    rng = np.random.default_rng(1)
    accepted = [
        evidence.compare(lambda x, rng=rng: x + rng.normal(size=x.shape) * 0.5, same).accepted for _ in range(20)
    ]
    assert not any(accepted)


def test_a_deformation_has_a_price(pair):
    evidence = evidence_of(pair)
    right, near = AffineTransform(np.eye(4)).map, AffineTransform(shifted(1.5)).map
    verdict = evidence.compare(right, near)
    assert verdict.accepted
    assert not evidence.compare(right, near, strain=2 * verdict.gain / 0.03).accepted


def test_lost_overlap_costs(pair):
    """Half of the head leaves the moving image; the other half is aligned as well as before."""
    moving, fixed = pair
    half = Volume(moving.array[:24], moving.affine)
    whole = evidence_of(pair).information(AffineTransform(np.eye(4)).map)
    part = Evidence(half, fixed, head_mask(fixed)).information(AffineTransform(np.eye(4)).map)
    assert 0.3 * whole.mean() < part.mean() < 0.7 * whole.mean()


def test_cubes_are_the_same_on_every_grid(pair):
    _, fixed = pair
    fine = Volume(np.broadcast_to(np.float32(0), (96, 104, 80)), AFFINE @ np.diag([0.5, 0.5, 0.5, 1]))
    seen = seen_mask(fine, fixed)
    np.testing.assert_array_equal(seen[::2, ::2, ::2], seen_mask(fixed, fixed))
    assert 0.7 < seen.mean() < 0.8
    assert blocks(fixed.affine[:3, 3][None], fixed)[0].tolist() == [[0, 0, 0]]


def test_strain_of_a_stretch():
    stretch = 0.1 * 2.0 * np.arange(10.0)[:, None, None] * np.ones((10, 8, 8))
    assert strain_of(stretch[None], (2.0, 1.0, 1.0), np.ones((10, 8, 8), bool)) == pytest.approx(0.1)


def test_head_mask_leaves_out_the_background(pair):
    axes = np.meshgrid(*[np.linspace(-1.3, 1.3, n) for n in SHAPE], indexing="ij")
    head = sum(a**2 for a in axes) < 1
    found = head_mask(pair[0]).array != 0
    assert 2 * (found & head).sum() / (found.sum() + head.sum()) > 0.93


def test_a_small_image_has_cubes_on_both_sides():
    small = Volume(np.zeros((36, 36, 36)), np.diag([0.25, 0.25, 0.25, 1]))
    seen = seen_mask(small, small)
    assert 0.5 < seen.mean() < 0.95
