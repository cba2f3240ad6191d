"""Options of `voxelwave demo`."""

from dataclasses import dataclass
from pathlib import Path

from ..options import Options


@dataclass(frozen=True, kw_only=True)
class Demo(Options):
    """Align a real T1-weighted scan to a FLAIR scan of the same person; denoise a slice; predict a scanpath.

    Both scans come with the package (CC BY; see README.md in the written folder), and so does the drawing of a shelf
    for the scanpath. The demo takes about a minute on two cores.

    Args:
        output: the folder to write to.
    """

    output: Path = Path("voxelwave-demo")
