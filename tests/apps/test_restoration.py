"""The restoration commands, from words to files and exit codes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from voxelwave.apps.cli import main
from voxelwave.restoration.mair import MaIR
from voxelwave.restoration.weights import save_weights
from voxelwave.volumes import Volume, read_volume, write_volume


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights for relative ranges and for CT numbers, and pictures to restore."""
    torch.manual_seed(0)
    network = MaIR(in_channels=1, scale=1, upsampler=None, width=8, depths=(1,), states=1, stripe_width=4)
    with torch.no_grad():
        network.conv_last.weight.mul_(0.01)
    save_weights(tmp_path / "w.safetensors", network, task="denoise", intensity_range=(0, 1), intensity_unit="relative")
    save_weights(
        tmp_path / "ct.safetensors", network, task="denoise", intensity_range=(-1000, 2000), intensity_unit="HU"
    )
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        Pillow.fromarray(rng.integers(0, 256, (24, 30), dtype=np.uint8)).save(tmp_path / "in" / name)
    return tmp_path


def _restore(folder: Path, source: str, target: str, *words: str, weights: str = "w") -> int:
    command = ["restoration", "restore", "-i", str(folder / source), "-o", str(folder / target)]
    return main([*command, "--weights", str(folder / f"{weights}.safetensors"), "--device", "cpu", *words])


def test_picture_is_restored_with_a_record(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _restore(folder, "in/a.png", "out.png", "--tile", "16", "--overlap", "0.25", "--self-ensemble") == 0
    assert np.asarray(Pillow.open(folder / "out.png")).shape == (24, 30)
    record = json.loads((folder / "out.restoration.json").read_text())
    assert record["options"]["tile"] == 16
    assert set(record["inputs"]) == {"input", "weights"}
    assert "bias" in record["change"]
    assert "bias (mean of result - input)" in capsys.readouterr().out


def test_folder_is_restored_file_by_file(folder: Path) -> None:
    assert _restore(folder, "in", "out") == 0
    assert {p.name for p in (folder / "out").glob("*/*.png")} == {"a.png", "b.png"}
    Pillow.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "in/colour.png")
    assert _restore(folder, "in", "again") == 3  # one was refused, the others are there
    assert {p.name for p in (folder / "again").glob("*/*.png")} == {"a.png", "b.png"}


@pytest.mark.filterwarnings("ignore")
def test_volume_keeps_place_and_type(folder: Path) -> None:
    values = np.random.default_rng(0).integers(-900, 1800, (12, 14, 3)).astype(np.int16)
    write_volume(folder / "v.nii.gz", Volume(values, np.diag([-0.5, 0.5, 3.0, 1.0])))
    assert _restore(folder, "v.nii.gz", "out.nii.gz", "--range", "hu:-1000,2000", weights="ct") == 0
    restored = read_volume(folder / "out.nii.gz")
    assert restored.array.dtype == np.int16
    np.testing.assert_allclose(restored.affine, np.diag([-0.5, 0.5, 3.0, 1.0]))


def test_guards_refuse_with_code_4(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _restore(folder, "in/a.png", "out.png", weights="ct") == 4
    assert "CT numbers" in capsys.readouterr().err
    assert _restore(folder, "in/a.png", "out.png", "--task", "deblur") == 4
    assert "denoise" in capsys.readouterr().err
    assert _restore(folder, "in/a.png", "out.png", "--max-bias", "0.0") == 4
    assert not (folder / "out.png").exists()


def test_the_input_is_never_overwritten(folder: Path) -> None:
    before = (folder / "in/a.png").read_bytes()
    assert _restore(folder, "in/a.png", "in/a.png") == 1
    assert (folder / "in/a.png").read_bytes() == before


def test_evaluation_prints_and_writes_what_was_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage")
    words = ["restoration", "evaluate", str(folder / "in"), "--sigma", "25", "--methods", "[nlm,tv]", "--border", "2"]
    weights = ["--weights", str(folder / "w.safetensors"), "--device", "cpu", "-o", str(folder / "table.tsv")]
    assert main([*words, *weights]) == 0
    out = capsys.readouterr().out
    assert "mean of 2" in out
    assert "data_range" in out
    assert "2 pixels left out" in out
    rows = [line.split("\t") for line in (folder / "table.tsv").read_text().splitlines()]
    assert {row[1] for row in rows[1:]} == {"input", "nlm", "tv", "network"}
    noisy = [float(row[2]) for row in rows if row[1] == "input"]
    # noise of 25 in 255 is 20.17 dB; values that are cut to the range lose some of it
    assert all(20.0 < value < 21.5 for value in noisy)


@pytest.mark.parametrize(
    ("words", "methods"),
    [
        (["--degradation", "gaussian", "--sigma", "25"], {"input", "tv"}),
        (["--degradation", "rician", "--sigma", "25"], {"input", "tv"}),
        (["--degradation", "{kind: ct, photons: 10000}", "--range", "hu:-100,155"], {"input", "tv"}),
        (["--degradation.kind", "gaussian-blur", "--degradation.sigma_px", "1.0", "--sigma", "2"], {"input", "tv"}),
        (["--degradation", "{kind: box-blur, size_px: 3}"], {"input", "tv"}),
        (["--degradation", "bicubic", "--scale", "2"], {"bicubic"}),
    ],
)
def test_evaluation_degrades_by_name(folder: Path, words: list[str], methods: set[str]) -> None:
    table = folder / "table.tsv"
    command = ["restoration", "evaluate", str(folder / "in"), "--methods", "[tv]", "-o", str(table), *words]
    assert main(command) == 0
    rows = [line.split("\t") for line in table.read_text().splitlines()[1:]]
    assert {row[1] for row in rows} == methods
    assert all(5 < float(row[2]) < 50 for row in rows)


def test_rician_bias_is_taken_out_and_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dark = np.zeros((32, 32), np.uint8)
    dark[8:24, 8:24] = 150
    for name in ("a.png", "b.png"):
        Pillow.fromarray(dark).save(folder / "in" / name)
    command = ["restoration", "evaluate", str(folder / "in"), "--methods", "[tv]", "-o", str(folder / "table.tsv")]
    command += ["--weights", str(folder / "w.safetensors"), "--device", "cpu", "--sigma", "20"]
    assert main([*command, "--degradation", "rician"]) == 0
    assert "Rician bias of the true sigma taken out" in capsys.readouterr().out
    lines = [line.split("\t") for line in (folder / "table.tsv").read_text().splitlines()]
    means = {line[1]: float(line[2]) for line in lines if line[0] == "mean"}
    assert set(means) == {"input", "tv", "network", "network-unbiased"}
    assert means["tv"] > means["input"] + 6  # most of this image is background, whose bias is most of the error
    assert main(command) == 0
    assert "Rician" not in capsys.readouterr().out


def test_super_resolution_is_measured_beside_bicubic(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = MaIR(
        in_channels=1, scale=2, upsampler="pixelshuffledirect", width=8, depths=(1,), states=1, stripe_width=4
    )
    weights = folder / "x2.safetensors"
    save_weights(weights, network, task="super-resolution", intensity_range=(0, 255), intensity_unit="8-bit")
    Pillow.fromarray(np.tile(np.arange(35, dtype=np.uint8), (31, 1)) * 7).save(folder / "in/odd.png")  # cut to 30 x 34
    command = ["restoration", "evaluate", str(folder / "in"), "--weights", str(weights), "--device", "cpu"]
    assert main([*command, "--border", "2", "-o", str(folder / "table.tsv")]) == 0
    rows = [line.split("\t") for line in (folder / "table.tsv").read_text().splitlines()[1:]]
    assert {row[1] for row in rows} == {"bicubic", "network"}
    ramp = next(float(row[2]) for row in rows if row[:2] == ["odd.png", "bicubic"])
    assert ramp > 45  # bicubic keeps a ramp but for its ends and the rounding of the small image
    assert main([*command, "--sigma", "25"]) == 1
    assert "--sigma left out" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("clean", "words"),
    [
        (
            "mri_ms_multimodal/raw/patient01/study1_FLAIR.nii.gz",
            ["--degradation", "rician", "--sigma", "30"],
        ),
        (
            "restoration/ct_phantom/slabA_kernel-UB_thick-1mm_idose.nii.gz",
            ["--degraded", "restoration/ct_phantom/slabA_kernel-YA_thick-1mm.nii.gz", "--range", "hu:-1000,2000"],
        ),
    ],
    ids=["rician", "ct-pair"],
)
def test_non_local_means_helps_on_real_scans(shared_data: Path, tmp_path: Path, clean: str, words: list[str]) -> None:
    words = [str(shared_data / word) if word.endswith(".nii.gz") else word for word in words]
    command = ["restoration", "evaluate", str(shared_data / clean), "--slices-per-volume", "1", "--methods", "[nlm]"]
    assert main([*command, *words, "-o", str(tmp_path / "table.tsv")]) == 0
    rows = {tuple(line.split("\t")[:2]): line.split("\t")[2:] for line in (tmp_path / "table.tsv").open()}
    (before, ssim_before), (after, ssim_after) = ([float(v) for v in rows["mean", m]] for m in ("input", "nlm"))
    assert after > before
    assert ssim_after > ssim_before


def test_evaluation_wants_one_kind_of_degradation(folder: Path) -> None:
    assert main(["restoration", "evaluate", str(folder / "in")]) == 1


def test_open_images_come_with_their_licences(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    assert main(["restoration", "images", "-o", str(tmp_path / "open")]) == 0
    listed = [line.split("\t")[0] for line in (tmp_path / "open/LICENCES.tsv").read_text().splitlines()[1:]]
    assert sorted(listed) == sorted(str(p.relative_to(tmp_path / "open")) for p in (tmp_path / "open").rglob("*.png"))
    assert np.asarray(Pillow.open(tmp_path / "open/train/astronaut.png")).ndim == 2


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--max-bias", "-1"], "--max-bias must be at least 0, got -1"),
        (["--device", "cuda"], "--device cuda needs a CUDA GPU"),
    ],
)
def test_options_that_cannot_be_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], reason: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _restore(folder, "in/a.png", "out.png", *words) == 1
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("target", ["out", "out.nii.gz", "out.jpg"])
def test_outputs_that_cannot_hold_the_result_are_refused_before_the_network_runs(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setattr("voxelwave.restoration.inference.restore", lambda *_, **__: pytest.fail("it ran"))
    assert _restore(folder, "in/a.png", target) == 1
    assert target in capsys.readouterr().err
    assert not (folder / target).exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--scale", "0", "--degradation", "bicubic"], "--scale must be at least 1"),
        (["--slices-per-volume", "0", "--sigma", "25"], "--slices-per-volume must be at least 1"),
        (["--sigma", "25", "-o", "table.json"], "--output must end in .tsv"),
        (["--sigma", "-3"], "sigma of degradation gaussian must be a number of at least 0"),
    ],
)
def test_evaluation_names_what_cannot_be(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    assert main(["restoration", "evaluate", str(folder / "in"), "--methods", "[tv]", *words]) == 1
    assert reason in capsys.readouterr().err


def test_partners_of_another_size_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "small").mkdir()
    for name in ("a.png", "b.png"):
        Pillow.fromarray(np.zeros((12, 15), np.uint8)).save(folder / "small" / name)
    command = ["restoration", "evaluate", str(folder / "in"), "--degraded", str(folder / "small"), "--methods", "[tv]"]
    assert main(command) == 1
    assert "must have 1 times the size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"module": {}}, "arguments of MaIR do not fit: missing 1 required keyword-only argument: 'stripe_width'"),
        ({"module": {"nets": "MaIR"}}, "module takes network, arguments,"),
        ({"module": {"arguments": {"stripe_width": 4, "wide": 8}}}, "unexpected keyword argument 'wide'"),
        ({"stages": [{"steps": 1, "batches": 1, "patch": 8}]}, "a stage takes steps, batch, patch"),
        ({"module": {"arguments": {"stripe_width": 4, "in_channels": 3}}}, "has 1 channel(s)"),
    ],
)
def test_training_names_what_does_not_fit(
    folder: Path, capsys: pytest.CaptureFixture[str], options: dict, reason: str
) -> None:
    (folder / "train.yaml").write_text(json.dumps({"degradation": {"kind": "gaussian", "sigma": 0.1}, **options}))
    images = str(folder / "in")
    command = ["restoration", "train", images, images, "-o", str(folder / "out"), "--device", "cpu"]
    assert main([*command, "--config", str(folder / "train.yaml")]) == 1
    assert reason in capsys.readouterr().err


def test_export_of_a_file_that_is_no_checkpoint_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "last.ckpt").write_bytes(b"hello")
    assert main(["restoration", "export", str(folder / "last.ckpt"), "-o", str(folder / "x.safetensors")]) == 1
    assert "last.ckpt is not a readable checkpoint" in capsys.readouterr().err
