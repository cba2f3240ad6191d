"""`voxelwave demo`: what the suite is for, on data that comes with the package, and a page that ties it together.

The parts are imported when they begin, so that the first line appears before torch is loaded.
"""

import importlib
import shutil
import time
from importlib.resources import as_file, files

from .options import Demo
from .page import INDEX, Shown, write_page

PARTS = {
    "The labels of an atlas are moved onto a patient": "brain:atlas_to_patient",
    "A diffusion scan is aligned to a T1-weighted scan of one person": "brain:diffusion_to_t1",
    "Noise is removed from a slice": "restoration:demo_restoration",
    "EEG recordings are diagnosed": "eeg:demo_eeg",
    "The order of looks at a shelf is predicted": "scanpath:demo_scanpath",
}


def demo(options: Demo) -> None:
    """Run the parts one after the other, and write the page."""
    output, started, shown = options.output, time.perf_counter(), list[Shown]()
    print(f"The demo writes to {output}/ and takes about half a minute.", flush=True)
    with as_file(files(__package__) / "data") as data:
        shutil.copytree(data, output / "data", dirs_exist_ok=True)
    for number, (title, work) in enumerate(PARTS.items(), 1):
        print(f"\n[{number}/{len(PARTS)}] {title} ({time.perf_counter() - started:.0f} s)", flush=True)
        module, _, name = work.partition(":")
        shown.append(getattr(importlib.import_module(f".{module}", __package__), name)(output))
    write_page(output, list(zip(PARTS, shown, strict=True)))
    print(f"\nDone in {time.perf_counter() - started:.0f} s. Open {output / INDEX}: all pictures, with the commands.")
