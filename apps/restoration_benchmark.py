"""`voxelwave restoration benchmark`: speed, memory and PSNR of restoration beside simpler methods, in one run."""

from pathlib import Path
from typing import Literal


def benchmark(
    *,
    output: Path,
    data: Path | None = None,
    part: Literal["all", "speed", "slice", "memory", "set12", "ct", "mr"] = "all",
    weights: Path = Path("denoise-grey"),
    seed: int = 0,
) -> None:
    """Measure time, memory and quality of restoration on the CPU.

    Parts: "speed", MaIR-S x2 on a 64 x 64 input with one thread, beside the same network with its scan step by step in
    plain PyTorch, and the share of each part of the network; "slice", a 512 x 512 slice denoised; "memory", the peak
    for a small and a large image in the same tiles. With --data also: "set12", Gaussian noise of sigma 25; "ct", a
    sharp, noisy CT reconstruction against a smooth one of the same scan; "mr", Rician noise on T1, T2 and FLAIR slices;
    each beside non-local means, wavelets, total variation, and BM3D where it is installed. OUTPUT receives
    benchmark-PART.json.

    Args:
        output: the folder to write to.
        data: the folder of real images, with restoration/ and mri_ms_multimodal/ as the tests use it.
        part: which figures.
        weights: of the denoiser, a file or the name of weights that come with the package.
        seed: of the networks' random weights and of the noise.
    """
    from .restoration_figures import measure

    measure(output, data, part=part, weights=weights, seed=seed)
