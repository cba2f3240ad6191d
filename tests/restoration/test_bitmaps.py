"""A picture is read as a viewer shows it, or is refused."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from voxelwave.restoration.bitmaps import read_bitmap, top_value
from voxelwave.restoration.images import choose_range, read_image
from voxelwave.volumes import VolumeWarning

GREY = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], -1)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_done_to_the_pixels(tmp_path: Path, suffix: str, orientation: int) -> None:
    # one bright corner: its position distinguishes the eight orientations
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :16] = 200
    stored[:16, 16:32] = 100
    path = tmp_path / f"a{suffix}"
    if suffix == ".tif":
        tifffile.imwrite(path, stored, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    else:
        exif = Pillow.Exif()
        exif[274] = orientation
        Pillow.fromarray(stored).save(path, exif=exif, quality=95)
    turned = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored),
    }[orientation]
    found = np.moveaxis(read_bitmap(path)[0], 0, -1)
    assert found.shape == turned.shape
    assert np.abs(found.astype(int) - turned)[4::8, 4::8].max() < 12


def test_a_palette_gives_colours(tmp_path: Path) -> None:
    colours = np.zeros((3, 256), np.uint16)
    colours[0], colours[2] = np.arange(256) * 257, 40000
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="palette", colormap=colours)
    expected = np.stack([GREY, np.zeros_like(GREY), np.full_like(GREY, 40000 >> 8)])
    np.testing.assert_array_equal(read_bitmap(tmp_path / "a.tif")[0], expected)


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
def test_zero_as_white_is_inverted(tmp_path: Path, dtype: type, top: int) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(dtype), photometric="miniswhite")
    np.testing.assert_array_equal(read_bitmap(tmp_path / "a.tif")[0, 0], top - GREY.astype(int))


def test_one_bit_with_zero_as_white(tmp_path: Path) -> None:
    black = GREY > 100
    Pillow.fromarray(black).save(tmp_path / "a.tif")
    shown = np.asarray(Pillow.open(tmp_path / "a.tif").convert("L"))
    np.testing.assert_array_equal(read_bitmap(tmp_path / "a.tif")[0, 0], shown)


@pytest.mark.parametrize(("photometric", "channels"), [("separated", 4), ("cielab", 3), ("minisblack", 3)])
def test_other_colours_of_a_tiff_are_refused(tmp_path: Path, photometric: str, channels: int) -> None:
    pixels = np.zeros((4, 6, channels), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=photometric, planarconfig="contig", metadata=None)
    with pytest.raises(ValueError, match=r"a\.tif must (hold|have)"):
        read_bitmap(tmp_path / "a.tif")


def test_pages_of_different_sizes_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(GREY, photometric="minisblack", metadata=None)
        file.write(GREY[:2], photometric="minisblack", metadata=None)
    with pytest.raises(ValueError, match="one size"):
        read_bitmap(tmp_path / "a.tif")


def test_a_thumbnail_before_the_picture_is_left_out(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(GREY[::2, ::2], photometric="minisblack", metadata=None, subfiletype=1)
        file.write(GREY, photometric="minisblack", metadata=None)
    with pytest.warns(VolumeWarning, match="1 thumbnail") as notes:
        image = read_image(tmp_path / "a.tif")
    assert len(notes) == 1
    np.testing.assert_array_equal(image.stack[0, 0], GREY)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_an_animation_is_refused(tmp_path: Path, suffix: str) -> None:
    Pillow.fromarray(COLOUR).save(
        tmp_path / f"a{suffix}", save_all=True, append_images=[Pillow.fromarray(255 - COLOUR)], lossless=True
    )
    with pytest.raises(ValueError, match="animation of 2 pictures"):
        read_bitmap(tmp_path / f"a{suffix}")


def test_several_pictures_in_a_jpeg_are_reported(tmp_path: Path) -> None:
    first = Pillow.fromarray(np.full((8, 8, 3), 90, np.uint8))
    first.save(tmp_path / "a.mpo", save_all=True, append_images=[Pillow.fromarray(np.zeros((8, 8, 3), np.uint8))])
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    with pytest.warns(VolumeWarning, match="2 pictures"):
        pixels = read_bitmap(tmp_path / "a.jpg")
    assert abs(int(pixels.mean()) - 90) < 3


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("mark", ["P5", "P6", "P2", "P3"])
def test_deep_pnm_keeps_its_values_and_its_white(tmp_path: Path, bits: int, mark: str) -> None:
    top = (1 << bits) - 1
    pixels = np.linspace(0, top, 72 if mark in ("P3", "P6") else 24).astype(np.uint16)
    path = tmp_path / ("a.ppm" if mark in ("P3", "P6") else "a.pgm")
    body = " ".join(map(str, pixels)).encode() if mark in ("P2", "P3") else pixels.astype(">u2").tobytes()
    path.write_bytes(f"{mark}\n# a comment\n6 4\n{top}\n".encode() + body)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(path)
        chosen = choose_range(image, "auto")
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(np.moveaxis(image.stack[0], 0, -1).ravel(), pixels)
    assert (chosen.low, chosen.high) == (0, top)


@pytest.mark.parametrize("content", [b"P5\n6 4\n4095\n" + b"\xff" * 48, b"P5\n6 4\n4095\n" + b"\0" * 47])
def test_damaged_deep_pnm_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pgm").write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged|cut off"):
        read_bitmap(tmp_path / "a.pgm")


def test_a_tiff_of_12_bits_has_its_own_white(tmp_path: Path) -> None:
    # one row of two 12-bit pixels, 0xABC and 0x123, packed by hand: tifffile does not write them
    pixels = bytes([0xAB, 0xC1, 0x23])
    entries = [(256, 4, 2), (257, 4, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1)]
    entries += [(273, 4, 8), (277, 3, 1), (278, 4, 1), (279, 4, 3)]
    ifd = len(entries).to_bytes(2, "little") + b"".join(
        tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for tag, kind, value in entries
    )
    (tmp_path / "a.tif").write_bytes(b"II*\0" + (12).to_bytes(4, "little") + pixels + b"\0" + ifd + bytes(4))
    assert top_value(tmp_path / "a.tif") == 4095
    pytest.importorskip("imagecodecs")  # unpacks 12 bits
    assert read_bitmap(tmp_path / "a.tif").ravel().tolist() == [0xABC, 0x123]


def test_a_transparent_colour_is_reported(tmp_path: Path) -> None:
    Pillow.fromarray(COLOUR).save(tmp_path / "a.png", transparency=(0, 0, 255))
    with pytest.warns(VolumeWarning, match="transparent"):
        read_bitmap(tmp_path / "a.png")
