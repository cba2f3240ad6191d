"""Scores of methods, and the degraded images on which they are measured."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn

from voxelwave.restoration.degradations import bicubic_resize
from voxelwave.restoration.evaluation import Evaluation, EvaluationImage, evaluation_images, write_table
from voxelwave.restoration.images import IntensityRange
from voxelwave.restoration.inference import Refused
from voxelwave.restoration.rician import rician_mean
from voxelwave.restoration.settings import EvaluationSettings
from voxelwave.restoration.weights import WeightsInfo
from voxelwave.volumes import Volume, write_volume


class _Network(nn.Module):
    """A network that adds a constant to the middle input channel."""

    def __init__(self, *, taken: int = 1, added: float = 0.0):
        super().__init__()
        self.in_channels, self.out_channels, self.scale, self.added = taken, 1, 1, added

    def forward(self, image: Tensor) -> Tensor:
        return image[:, self.in_channels // 2, None] + self.added


def _info(taken: int = 1, given: int = 1) -> WeightsInfo:
    arguments = {"in_channels": taken, "out_channels": given, "scale": 1}
    return WeightsInfo("MaIR", arguments, "denoise", (0.0, 1.0), "relative")


def _image(clean: np.ndarray, degraded: np.ndarray, *, whole: bool = False, **more: object) -> EvaluationImage:
    values = {"sigma": None, "intensity_range": IntensityRange(0, 255), "whole": whole, **more}
    return EvaluationImage("slice", clean, degraded, **values)  # type: ignore[arg-type]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "clean"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Pillow.fromarray(rng.integers(60, 200, (24, 30), dtype=np.uint8)).save(folder / name)
    return folder


def test_values_beyond_the_window_do_not_count() -> None:
    inside = np.random.default_rng(0).random((1, 32, 32), dtype=np.float32)
    clean, degraded = inside.copy(), inside.copy()
    clean[:, :8], degraded[:, :8] = -3.0, -1.0  # air, in a window of soft tissue
    image = _image(clean, degraded, intensity_range=IntensityRange(-200.0, 400.0, unit="HU"))
    assert Evaluation(methods=()).measure(image)["input"] == (math.inf, pytest.approx(1.0))
    degraded[:, 16:] += 0.1
    assert Evaluation(methods=()).measure(image)["input"][0] < 30


def test_errors_outside_the_head_do_not_count() -> None:
    disc = np.hypot(*np.ogrid[-24:25, -24:25])[None] < 12
    clean = np.where(disc, 0.8, 0.0).astype(np.float32)
    degraded = clean.copy()
    degraded[:, :4] = 0.3
    image = _image(clean, degraded)
    assert Evaluation(methods=(), region="head").measure(image)["input"] == (math.inf, pytest.approx(1.0))
    assert Evaluation(methods=()).measure(image)["input"][0] < 25


def test_scores_are_those_of_scikit_image_on_rounded_pixels() -> None:
    rng = np.random.default_rng(1)
    clean = rng.integers(30, 220, (1, 40, 40)) / 255
    degraded = (clean + rng.normal(0, 0.02, clean.shape)).astype(np.float32)
    psnr, ssim = Evaluation(methods=(), border=2).measure(_image(clean, degraded, whole=True))["input"]
    ours, theirs = (np.rint(255 * x[0, 2:-2, 2:-2].astype(np.float64)) for x in (degraded, clean))
    assert psnr == pytest.approx(peak_signal_noise_ratio(theirs, ours, data_range=255))
    expected = structural_similarity(
        theirs, ours, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim == pytest.approx(expected, abs=1e-6)


def test_the_y_channel_ignores_errors_of_colour_alone() -> None:
    clean = np.full((3, 16, 16), 0.5)
    degraded = clean + np.array([128.553, -65.481, 0])[:, None, None] / 2000  # Y is unchanged
    image = _image(clean, degraded)
    assert Evaluation(methods=()).measure(image)["input"][0] < 40
    assert Evaluation(methods=(), y_channel=True).measure(image)["input"][0] > 100


def test_rician_bias_is_removed_from_methods_and_shown_for_the_network() -> None:
    sigma = 0.1
    clean = np.full((1, 16, 16), 0.2)
    mean = rician_mean(clean, sigma).astype(np.float32)
    evaluation = Evaluation(network=_Network(), methods=())
    row = evaluation.measure(_image(clean, mean, sigma=sigma, rician=True))
    assert row["network"] == row["input"]
    assert row["network-sigma"][0] > 60 > row["network"][0]
    assert "Rician bias of the true sigma removed" in evaluation.conditions()


def test_means_and_table_are_over_all_images(tmp_path: Path) -> None:
    clean = np.zeros((1, 16, 16))
    evaluation = Evaluation(network=_Network(added=0.1), methods=())
    for name, error in (("one", 0.1), ("two", 0.01)):
        image = EvaluationImage(name, clean, clean + error, None, IntensityRange(0, 1), whole=False)
        evaluation.measure(image)
    assert evaluation.means()["input"][0] == pytest.approx((20 + 40) / 2)
    assert "standard deviation (dB)" in evaluation.mean_line()
    assert "input  14.14" in evaluation.mean_line()  # the scores are 20 and 40 dB
    write_table(tmp_path / "table.tsv", evaluation)
    lines = [line.split("\t") for line in (tmp_path / "table.tsv").read_text().splitlines()]
    assert lines[0] == ["image", "method", "psnr", "ssim"]
    assert [line[:3] for line in lines if line[1] == "input"] == [
        ["one", "input", "20.0000"],
        ["two", "input", "40.0000"],
        ["mean", "input", "30.0000"],
    ]


def test_unknown_methods_and_another_scale_are_refused() -> None:
    with pytest.raises(ValueError, match="methods must be of nlm, wavelet, tv, bm3d, got median"):
        Evaluation(methods=["median"])
    with pytest.raises(ValueError, match="scale must be the network's, 1, got 2"):
        Evaluation(network=_Network(), scale=2)


def test_noise_has_the_level_in_the_unit_of_the_image_and_its_own_draw_per_image(pictures: Path) -> None:
    first, second = evaluation_images(pictures, EvaluationSettings(sigma=5.0, seed=3))
    again = next(evaluation_images(pictures, EvaluationSettings(sigma=5.0, seed=3)))
    np.testing.assert_array_equal(first.degraded, again.degraded)
    noise = [(image.degraded - image.clean) * 255 for image in (first, second)]
    assert first.sigma == pytest.approx(5 / 255)
    assert all(abs(float(n.std()) - 5) < 0.5 for n in noise)  # 720 pixels: within 2.6 % at one standard deviation
    assert abs(float(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1])) < 0.15
    assert (first.name, first.whole, first.rician) == ("a.png", True, False)


def test_small_images_are_bicubic_and_rounded_to_whole_pixels(pictures: Path) -> None:
    image = next(evaluation_images(pictures, EvaluationSettings(scale=2, degradation="bicubic")))
    expected = np.rint(255 * bicubic_resize(torch.from_numpy(image.clean), 0.5).clamp(0, 1).numpy()) / 255
    np.testing.assert_allclose(image.degraded, expected, atol=1e-6)


def test_partners_are_read_instead_of_degrading(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "dark").mkdir()
    for file in pictures.iterdir():
        Pillow.fromarray(np.asarray(Pillow.open(file)) - 51).save(tmp_path / "dark" / file.name)
    for image in evaluation_images(pictures, EvaluationSettings(degraded=tmp_path / "dark")):
        np.testing.assert_allclose(image.clean - image.degraded, 0.2, atol=1e-6)
        assert image.sigma is None
    (tmp_path / "dark/a.png").unlink()
    with pytest.raises(ValueError, match="must hold equally many images, got 2 and 1"):
        list(evaluation_images(pictures, EvaluationSettings(degraded=tmp_path / "dark")))


@pytest.mark.filterwarnings("ignore")
def test_neighbouring_slices_go_to_the_network_and_the_middle_one_is_measured(tmp_path: Path) -> None:
    values = np.arange(5, dtype=np.int16) * np.ones((16, 16, 1), np.int16)
    write_volume(tmp_path / "v.nii.gz", Volume(values, np.eye(4)))
    settings = EvaluationSettings(degradation={"kind": "gaussian", "sigma": 0.0}, range="0,10", slices_per_volume=1)
    (image,) = evaluation_images(tmp_path / "v.nii.gz", settings, info=_info(taken=3))
    np.testing.assert_allclose(image.degraded[:, 0, 0], [0.1, 0.2, 0.3], atol=1e-6)
    np.testing.assert_allclose(image.middle, image.clean)
    row = Evaluation(network=_Network(taken=3, added=0.1), methods=()).measure(image)
    assert row["input"][0] > 150  # equal up to float32
    assert row["network"][0] == pytest.approx(20, abs=1e-3)


def test_images_with_other_channels_than_the_weights_are_refused(pictures: Path) -> None:
    Pillow.fromarray(np.zeros((24, 30, 3), np.uint8)).save(pictures / "a.png")
    with pytest.raises(Refused, match=r"the weights are for 1 channel\(s\), got .*a.png with 3; --grey"):
        list(evaluation_images(pictures, EvaluationSettings(sigma=5.0), info=_info()))
    grey = next(evaluation_images(pictures, EvaluationSettings(sigma=5.0, grey=True), info=_info()))
    assert grey.clean.shape == (1, 24, 30)
