"""Named inputs that are damaged or odd, and what is done to bytes to make them."""

import gzip
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Truth = Any  # what reading must give: arrays, or plain values


@dataclass(frozen=True)
class Damage:
    """One input.

    Args:
        kind: "DICOM", "NIfTI", "picture", "EEG" or "folder": which reader reads it.
        what: what is odd about it, for people; its name.
        outcome: "refused", "read" or "read, with a note".
        said: part of the line that refuses it or of the note.
        make: writes it into an empty folder and gives its path, or its path and what reading it must give.
        as_nobody: read by a user without rights.
    """

    kind: str
    what: str
    outcome: str
    said: str
    make: Callable[[Path], Any]
    as_nobody: bool = False


DAMAGES: list[Damage] = []


def damaged(kind: str, what: str, outcome: str = "refused", said: str = "", **options: Any) -> Callable:
    """Put a function that makes an input into the list."""

    def add(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
        DAMAGES.append(Damage(kind, what, outcome, said, make, **options))
        return make

    return add


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def swap(path: Path, old: bytes, new: bytes) -> None:
    """Exchange bytes that are there once at least."""
    content = path.read_bytes()
    assert old in content, (path, old)
    path.write_bytes(content.replace(old, new, 1))


def zeros_deflated(count: int, wbits: int = 31) -> bytes:
    """So many zeros, compressed quickly (31: gzip, 15: zlib, -15: bare): one piece again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(bytes(1 << 22)) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bare = piece * (count >> 22) + packer.compress(bytes(count % (1 << 22))) + packer.flush()
    if wbits < 0:
        return bare
    if wbits == 15:  # Adler-32 of zeros
        return b"\x78\xda" + bare + struct.pack(">I", (count % 65521) << 16 | 1)
    return gzip.compress(bytes(1 << 22), mtime=0) * (count >> 22)


def put(content: bytearray, place: int, form: str, *values: Any) -> bytes:
    struct.pack_into(form, content, place, *values)
    return bytes(content)
