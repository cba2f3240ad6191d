"""`restore` gives what the command writes."""

from pathlib import Path

import numpy as np
import pytest

from voxelwave.apps import cli
from voxelwave.restoration import Refused, restore
from voxelwave.volumes import Volume, read_volume, write_volume

pytestmark = pytest.mark.filterwarnings("ignore:.*no intensity range")


def noisy(shape: tuple[int, ...], dtype: type = np.uint16) -> np.ndarray:
    return (500 + 60 * np.random.default_rng(0).standard_normal(shape)).astype(dtype)


@pytest.mark.parametrize(("shape", "axis"), [((20, 18, 2), 2), ((2, 20, 18), 0), ((20, 18, 1, 2), 2)])
def test_a_volume_is_restored_as_by_the_command(shape, axis, tmp_path):
    volume = Volume(noisy(shape), np.diag([1.0, 2.0, 3.0, 1.0]))
    write_volume(tmp_path / "in.nii.gz", volume)
    words = ["restoration", "restore", str(tmp_path / "in.nii.gz"), "-o", str(tmp_path / "out.nii.gz")]
    assert cli.main([*words, "--slice-axis", str(axis)]) == 0
    restored = restore(volume, slice_axis=axis)
    np.testing.assert_array_equal(restored.array, read_volume(tmp_path / "out.nii.gz").array)
    assert restored.array.dtype == volume.array.dtype
    np.testing.assert_array_equal(restored.affine, volume.affine)
    assert restored.array.std() < 0.7 * volume.array.std()


def test_a_noise_level_is_used_as_by_the_command(tmp_path):
    volume = Volume(noisy((20, 18, 2)), np.eye(4))
    write_volume(tmp_path / "in.nii.gz", volume)
    words = ["restoration", "restore", str(tmp_path / "in.nii.gz"), "-o", str(tmp_path / "out.nii.gz")]
    assert cli.main([*words, "--sigma", "60"]) == 0
    told = restore(volume, sigma=60).array
    np.testing.assert_array_equal(told, read_volume(tmp_path / "out.nii.gz").array)
    assert told.mean() < restore(volume).array.mean() - 1  # by sigma^2 / (2 * 500), the bias
    with pytest.raises(Refused, match="MR magnitudes"):
        restore(volume, sigma=60, modality="XA")


def test_an_array_keeps_its_shape_and_dtype():
    grey = noisy((16, 20), np.uint8)
    assert (restore(grey).shape, restore(grey).dtype) == (grey.shape, grey.dtype)
    with pytest.raises(Refused, match="for grey images"):
        restore(np.stack([grey] * 3, axis=2))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(H, W\) or \(H, W, 3\)"):
        restore(np.zeros((2, 3, 4)))
    with pytest.raises(Refused, match="not for CT"):
        restore(Volume(noisy((16, 16, 1)), np.eye(4)), modality="CT")
    with pytest.raises(FileNotFoundError):
        restore(noisy((8, 8)), Path("missing"))
