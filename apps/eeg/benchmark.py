"""`voxelwave eeg benchmark`: training speed of ADHDeepNet, compared with other networks."""

import torch

from ...eeg.benchmark import SETTINGS, compare, networks
from ...eeg.fast_layers import keep_freed_memory
from ...runs.record import write_measurement
from ...runs.tables import print_rows
from .options import Benchmark


def benchmark(options: Benchmark) -> None:
    """Run the command."""
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # for all networks
    torch.manual_seed(options.seed)
    try:
        rows = [
            row
            for title, arguments in SETTINGS.items()
            for row in compare(networks(arguments, others=not arguments), title, options.batch, options.repeats)
        ]
    finally:
        torch.set_num_threads(before)
    print_rows(f"Training windows per second, batch {options.batch}, {options.threads} threads", rows)
    print("Ratios are relative to ADHDeepNet in the published order of layers, by medians. The windows are random.")
    if options.output is not None:
        write_measurement(
            options.output / "benchmark-training.json",
            inputs={},
            rows=rows,
            batch=options.batch,
            repeats=options.repeats,
            threads=options.threads,
            seed=options.seed,
        )
