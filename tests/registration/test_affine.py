"""Known motions are recovered on any grids; results are cached, and damaged cache entries are replaced."""

import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.testing import data_path
from scipy.ndimage import gaussian_filter

from voxelwave.registration.affine import align_affine
from voxelwave.registration.ants import from_ants, syn, to_ants
from voxelwave.registration.mutual_information import normalized_mutual_information
from voxelwave.volumes import AffineTransform, Volume, VolumeWarning
from voxelwave.volumes.resample import resample

SPACING = np.array([3.0, 3.0, 4.0])


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    turned = np.eye(4)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        one = np.eye(4)
        i, j = [a for a in range(3) if a != axis]
        one[i, i] = one[j, j] = np.cos(angle)
        one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
        turned = one @ turned
    return turned


def grid(shape: tuple[int, int, int], spacing: np.ndarray, turned: np.ndarray) -> np.ndarray:
    """An affine whose grid is rotated about its centre, which lies at world 0."""
    scaled = turned @ np.diag([*spacing, 1.0])
    scaled[:3, 3] = -scaled[:3, :3] @ ((np.array(shape) - 1) / 2)
    return scaled


@pytest.fixture(scope="module")
def head() -> Volume:
    """A smooth phantom without symmetry: an ellipsoid with blobs of other intensity; 96 x 108 x 96 mm."""
    shape = (32, 36, 24)
    affine = grid(shape, SPACING, np.eye(4))
    points = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    image = 80.0 * (np.sum((points / [36, 42, 34]) ** 2, axis=-1) < 1)
    rng = np.random.default_rng(3)
    for level in rng.uniform(-60, 90, 14):
        centre, radii = rng.uniform(-20, 20, 3), rng.uniform(5, 12, 3)
        image += level * (np.sum(((points - centre) / radii) ** 2, axis=-1) < 1)
    return Volume(gaussian_filter(image, 0.6).astype(np.float32), affine)


def worst_error_mm(found: np.ndarray, true: np.ndarray) -> float:
    corners = np.array([[*c, 1.0] for c in itertools.product((-35, 35), repeat=3)]).T
    return float(np.linalg.norm(((found - true) @ corners)[:3], axis=0).max())


def moved(image: Volume, true: np.ndarray, like: Volume) -> Volume:
    """The moving image for which the pull-back `true` (fixed -> moving) is the alignment to `image`."""
    return resample(image, like, AffineTransform(np.linalg.inv(true)))


def test_a_rotation_of_12_degrees_and_9_mm_is_found_within_a_third_of_a_voxel(head: Volume) -> None:
    true = rotation((12, -4, 5))
    true[:3, 3] = (6, -5, 4)
    moving = moved(head, true, head)
    found = align_affine(moving, head, kind="rigid")
    assert worst_error_mm(found, true) < 1.0
    assert worst_error_mm(np.eye(4), true) > 10
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1)], ids=["right-handed", "left-handed"])
def test_scale_and_shear_are_found_between_oblique_grids_of_other_contrast(head: Volume, flip: tuple[int, ...]) -> None:
    true = rotation((3, 6, -4)) @ np.array([[1.08, 0.05, 0, 3], [0, 0.95, 0, -2], [0, 0.03, 1.04, 4], [0, 0, 0, 1]])
    shape = (40, 30, 40)
    oblique = grid(shape, np.array([2.8, 3.5, 2.8]), rotation((25, 10, -15)) @ np.diag([*flip, 1]))
    like = Volume(np.zeros(shape, np.float32), oblique)
    moving = moved(head, true, like)
    moving = moving.with_array(np.sqrt(np.maximum(moving.array, 0)))
    assert worst_error_mm(align_affine(moving, head), true) < 2.0  # half a slice


@pytest.mark.slow
def test_identical_images_stay_where_the_scanner_placed_them(head: Volume) -> None:
    np.testing.assert_array_equal(align_affine(head, head), np.eye(4))


def test_images_in_unrelated_worlds_are_found_by_their_centres_of_mass(head: Volume) -> None:
    true = np.eye(4)
    true[:3, 3] = (500, -300, 200)
    moving = Volume(head.array, true @ head.affine)
    assert worst_error_mm(align_affine(moving, head, kind="rigid"), true) < 1.0


@pytest.mark.slow
def test_the_11_degree_turn_between_two_sessions_is_found(shared_data: Path) -> None:
    folder = shared_data / "mri_t1_dwi/sub-pose"
    volumes = []
    for session in ("HFDL", "HFS"):
        image = nib.load(folder / f"ses-{session}/anat/sub-pose_ses-{session}_T1w.nii.gz")
        thinned = Volume(np.asarray(image.dataobj, np.float32)[::4, ::4], image.affine @ np.diag([4.0, 4.0, 1.0, 1.0]))
        volumes.append(thinned)
    found = align_affine(*volumes, kind="rigid")
    angle = np.degrees(np.arccos((np.trace(found[:3, :3]) - 1) / 2))
    assert 10 < angle < 13
    assert normalized_mutual_information(*volumes, found)[0] > normalized_mutual_information(*volumes)[0] + 0.1


def test_masks_remove_the_influence_of_a_bright_object_beside_the_head(head: Volume) -> None:
    true = np.eye(4)
    true[:3, 3] = (5, 4, -4)
    moving = moved(head, true, head)
    with_coil = head.array.copy()
    with_coil[:3] = 150
    mask = np.ones(head.shape, np.uint8)
    mask[:4] = 0
    found = align_affine(moving, head.with_array(with_coil), kind="rigid", fixed_mask=head.with_array(mask))
    assert worst_error_mm(found, true) < 1.5


def test_conversion_to_ants_and_back_keeps_values_and_place(head: Volume) -> None:
    oblique = Volume(head.array, rotation((20, -10, 5)) @ np.diag([-1.0, 1, 1, 1]) @ head.affine)
    image = to_ants(oblique)
    back = from_ants(image)
    np.testing.assert_array_equal(back.array, oblique.array)
    np.testing.assert_allclose(back.affine, oblique.affine, atol=1e-5)
    lps = image.direction @ (np.array(image.spacing) * [3, 5, 7]) + image.origin
    np.testing.assert_allclose(lps * [-1, -1, 1], (oblique.affine @ [3, 5, 7, 1])[:3], atol=1e-4)


def test_the_second_call_reads_the_cache_and_a_broken_entry_is_replaced(
    head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = rotation((1, 2, 3)) / 1.1
    matrix[3] = [0, 0, 0, 1]
    calls: list[str] = []
    monkeypatch.setattr("voxelwave.registration.affine._align", lambda *args: calls.append(args[1]) or matrix)
    for _ in range(2):
        np.testing.assert_array_equal(align_affine(head, head, kind="rigid", cache_dir=tmp_path), matrix)
    assert calls == ["rigid"]
    (entry,) = tmp_path.iterdir()
    for broken in ("", "{", '{"fixed_to_moving_ras_mm": [[1, 2]]}', '{"fixed_to_moving_ras_mm": "x"}', "[]"):
        entry.write_text(broken)
        with pytest.warns(VolumeWarning, match="is unreadable and is replaced"):
            np.testing.assert_array_equal(align_affine(head, head, kind="rigid", cache_dir=tmp_path), matrix)
        assert json.loads(entry.read_text())["fixed_to_moving_ras_mm"] == matrix.tolist()
    align_affine(head, head, kind="rigid", seed=1, cache_dir=tmp_path)
    align_affine(head.with_array(head.array + 1), head, kind="rigid", cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.slow
def test_no_temporary_files_stay_behind(head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    small = Volume(head.array[::2, ::2, ::2], head.affine @ np.diag([2.0, 2.0, 2.0, 1.0]))
    syn(small, small)
    align_affine(small, small, kind="rigid")
    assert list(tmp_path.iterdir()) == []


def test_syn_brings_the_image_back_and_its_inverse_returns_the_points(head: Volume) -> None:
    true = rotation((6, -4, 8))
    true[:3, 3] = (4, -3, 5)
    oblique = grid((40, 34, 30), np.array([2.6, 3.2, 3.4]), rotation((8, 5, -20)))
    moving = moved(head, true, Volume(np.zeros((40, 34, 30), np.float32), oblique))
    forward, inverse = syn(moving, head)
    warped = resample(moving, head, forward)
    before = np.abs(resample(moving, head).array - head.array).mean()
    assert np.abs(warped.array - head.array).mean() < 0.3 * before
    points = np.random.default_rng(0).uniform(-20, 20, (200, 3))
    there_and_back = inverse.map(forward.map(points))
    assert np.linalg.norm(there_and_back - points, axis=1).max() < 1.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "similarity"}, 'kind must be "affine" or "rigid"'),
        ({"metric": "cc"}, 'metric must be "mi" or "ncc"'),
        ({"moving": lambda v: v.with_array(v.array[..., None])}, "moving must be 3-D.*mean b0"),
        ({"moving": lambda v: v.with_array(np.zeros_like(v.array))}, "moving must not be constant"),
        ({"fixed": lambda v: v.with_array(np.where(v.array > 50, np.nan, v.array))}, "fixed must be finite"),
        ({"fixed_mask": lambda v: Volume(v.array[1:], v.affine)}, "fixed_mask must lie on the grid of fixed"),
        ({"moving_mask": lambda v: v.with_array(np.zeros_like(v.array))}, "moving_mask must have non-zero voxels"),
    ],
)
def test_wrong_arguments_are_named(head: Volume, change: dict, words: str) -> None:
    arguments = {"moving": head, "fixed": head, **{k: v(head) if callable(v) else v for k, v in change.items()}}
    with pytest.raises(ValueError, match=words):
        align_affine(**arguments)


def test_mutual_information_is_largest_for_a_perfect_match() -> None:
    image = nib.load(Path(data_path) / "anatomical.nii")
    volume = Volume(np.asarray(image.dataobj, np.float32), image.affine)
    shifted = np.eye(4)
    shifted[0, 3] = 6.0
    same, overlap = normalized_mutual_information(volume, volume)
    apart, less = normalized_mutual_information(volume, volume, shifted)
    assert same == pytest.approx(2.0)
    assert overlap == 1.0
    assert apart < 1.5
    assert less < 1.0
    shifted[0, 3] = 1e4
    assert normalized_mutual_information(volume, volume, shifted) == (1.0, 0.0)
