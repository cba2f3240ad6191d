"""The record of a run as JSON: inputs with hashes, options, versions, results and time."""

import contextlib
import hashlib
import os
import platform
import re
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .archives import original_of
from .json_files import null_where_undefined, write_json

_PACKAGES = (
    *("voxelwave", "torch", "numpy", "scipy", "scikit-learn", "antspyx", "monai", "nibabel", "pydicom", "highdicom"),
    *("mne", "optuna"),
)


def sha256(path: Path) -> str:
    """The SHA-256 of a file; for a folder, that of the names and hashes of its files in order of name."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\n{sha256(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_record(path: Path, *, inputs: dict[str, Path | None], **content: Any) -> None:
    """Write `content` as JSON, with the hashes of the inputs and the versions of the packages.

    Args:
        path: the .json to write.
        inputs: name -> file or folder; None values are left out.
        content: options, metrics, seconds, notes and so on, as plain values, paths and arrays. A figure that is NaN or
            infinite becomes null.
    """
    record = {
        "inputs": {k: _input(original_of(p)) for k, p in inputs.items() if p is not None},
        **null_where_undefined(content),
        "versions": package_versions(),
    }
    write_json(path, record, default=str)


def write_measurement(path: Path, *, inputs: dict[str, Path | None], **content: Any) -> None:
    """Write a record that `voxelwave bench keep` takes: that of `write_record`, with command, time and machine."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    write_record(path, inputs=inputs, command=command_line(), created=created, hardware=hardware(), **content)


def _input(path: Path) -> dict[str, str]:
    return {"path": str(path), "sha256": sha256(path)}


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages on which results may depend."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def command_line() -> str:
    """The command line of this process, in a form that can be entered again."""
    return shlex.join(["voxelwave", *sys.argv[1:]])


def hardware() -> str:
    """A description of processor, cores and GPU."""
    torch = sys.modules.get("torch")
    parts = [platform.machine(), f"{os.cpu_count()} cores"]
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        parts[:0] = [found.group(1).strip()] if found else []
    if torch is not None and torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)
