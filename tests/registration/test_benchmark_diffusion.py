"""The measures of the benchmark of T1w and diffusion pairs."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from voxelwave.registration import benchmark_diffusion
from voxelwave.registration.acquisition import Acquisition, PairFacts
from voxelwave.registration.benchmark_diffusion import DiffusionPair, diffusion_benchmark
from voxelwave.registration.known_warps import known_warps, smooth_warp, source_of, swelling, warped_by
from voxelwave.volumes import AffineTransform, DisplacementField, Volume, compose_to_field

SHAPE = (40, 44, 36)
AFFINE = np.array([[-4.0, 0, 0, 80], [0, 4, 0, -88], [0, 0, 4, -72], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def pair() -> DiffusionPair:
    """A head in two contrasts with a dark and a bright cavity in the middle."""
    axes = np.meshgrid(*[np.linspace(-1.3, 1.3, n) for n in SHAPE], indexing="ij")
    radius = sum(a**2 for a in axes)
    tissue = 1 + 0.1 * gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 1.5)
    t1 = np.where(radius < 0.03, 0.2, tissue) * (radius < 1)
    b0 = np.where(radius < 0.03, 3.0, 2 - tissue) * (radius < 1)
    facts = PairFacts("session", Acquisition("t1"), Acquisition("b0", "j"))
    return DiffusionPair("sub-1", *(Volume(image.astype(np.float32), AFFINE) for image in (t1, b0)), facts)


def grid_points(image: Volume) -> np.ndarray:
    index = np.stack(np.meshgrid(*[np.arange(n) for n in image.shape], indexing="ij"), axis=-1).reshape(-1, 3)
    return index @ image.affine[:3, :3].T + image.affine[:3, 3]


def test_known_warps_have_their_peak_and_direction(pair):
    points = pair.points()
    for kind, _, warp in known_warps(points, np.array([0.0, 1.0, 0.0]), seeds=range(2)):
        moved = warp(points)
        if kind != "swelling":  # its ring of longest vectors may lie outside the brain
            assert np.linalg.norm(moved, axis=1).max() == pytest.approx(8.0)
        assert np.linalg.norm(moved, axis=1).max() < 8.1
        if kind == "phase_encoding":
            assert np.abs(moved[:, [0, 2]]).max() == 0


def test_source_of_a_warp_is_mapped_to_the_point(pair):
    points = pair.points()
    warp = smooth_warp(points, seed=1, peak_mm=8.0)
    found = source_of(warp, points)
    assert np.linalg.norm(found + warp(found) - points, axis=1).max() < 0.05


def test_a_warped_image_is_read_at_the_warped_points(pair):
    image = pair.t1.with_array(grid_points(pair.t1)[:, 0].reshape(pair.t1.shape))
    warp = swelling(pair.points(), seed=1, peak_mm=4.0)
    read = warped_by(image, warp).array
    inner = (slice(6, -6),) * 3
    expected = (grid_points(image) + warp(grid_points(image)))[:, 0].reshape(image.shape)
    np.testing.assert_allclose(read[inner], expected[inner], atol=1e-3)


def test_identity_is_off_by_the_warp_and_an_oracle_by_nothing(pair, monkeypatch):
    (row,) = diffusion_benchmark(pair, methods=["identity"], seeds=range(1))
    for kind in ("bspline", "swelling", "phase_encoding", "distorted_b0"):
        assert row[f"{kind}_mm"] == pytest.approx(row[f"{kind}_initial_mm"], rel=0.35)
        assert row[f"{kind}_mm"] > 0.1
    assert row["inverse_mm"] < 1e-3
    assert row["swap_mm"] < 1e-3
    assert row["dice_brain"] > 0.8
    assert row["dice_ventricles"] > 0.5

    plain = pair.t1.array

    def oracle(method, moving, fixed, facts):
        """Know the warps: read them from the images' identity."""
        field = compose_to_field([AffineTransform(np.eye(4))], fixed)
        if moving.array is not plain:
            _, _, warp = next(w for w in known_warps(pair.points(), np.array([0.0, 1.0, 0.0]), seeds=range(1)))
            points = grid_points(fixed)
            vectors = source_of(warp, points) - points
            field = DisplacementField(vectors.reshape(*fixed.shape, 3).astype(np.float32), fixed.affine)
        return field, field

    monkeypatch.setattr(benchmark_diffusion, "aligned", oracle)
    (row,) = diffusion_benchmark(pair, methods=["oracle"], seeds=range(1))
    assert row["bspline_mm"] < 0.1


def test_a_brain_that_leaves_the_field_of_view_is_counted_as_lost(pair):
    """All maps are judged on the same voxels, also one that moves some of them to where the moving scan ends."""
    low = replace(pair, t1=Volume(pair.t1.array[..., :22], AFFINE))
    dices = {}
    for shift in (0.0, 12.0):
        matrix = np.eye(4)
        matrix[2, 3] = shift
        linear = AffineTransform(matrix)
        maps = compose_to_field([linear], low.diffusion), compose_to_field([linear.inverse()], low.t1)
        dices[shift] = benchmark_diffusion._without_truth(low, maps, swapped=False)["dice_brain"]
    assert dices[0.0] > 0.85
    assert dices[12.0] < 0.6
