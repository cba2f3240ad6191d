"""Checks of MATLAB files of version 5 to 7, element by element, because some damaged files crash SciPy.

A file (MathWorks, "MAT-File Format") has a header of 128 bytes and then elements; each element is a tag with type and
size in bytes, followed by its data, and an array is an element that contains elements. A wrong size inside an array can
crash SciPy's compiled reader, and a compressed element is inflated in one piece. All elements are therefore checked
first.
"""

import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..runs.memory import inflate_within_memory

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_TEXT, _WORDS = (1, 16), (5, 6)  # types of names, and types of sizes and flags; programs may use either type of a pair
_CELL, _STRUCT, _OBJECT, _CHAR, _SPARSE = 1, 2, 3, 4, 5
_NUMBERS = range(6, 16)
_SIZES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8, 16: 1, 17: 2, 18: 4}  # bytes of a value
_COMPLEX = 0x0800
_DEEPEST = 100  # largest depth of nested arrays


def check_matlab(path: Path) -> None:
    """Refuse a damaged MATLAB file, or one whose compressed arrays would fill the memory.

    Files of version 4, which have another structure, and of version 7.3, which are HDF5, pass.

    Raises:
        ValueError: the file is damaged, or its arrays do not fit into the memory.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEADER)
        order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(head[124:])
        if order is None or path.stat().st_size == _HEADER:
            return
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                for kind, start, stop in _elements(_Bytes(content, order), _HEADER, len(content), exact=True):
                    if kind == _COMPRESSED:
                        stream.seek(start)
                        inflate_within_memory(path, stream, stop - start)
                        inflated = _Bytes(zlib.decompress(content[start:stop]), order)
                        for inner, first, last in _elements(inflated, 0, len(inflated.content)):
                            _check_element(inflated, inner, first, last, 0)
                    else:
                        _check_element(_Bytes(content, order), kind, start, stop, 0)
            except (_DamagedError, zlib.error, struct.error) as error:
                raise ValueError(f"{path} is damaged or cut off: {error}; get the file again") from error


class _DamagedError(Exception):
    """Raised if the elements contradict each other."""


@dataclass(frozen=True)
class _Bytes:
    content: mmap.mmap | bytes
    order: str

    def words(self, start: int, count: int) -> tuple[int, ...]:
        return struct.unpack_from(f"{self.order}{count}I", self.content, start)


def _elements(data: _Bytes, start: int, stop: int, *, exact: bool = False) -> Iterator[tuple[int, int, int]]:
    """(type, first byte, byte after the last) of the elements in a stretch.

    With `exact`, no bytes may remain at the end; within an array, up to 7 bytes of padding may.
    """
    while stop - start >= 8:
        kind, size = data.words(start, 2)
        if kind >> 16:  # up to four bytes lie in the tag itself
            kind, size, first, after = kind & 0xFFFF, kind >> 16, start + 4, start + 8
            if size > 4:
                raise _DamagedError(f"{size} bytes in a tag that has room for 4")
        else:
            first = start + 8
            after = first + size + (-size % 8 if kind != _COMPRESSED else 0)
        if first + size > stop:
            raise _DamagedError(f"an element of {size} bytes, where {max(0, stop - first)} are left")
        yield kind, first, first + size
        start = after
    if exact and start < stop:
        raise _DamagedError(f"{stop - start} bytes in place of a tag")


def _check_element(data: _Bytes, kind: int, start: int, stop: int, depth: int) -> None:
    if kind != _MATRIX:
        raise _DamagedError(f"an element of type {kind} in place of an array")
    if depth > _DEEPEST:
        raise _DamagedError(f"more than {_DEEPEST} arrays within each other")
    if start == stop:
        return  # an empty array
    parts = _elements(data, start, stop)
    flags = _values(data, parts, _WORDS)
    dims = _values(data, parts, _WORDS)
    _next(parts, _TEXT)
    if len(flags) != 2 or len(dims) < 2 or any(size >= 2**31 for size in dims):
        raise _DamagedError("an array without a size")
    count, array_class = 1, flags[0] & 0xFF
    for size in dims:
        count *= size
    if array_class in _NUMBERS or array_class == _CHAR:
        for _ in range(2 if flags[0] & _COMPLEX and array_class != _CHAR else 1):
            _check_values(parts, count, exact=array_class != _CHAR)
    elif array_class == _SPARSE:
        for _ in range(4 if flags[0] & _COMPLEX else 3):
            _next(parts)
    elif array_class in (_CELL, _STRUCT, _OBJECT):
        if array_class == _OBJECT:
            _next(parts, _TEXT)
        _check_arrays(data, parts, count * (1 if array_class == _CELL else _count_fields(data, parts)), depth)
    # functions and opaque objects are not read


def _next(parts: Iterator[tuple[int, int, int]], kinds: tuple[int, ...] | None = None) -> tuple[int, int, int]:
    found = next(parts, None)
    if found is None or (kinds is not None and found[0] not in kinds):
        raise _DamagedError(f"{'nothing' if found is None else f'type {found[0]}'} in place of a part of an array")
    return found


def _values(data: _Bytes, parts: Iterator[tuple[int, int, int]], kinds: tuple[int, ...]) -> tuple[int, ...]:
    _, start, stop = _next(parts, kinds)
    return data.words(start, (stop - start) // 4)


def _check_values(parts: Iterator[tuple[int, int, int]], count: int, *, exact: bool) -> None:
    kind, start, stop = _next(parts)
    size = _SIZES.get(kind)
    if size is None or (stop - start) % size or (exact and (stop - start) // size != count):
        raise _DamagedError(f"{stop - start} bytes of type {kind} for an array of {count} values")


def _count_fields(data: _Bytes, parts: Iterator[tuple[int, int, int]]) -> int:
    lengths = _values(data, parts, _WORDS)
    _, start, stop = _next(parts, _TEXT)
    if len(lengths) != 1 or lengths[0] == 0 or (stop - start) % lengths[0]:
        raise _DamagedError(f"{stop - start} bytes of names of fields")
    return (stop - start) // lengths[0]


def _check_arrays(data: _Bytes, parts: Iterator[tuple[int, int, int]], count: int, depth: int) -> None:
    found = 0
    for kind, start, stop in parts:
        _check_element(data, kind, start, stop, depth + 1)
        found += 1
    if found != count:
        raise _DamagedError(f"{found} arrays in place of {count}")
