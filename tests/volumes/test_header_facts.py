"""Header fields other than values and affine are preserved, and points outside the image get its background."""

import struct
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest

from voxelwave.restoration.images import read_image, write_image
from voxelwave.volumes import Volume, VolumeWarning, read_volume, resample, write_volume

ORDERS: tuple[Literal["linear", "nearest"], ...] = ("linear", "nearest")


def _header(path: Path) -> Any:
    image: Any = nib.load(path)
    return image.header


def _series(path: Path, *, code: int = 4, unit: str = "msec") -> None:
    affine = np.diag([2.0, 2, 3, 1])
    image = nib.Nifti1Image(np.arange(240, dtype=np.int16).reshape(4, 5, 3, 4), affine)
    image.header.set_zooms((2, 2, 3, 1500))
    image.header.set_xyzt_units("mm", unit)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    nib.save(image, path)


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5])
def test_a_restored_series_keeps_tr_unit_and_space(tmp_path: Path, code: int) -> None:
    _series(tmp_path / "a.nii.gz", code=code)
    image = read_image(tmp_path / "a.nii.gz")
    write_image(tmp_path / "b.nii.gz", image.stack, image)
    header = _header(tmp_path / "b.nii.gz")
    assert header.get_zooms()[3] == 1500
    assert header.get_xyzt_units() == ("mm", "msec")
    assert (int(header["sform_code"]), int(header["qform_code"])) == (code, code)


def test_a_restored_series_keeps_the_order_and_times_of_its_slices(tmp_path: Path) -> None:
    _series(tmp_path / "a.nii")
    image: Any = nib.load(tmp_path / "a.nii")
    facts = {"dim_info": 0x39, "slice_code": 3, "slice_end": 2, "slice_duration": 0.5, "toffset": 2.0}
    for name, number in facts.items():
        image.header[name] = number
    nib.save(image, tmp_path / "b.nii")
    read = read_image(tmp_path / "b.nii")
    write_image(tmp_path / "c.nii", read.stack, read)
    assert {name: float(_header(tmp_path / "c.nii")[name]) for name in facts} == facts


def test_slice_fields_without_a_meaning_are_left_out(tmp_path: Path) -> None:
    image = nib.Nifti2Image(np.zeros((3, 3, 3), np.int16), np.eye(4))
    image.header["slice_code"], image.header["slice_end"], image.header["toffset"] = 49180, -5, np.nan
    nib.save(image, tmp_path / "a.nii")
    read = read_image(tmp_path / "a.nii")
    write_image(tmp_path / "b.nii", read.stack, read)
    assert [float(_header(tmp_path / "b.nii")[name]) for name in ("slice_code", "slice_end", "toffset")] == [0, 0, 0]


@pytest.mark.parametrize("name", ["a.gif", "a.jp2", "a.HEIC"])
def test_a_picture_of_another_format_is_named_as_such(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match="is a picture in a format that is not read; save it as PNG or TIFF"):
        read_image(tmp_path / name)


def test_a_restored_mgz_keeps_its_sequence(tmp_path: Path) -> None:
    image = nib.MGHImage(np.ones((4, 4, 4), np.float32), np.eye(4))
    wanted = {"tr": 2300.0, "flip_angle": 0.15, "te": 2.98, "ti": 900.0}
    for name, number in wanted.items():
        image.header[name] = number
    nib.save(image, tmp_path / "a.mgz")
    read = read_image(tmp_path / "a.mgz")
    write_image(tmp_path / "b.mgz", read.stack, read)
    header = _header(tmp_path / "b.mgz")
    assert {name: float(header[name]) for name in wanted} == pytest.approx(wanted)


def test_a_moved_series_keeps_its_tr(tmp_path: Path) -> None:
    _series(tmp_path / "a.nii")
    series = read_volume(tmp_path / "a.nii")
    write_volume(tmp_path / "b.nii", resample(series, Volume(np.zeros((6, 6, 3)), series.affine)), space="aligned")
    header = _header(tmp_path / "b.nii")
    assert (header.get_zooms()[3], header.get_xyzt_units()[1], int(header["sform_code"])) == (1500, "msec", 2)


@pytest.mark.parametrize("code", [4, 7, 2 | 56, 255])
def test_unknown_unit_codes_give_a_note(tmp_path: Path, code: int) -> None:
    _series(tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[123] = code
    (tmp_path / "a.nii").write_bytes(bytes(content))
    with pytest.warns(VolumeWarning, match="unknown code"):
        assert read_volume(tmp_path / "a.nii").spacing == (2, 2, 3)


@pytest.mark.parametrize(("b", "accepted"), [(1.0000002, True), (1.000002, True), (1.01, False)])
def test_a_quaternion_rounded_above_1_is_a_half_turn(tmp_path: Path, b: float, accepted: bool) -> None:
    image = nib.Nifti1Image(np.ones((3, 4, 5), np.int16), None)
    image.set_qform(np.diag([2.0, -2, -2, 1]), 1)
    image.set_sform(None, 0)
    nib.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<fff", content, 256, b, 0, 0)
    (tmp_path / "a.nii").write_bytes(bytes(content))
    if not accepted:
        with pytest.raises(ValueError, match="w2"):
            read_volume(tmp_path / "a.nii")
        return
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").affine[:3, :3], np.diag([2, -2, -2]), atol=1e-5)


def test_a_voxel_without_size_is_refused() -> None:
    with pytest.raises(ValueError, match="invertible"):
        Volume(np.zeros((2, 2, 2)), np.diag([1e-321, 1, 1, 1]))


@pytest.mark.parametrize(("background", "expected"), [(-1000.0, -1000), (-3024.0, -3024), (None, 0)])
def test_outside_reads_the_background(background: float | None, expected: float) -> None:
    moving = Volume(np.full((3, 3, 3), 40, np.int16), np.eye(4), background=background)
    grid = Volume(np.zeros((5, 3, 3)), np.eye(4))
    for order in ORDERS:
        moved = resample(moving, grid, order=order).array
        assert (moved[:3] == 40).all()
        assert (moved[3:] == expected).all()


def test_a_ct_without_a_header_reads_its_lowest_value_outside() -> None:
    array = np.full((3, 3, 3), 40, np.float32)
    array[0] = -1024
    with pytest.warns(VolumeWarning, match="as a CT has"):
        moved = resample(Volume(array, np.eye(4)), Volume(np.zeros((5, 3, 3)), np.eye(4)))
    assert (moved.array[3:] == -1024).all()
