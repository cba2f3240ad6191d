"""A list of damaged or unusual inputs, and functions that change bytes to make them."""

import gzip
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Truth = Any  # the expected result of reading: arrays, or plain values


@dataclass(frozen=True)
class Damage:
    """One input.

    Args:
        kind: "DICOM", "NIfTI", "picture", "EEG" or "folder"; it selects the reader.
        what: name of the input, which describes the damage.
        outcome: "refused", "read" or "read, with a note".
        said: part of the error line or of the note.
        make: function that writes the input into an empty folder and returns its path, or its path and the expected
            result of reading.
        as_nobody: whether the input is read by a user without permissions.
    """

    kind: str
    what: str
    outcome: str
    said: str
    make: Callable[[Path], Any]
    as_nobody: bool = False


DAMAGES: list[Damage] = []


def damaged(kind: str, what: str, outcome: str = "refused", said: str = "", **options: Any) -> Callable:
    """Add a function that makes an input to the list."""

    def add(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
        DAMAGES.append(Damage(kind, what, outcome, said, make, **options))
        return make

    return add


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def swap(path: Path, old: bytes, new: bytes) -> None:
    """Replace the first occurrence of bytes that must be present."""
    content = path.read_bytes()
    assert old in content, (path, old)
    path.write_bytes(content.replace(old, new, 1))


def zeros_deflated(count: int, wbits: int = 31) -> bytes:
    """Compress `count` zeros quickly, by repeating a compressed piece (wbits 31: gzip, 15: zlib, -15: raw deflate)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(bytes(1 << 22)) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bare = piece * (count >> 22) + packer.compress(bytes(count % (1 << 22))) + packer.flush()
    if wbits < 0:
        return bare
    if wbits == 15:  # Adler-32 checksum of zeros
        return b"\x78\xda" + bare + struct.pack(">I", (count % 65521) << 16 | 1)
    return gzip.compress(bytes(1 << 22), mtime=0) * (count >> 22)


def put(content: bytearray, place: int, form: str, *values: Any) -> bytes:
    struct.pack_into(form, content, place, *values)
    return bytes(content)
