"""The size in the header of a compressed image, which is read before a decoder allocates memory or fills in data."""

_JPEG, _JPEG_2000 = b"\xff\xd8", b"\xff\x4f\xff\x51"
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xF7}  # start of frame of JPEG and JPEG-LS
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment


def image_size(stream: bytes) -> tuple[int, int] | None:
    """(columns, rows) in the header of a JPEG, JPEG-LS or JPEG 2000 stream, or None if it gives none.

    Example:
        >>> image_size(bytes.fromhex("ffd8 ffc0 0011 08 0010 0020"))
        (32, 16)
    """
    if stream[:4] == _JPEG_2000 and len(stream) >= 24:
        right, bottom, left, top = (int.from_bytes(stream[i : i + 4]) for i in range(8, 24, 4))
        return right - left, bottom - top
    if stream[:2] != _JPEG:
        return None
    place = 2
    while place + 9 <= len(stream) and stream[place] == 0xFF:
        marker = stream[place + 1]
        if marker in _SOF:
            return int.from_bytes(stream[place + 7 : place + 9]), int.from_bytes(stream[place + 5 : place + 7])
        if marker == 0xFF:  # a fill byte
            place += 1
        else:
            place += 2 if marker in _ALONE else 2 + int.from_bytes(stream[place + 2 : place + 4])
    return None


def is_whole(stream: bytes) -> bool:
    """Whether such a stream has its end marker; bytes after it, such as a padding byte, are ignored.

    Example:
        >>> is_whole(bytes.fromhex("ff4fff51 ff93 0102 ffd9 ff"))
        True
        >>> is_whole(bytes.fromhex("ff4fff51 ff93 0102"))
        False
    """
    # neither marker occurs in compressed data; thumbnails in a JPEG's header have both, but come before its own data
    start = stream.find(b"\xff\x93") if stream[:4] == _JPEG_2000 else stream.rfind(b"\xff\xda")
    return stream.find(b"\xff\xd9", max(start, 0)) >= 0
