"""Bitmaps made from the pixels of pydicom's CT image."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import tifffile
from damages import DAMAGES, Damage, damaged, put, zeros_deflated
from PIL import Image as Pillow
from pydicom.data import get_testdata_file


def sound_picture() -> np.ndarray:
    return pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False)).pixel_array.astype(np.uint16)


def bitmap(array: np.ndarray, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    if form == "TIFF":
        tifffile.imwrite(stream, array, **options)
    else:
        Pillow.fromarray(array).save(stream, form, **options)
    return stream.getvalue()


def picture(what: str, said: str, outcome: str = "refused", name: str = "a.png") -> Callable:
    """Register a file made from the undamaged picture."""

    def add(change: Callable) -> Callable:
        def make(folder: Path) -> Any:
            array = sound_picture()
            (folder / name).write_bytes(change(array))
            return folder / name, {"array": array[None, None]}

        DAMAGES.append(Damage("picture", what, outcome, said, make))
        return change

    return add


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of_size(width: int, height: int, pixels: bytes) -> bytes:
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :]


def tiff_with(array: np.ndarray, tag: int, value: int) -> bytes:
    """A TIFF in which a tag with one value gets another value."""
    content = bytearray(bitmap(array, "TIFF"))
    with tifffile.TiffFile(io.BytesIO(bytes(content))) as file:
        found = file.pages[0].tags[tag]
        form = {3: "<H", 4: "<I"}[int(found.dtype)]
        struct.pack_into(form, content, found.valueoffset, value)
    return bytes(content)


def looped(content: bytes) -> bytes:
    """A TIFF whose only image refers to itself as the next image."""
    (first,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, first)
    return put(bytearray(content), first + 2 + 12 * count, "<I", first)


picture("PNG, sound", "", "read")(lambda a: bitmap(a, "PNG"))
picture("PNG, half of it", "damaged or cut off")(lambda a: bitmap(a, "PNG")[:9000])
picture("PNG, empty (0 bytes)", "not a readable")(lambda a: b"")
picture("PNG, bit flipped in the pixels", "damaged")(lambda a: flipped(bitmap(a, "PNG"), 7000))
picture("PNG, bit flipped in the header", "not a readable")(lambda a: flipped(bitmap(a, "PNG"), 19))
picture("PNG of 60000 x 60000 pixels in 100 bytes", "exceeds limit")(
    lambda a: png_of_size(60000, 60000, zlib.compress(bytes(60)))
)
picture("PNG of 12000 x 12000 pixels in 100 bytes", "cut off")(
    lambda a: png_of_size(12000, 12000, zlib.compress(bytes(60)))
)
picture("PNG of 0 x 0 pixels", "not a readable")(lambda a: png_of_size(0, 0, zlib.compress(b"")))
picture("PNG bomb: 12000 x 12000 zeros, as it says", "does not fit in memory")(
    lambda a: png_of_size(12000, 12000, zeros_deflated(12001 * 12000, wbits=15))
)
picture("PNG with a bomb as comment", "not a readable")(
    lambda a: (lambda b: b[:33] + png_chunk(b"zTXt", b"Comment\0\0" + zeros_deflated(64 << 20, 15)) + b[33:])(
        bitmap(a, "PNG")
    )
)
picture("text named .png", "not a readable")(lambda a: b"hello " * 100)
picture("TIFF, sound", "", "read", "a.tif")(lambda a: bitmap(a, "TIFF"))
picture("TIFF named .png", "", "read")(lambda a: bitmap(a, "TIFF"))
picture("TIFF, half of it", "is cut off", name="a.tif")(lambda a: bitmap(a, "TIFF")[:9000])
picture("TIFF, 60000 rows claimed", "not a readable", name="a.tif")(lambda a: tiff_with(a, 257, 60000))
picture("TIFF, rows and columns of 4e9 claimed", "does not fit in memory", name="a.tif")(
    lambda a: tiff_with(np.zeros((70000, 1), np.uint8), 257, 4_000_000_000)
)
picture("TIFF, pixels behind its end", "is cut off", name="a.tif")(lambda a: tiff_with(a, 273, 10_000_000))
picture("TIFF, list of images points to itself", "", "read", "a.tif")(lambda a: looped(bitmap(a, "TIFF")))
picture("TIFF, deflated, half of it", "is cut off", name="a.tif")(
    lambda a: bitmap(a, "TIFF", compression="zlib")[:9000]
)
picture("BMP, 30000 x 30000 claimed", "exceeds limit", name="a.bmp")(
    lambda a: put(bytearray(bitmap(a.astype(np.uint8), "BMP")), 18, "<ii", 30000, 30000)
)
picture("BMP, half of it", "damaged or cut off", name="a.bmp")(lambda a: bitmap(a.astype(np.uint8), "BMP")[:8000])
picture("JPEG, half of it", "damaged or cut off", name="a.jpg")(lambda a: bitmap(a.astype(np.uint8), "JPEG")[:1500])


@damaged("picture", "folder named a.png", said="must hold a DICOM series")
def _(folder):
    (folder / "a.png").mkdir()
    return folder / "a.png"
