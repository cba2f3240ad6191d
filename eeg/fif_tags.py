"""Checks of the tags of a FIF file, needed because MNE never returns if a tag points backwards."""

import struct
from pathlib import Path

_TAG = struct.Struct(">iiii")  # kind, type, size in bytes, position of the next tag
_NEXT_FOLLOWS, _LAST = 0, -1


def check_fif(path: Path) -> None:
    """Refuse a FIF file in which a tag points backwards; MNE itself reports tags that point beyond the end.

    Raises:
        ValueError: a tag points backwards; the message gives its byte.
    """
    seen, position = set(), 0
    with path.open("rb") as stream:
        while len(head := stream.read(_TAG.size)) == _TAG.size:
            seen.add(position)
            _, _, size, following = _TAG.unpack(head)
            if following == _LAST:
                return
            after = position + _TAG.size + size if following == _NEXT_FOLLOWS else following
            if size < 0 or after < 0 or after in seen:
                text = f"the tag at byte {position} of {size} bytes leads to byte {after}"
                raise ValueError(f"{path} is damaged: {text}; get the file again")
            position = after
            stream.seek(position)
