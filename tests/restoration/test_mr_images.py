"""Slices of scans at three sharpnesses, and synthetic slices from label maps."""

from pathlib import Path

import numpy as np
import pytest

from voxelwave.restoration.mr_images import write_mr_images
from voxelwave.volumes import Volume, read_volume, write_volume

THICK = np.diag([0.5, 3.0, 0.5, 1.0])  # slices lie across axis 1


def _ball(shape: tuple[int, ...], spacing: tuple[float, ...], radius: float) -> np.ndarray:
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    return sum(((a - n / 2) * mm) ** 2 for a, n, mm in zip(axes, shape, spacing, strict=True)) < radius**2


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    head = 500.0 * _ball((180, 24, 200), (0.5, 3.0, 0.5), 34.0)
    for person in ("anna", "ben"):
        (tmp_path / "scans" / person).mkdir(parents=True)
        write_volume(tmp_path / "scans" / person / "T1w.nii.gz", Volume(head.astype(np.int16), THICK))
    return tmp_path / "scans"


def test_slices_are_cut_to_the_head_and_averaged_to_smaller_sizes(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert write_mr_images(scans, out, validation=["ben"]) == {"train": 3, "validation": 3}
    full, small, half = (read_volume(out / f"train/anna_T1w{end}.nii.gz").array for end in ("", "_two_thirds", "_half"))
    # the head is 136 pixels wide and 22 slices high, of which the last ones show little of it
    assert full.shape[0] == pytest.approx(136 + 2 * 8, abs=8)
    assert 14 <= full.shape[2] == small.shape[2] == half.shape[2] <= 22
    assert (small.shape[:2], half.shape[:2]) == (
        tuple(round(n * 2 / 3) for n in full.shape[:2]),
        tuple(round(n / 2) for n in full.shape[:2]),
    )
    assert half[..., 0].mean() == pytest.approx(full[..., 0].mean(), rel=0.02)  # an average keeps the mean
    assert half.max() == pytest.approx(500.0)
    assert (full.min(), half.min()) == (0, 0)
    floor = float(small.min())  # every second stack has a noise floor
    assert 0 < floor <= 0.06 * 500
    assert small.max() == pytest.approx(np.hypot(500, floor))
    assert read_volume(out / "validation/ben_T1w.nii.gz").array.shape == full.shape


def test_stacks_of_small_slices_are_left_out(scans: Path, tmp_path: Path) -> None:
    assert write_mr_images(scans, tmp_path / "out", least_side=85) == {"train": 4, "validation": 0}
    assert not list((tmp_path / "out").rglob("*_half.nii.gz"))


def test_structures_of_both_sides_have_one_brightness(scans: Path, tmp_path: Path) -> None:
    labels = np.zeros((120, 100, 90), np.int32)
    labels[_ball(labels.shape, (1.0, 1.0, 1.0), 42.0)] = 3
    labels[60:][labels[60:] == 3] = 42  # the right cortex
    (tmp_path / "labels").mkdir()
    write_volume(tmp_path / "labels" / "one.nii.gz", Volume(labels, np.eye(4)))
    images = []
    for seed in (0, 0, 1):
        write_mr_images(scans, tmp_path / "out", labels=tmp_path / "labels", seed=seed)
        images.append(read_volume(tmp_path / "out/train/synthetic_one.nii.gz").array)
    np.testing.assert_array_equal(images[0], images[1])
    assert images[0].shape != images[2].shape or not np.array_equal(images[0], images[2])
    middle = images[0][..., images[0].shape[2] // 2]
    inside = middle[middle > 0.5 * middle.max()]
    assert 0 < inside.std() < 0.25 * inside.mean()  # texture and uneven brightness, but one tissue


def test_a_folder_without_scans_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must hold scans"):
        write_mr_images(tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        write_mr_images(tmp_path / "none", tmp_path / "out")
