"""Images are read and written without loss of bits, position or unit; intensity ranges."""

import struct
import warnings
import zlib
from pathlib import Path

import nrrd
import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from voxelwave.restoration.images import IntensityRange, choose_range, find_images, read_image, to_pixels, write_image
from voxelwave.volumes import Volume, VolumeWarning, read_volume, write_volume


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.bmp"])
def test_8_bit_grey_is_written_and_read_unchanged(tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    pixels = rng.integers(0, 256, (7, 9), dtype=np.uint8)
    Pillow.fromarray(pixels).save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert image.stack.shape == (1, 1, 7, 9)
    write_image(tmp_path / "out" / name, image.stack.astype(float), image)
    np.testing.assert_array_equal(read_image(tmp_path / "out" / name).stack[0, 0], pixels)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_keeps_all_its_bits(tmp_path: Path, rng: np.random.Generator, suffix: str) -> None:
    pixels = rng.integers(0, 65536, (5, 6), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "in.tif", pixels)
    image = read_image(tmp_path / "in.tif")
    write_image(tmp_path / f"out{suffix}", image.stack, image)
    back = read_image(tmp_path / f"out{suffix}")
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back.stack[0, 0], pixels)


@pytest.mark.parametrize(("suffix", "dtype"), [(".png", np.uint8), (".tif", np.uint8), (".tif", np.uint16)])
def test_colour_is_written_and_read_unchanged(
    tmp_path: Path, rng: np.random.Generator, suffix: str, dtype: type
) -> None:
    pixels: np.ndarray = rng.integers(0, np.iinfo(dtype).max + 1, (5, 6, 3)).astype(dtype)
    tifffile.imwrite(tmp_path / "in.tif", pixels, photometric="rgb")
    image = read_image(tmp_path / "in.tif")
    assert image.stack.shape == (1, 3, 5, 6)
    write_image(tmp_path / f"out{suffix}", image.stack, image)
    np.testing.assert_array_equal(read_image(tmp_path / f"out{suffix}").stack[0].transpose(1, 2, 0), pixels)


def test_16_bit_colour_is_never_written_into_8_bits(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", np.full((4, 4, 3), 40000, np.uint16), photometric="rgb")
    image = read_image(tmp_path / "in.tif")
    with pytest.raises(ValueError, match=r"write \.tiff"):
        write_image(tmp_path / "out.png", image.stack, image)
    assert not (tmp_path / "out.png").exists()


def test_float_tiff_with_several_pages_is_a_stack(tmp_path: Path, rng: np.random.Generator) -> None:
    pages = rng.normal(size=(4, 5, 6)).astype(np.float32)
    tifffile.imwrite(tmp_path / "in.tif", pages, photometric="minisblack")
    image = read_image(tmp_path / "in.tif")
    np.testing.assert_array_equal(image.stack[:, 0], pages)
    write_image(tmp_path / "out.tif", image.stack, image)
    np.testing.assert_array_equal(read_image(tmp_path / "out.tif").stack, image.stack)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5, 6, 3)])
def test_a_volume_is_written_and_read_unchanged_along_any_axis(
    tmp_path: Path, rng: np.random.Generator, shape: tuple[int, ...], slice_axis: int
) -> None:
    affine = np.array([[0, 0, 3.0, -4], [2.0, 0, 0, 5], [0, 1.5, 0, 6], [0, 0, 0, 1]])
    volume = Volume(rng.integers(-1000, 3000, shape).astype(np.int16), affine)
    write_volume(tmp_path / "in.nii.gz", volume)
    image = read_image(tmp_path / "in.nii.gz", slice_axis=slice_axis)
    assert image.stack.shape[0] == shape[slice_axis] * (shape[3] if len(shape) == 4 else 1)
    write_image(tmp_path / "out.nii.gz", image.stack.astype(float), image)
    back = read_volume(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.affine, affine)
    assert back.array.dtype == np.int16


def test_an_nrrd_file_is_a_volume_that_becomes_nifti(tmp_path: Path, rng: np.random.Generator) -> None:
    place = {"space": "left-posterior-superior", "space directions": np.diag([2.0, 1, 3]), "space origin": [4, 5, 6]}
    nrrd.write(str(tmp_path / "a_T1w.nrrd"), rng.integers(0, 900, (5, 6, 7)).astype(np.int16), place)
    image = read_image(find_images(tmp_path)[0])
    assert (image.kind, image.contrast, image.modality) == ("volume", "T1w", None)
    write_image(tmp_path / "a.nii.gz", image.stack, image)
    was, now = read_volume(tmp_path / "a_T1w.nrrd"), read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(now.array, was.array)
    np.testing.assert_allclose(now.affine, was.affine)


def test_super_resolved_volume_keeps_its_field_of_view(tmp_path: Path) -> None:
    volume = Volume(np.zeros((4, 6, 3), np.int16), np.diag([2.0, 3.0, 4.0, 1.0]))
    write_volume(tmp_path / "in.nii.gz", volume)
    image = read_image(tmp_path / "in.nii.gz")
    write_image(tmp_path / "out.nii.gz", np.zeros((3, 1, 8, 12)), image, scale=2)
    fine = read_volume(tmp_path / "out.nii.gz")
    assert fine.shape == (8, 12, 3)
    assert fine.spacing == (1.0, 1.5, 4.0)
    corner = [-0.5, -0.5, 0, 1]  # the outer corner of the first pixel
    np.testing.assert_allclose(fine.affine @ corner, volume.affine @ corner)


def test_dicom_series_becomes_a_derived_series(shared_data: Path, tmp_path: Path) -> None:
    image = read_image(shared_data / "dicom/siemens_t1_sag_35slices")
    assert (image.kind, image.modality, image.channels) == ("dicom", "MR", 1)
    restored = image.stack * 0.9
    write_image(tmp_path / "out", restored, image, description="test")
    np.testing.assert_array_equal(read_image(tmp_path / "out").stack, to_pixels(restored, image.dtype))


def test_values_outside_the_range_are_kept() -> None:
    window = IntensityRange(-100.0, 100.0, unit="HU")
    values = np.array([-300.0, 0.0, 250.0])
    np.testing.assert_allclose(window.from_unit(window.to_unit(values)), values, rtol=1e-6)


def test_each_way_of_choosing_a_range(tmp_path: Path, rng: np.random.Generator) -> None:
    tifffile.imwrite(tmp_path / "a.tif", rng.integers(0, 65536, (9, 9), dtype=np.uint16))
    image = read_image(tmp_path / "a.tif")
    for how, expected in (
        ("auto", (0, 65535)),
        ("dtype", (0, 65535)),
        ("10,20000", (10, 20000)),
        ((1, 40000), (1, 40000)),
    ):
        chosen = choose_range(image, how)
        assert (chosen.low, chosen.high) == expected
    assert choose_range(image, "hu:-1000,30000").unit == "HU"
    low, high = np.percentile(image.stack, (5, 95))
    chosen = choose_range(image, "percentiles:5,95")
    assert (chosen.low, chosen.high) == (low, high)
    for wrong in ("5", "a,b", "3,2", "percentiles:5,300"):
        with pytest.raises(ValueError, match=r"range|percentiles"):
            choose_range(image, wrong)


def test_a_range_that_is_hardly_used_is_warned_about(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.arange(64, dtype=np.uint16).reshape(8, 8))
    with pytest.warns(VolumeWarning, match="spans 63 of the range"):
        choose_range(read_image(tmp_path / "a.tif"), "auto")


def test_the_automatic_range_of_a_volume_is_warned_about(tmp_path: Path, rng: np.random.Generator) -> None:
    write_volume(tmp_path / "a.nii.gz", Volume(rng.normal(size=(5, 6, 7)).astype(np.float32), np.eye(4)))
    with pytest.warns(VolumeWarning, match="no intensity range was given"):
        choose_range(read_image(tmp_path / "a.nii.gz"), "auto")


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    Pillow.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:50])
    (tmp_path / "text.tif").write_text("no image")
    for name in ("cut.png", "text.tif"):
        with pytest.raises((ValueError, OSError), match=name):
            read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.png")


def test_alpha_is_left_out_with_a_warning(tmp_path: Path) -> None:
    Pillow.fromarray(np.zeros((4, 4, 4), np.uint8)).save(tmp_path / "a.png")
    with pytest.warns(VolumeWarning, match="alpha"):
        assert read_image(tmp_path / "a.png").channels == 3


def test_folder_lists_images_and_series(shared_data: Path, tmp_path: Path) -> None:
    series = shared_data / "dicom/siemens_t1_sag_35slices"
    assert find_images(series) == [series]
    with pytest.raises(ValueError, match="must hold images"):
        find_images(tmp_path)
    Pillow.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("")
    assert find_images(tmp_path) == [tmp_path / "b.png"]


def test_16_bit_colour_png_is_refused_rather_than_cut(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + bytes(range(12)))
    (tmp_path / "deep.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="16 bits"):
            read_image(tmp_path / "deep.png")
