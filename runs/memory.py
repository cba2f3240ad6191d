"""Check of the free memory before an image is read, since a damaged header can claim any size."""

import os
import zlib
from pathlib import Path
from typing import BinaryIO

_MOST_DEFLATED = 1032  # the most bytes to which a deflated byte can expand (RFC 1951: 258 bytes from 2 bits)
_SHARE = 3  # largest part of the free memory for data that is inflated as a whole
_PIECE = 1 << 18  # bytes


def free_memory() -> int | None:
    """The bytes that this process can still allocate, or None if the system does not report them."""
    found = [*_free_of_machine(), *_free_of_group(), *_free_of_limit()]
    return max(0, min(found)) if found else None


def check_memory(path: Path, needed: int) -> None:
    """Refuse a file that would not fit in memory.

    Args:
        path: the file to read.
        needed: bytes needed to read it.

    Raises:
        ValueError: less memory is free.
    """
    free = free_memory()
    if free is not None and needed > free:
        raise ValueError(
            f"{path} does not fit in memory: reading it takes {_words(needed)}, {_words(free)} are free; if its header"
            " is right, use a machine with more"
        )


def check_inflated(path: Path, claimed: int, stored: int) -> None:
    """Refuse a deflated file that is too short for the size in its header.

    Args:
        path: the file.
        claimed: bytes after inflating, according to the header.
        stored: bytes before inflating.

    Raises:
        ValueError: no stream of that length can inflate to that size.
    """
    if claimed > _MOST_DEFLATED * stored:
        raise ValueError(
            f"{path} is cut off: its header gives {_words(claimed)}, which {stored} compressed bytes cannot hold;"
            " get the file again"
        )


def inflate_within_memory(
    path: Path, stream: BinaryIO, length: int | None = None, *, wbits: int = zlib.MAX_WBITS
) -> None:
    """Inflate a stream piece by piece, and refuse one that would fill the memory.

    Args:
        path: the file, for the error.
        stream: an open file, at the start of the deflated data.
        length: length of the data in bytes; by default the rest of the file.
        wbits: see `zlib.decompressobj`; negative for a stream without a header.

    Raises:
        ValueError: the data would fill the memory.
        zlib.error: the data are damaged.
    """
    free, total, inflate = free_memory(), 0, zlib.decompressobj(wbits)
    left = path.stat().st_size if length is None else length
    while not inflate.eof and (block := inflate.unconsumed_tail or stream.read(min(_PIECE, left))):
        left -= 0 if inflate.unconsumed_tail else len(block)
        total += len(inflate.decompress(block, _PIECE << 4))
        if free is not None and total > free // _SHARE:
            raise ValueError(f"{path} does not fit in memory: it inflates to more than {_words(total)}")


def _words(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _free_of_machine() -> list[int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
        known = hasattr(os, "sysconf") and all(name in os.sysconf_names for name in names)
        return [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if known else []
    return [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]


def _free_of_group() -> list[int]:
    """Free memory under the limit of the container."""
    group = Path("/sys/fs/cgroup")
    try:
        return [int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())]
    except (OSError, ValueError):  # not in a container, or no limit ("max")
        return []


def _free_of_limit() -> list[int]:
    """Free memory under `ulimit -v`."""
    try:
        import resource
    except ImportError:  # Windows
        return []
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return []
    try:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        taken = 0
    return [limit - taken]
