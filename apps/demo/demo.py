"""`voxelwave demo`: the main job on real data that comes with the package."""

import shutil
from importlib.resources import as_file, files
from pathlib import Path

from ..registration.options import Register
from ..registration.register import register
from .restoration import demo_restoration
from .scanpath import demo_scanpath


def demo(*, output: Path = Path("voxelwave-demo")) -> None:
    """Align a real T1-weighted scan to a FLAIR scan of the same person; denoise a slice; predict a scanpath.

    Both scans come with the package (CC BY; see README.md in the written folder), and so does the drawing of a shelf
    that is looked at. Takes about a minute on two cores.

    Args:
        output: the folder to write into.
    """
    with as_file(files(__package__) / "data") as data:
        print("Moving: T1-weighted, second visit. Fixed: FLAIR, first visit. One person, two grids, two contrasts.")
        register(Register(data / "t1w.nii.gz", data / "flair.nii.gz", output=output))
        for name in ("t1w.nii.gz", "flair.nii.gz", "README.md"):
            shutil.copyfile(data / name, output / name)
    demo_restoration(output)
    demo_scanpath(output / "scanpath")
    pictures = [output / name for name in ("picture.png", "restoration.png", "scanpath/scanpath.png")]
    print(f"Look at {', '.join(map(str, pictures))}. The registration by hand:")
    print(f"  voxelwave registration register {output / 't1w.nii.gz'} {output / 'flair.nii.gz'} -o {output}")
