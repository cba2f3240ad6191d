"""Complete images are read, and truncated images are refused."""

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000Lossless, SegmentationStorage

from voxelwave.volumes import read_volume
from voxelwave.volumes.codestream import is_whole

STORED = np.random.default_rng(0).integers(0, 4000, (3, 64, 48)).astype(np.uint16)


@pytest.mark.parametrize("tail", [b"", b"\xff", b"\x00", b"\x00\x01\x02"])
def test_bytes_after_the_end_mark_of_jpeg_2000_do_not_count(tmp_path, write_classic, tail):
    write_classic(tmp_path / "raw", STORED)
    (tmp_path / "compressed").mkdir()
    for file in sorted((tmp_path / "raw").iterdir()):
        image = pydicom.dcmread(file)
        image.compress(JPEG2000Lossless, generate_instance_uid=False)
        frames = [frame.rstrip(b"\0") + tail for frame in generate_frames(image.PixelData, number_of_frames=1)]
        image.PixelData = encapsulate(frames)
        image.save_as(tmp_path / "compressed" / file.name)
    np.testing.assert_array_equal(read_volume(tmp_path / "compressed").array, read_volume(tmp_path / "raw").array)


@pytest.mark.parametrize(
    ("stream", "whole"),
    [
        ("ffd8 ffe0 0006 ffd8ffd9 ffda 0102", False),  # the end marker belongs to a picture in the header
        ("ffd8 ffe0 0006 ffd8ffd9 ffda 0102 ffd9 00", True),
        ("ff4fff51 ff64 0004 ffd9 ff93 0102", False),  # the end marker is in a comment
        ("ff4fff51 ff64 0004 ffd9 ff93 0102 ffd9 ff93", True),
    ],
)
def test_the_end_mark_is_that_of_the_image(stream, whole):
    assert is_whole(bytes.fromhex(stream)) == whole


@pytest.mark.parametrize("shape", [(256, 320), (7, 5)])
def test_a_segmentation_of_one_bit_is_read_as_zeros_and_ones(tmp_path, write_enhanced, shape):
    mask = np.random.default_rng(0).random((3, *shape)) > 0.5

    def edit(image):
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = SegmentationStorage
        image.BitsAllocated = image.BitsStored = 1
        image.HighBit, image.Modality = 0, "SEG"
        image.Rows, image.Columns = shape
        packed = np.packbits(mask.ravel(), bitorder="little").tobytes()
        image.PixelData = packed + b"\0" * (len(packed) % 2)
        image["PixelData"].VR = "OB"

    write_enhanced(tmp_path / "seg.dcm", [(k, 0) for k in range(3)], lambda group, time: None, edit=edit)
    np.testing.assert_array_equal(read_volume(tmp_path / "seg.dcm").array.transpose(2, 1, 0)[:, ::-1], mask)
    whole = (tmp_path / "seg.dcm").read_bytes()
    (tmp_path / "seg.dcm").write_bytes(whole[:-4])
    with pytest.raises(ValueError, match="get the file again"):
        read_volume(tmp_path / "seg.dcm")


@pytest.mark.parametrize("slope", ["0", "0.0", "-0"])
def test_a_rescale_slope_of_0_is_refused(tmp_path, write_classic, slope):
    write_classic(tmp_path / "in", STORED, edit=lambda image, k: setattr(image, "RescaleSlope", slope))
    with pytest.raises(ValueError, match="RescaleSlope must not be 0"):
        read_volume(tmp_path / "in")
