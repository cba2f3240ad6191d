"""The benchmark command on tiny images and networks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from voxelwave.apps.cli import main
from voxelwave.restoration.mair import MaIR
from voxelwave.restoration.weights import save_weights
from voxelwave.runs.exit import USAGE
from voxelwave.volumes import Volume, write_volume

TINY = {"in_channels": 1, "scale": 1, "upsampler": None, "width": 8, "depths": [1], "states": 1, "stripe_width": 4}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A network that returns its input."""
    torch.manual_seed(0)
    network = MaIR(**TINY)
    with torch.no_grad():
        network.conv_last.weight.zero_()
        network.conv_last.bias.zero_()
    path = tmp_path / "tiny.safetensors"
    save_weights(path, network, task="denoise", intensity_range=(0, 1), intensity_unit="relative")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Smooth images under the names of the real images."""
    grid = np.add.outer(np.sin(np.arange(24) / 4), np.cos(np.arange(28) / 5))
    grey = np.rint(127 + 50 * grid).astype(np.uint8)
    folder = tmp_path / "data"
    (folder / "restoration/natural/Set12").mkdir(parents=True)
    Pillow.fromarray(grey).save(folder / "restoration/natural/Set12/01.png")
    stack = np.repeat(grey[..., None], 2, 2).astype(np.int16)
    noise = np.random.default_rng(0).normal(0, 20, stack.shape).round().astype(np.int16)
    for name, values in {
        "restoration/ct_phantom/slabA_kernel-UB_thick-1mm_idose": stack,
        "restoration/ct_phantom/slabA_kernel-YA_thick-1mm": stack + noise,
        "mri_ms_multimodal/mni/patient07/patient07_T1": stack,
        "mri_ms_multimodal/mni/patient07/patient07_T2": stack,
        "mri_ms_multimodal/raw/patient01/study1_FLAIR": stack,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_volume(folder / f"{name}.nii.gz", Volume(values, np.eye(4)))
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", ["set12", "ct", "mr"])
def test_quality_is_measured_beside_classical_methods(
    part: str, weights: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("skimage")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # without BM3D, which takes seconds
    words = ["restoration", "benchmark", "-o", str(tmp_path / "out"), "--data", str(data), "--part", part]
    assert main([*words, "--weights", str(weights)]) == 0
    record = json.loads((tmp_path / f"out/benchmark-{part}.json").read_text())
    for table in record["tables"]:
        rows = {row["method"]: row for row in table["rows"]}
        assert {"input", "nlm", "wavelet", "tv", "network"} <= set(rows)
        assert rows["network"]["psnr"] == pytest.approx(rows["input"]["psnr"], abs=1e-3)  # float32
    assert "data_range" in record["notes"]
    assert record["inputs"]["weights"]["sha256"]


def test_parts_on_real_images_need_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["restoration", "benchmark", "-o", str(tmp_path), "--part", "set12"]) == USAGE
    assert "--data" in capsys.readouterr().err
