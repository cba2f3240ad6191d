"""The manifest of a folder of results, with one JSON line per case, and the case record beside each result."""

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from ...runs.files import atomic_path
from ...runs.record import package_versions
from .case import Case
from .options import MANIFEST

CASE, STATE = "case.json", ".voxelwave"
Entry = dict[str, Any]


def read_manifest(output: Path) -> dict[str, Entry]:
    """The last line of each case, by its name; a line that was cut off by a kill is ignored."""
    path = output / MANIFEST
    entries: dict[str, Entry] = {}
    if path.is_file():
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                entries[entry["case"]] = entry
    return entries


def is_recorded(manifest: dict[str, Entry], case: Case, hashes: tuple[str, str | None]) -> bool:
    """Whether the manifest lists the case as done with these options and weights."""
    entry = manifest.get(case.identifier, {})
    return entry.get("status") == "done" and (entry["options_sha256"], entry["weights_sha256"]) == hashes


def finished_case(output: Path, identifier: str) -> Entry | None:
    """The content of case.json of a finished case, if all its results exist."""
    try:
        entry = json.loads((output / identifier / CASE).read_text())
        for name, size in zip(entry["outputs"], entry["bytes"], strict=True):
            if (output / name).stat().st_size != size:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    result: Entry | None = entry
    return result


def append_line(output: Path, entry: Entry) -> None:
    """Append a line to the manifest and flush it to the disk."""
    line = json.dumps(entry).encode() + b"\n"
    with _manifest_lock(output), (output / MANIFEST).open("ab+") as stream:
        end = stream.seek(0, os.SEEK_END)
        if end:
            stream.seek(end - 1)
            if stream.read(1) != b"\n":  # a line that a kill cut off
                line = b"\n" + line
        try:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(stream.fileno(), end)
            raise


def compact(output: Path) -> None:
    """Keep the last line of each case, in order of name."""
    with _manifest_lock(output):
        entries = read_manifest(output)
        with atomic_path(output / MANIFEST) as temporary:
            temporary.write_text("".join(json.dumps(entries[name]) + "\n" for name in sorted(entries)))


@contextmanager
def _manifest_lock(output: Path) -> Iterator[None]:

    state = output / STATE
    state.mkdir(parents=True, exist_ok=True)
    with FileLock(state / "manifest.lock"):
        yield


def manifest_entry(
    entry: Entry, status: Literal["done", "failed"], error: str | None, started: datetime, seconds: float | None
) -> Entry:
    return {
        "case": entry["case"],
        "status": status,
        **{name: value for name, value in entry.items() if name != "case"},
        "error": error,
        "started": started.isoformat(timespec="seconds"),
        "seconds": seconds,
        "versions": package_versions(),
    }
