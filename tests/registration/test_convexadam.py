"""ConvexAdam as a peer: its displacement is placed and composed with the affine part. Its own code is replaced."""

import sys
import types

import numpy as np
import pytest

from voxelwave.registration import convexadam
from voxelwave.registration.benchmark_labels import missing_package
from voxelwave.volumes import Volume

AFFINE = np.array([[-2.0, 0, 0, 40], [0, 0, 3, -30], [0, -2.5, 0, 20], [0, 0, 0, 1]])


@pytest.fixture
def replaced(monkeypatch) -> dict:
    """A package that finds the same displacement everywhere, and keeps its arguments."""
    seen: dict = {}

    def convex_adam_pt(fixed, moving, **options):
        seen.update(fixed=fixed, moving=moving, options=options)
        return np.broadcast_to(np.array([1.0, 0.0, -2.0]), (*fixed.shape, 3))

    module = types.ModuleType("convexAdam.convex_adam_MIND")
    module.convex_adam_pt = convex_adam_pt
    package = types.ModuleType("convexAdam")
    package.convex_adam_MIND = module
    monkeypatch.setitem(sys.modules, "convexAdam", package)
    monkeypatch.setitem(sys.modules, "convexAdam.convex_adam_MIND", module)
    return seen


def ball(shape=(60, 50, 48), radius=10) -> Volume:
    middle = (np.array(shape).reshape(3, 1, 1, 1) - 1) / 2
    distance = np.linalg.norm(np.indices(shape) - middle, axis=0)
    return Volume(np.clip(radius - distance, 0, None).astype(np.float32), AFFINE)


def test_the_displacement_in_voxels_is_followed_by_the_affine(replaced, monkeypatch):
    shift = np.eye(4)
    shift[:3, 3] = (5.0, -4.0, 3.0)
    monkeypatch.setattr(convexadam, "align_affine", lambda *args, **kwargs: shift)
    fixed = ball()
    found = convexadam.convexadam(ball(), fixed)
    points = np.array([[0.0, 0.0, 0.0], [-30.0, 15.0, -20.0]])
    step = AFFINE[:3, :3] @ [1.0, 0.0, -2.0]
    np.testing.assert_allclose(found.map(points), points + step + shift[:3, 3], atol=1e-5)  # float32 vectors
    # only the content and a margin of 12 voxels are compared, on the grid of the fixed image
    assert replaced["fixed"].shape == replaced["moving"].shape
    assert all(a < b for a, b in zip(replaced["fixed"].shape, fixed.shape, strict=True))
    assert replaced["fixed"].max() == fixed.array.max()
    assert str(replaced["options"]["device"]) == "cpu"


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(convexadam, "available", lambda: False)
    assert missing_package("convexadam") == "convexadam"
    assert missing_package("standard") is None


@pytest.mark.slow
def test_the_installed_program_finds_a_swelling():
    pytest.importorskip("convexAdam", reason="convexadam is not installed")
    shape = (48, 48, 48)
    grid = np.indices(shape) - 23.5
    ripple = 1 + 0.5 * np.sin(grid[0] / 3) * np.cos(grid[1] / 4) * np.cos(grid[2] / 5)
    radius = np.linalg.norm(grid, axis=0)

    def image(scale):
        return Volume((ripple * np.clip(18 * scale - radius, 0, 4)).astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))

    moving, fixed = image(1.15), image(1.0)
    points = np.array([[23.5 + 16, 23.5, 23.5], [23.5, 23.5 - 16, 23.5]]) * 2
    moved = convexadam.convexadam(moving, fixed).map(points)
    lengths = np.linalg.norm(moved - 47.0, axis=1)
    assert (lengths > 33.5).all()  # 32 mm from the middle before; the surface is 4.8 mm further out in `moving`
