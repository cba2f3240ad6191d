"""Zip and tar files in place of folders: unpacked into a temporary folder, within limits, and removed afterwards.

| in the archive | outcome |
| --- | --- |
| an absolute path, "..", a drive or a backslash | refused |
| a link, a device | refused |
| a name twice | refused |
| an encrypted or damaged member | refused |
| more than fits on the disk, or than its own headers say; much more than it holds compressed | refused |
| an archive in the archive | not unpacked |
"""

import lzma
import shutil
import stat
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, NamedTuple, TextIO

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_MOST_MEMBERS = 200_000
_MOST_RATIO, _FREE_SIZE = 200, 1 << 30  # a bomb expands this much, to more than this many bytes
_PIECE = 1 << 20
_UNPACKED: dict[Path, Path] = {}  # temporary folder -> archive


class _Member(NamedTuple):
    name: str
    size: int
    folder: bool
    problem: str
    stream: IO[bytes] | None


def is_archive(path: Path) -> bool:
    """Whether a path is a file whose name has the suffix of an archive."""
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """The content of an archive in a temporary folder: the folder, its only subfolder, or its only file.

    Raises:
        ValueError: the archive is damaged or unsafe, see the table; nothing is left behind.
    """
    folder = Path(tempfile.mkdtemp(prefix="voxelwave-")).resolve()
    _UNPACKED[folder] = archive
    try:
        try:
            _unpack(archive, folder)
        except (
            zipfile.BadZipFile,
            tarfile.TarError,
            zlib.error,
            lzma.LZMAError,
            EOFError,
            NotImplementedError,
        ) as error:
            raise ValueError(f"{archive} is damaged or no archive of this kind: {error}") from None
        inner = folder
        while len(content := list(inner.iterdir())) == 1:
            inner = content[0]
            if inner.is_file():
                break
        yield inner
    finally:
        del _UNPACKED[folder]
        shutil.rmtree(folder, ignore_errors=True)


def original_of(path: Path) -> Path:
    """The archive from which a path was unpacked; the path itself if it was not."""
    absolute = path.absolute()
    return next((archive for folder, archive in _UNPACKED.items() if absolute.is_relative_to(folder)), path)


@contextmanager
def archives_named() -> Iterator[None]:
    """Within the block, lines on the screen and errors name an archive in place of the folder of its content."""
    with redirect_stdout(_as_text(_Named(sys.stdout))), redirect_stderr(_as_text(_Named(sys.stderr))):
        try:
            yield
        except (ValueError, OSError) as error:
            error.args = tuple(_named(part) if isinstance(part, str) else part for part in error.args)
            if isinstance(error, OSError) and error.filename is not None:
                error.filename = _named(str(error.filename))
            raise


class _Named:
    """A text stream that writes the name of an archive in place of the folder of its content."""

    def __init__(self, shown: TextIO) -> None:
        self._shown = shown

    def write(self, text: str) -> int:
        self._shown.write(_named(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shown, name)


def _as_text(stream: _Named) -> Any:
    return stream


def _named(text: str) -> str:
    for folder, archive in _UNPACKED.items():
        text = text.replace(str(folder), str(archive))
    return text


def _unpack(archive: Path, folder: Path) -> None:
    stored = archive.stat().st_size
    limit = min(shutil.disk_usage(folder).free, max(_FREE_SIZE, _MOST_RATIO * stored))
    written, seen = 0, set[str]()
    with zipfile.ZipFile(archive) if archive.name.lower().endswith(".zip") else tarfile.open(archive) as opened:
        members = _of_zip(opened) if isinstance(opened, zipfile.ZipFile) else _of_tar(opened)
        for number, member in enumerate(members):
            place = PurePosixPath(member.name)
            problem = member.problem or ("a path out of the folder" if _is_unsafe(member.name) else "")
            if problem:
                raise ValueError(f"{archive} holds {problem} ({member.name[:80]!r}) and is not unpacked")
            if number >= _MOST_MEMBERS:
                raise ValueError(f"{archive} holds more than {_MOST_MEMBERS} members and is not unpacked")
            target = folder.joinpath(*place.parts)
            if member.folder:
                target.mkdir(parents=True, exist_ok=True)
                continue
            if str(place) in seen or target.exists():
                raise ValueError(f"{archive} holds {member.name[:80]!r} twice and is not unpacked")
            seen.add(str(place))
            target.parent.mkdir(parents=True, exist_ok=True)
            assert member.stream is not None
            if member.size > limit - written:
                raise ValueError(_too_large(archive))
            with member.stream as source, target.open("wb") as out:
                written += _copy(archive, source, out, min(member.size, limit - written))


def _is_unsafe(name: str) -> bool:
    """Whether the name of a member could lead out of the folder, on this or on another system."""
    place, drive = PurePosixPath(name), PureWindowsPath(name).drive
    return place.is_absolute() or ".." in place.parts or "\\" in name or "\0" in name or drive != ""


def _too_large(archive: Path) -> str:
    return (
        f"{archive} expands to more than {_MOST_RATIO} times its size, than its headers say or than the disk holds, and"
        " is not unpacked"
    )


def _copy(archive: Path, source: IO[bytes], out: IO[bytes], most: int) -> int:
    """Copy a member of at most `most` bytes, and return their number."""
    count = 0
    while piece := source.read(_PIECE):
        count += len(piece)
        if count > most:
            raise ValueError(_too_large(archive))
        out.write(piece)
    return count


def _of_zip(opened: zipfile.ZipFile) -> Iterable[_Member]:
    for info in opened.infolist():
        mode = info.external_attr >> 16
        kind = stat.S_IFMT(mode)
        problem = "a link or a device" if kind and kind not in (stat.S_IFREG, stat.S_IFDIR) else ""
        problem = problem or ("an encrypted member" if info.flag_bits & 1 else "")
        stream = None if problem or info.is_dir() else opened.open(info)
        yield _Member(info.filename, info.file_size, info.is_dir(), problem, stream)


def _of_tar(opened: tarfile.TarFile) -> Iterable[_Member]:
    for info in opened:
        problem = "" if info.isreg() or info.isdir() else "a link or a device"
        stream = opened.extractfile(info) if info.isreg() else None
        yield _Member(info.name, info.size, info.isdir(), problem, stream)
