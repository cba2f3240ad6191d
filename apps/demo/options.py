"""Options of `voxelwave demo`."""

from dataclasses import dataclass
from pathlib import Path

from ..options import OutputOptions


@dataclass(frozen=True, kw_only=True)
class Demo(OutputOptions):
    """Show what the suite does: align brain scans, denoise a slice, diagnose EEG recordings, predict a scanpath.

    All data come with the package, without faces (sources and licences: data/README.md in the written folder).
    index.html shows the pictures with a sentence and a command each. The demo takes about half a minute.

    Args:
        output: the folder to write to.
    """

    writes = (
        "index.html",
        *("atlas.png", "diffusion.png", "restoration.png", "eeg.png"),
        *("data", "atlas", "diffusion", "restoration", "eeg", "scanpath"),
    )

    output: Path = Path("voxelwave-demo")
