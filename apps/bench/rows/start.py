"""Rows of the start of commands, of reading files, and of batches of small series."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from ....volumes import read_volume
from .row import Row, cpu_seconds, cpu_seconds_of_child


def rows(*, quick: bool) -> list[Row]:
    """The rows, with one thread."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [*_commands(folder), _reading(folder, 128 if quick else 256), *_batches(folder, 8 if quick else 40)]


def _commands(folder: Path) -> list[Row]:
    _picture(folder / "small.png", seed=0)
    restore = ("restoration", "restore", "-i", str(folder / "small.png"), "--weights", "denoise-grey", "--threads", "1")
    missing = ("restoration", "restore", "-i", str(folder / "no.png"), "-o", "o.png", "--weights", "denoise-grey")
    figures = {
        "voxelwave --help": (("--help",), 0, 0.3),
        "a command with a wrong path": (missing, 1, 0.5),
        "restoring a picture of 64 x 64": ((*restore, "-o", str(folder / "restored.png")), 0, 3.0),
    }
    bare = cpu_seconds_of_child(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True))
    return [
        Row(what=what, unit="CPU s", ours=_command(words, code=code), peer="import torch", theirs=bare, most=most)
        for what, (words, code, most) in figures.items()
    ]


def _batches(folder: Path, count: int) -> list[Row]:
    pictures, results = folder / "pictures", folder / "results"
    pictures.mkdir()
    for number in range(count):
        _picture(pictures / f"picture-{number}.png", seed=number)
    words = ["restoration", "restore", "-i", str(pictures), "-o", str(results), "--weights", "denoise-grey"]
    words += ["--threads", "1"]
    first, again = _command(words), _command(words)
    return [
        Row(what=f"a batch of {count} pictures of 64 x 64", unit="CPU s", ours=first, most=10.0),
        Row(what="the same batch again, with nothing to do", unit="CPU s", ours=again, most=0.8),
    ]


def _command(words: Sequence[str], *, code: int = 0) -> float:
    """CPU time of a command, which must end with this exit code."""
    command = [sys.executable, "-m", "voxelwave.apps.cli", *words]
    codes = []
    seconds = cpu_seconds_of_child(lambda: codes.append(subprocess.run(command, capture_output=True).returncode))
    if codes != [code]:
        raise RuntimeError(f"{' '.join(words)} must end with exit code {code}, got {codes[0]}")
    return seconds


def _reading(folder: Path, side: int) -> Row:
    path = folder / "volume.nii.gz"
    array = np.random.default_rng(0).integers(0, 500, (side,) * 3).astype(np.int16)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return Row(
        what=f"reading {side} x {side} x {side} from .nii.gz",
        unit="CPU s",
        ours=cpu_seconds(lambda: read_volume(path), 3),
        peer="nibabel",
        theirs=cpu_seconds(lambda: np.asarray(nib.Nifti1Image.from_filename(path).dataobj, np.float32), 3),
        most_of_peer=1.2,
    )


def _picture(path: Path, *, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(128, 20, (64, 64))
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(path)
