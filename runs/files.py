"""Writing of outputs that appear complete or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path, PurePath

from filelock import FileLock, Timeout


def publish(temporary: Path, target: Path) -> None:
    """Replace an older folder with a finished one, after flushing its files to the disk."""
    flush(temporary)
    old = temporary.with_name("old")
    if target.exists():
        os.replace(target, old)
    os.replace(temporary, target)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it if the block succeeds and removed if it fails.

    The temporary name keeps the suffixes, since writers choose the format by them. Missing parent folders are created.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "report.json"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_text("{}")
        >>> target.read_text()
        '{}'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{secrets.token_hex(4)}.{path.name}"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def output_lock(output: Path) -> Iterator[None]:
    """Let one run at a time write to an output, a file or a folder.

    Raises:
        ValueError: another run is writing to it.
    """
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output.parent / f".{output.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another run is writing to {output}: wait for its end or choose another --output") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def outputs_together(folder: Path, *, replaces: Sequence[str] = ()) -> Iterator[Path]:
    """A temporary folder; all its files are moved to `folder` if the block succeeds, and none if it fails.

    Other files in `folder` are kept. Only one run at a time can write to it.

    Args:
        folder: the folder of results, which may hold results of earlier runs or of other commands.
        replaces: files of an earlier run that are removed even if this run does not write them.

    Raises:
        ValueError: another run is writing to it.

    Example:
        >>> import tempfile
        >>> results = Path(tempfile.mkdtemp()) / "results"
        >>> with outputs_together(results) as temporary:
        ...     _ = (temporary / "a.txt").write_text("a")
        ...     _ = (temporary / "b.txt").write_text("b")
        >>> sorted(path.name for path in results.iterdir())
        ['a.txt', 'b.txt']
    """
    folder = folder.absolute()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} must be a folder for the results, got a file")
    with _staged(folder) as temporary:
        yield temporary
        _move_all(temporary, folder, replaces)


@contextmanager
def outputs_beside(output: Path, *, replaces: Sequence[str] = ()) -> Iterator[Path]:
    """A temporary folder for an output and its report; all its files are moved to the folder of `output`.

    If the block fails, no file is moved. Only one run at a time can write to the output.

    Args:
        output: the file or folder to write, for the lock; the block writes it into the temporary folder.
        replaces: files of an earlier run, relative to the folder of `output`, that are removed even if this run does
            not write them.

    Raises:
        ValueError: another run is writing to it.

    Example:
        >>> import tempfile
        >>> output = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with outputs_beside(output) as temporary:
        ...     _ = (temporary / "a.txt").write_text("a")
        ...     _ = (temporary / "a.json").write_text("{}")
        >>> sorted(path.name for path in output.parent.iterdir())
        ['a.json', 'a.txt']
    """
    output = output.absolute()
    with _staged(output) as temporary:
        yield temporary
        _move_all(temporary, output.parent, replaces)


@contextmanager
def _staged(output: Path) -> Iterator[Path]:
    """A temporary folder beside an output that no other run is writing to."""
    with output_lock(output):
        for left in output.parent.glob(f".{escape(output.name)}.*.part"):  # left by killed runs
            shutil.rmtree(left, ignore_errors=True)
        temporary = output.parent / f".{output.name}.{secrets.token_hex(4)}.part"
        temporary.mkdir()
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _move_all(temporary: Path, folder: Path, replaces: Sequence[str]) -> None:
    """Move all files of a folder to another one; if one cannot be moved, move none."""
    flush(temporary)
    if not folder.exists():
        os.replace(temporary, folder)
        return
    names = [path.relative_to(temporary).as_posix() for path in sorted(temporary.rglob("*")) if path.is_file()]
    old = temporary.with_name(f"{temporary.name.removesuffix('.part')}.old.part")
    steps = [(folder / name, old / name) for name in {*names, *replaces} if (folder / name).is_file()]
    steps += [(temporary / name, folder / name) for name in names]
    moved: list[tuple[Path, Path]] = []
    try:
        for source, target in steps:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
            moved.append((source, target))
    except OSError:
        for source, target in reversed(moved):
            os.replace(target, source)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def flush(folder: Path) -> None:
    """Wait until the files of a folder are on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def is_hidden(path: PurePath) -> bool:
    """Whether a file is hidden, such as the ._* files that macOS adds to archives and foreign disks.

    Example:
        >>> is_hidden(PurePath("ADHD/._v1.edf")), is_hidden(PurePath("ADHD/v1.edf"))
        (True, False)
    """
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts if part not in (".", ".."))
