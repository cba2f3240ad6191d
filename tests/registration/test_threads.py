"""Registrations give the same bits on any number of threads."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from voxelwave.registration.acquisition import PairFacts
from voxelwave.registration.affine import align_affine
from voxelwave.registration.contrasts import HeadPair
from voxelwave.registration.distortion import shift_of_reversed_pair
from voxelwave.registration.evidence import head_mask
from voxelwave.registration.jacobian import field_measures, sdlogj
from voxelwave.registration.refine import refine
from voxelwave.registration.register import register
from voxelwave.registration.rigid import affine_candidate, align_one_subject
from voxelwave.registration.settings import RegistrationSettings
from voxelwave.runs.threads import limited_threads
from voxelwave.volumes import AffineTransform, Volume

# with 43 voxels along the last axis, also at 2.5 mm, matrix products of MKL differ between one thread and four; and
# torch divides a sum of more than 32768 values among its threads
SHAPE = (40, 44, 43)
AFFINE = np.diag([3.0, 3.0, 2.35, 1.0])


@pytest.fixture(scope="module")
def pair() -> tuple[Volume, Volume]:
    """A blob-like head in two contrasts, the second slightly deformed."""
    texture = gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 1.5)
    texture /= texture.std()
    axes = np.meshgrid(*[np.linspace(-1.3, 1.3, n) for n in SHAPE], indexing="ij")
    head = 1 / (1 + np.exp(12 * (sum(a**2 for a in axes) - 1)))
    fixed = head * (2 + 0.5 * texture)
    moving = head * (2 - 0.5 * np.roll(texture, 1, axis=1))
    return Volume(moving.astype(np.float32), AFFINE), Volume(fixed.astype(np.float32), AFFINE)


@pytest.fixture
def few_iterations(monkeypatch):
    monkeypatch.setattr("voxelwave.registration.contrasts._SCHEDULE", ((2.5, 10.0, 2),))
    monkeypatch.setattr("voxelwave.registration.distortion._STAGES", ((0.0, 18.0, 2),))


def same_on_any_threads(compute: Callable[[], torch.Tensor | np.ndarray]) -> None:
    """Compute with several numbers of threads of torch and BLAS, and compare bit for bit."""
    found = []
    for threads in (1, 2, 4):
        with limited_threads(threads):
            found.append(torch.as_tensor(compute()))
    assert torch.isfinite(found[0]).all()
    assert all(torch.equal(found[0], each) for each in found[1:])


def tensors(pair: tuple[Volume, Volume]) -> list[torch.Tensor]:
    return [torch.from_numpy(volume.array)[None, None] for volume in pair]


@pytest.mark.usefixtures("few_iterations")
@pytest.mark.parametrize("similarity", ["context", "mi", "mind", "ncc"])
def test_a_free_deformation(pair, similarity):
    moving, fixed = pair
    between = HeadPair.of(moving, fixed, head_mask(fixed), AffineTransform(np.eye(4)))
    same_on_any_threads(lambda: between.fit(similarity))


@pytest.mark.usefixtures("few_iterations")
def test_a_shift_along_the_phase_encoding(pair):
    moving, fixed = pair
    between = HeadPair.of(moving, fixed, head_mask(fixed), AffineTransform(np.eye(4)))
    same_on_any_threads(lambda: between.fit("context", direction=np.array([0.0, 1.0, 0.0])))


@pytest.mark.usefixtures("few_iterations")
def test_a_field_of_a_reversed_pair(pair):
    same_on_any_threads(lambda: shift_of_reversed_pair(pair[1], pair[0], "j"))


@pytest.mark.parametrize(
    ("similarity", "diffeomorphic"), [("ncc", True), ("mi", False), ("mi", True), ("mind", False), ("mind", True)]
)
def test_a_refinement(pair, similarity, diffeomorphic):
    same_on_any_threads(
        lambda: refine(*tensors(pair), similarity=similarity, diffeomorphic=diffeomorphic, iterations=0.02)
    )


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["mi", "ncc"])
def test_a_search_of_linear_maps(pair, metric, fewer_samples):
    with fewer_samples():
        same_on_any_threads(lambda: align_affine(*pair, metric=metric))


@pytest.mark.slow
def test_rigid_and_affine_fits_of_one_person(pair, fewer_samples):
    def fits() -> np.ndarray:
        rigid, tried = align_one_subject(*pair)
        affine = affine_candidate(*pair, rigid)
        verdicts = [[each.verdict.gain, each.verdict.standard_error] for each in (*tried, affine)]
        return np.concatenate([rigid.ravel(), affine.matrix.ravel(), np.ravel(verdicts)])

    with fewer_samples():
        same_on_any_threads(fits)


def test_measures_of_a_field():
    field = torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(0)) / 5
    same_on_any_threads(lambda: torch.tensor([*field_measures(field).values(), sdlogj(field, learn2reg=False)]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        (RegistrationSettings(transform="deformable"), PairFacts("session")),
        (RegistrationSettings(similarity="mi", effort="fast"), None),
        (RegistrationSettings(similarity="ncc"), None),
    ],
)
@pytest.mark.filterwarnings("ignore::voxelwave.volumes.VolumeWarning")
def test_a_registration(pair, settings, facts, fewer_samples):
    def everything() -> np.ndarray:
        found = register(*pair, settings, facts=facts)
        parts = [found.warped.array, found.forward.vectors_mm, found.inverse.vectors_mm, found.affine]
        return np.concatenate([np.ravel(part) for part in (*parts, list(found.metrics.values()))])

    with fewer_samples():
        same_on_any_threads(everything)
