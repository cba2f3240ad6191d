"""`voxelwave scanpath benchmark`: decoding with and without a cache, and learning an observer whose rule is known."""

import torch

from ...scanpath.benchmark import decoding, planted
from .options import Benchmark


def benchmark(options: Benchmark) -> None:
    """Run the command."""
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        if options.part in ("all", "decoding"):
            decoding(
                options.output,
                size=options.size,
                scenes=options.scenes,
                steps=options.steps,
                repeats=options.repeats,
                seed=options.seed,
            )
        if options.part in ("all", "planted"):
            planted(options.output, scenes=options.training_scenes, epochs=options.epochs, seed=options.seed)
    finally:
        torch.set_num_threads(before)
