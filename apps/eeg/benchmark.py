"""`voxelwave eeg benchmark`: how fast ADHDeepNet trains, beside the literal order of its layers and other networks."""

import os
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# torch and braindecode load in the functions, so that --help answers at once


def benchmark(
    *,
    output: Path | None = None,
    batch: int = 64,
    repeats: int = 7,
    threads: int = 2,
    seed: int = 0,
) -> None:
    """Measure training windows per second on the CPU: forward, backward and optimiser step of random windows.

    ADHDeepNet as we order its layers, the same network layer by layer as published, and EEGNet and ShallowConvNet of
    braindecode, all on windows of 19 channels and 512 samples; ADHDeepNet at its defaults, at the optimum published
    for fold 1 and with the longest filters of the search. The networks take turns, so that a busy machine slows all
    alike; medians, ranges and ratios are printed, by wall clock and by processor time.

    Args:
        output: a folder for benchmark-training.json.
        batch: windows per step.
        repeats: timed steps of each network.
        threads: of the CPU.
        seed: of weights and windows.
    """
    import torch

    from ...eeg.fast_layers import keep_freed_memory
    from ...runs.checks import at_least
    from ...runs.record import write_record
    from ...runs.tables import print_rows

    at_least(1, batch=batch, repeats=repeats, threads=threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    keep_freed_memory()  # for all networks
    torch.manual_seed(seed)
    try:
        rows = [
            row
            for title, arguments in SETTINGS.items()
            for row in _compare(networks(arguments, others=not arguments), title, batch, repeats)
        ]
    finally:
        torch.set_num_threads(before)
    print_rows(f"Training windows per second, batch {batch}, {threads} threads", rows)
    print(
        "Ratios are to ADHDeepNet in the published order of layers, of medians. Random windows; weights do not matter."
    )
    if output is not None:
        write_record(
            output / "benchmark-training.json",
            inputs={},
            rows=rows,
            batch=batch,
            repeats=repeats,
            threads=threads,
            seed=seed,
            machine=f"{platform.machine()}, {os.cpu_count()} cores",
        )


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "fold 1": {"F1": 32, "kernel_length": 64, "se_nodes": 32, "max_norm": 10.0},
    "longest": {"F1": 64, "kernel_length": 512},
}


def networks(arguments: dict[str, Any], *, others: bool) -> "dict[str, nn.Module]":
    """The networks that take part; the literal one comes second and has the same weights as ours."""
    from ...eeg.adhdeepnet import ADHDeepNet
    from ...eeg.adhdeepnet_reference import LiteralADHDeepNet
    from ...eeg.networks import eegnet, shallow

    ours, literal = ADHDeepNet(**arguments), LiteralADHDeepNet(**arguments)
    literal.load_state_dict(ours.state_dict())
    found: dict[str, nn.Module] = {"ADHDeepNet": ours, "ADHDeepNet, layer by layer": literal}
    if others:
        found["EEGNet (braindecode)"] = eegnet(19, 512, 2, 128.0)
        found["ShallowConvNet (braindecode)"] = shallow(19, 512, 2, 128.0)
    return found


def _compare(candidates: "dict[str, nn.Module]", title: str, batch: int, repeats: int) -> list[dict[str, Any]]:
    import torch

    x, label = torch.randn(batch, 19, 512), torch.arange(batch) % 2
    steps = {name: _step(network, x, label) for name, network in candidates.items()}
    wall: dict[str, list[float]] = {name: [] for name in steps}
    processor: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            started, cpu = time.perf_counter(), time.process_time()
            step()
            processor[name].append(time.process_time() - cpu)
            wall[name].append(time.perf_counter() - started)
    literal = list(steps)[1]
    return [
        {
            "network": name if title == "defaults" else f"{name}, {title}",
            "windows/s": batch / statistics.median(wall[name]),
            "slowest": batch / max(wall[name]),
            "fastest": batch / min(wall[name]),
            "times as fast": statistics.median(wall[literal]) / statistics.median(wall[name]),
            "windows per CPU s": batch / statistics.median(processor[name]),
            "CPU ratio": statistics.median(processor[literal]) / statistics.median(processor[name]),
        }
        for name in steps
    ]


def _step(network: "nn.Module", x: Any, label: Any) -> Any:
    import torch

    from ...eeg.module import KerasAdam

    optimizer = KerasAdam(network.train().parameters())

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), label).backward()
        optimizer.step()

    return step
