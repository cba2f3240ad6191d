"""The evaluate command: scores of networks and classical methods."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from voxelwave.apps.cli import main
from voxelwave.restoration.mair import MaIR
from voxelwave.restoration.weights import save_weights
from voxelwave.runs.exit import ERROR, USAGE


def test_scores_are_printed_and_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    # noise of 25 in 255 is 20.17 dB; clipping to the range removes some of it
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


def test_rician_bias_is_removed_and_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dark = np.zeros((32, 32), np.uint8)
    dark[8:24, 8:24] = 150
    for name in ("a.png", "b.png"):
        Pillow.fromarray(dark).save(folder / "in" / name)
    command = ["restoration", "evaluate", str(folder / "in"), "--methods", "[tv]", "-o", str(folder / "table.tsv")]
    command += ["--weights", str(folder / "w.safetensors"), "--device", "cpu", "--sigma", "20"]
    assert main([*command, "--degradation", "rician"]) == 0
    assert "Rician bias of the true sigma removed" in capsys.readouterr().out
    lines = [line.split("\t") for line in (folder / "table.tsv").read_text().splitlines()]
    means = {line[1]: float(line[2]) for line in lines if line[0] == "mean"}
    assert set(means) == {"input", "tv", "network", "network-sigma"}
    assert means["tv"] > means["input"] + 6  # most of this image is background, whose bias is most of the error
    assert main([*command, "--overwrite"]) == 0
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
    assert ramp > 45  # bicubic keeps a ramp, except for its ends and the rounding of the small image
    assert main([*command, "--sigma", "25"]) == ERROR
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


def test_evaluation_needs_one_kind_of_degradation(folder: Path) -> None:
    assert main(["restoration", "evaluate", str(folder / "in")]) == USAGE


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--scale", "0", "--degradation", "bicubic"], "--scale must be at least 1"),
        (["--slices-per-volume", "0", "--sigma", "25"], "--slices-per-volume must be at least 1"),
        (["--sigma", "25", "-o", "table.json"], "--output must end in .tsv"),
        (["--degradation", "bicubic"], "--degradation bicubic needs --scale or weights for super-resolution"),
        (["--degradation", "gaussian", "--degraded", "."], "give either --degraded, or --degradation and --sigma"),
        (["--degradation", "{kind: gaussian, sigma: 0.1}", "--sigma", "25"], "give sigma once"),
        (["--sigma", "25", "--scale", "2"], "must be bicubic and --sigma left out for super-resolution by 2"),
    ],
)
def test_wrong_options_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    assert main(["restoration", "evaluate", str(folder / "in"), "--methods", "[tv]", *words]) == USAGE
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--sigma", "-3"], "sigma of degradation gaussian must be a number of at least 0"),
        (["--degradation", "{sigma: 0.1}"], "degradation must be one of gaussian, rician"),
    ],
)
def test_wrong_degradations_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    assert main(["restoration", "evaluate", str(folder / "in"), "--methods", "[tv]", *words]) == ERROR
    assert reason in capsys.readouterr().err


def test_partners_of_another_size_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "small").mkdir()
    for name in ("a.png", "b.png"):
        Pillow.fromarray(np.zeros((12, 15), np.uint8)).save(folder / "small" / name)
    command = ["restoration", "evaluate", str(folder / "in"), "--degraded", str(folder / "small"), "--methods", "[tv]"]
    assert main(command) == ERROR
    assert "must have 1 times the size" in capsys.readouterr().err
