"""The restoration benchmark, its export of weights and the demonstration, on tiny images and networks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from voxelwave.apps.cli import main
from voxelwave.apps.demo.restoration import demo_restoration
from voxelwave.apps.restoration.benchmark import compare_scans
from voxelwave.restoration.footprint import restoration_footprint
from voxelwave.restoration.mair import MaIR
from voxelwave.restoration.module import RestorationModule
from voxelwave.restoration.scan_block import DirectionalScan
from voxelwave.restoration.weights import load_weights, save_weights
from voxelwave.volumes import Volume, write_volume

TINY = {"in_channels": 1, "scale": 1, "upsampler": None, "width": 8, "depths": [1], "states": 1, "stripe_width": 4}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A network that gives back what it is given."""
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
    """Smooth images in the places where the benchmark looks for the real ones."""
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


def test_both_scans_give_the_same_picture_and_the_compiled_one_is_left_chosen(generator: torch.Generator) -> None:
    model = MaIR(**TINY).eval()
    compiled, plain, difference = compare_scans(
        model, torch.rand(1, 1, 9, 7, generator=generator), repeats=2, plain_repeats=1
    )
    assert (len(compiled), len(plain)) == (2, 1)
    assert difference < 1e-5  # float32 sums in another order
    assert not any(m.plain for m in model.modules() if isinstance(m, DirectionalScan))


def test_footprint_counts_what_a_restoration_adds(weights: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("the resident set is read from /proc")
    footprint = restoration_footprint(weights, 64, 32)
    assert footprint.image_mib == pytest.approx(64 * 64 * 4 / 2**20)
    assert 0 <= footprint.peak_mib < footprint.total_mib


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


def test_parts_on_real_images_ask_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["restoration", "benchmark", "-o", str(tmp_path), "--part", "set12"]) == 1
    assert "--data" in capsys.readouterr().err


def test_export_writes_the_averaged_weights_of_a_checkpoint(tmp_path: Path) -> None:
    module = RestorationModule(network="MaIR", arguments=TINY, ema_decay=0.9)
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter.add_(1)  # after the last step the present weights are others than the averaged ones
    module.averaged_steps += 7
    content = {"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict()}
    torch.save(content, tmp_path / "last.ckpt")
    words = ["restoration", "export", str(tmp_path / "last.ckpt"), "-o", str(tmp_path / "w.safetensors")]
    assert main([*words, "--notes", '{"licence": "CC0"}']) == 0
    model, info = load_weights(tmp_path / "w.safetensors")
    assert (info.notes["steps"], info.notes["licence"]) == ("7", "CC0")
    torch.testing.assert_close(model.state_dict(), module.ema.state_dict(), rtol=0, atol=0)


def test_demonstration_takes_noise_out_of_a_real_slice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo_restoration(tmp_path)
    words = capsys.readouterr().out.split("PSNR ")[1].split()
    assert float(words[3]) > float(words[0]) + 2  # "20.80 dB before, 27.00 dB after"
    with Pillow.open(tmp_path / "restoration.png") as picture:
        assert picture.size[0] > picture.size[1] > 300
