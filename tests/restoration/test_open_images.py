"""Grey pictures from installed packages, and their licences."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from voxelwave.restoration import open_images
from voxelwave.restoration.open_images import commands_for_missing_images, write_open_images
from voxelwave.volumes import Volume, write_volume


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a red picture, a large grey picture and a brain."""
    root = tmp_path / "package"
    root.mkdir()
    Pillow.fromarray(np.full((6, 4, 3), [255, 0, 0], np.uint8)).save(root / "red.png")
    Pillow.fromarray(np.arange(25, dtype=np.uint8).reshape(5, 5) * 10).save(root / "large.png")
    brain = np.arange(101, dtype=np.int16)[:, None, None] * np.ones((1, 90, 91), np.int16)
    write_volume(root / "brain.nii.gz", Volume(brain, np.eye(4)))
    pictures = {"camera": ("toy", "red.png", "CC0", 1), "large": ("toy", "large.png", "CC BY", 2)}
    monkeypatch.setattr(open_images, "_PICTURES", pictures)
    monkeypatch.setattr(open_images, "_BRAIN", ("toy", "brain.nii.gz", "free"))
    monkeypatch.setattr(open_images, "_in_package", lambda _, file: root / file)
    monkeypatch.setattr(open_images, "PHOTOGRAPHS", tmp_path / "photographs")
    monkeypatch.setattr(open_images, "_CLOTHS", 1)
    return root


def test_colour_becomes_luminance_and_large_pictures_are_averaged(package: Path, tmp_path: Path) -> None:
    counts = write_open_images(tmp_path / "out")
    # slices 40 and 50 to 60 by ten, up to 40 before the end of each axis
    assert counts == {"train": 1 + 3 + 1 + 2 + 1, "validation": 1}
    red = np.asarray(Pillow.open(tmp_path / "out/validation/camera.png"))
    assert (red.shape, set(red.flatten().tolist())) == ((6, 4), {76})  # 0.299 * 255
    large = np.asarray(Pillow.open(tmp_path / "out/train/large.png"))
    assert large.tolist() == [[30, 50], [130, 150]]  # the means of 2 x 2 pixels; row and column 5 are cut off
    sagittal = np.asarray(Pillow.open(tmp_path / "out/train/brain-sagittal-60.png"))
    assert set(sagittal.flatten().tolist()) == {60 * 255 // 100}


def test_every_picture_is_listed_with_its_licence(package: Path, tmp_path: Path) -> None:
    write_open_images(tmp_path / "out")
    lines = (tmp_path / "out/LICENCES.tsv").read_text().splitlines()
    listed = dict(line.split("\t") for line in lines[1:])
    assert set(listed) == {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png")}
    assert listed["train/large.png"] == "CC BY, from toy"
    assert listed["train/brain-axial-40.png"] == "free, from toy"
    assert listed["train/cloth-00.png"] == "drawn by voxelwave (CC0)"


def test_photographs_of_the_debian_package_are_averaged_twice(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_open_images(tmp_path / "before")
    assert any("apt install lomiri-wallpapers-16.04" in command for command in commands_for_missing_images())
    (tmp_path / "photographs").mkdir()
    Pillow.new("RGB", (30, 16), (0, 255, 0)).save(tmp_path / "photographs/meadow.jpg", quality=100)
    monkeypatch.setattr(open_images, "_PHOTOGRAPHS", {"meadow.jpg": ("CC BY 4.0 (somebody)", (3, 5))})
    assert write_open_images(tmp_path / "after")["train"] == before["train"] + 2
    small = [Pillow.open(tmp_path / f"after/train/meadow-{factor}.png") for factor in (3, 5)]
    assert [picture.size for picture in small] == [(10, 5), (6, 3)]
    assert np.abs(np.asarray(small[0]) - 150.0).max() <= 1  # 0.587 * 255, up to the rounding of JPEG
    assert "CC BY 4.0 (somebody), from lomiri" in (tmp_path / "after/LICENCES.tsv").read_text()
    assert not any("apt" in command for command in commands_for_missing_images())


def test_packages_that_are_missing_are_skipped_and_none_at_all_is_an_error(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_images, "_in_package", lambda _, file: package / file if file == "large.png" else None)
    assert write_open_images(tmp_path / "some") == {"train": 1 + 1, "validation": 0}
    monkeypatch.setattr(open_images, "_in_package", lambda *_: None)
    with pytest.raises(ValueError, match="pip install scikit-image"):
        write_open_images(tmp_path / "none")
