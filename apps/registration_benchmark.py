"""`voxelwave registration benchmark`: our registration beside ANTs SyN, in one run."""

from pathlib import Path
from typing import Literal


def benchmark(
    data: Path,
    *,
    output: Path,
    part: Literal["all", "field", "labels", "diffusion", "training", "cost"] = "all",
    seeds: int = 3,
    threads: int = 2,
) -> None:
    """Measure accuracy, time and memory on real scans, ours and ANTs SyN in one run with the same threads.

    Parts: "field", a known smooth deformation (peak 8 mm) of a T1 scan found against the T2 scan; "labels", two people,
    overlap of their FreeSurfer labels, both directions; "diffusion", T1w to b0 end to end; "training", NestedMorph
    fitted to one pair, then used by register; "cost", time and memory of the network. OUTPUT receives
    benchmark-PART.json.

    Args:
        data: the folder of scans, with mri_ms_multimodal/, mri_t1_labels/ and mri_t1_dwi/ as the tests use it.
        output: the folder to write to.
        part: which figures.
        seeds: how many random deformations for "field".
        threads: of PyTorch and of ANTs.
    """
    import os

    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)  # read once, when ANTs is imported
    from .registration_figures import measure  # reads the variable above through torch and ANTs

    measure(data, output, part=part, seeds=seeds, threads=threads)
