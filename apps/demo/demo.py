"""`voxelwave demo`: the main uses, on real data that comes with the package."""

import shutil
from importlib.resources import as_file, files

from ..registration.options import Register
from ..registration.register import register
from .options import Demo
from .restoration import demo_restoration
from .scanpath import demo_scanpath


def demo(options: Demo) -> None:
    """Run the three parts and list the pictures written."""
    output = options.output
    with as_file(files(__package__) / "data") as data:
        print("Moving: T1-weighted, second visit. Fixed: FLAIR, first visit. One person, two grids, two contrasts.")
        register(Register(data / "t1w.nii.gz", data / "flair.nii.gz", output=output))
        for name in ("t1w.nii.gz", "flair.nii.gz", "README.md"):
            shutil.copyfile(data / name, output / name)
    demo_restoration(output)
    demo_scanpath(output / "scanpath")
    pictures = [output / name for name in ("picture.png", "restoration.png", "scanpath/scanpath.png")]
    print(f"Pictures: {', '.join(map(str, pictures))}. To repeat the registration:")
    print(f"  voxelwave registration register {output / 't1w.nii.gz'} {output / 'flair.nii.gz'} -o {output}")
