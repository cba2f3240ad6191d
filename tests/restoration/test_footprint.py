"""The memory of a restoration, measured in a new process."""

from pathlib import Path

import pytest

from voxelwave.restoration.footprint import restoration_footprint
from voxelwave.restoration.mair import MaIR
from voxelwave.restoration.weights import save_weights

if not Path("/proc/self/status").exists():
    pytest.skip("the resident set is read from /proc", allow_module_level=True)


@pytest.mark.slow
def test_footprint_counts_what_a_restoration_adds(tmp_path: Path) -> None:
    network = MaIR(stripe_width=4, in_channels=1, scale=1, upsampler=None, width=8, depths=[1], states=1)
    weights = tmp_path / "tiny.safetensors"
    save_weights(weights, network, task="denoise", intensity_range=(0, 1), intensity_unit="relative")
    footprint = restoration_footprint(weights, 64, 32)
    assert footprint.image_mib == pytest.approx(64 * 64 * 4 / 2**20)
    assert 0 <= footprint.peak_mib < footprint.total_mib


@pytest.mark.slow
def test_a_failed_measurement_is_one_line_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"measuring 64 x 64 in tiles of 32 failed: .*no file of weights at"):
        restoration_footprint(tmp_path / "missing.safetensors", 64, 32)
