"""Tiles compared with the whole image, refusals, and the measured change."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from voxelwave.restoration.images import Image, IntensityRange, read_image
from voxelwave.restoration.inference import (
    Refused,
    check_card,
    fitting_range,
    measure_change,
    restore,
    slices_of,
    tile_weights,
    tile_windows,
)
from voxelwave.restoration.mair import MaIR
from voxelwave.restoration.weights import WeightsInfo
from voxelwave.runs.catalogue import Entry
from voxelwave.volumes import Volume, VolumeWarning, write_volume


class _Network(nn.Module):
    """A convolution, or an enlargement by repetition, with the interface of a restoration network."""

    def __init__(self, channels: int = 1, scale: int = 1, taken: int | None = None):
        super().__init__()
        self.in_channels, self.out_channels, self.scale = taken or channels, channels, scale
        self.sizes: list[tuple[int, int]] = []
        self.conv = nn.Conv2d(self.in_channels, channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        self.sizes.append((image.shape[2], image.shape[3]))
        return self.conv(image).repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)


class _Identity(_Network):
    def forward(self, image: Tensor) -> Tensor:
        return image.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).random((1, 1, 47, 61), dtype=np.float32)


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("smooth", [True, False])
def test_weights_of_all_tiles_sum_to_one(overlap: float, smooth: bool) -> None:
    for length, scale in itertools.product((1, 2, 19, 20, 21, 47, 200), (1, 3)):
        windows = tile_windows(length, 20, overlap)
        total = np.zeros(windows[-1][1] * scale)
        for (start, stop, _, _), weight in zip(windows, tile_weights(windows, scale=scale, smooth=smooth), strict=True):
            total[start * scale : stop * scale] += weight
        np.testing.assert_allclose(total, 1, atol=1e-12, err_msg=f"{length} pixels, scale {scale}")


def test_number_and_size_of_tiles_are_the_published_ones() -> None:
    # h div 200 + 1 tiles of one size, so 200 makes two tiles and 199 one
    assert [len(tile_windows(length, 200, 0.1)) for length in (199, 200, 399, 400, 512)] == [1, 2, 2, 3, 3]
    assert tile_windows(512, 200, 0.1) == [(0, 188, 0, 171), (154, 359, 171, 342), (325, 513, 342, 513)]


@pytest.mark.parametrize("blend", ["smooth", "cut"])
@pytest.mark.parametrize("scale", [1, 2])
def test_an_identity_network_leaves_the_image_in_any_tiling(image: np.ndarray, blend: str, scale: int) -> None:
    for tile in (7, 16, 47, 200):
        restored = restore(_Identity(scale=scale), image, tile=tile, overlap=0.3, blend=blend)
        expected = image.repeat(scale, 2).repeat(scale, 3)
        np.testing.assert_allclose(restored, expected, atol=1e-6)  # two weights that sum to 1 up to rounding


@pytest.mark.parametrize("blend", ["smooth", "cut"])
@pytest.mark.parametrize("scale", [1, 2])
def test_tiled_convolution_equals_the_whole_one(image: np.ndarray, blend: str, scale: int) -> None:
    network = _Network(scale=scale)
    whole = restore(network, image, tile=1000, blend="cut")  # "smooth" would mirror so small an image at its borders
    tiled = restore(network, image, tile=16, overlap=0.3, blend=blend)
    # the last row and column may differ only if the image was extended to a multiple of the tiles
    keep = (slice(None), slice(None), slice(0, 46 * scale), slice(0, 60 * scale))
    np.testing.assert_allclose(tiled[keep], whole[keep], atol=1e-5)


def test_a_small_image_is_mirrored_at_its_borders() -> None:
    image = np.random.default_rng(0).random((1, 5, 130), dtype=np.float32)
    network = _Network()
    with torch.no_grad():
        network.conv.weight.zero_()
        network.conv.weight[:, :, 0, 1], network.conv.bias[:] = 1, 0  # the pixel above
    restored = restore(network, image)
    assert network.sizes == [(96, 130)]
    np.testing.assert_allclose(restored, image[:, [1, 0, 1, 2, 3]])
    np.testing.assert_allclose(restore(network, image, blend="cut")[:, 0], 0)
    restore(_Network(scale=2), image)
    assert restore(network, image, tile=32).shape == image.shape
    assert max(network.sizes[2:])[0] == 31  # 32 would be two tiles; no more memory than asked for


def test_memory_is_bounded_by_the_tile(image: np.ndarray) -> None:
    network = _Network()
    restore(network, image, tile=16, overlap=0.25)
    assert max(max(size) for size in network.sizes) <= 16 + 2 * 4


def test_mair_in_tiles_stays_close_to_the_whole_image(image: np.ndarray) -> None:
    torch.manual_seed(0)
    network = MaIR(in_channels=1, scale=1, upsampler=None, width=8, depths=(2,), states=2, stripe_width=4)
    whole = restore(network, image, tile=1000, blend="cut")
    tiled = restore(network, image, tile=32, overlap=0.25)
    # the scan and its gates see one tile at a time, so the correction differs, but little on average
    assert np.square(tiled - whole).mean() < 0.1 * np.square(whole - image).mean()


def test_self_ensemble_does_not_depend_on_the_view(image: np.ndarray) -> None:
    network = _Network()
    straight = restore(network, image, self_ensemble=True)
    turned = restore(network, image[..., ::-1, :].swapaxes(-1, -2), self_ensemble=True)
    np.testing.assert_allclose(turned.swapaxes(-1, -2)[..., ::-1, :], straight, atol=1e-5)


def test_neighbouring_slices_are_taken_within_each_volume() -> None:
    class First(_Network):
        def forward(self, image: Tensor) -> Tensor:
            return image[:, :1]

    stack = np.arange(6, dtype=np.float32).reshape(6, 1, 1, 1).repeat(4, 2).repeat(4, 3)
    restored = restore(First(taken=3), stack, groups=2)
    assert restored[:, 0, 0, 0].tolist() == [0, 0, 1, 3, 3, 4]  # the slice before, or the first one again


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 2), (9, 1)])
def test_smallest_images_are_restored(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random((1, *shape), dtype=np.float32)
    assert restore(_Network(), image, tile=2, overlap=0.5, self_ensemble=True).shape == (1, *shape)


@pytest.mark.parametrize(("taken", "given", "channels"), [(3, 3, 1), (1, 1, 3), (3, 1, 3), (2, 1, 1)])
def test_other_numbers_of_channels_are_refused(taken: int, given: int, channels: int) -> None:
    with pytest.raises(Refused, match="channel"):
        slices_of(_Network(channels=given, taken=taken), channels)


def test_options_that_do_not_fit_are_named(image: np.ndarray) -> None:
    for options, words in (({"tile": 0}, "tile"), ({"overlap": 0.7}, "overlap"), ({"blend": "no"}, "blend")):
        with pytest.raises(ValueError, match=words):
            restore(_Network(), image, **options)
    with pytest.raises(ValueError, match="shape"):
        restore(_Network(), image[0, 0])


def test_change_reports_a_shift_in_the_image_unit() -> None:
    rng = np.random.default_rng(0)
    degraded = rng.normal(0, 100, (2, 1, 64, 64))
    change = measure_change(degraded, degraded + 12.5, intensity_range=IntensityRange(-1000, 1000, unit="HU"))
    assert change.bias == pytest.approx(12.5)
    assert change.largest_local_bias == pytest.approx(12.5)
    assert change.rms == pytest.approx(12.5)
    assert change.edge_ratio == pytest.approx(1)
    assert change.unit == "HU"
    assert any("HU" in line for line in change.lines())


def test_change_distinguishes_noise_removal_from_blurring() -> None:
    rng = np.random.default_rng(0)
    clean = np.kron(rng.random((8, 8)), np.ones((16, 16)))[None, None]
    noisy = clean + rng.normal(0, 0.05, clean.shape)
    blurred = (noisy + np.roll(noisy, 5, 2) + np.roll(noisy, 5, 3) + np.roll(noisy, -5, 2) + np.roll(noisy, -5, 3)) / 5
    unit = IntensityRange(0, 1)
    good, bad = (measure_change(noisy, result, intensity_range=unit) for result in (clean, blurred))
    assert good.edge_ratio > 0.95
    assert bad.edge_ratio < 0.8
    assert abs(good.structure) < 0.1
    assert bad.structure < -0.3


def test_change_of_super_resolution_is_measured_on_the_input_pixels(image: np.ndarray) -> None:
    change = measure_change(image, image.repeat(2, 2).repeat(2, 3), intensity_range=IntensityRange(0, 1), scale=2)
    assert change.rms == pytest.approx(0)


def _image(dtype: type, kind: str = "bitmap", modality: str | None = None) -> Image:
    from pathlib import Path

    stack: np.ndarray = np.arange(64).reshape(1, 1, 8, 8).astype(dtype)
    return Image(stack, Path("image"), kind, modality=modality)


def _info(unit: str, low: float = 0, high: float = 255) -> WeightsInfo:
    return WeightsInfo("MaIR", {}, "denoise", (low, high), unit)


@pytest.mark.filterwarnings("ignore")
def test_ranges_to_which_the_weights_do_not_apply_are_refused() -> None:
    ct, unknown, mr = _image(np.int16, "dicom", "CT"), _image(np.int16, "volume"), _image(np.int16, "dicom", "MR")
    window = _info("HU", -1000, 2000)
    chosen = fitting_range(ct, window)
    assert (chosen.low, chosen.high, chosen.unit) == (-1000, 2000, "HU")
    assert fitting_range(unknown, window, "hu:-1000,2000").unit == "HU"
    for image, how in ((unknown, "auto"), (mr, "auto"), (mr, "hu:-1000,2000"), (ct, "hu:-500,500"), (ct, "0,255")):
        with pytest.raises(Refused):
            fitting_range(image, window, how)
    assert fitting_range(_image(np.uint8), _info("8-bit")).high == 255
    with pytest.raises(Refused, match="8-bit"):
        fitting_range(_image(np.uint16), _info("8-bit"))
    assert fitting_range(_image(np.uint16), _info("8-bit"), "0,4095").high == 4095
    assert fitting_range(unknown, _info("relative"), "0,100").high == 100


def test_values_far_outside_the_range_are_warned_about(recwarn: pytest.WarningsRecorder) -> None:
    image = _image(np.float32)  # 0 to 63
    fitting_range(image, _info("relative"), "0,50")
    assert not recwarn
    with pytest.warns(VolumeWarning, match=r"50 % of image lies far outside the range 0 to 21 \(given\)"):
        fitting_range(image, _info("relative"), "0,21")


def _volume(tmp_path, values, sidecar=None):
    path = tmp_path / "scan.nii.gz"
    write_volume(path, Volume(values.astype(np.int16), np.eye(4)))
    if sidecar is not None:
        (tmp_path / "scan.json").write_text(json.dumps({"Modality": sidecar}))
    return read_image(path)


def _entry(*ruled_out: str, **more: Any) -> Entry:
    texts = dict.fromkeys(("task", "sha256", "data", "licence", "figures", "not_for"), "")
    file = Path("mine.safetensors")
    return Entry(name="mine", field="restoration", file=file, not_for_modalities=ruled_out, **texts, **more)


def test_pixels_of_another_size_and_negative_values_are_refused(tmp_path):
    values = np.random.default_rng(0).integers(0, 900, (8, 9, 4)).astype(np.int16)
    write_volume(tmp_path / "scan.nii.gz", Volume(values, np.diag([0.4, 0.8, 5.0, 1.0])))
    image = read_image(tmp_path / "scan.nii.gz")
    check_card(image, _entry(pixel_mm=(0.4, 0.8), magnitudes=True))
    with pytest.raises(Refused, match=r"mine is for pixels of 0.5 to 2 mm, got 0.4 x 0.8 mm; .*--ignore-card"):
        check_card(image, _entry(pixel_mm=(0.5, 2.0)))
    with pytest.raises(Refused, match=r"0.4 x 5 mm"):
        check_card(read_image(tmp_path / "scan.nii.gz", slice_axis=1), _entry(pixel_mm=(0.3, 2.0)))
    phase = _volume(tmp_path, values - 450)
    check_card(phase, _entry())
    with pytest.raises(Refused, match=r"mine is for magnitudes, got 4\d % negative values"):
        check_card(phase, _entry(magnitudes=True))


def test_another_contrast_is_refused_if_the_name_or_the_header_states_it(tmp_path):
    values = np.random.default_rng(0).integers(0, 900, (8, 9, 4)).astype(np.int16)
    entry = _entry(for_contrasts=("T1w", "FLAIR"))
    for name in ("sub-1_T1w.nii.gz", "T1w.nii", "scan.nii.gz", "a_acq-flair.nii"):  # known to fit, or unknown
        write_volume(tmp_path / name, Volume(values, np.eye(4)))
        check_card(read_image(tmp_path / name), entry)
    for name, contrast in (("sub-1_bold.nii.gz", "bold"), ("sub-1_part-phase_T1w.nii", "phase")):
        write_volume(tmp_path / name, Volume(values, np.eye(4)))
        with pytest.raises(Refused, match=rf"mine is for T1w, FLAIR, got {contrast} .*--ignore-card"):
            check_card(read_image(tmp_path / name), entry)
        check_card(read_image(tmp_path / name), _entry())


def test_numbers_of_ct_are_recognised_without_a_header(tmp_path):
    numbers = np.random.default_rng(0).normal(40, 20, (16, 16, 8))
    numbers[:6], numbers[7] = -1000, 900
    with pytest.raises(Refused, match=r"mine is not for CT .*38 % of the values .*--ignore-card"):
        check_card(_volume(tmp_path, numbers), _entry("CT"))
    check_card(_volume(tmp_path, numbers), _entry("PT"))
    check_card(_volume(tmp_path, numbers, sidecar="MR"), _entry("CT"))  # the header is believed
    check_card(_volume(tmp_path, np.abs(numbers)), _entry("CT"))


def test_the_json_of_a_name_in_capitals_counts(tmp_path):
    write_volume(tmp_path / "scan.nii.gz", Volume(np.zeros((4, 4, 2), np.int16), np.eye(4)))
    (tmp_path / "scan.nii.gz").rename(tmp_path / "SCAN.NII.GZ")
    (tmp_path / "SCAN.json").write_text(json.dumps({"Modality": "PT"}))
    assert read_image(tmp_path / "SCAN.NII.GZ").modality == "PT"


def test_the_modality_in_the_json_beside_a_volume_counts(tmp_path):
    image = _volume(tmp_path, np.random.default_rng(0).uniform(0, 9000, (8, 8, 4)), sidecar="PT")
    with pytest.raises(Refused, match=r"mine is not for PT"):
        check_card(image, _entry("CT", "PT"))
