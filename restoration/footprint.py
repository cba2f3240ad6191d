"""The memory that a restoration needs, measured in a new process for each image."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from ..runs.footprint import resident_mib
from .inference import restore
from .weights import load_weights


@dataclass(frozen=True)
class Footprint:
    """Memory of one restoration.

    Attributes:
        side: side of the square image in pixels.
        tile: largest side of a tile in pixels, without its overlap.
        image_mib: size of the image as float32; the result has this size times scale squared.
        peak_mib: the largest resident set minus that of the idle process with torch, the model and the image.
        total_mib: the largest resident set.
    """

    side: int
    tile: int
    image_mib: float
    peak_mib: float
    total_mib: float


def restoration_footprint(weights: Path, side: int, tile: int, *, threads: int = 1) -> Footprint:
    """Measure the peak memory of restoring a square image on the CPU, in a new process.

    Args:
        weights: a file of weights, or the name of weights that come with the package.
        side: side of the image in pixels.
        tile: as in `inference.restore`; the overlap is the default one.
        threads: threads of PyTorch.

    Raises:
        RuntimeError: the system has no /proc to read the resident set from, or the process failed.
    """
    argument = json.dumps([str(weights), side, tile, threads])
    command = [sys.executable, "-c", f"from {__name__} import _main; _main()", argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise RuntimeError(f"measuring {side} x {side} in tiles of {tile} failed: {reason[-1]}")
    return Footprint(side, tile, *json.loads(done.stdout.splitlines()[-1]))


def _main() -> None:
    weights, side, tile, threads = json.loads(sys.argv[1])
    torch.set_num_threads(threads)
    model, _ = load_weights(weights)
    channels = int(model.in_channels)
    generator = torch.Generator().manual_seed(0)
    restore(model, torch.rand(1, channels, 16, 16, generator=generator))  # loads libraries and the compiled scan
    image = torch.rand(1, channels, side, side, generator=generator)
    idle = resident_mib("VmRSS")
    restore(model, image, tile=tile)
    total = resident_mib("VmHWM")
    print(json.dumps([image.nbytes / 2**20, total - idle, total]))
