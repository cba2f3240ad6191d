"""The whole registration, on a small phantom with a known solution."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from voxelwave.registration.picture import draw_registration, grid_points_mm
from voxelwave.registration.register import better_of, jacobian_figures, network_displacement, register, working_grid
from voxelwave.registration.settings import RegistrationSettings
from voxelwave.volumes import (
    AffineTransform,
    DisplacementField,
    Volume,
    VolumeWarning,
    resample,
    write_transform,
    write_volume,
)

OBLIQUE = np.array([[-1.8, 0.3, 0.2, 40.0], [0.35, 1.77, -0.25, -30.0], [0.15, 0.29, 2.9, -20.0], [0.0, 0.0, 0.0, 1.0]])

TURN = np.deg2rad(4)
MOVEMENT = np.array(
    [[np.cos(TURN), -np.sin(TURN), 0, 6.0], [np.sin(TURN), np.cos(TURN), 0, -2.0], [0, 0, 1, 1.0], [0, 0, 0, 1.0]]
)


def perpendicular(affine: np.ndarray) -> np.ndarray:
    """An affine with the same spacing and nearly the same directions, exactly at right angles."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    straight = affine.copy()
    straight[:3, :3] = (left @ right) * spacing
    return straight


@pytest.fixture(scope="module", autouse=True)
def _short_search(fewer_samples):
    with fewer_samples():
        yield


@pytest.fixture(scope="module")
def pair() -> tuple[Volume, Volume]:
    """A blob-like head in two contrasts: the second is moved by 6 mm and 4 degrees, and its contrast is inverted."""
    rng = np.random.default_rng(0)
    shape = (44, 48, 30)
    texture = gaussian_filter(rng.normal(size=shape), 2.5)
    axes = np.meshgrid(*[np.linspace(-1.4, 1.4, n) for n in shape], indexing="ij")
    head = sum(a**2 for a in axes) < 1
    fixed = Volume((head * (1 + 6 * texture)).astype(np.float32), perpendicular(OBLIQUE))
    moved = resample(fixed, fixed, AffineTransform(MOVEMENT))
    moving = moved.with_array(np.where(moved.array > 0.05, 2.5 - moved.array, 0).astype(np.float32))
    return moving, fixed


@pytest.fixture(scope="module")
def registered(pair):
    return register(*pair, RegistrationSettings(seed=1))


def test_registration_finds_the_movement(pair, registered):
    """The moving image is the fixed image read at `movement`, so the pull-back is the inverse of `movement`."""
    _, fixed = pair
    points = grid_points_mm(fixed)[(fixed.array > 0.2).ravel()]
    truth = AffineTransform(MOVEMENT).inverse().map(points)
    error = np.linalg.norm(registered.forward.map(points) - truth, axis=1)
    assert np.linalg.norm(truth - points, axis=1).mean() > 5
    assert error.mean() < 1.0  # mm; the voxels are 1.9 to 2.9 mm long
    assert registered.metrics["nmi_after"] > registered.metrics["nmi_before"]
    assert registered.metrics["non_positive_jacobian_percent"] < 0.1


def test_ants_applies_the_written_transform_with_the_same_result(pair, registered, tmp_path):
    import ants

    moving, fixed = pair
    write_volume(tmp_path / "moving.nii.gz", moving)
    write_volume(tmp_path / "fixed.nii.gz", fixed)
    for name, field, image, like, ours in (
        ("forward", registered.forward, "moving", "fixed", registered.warped),
        ("inverse", registered.inverse, "fixed", "moving", resample(fixed, moving, registered.inverse)),
    ):
        write_transform(tmp_path / f"{name}.nii.gz", field)
        theirs = ants.apply_transforms(
            ants.image_read(str(tmp_path / f"{like}.nii.gz")),
            ants.image_read(str(tmp_path / f"{image}.nii.gz")),
            [str(tmp_path / f"{name}.nii.gz")],
        )
        inner = (slice(2, -2),) * 3  # at the outermost voxels, ITK and we decide differently what is inside
        np.testing.assert_allclose(ours.array[inner], theirs.numpy()[inner], atol=2e-3)


def test_forward_and_inverse_return_each_point(registered, pair):
    _, fixed = pair
    centre = fixed.affine[:3, :3] @ (np.array(fixed.shape) / 2) + fixed.affine[:3, 3]
    points = centre + np.random.default_rng(0).uniform(-15, 15, (200, 3))
    back = registered.inverse.map(registered.forward.map(points))
    assert np.abs(back - points).max() < 0.15  # mm; both fields are read between voxels of 2 to 3 mm


@pytest.mark.slow
def test_a_diffeomorphic_registration_never_folds(pair):
    result = register(*pair, RegistrationSettings(diffeomorphic=True, seed=1))
    assert result.metrics["non_positive_jacobian_percent"] == 0
    assert result.metrics["jacobian_min"] > 0


def test_the_network_starts_the_refinement_at_its_own_spacing(pair):
    class ShiftByOneVoxel(torch.nn.Module):
        def forward(self, moving, fixed):
            displacement = torch.zeros(1, 3, *fixed.shape[2:])
            displacement[:, 0] = 1.0
            return moving, displacement

    moving, fixed = pair
    grid = working_grid(fixed)
    found = network_displacement(ShiftByOneVoxel(), moving, fixed, AffineTransform(np.eye(4)), grid, 4.0)
    field = DisplacementField.from_voxels(found[0].numpy(), grid.affine)
    middle = tuple(n // 2 for n in grid.shape)
    assert np.linalg.norm(field.vectors_mm[middle]) == pytest.approx(4.0, abs=1e-3)  # one voxel of 4 mm


def test_working_grid_covers_a_fine_image_with_coarser_voxels():
    fine = Volume(np.zeros((401, 230, 40), np.float32), np.diag([0.4, 0.9, 4.0, 1.0]))
    grid = working_grid(fine)
    assert grid.spacing == pytest.approx((1.0, 0.9, 4.0))
    assert working_grid(fine, finer=True).spacing == pytest.approx((1.0, 0.9, 1.0))
    end = grid.affine @ [*(np.array(grid.shape) - 1), 1]
    assert (end[:3] >= (np.array(fine.shape) - 1) * fine.spacing - 1e-9).all()


def test_a_small_animal_keeps_its_fine_voxels():
    mouse = Volume(np.zeros((160, 200, 100), np.float32), np.diag([0.1, 0.1, 0.1, 1.0]))
    assert working_grid(mouse).spacing == pytest.approx(mouse.spacing)


@pytest.mark.parametrize(
    ("effort", "most_mm"), [("standard", 0.2), pytest.param("accurate", 0.5, marks=pytest.mark.slow)]
)
def test_exchanging_images_of_one_contrast_nearly_inverts_the_map(effort, most_mm):
    rng = np.random.default_rng(3)
    axes = np.meshgrid(*[np.linspace(-1.3, 1.3, 40)] * 3, indexing="ij")
    head = sum(a**2 for a in axes) < 1
    texture = gaussian_filter(rng.normal(size=head.shape), 2)
    volume = Volume((head * (1 + 6 * texture)).astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    way = np.stack([gaussian_filter(rng.normal(size=head.shape), 6) for _ in range(3)], axis=-1)
    truth = DisplacementField((4 * way / np.abs(way).max()).astype(np.float32), volume.affine)
    moved = resample(volume, volume, truth)
    there = register(moved, volume, RegistrationSettings(effort=effort))
    back = register(volume, moved, RegistrationSettings(effort=effort))
    points = grid_points_mm(volume)[head.ravel()]
    exchanged = np.linalg.norm(back.inverse.map(points) - there.forward.map(points), axis=1)
    assert np.nanmean(exchanged) < most_mm  # the voxels are 2 mm long; only the fine level has a direction
    error = np.linalg.norm(truth.map(there.forward.map(points)) - points, axis=1)
    before = np.linalg.norm(truth.map(points) - points, axis=1)
    assert np.nanmean(error) < 0.4 * before.mean()


def test_an_affine_map_has_no_deformable_part():
    affine = AffineTransform(np.diag([1.1, 0.9, 1.0, 1.0]))
    field = DisplacementField.from_voxels(np.zeros((3, 8, 8, 8)), np.eye(4), pre=affine)
    figures = jacobian_figures(field, affine)
    assert figures["jacobian_min"] == pytest.approx(1, abs=1e-4)
    assert figures["sdlogj"] == pytest.approx(0, abs=1e-4)


def test_the_picture_is_a_png(pair, registered, tmp_path):
    moving, fixed = pair
    draw_registration(
        tmp_path / "p.png", fixed=fixed, moving=moving, warped=registered.warped, forward=registered.forward
    )
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"settings": RegistrationSettings(method="best")}, "method"),  # type: ignore[arg-type]
        ({"settings": RegistrationSettings(method="nestedmorph")}, "network"),
        ({"device": "tpu"}, 'device must be "auto", "cpu" or "cuda", got \'tpu\''),
    ],
)
def test_a_wrong_argument_is_named(pair, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        register(*pair, **options)


def test_a_displacement_that_does_not_raise_the_mutual_information_is_dropped():
    rng = np.random.default_rng(1)
    texture = gaussian_filter(rng.normal(size=(28, 30, 26)), 2)
    fixed = torch.from_numpy((texture - texture.min()) / np.ptp(texture)).float()[None, None]
    moving = torch.roll(fixed, 3, dims=2)  # so that a displacement of 3 voxels along the first axis is right
    none, right, wrong = torch.zeros(1, 3, 28, 30, 26), torch.zeros(1, 3, 28, 30, 26), torch.zeros(1, 3, 28, 30, 26)
    right[:, 0], wrong[:, 0] = 3.0, -3.0

    assert torch.equal(better_of(None, right, moving, fixed), right)
    assert torch.equal(better_of(wrong, right, moving, fixed), right)
    for start, refined, kept in (
        (None, wrong, none),
        (wrong, wrong, none),  # the network gives a wrong displacement, and the refinement leaves it
        (right, wrong, right),
        (right, right + 0.05, right),
    ):
        with pytest.warns(VolumeWarning, match="does not raise"):
            assert torch.equal(better_of(start, refined, moving, fixed), kept)


def test_identical_images_need_no_work(pair):
    _, fixed = pair
    lines: list[str] = []
    result = register(fixed, fixed, progress=lines.append)
    assert np.array_equal(result.warped.array, fixed.array)
    assert not result.forward.vectors_mm.any()
    assert not result.inverse.vectors_mm.any()
    assert np.array_equal(result.affine, np.eye(4))
    assert lines == ["both images are identical: nothing to align"]


def test_few_voxels_give_a_warning():
    values = gaussian_filter(np.random.default_rng(0).random((8, 8, 8)), 1).astype(np.float32)
    tiny = Volume(values, np.diag([5.0, 5, 5, 1]))
    with pytest.warns(VolumeWarning, match="has only 8 x 8 x 8 voxels"):
        register(tiny, tiny)


def test_a_mask_on_another_grid_is_refused(pair):
    moving, fixed = pair
    with pytest.raises(ValueError, match="fixed_mask must lie on the grid of fixed"):
        register(moving, fixed, fixed_mask=Volume(np.ones((3, 3, 3)), np.eye(4)))


@pytest.mark.slow
def test_exchanging_the_images_inverts_the_map(pair):
    settings = RegistrationSettings(similarity="mi", transform="deformable")
    there, back = register(*pair, settings), register(*reversed(pair), settings)
    assert np.array_equal(there.forward.vectors_mm, back.inverse.vectors_mm)
    assert np.array_equal(there.inverse.vectors_mm, back.forward.vectors_mm)
    np.testing.assert_allclose(there.affine @ back.affine, np.eye(4), atol=1e-9)
