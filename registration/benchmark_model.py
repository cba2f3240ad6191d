"""Time and memory of NestedMorph, with each case in a new process."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ..runs.footprint import resident_mib
from .nestedmorph import NestedMorph
from .similarity import diffusion_energy, local_ncc_loss

Mode = Literal["forward", "training step"]
Case = tuple[tuple[int, int, int], Mode, int]

CASES: tuple[Case, ...] = (
    ((64, 64, 64), "forward", 9),
    ((64, 64, 64), "training step", 9),
    ((160, 192, 224), "forward", 3),
)


@dataclass(frozen=True)
class ModelCost:
    """Time and memory of one case.

    Args:
        size: voxels of the images.
        mode: "forward" or "training step".
        seconds: median of the runs after one warm-up.
        fastest: seconds of the fastest run.
        slowest: seconds of the slowest run.
        repeats: number of runs.
        peak_mib: peak resident set, minus that of the idle process with model and images in memory.
    """

    size: tuple[int, int, int]
    mode: Mode
    seconds: float
    fastest: float
    slowest: float
    repeats: int
    peak_mib: float


def model_cost_table(
    cases: Sequence[Case] = CASES, *, threads: int = 2, expand_chunk: int | None = 512
) -> list[ModelCost]:
    """Measure time and peak additional memory of NestedMorph on the CPU, float32, batch 1.

    "forward" runs in inference mode; "training step" consists of the forward pass, local NCC and diffusion energy, the
    backward pass, and a step of Adam (amsgrad) with its moments. Each case runs in its own process, so that no case
    reuses memory of another.

    Args:
        cases: (size, mode, repeats) each.
        threads: threads of PyTorch.
        expand_chunk: see `NestedMorph`.

    Returns:
        One row per case.

    Raises:
        RuntimeError: the process of a case failed.
    """
    return [_in_fresh_process(case, threads, expand_chunk) for case in cases]


def _in_fresh_process(case: Case, threads: int, expand_chunk: int | None) -> ModelCost:
    argument = json.dumps([*case, threads, expand_chunk])
    command = [sys.executable, "-c", f"from {__name__} import _main; _main()", argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"measuring {case[1]} at {case[0]} failed: {reason[-1]}")
    size, mode, *numbers = json.loads(done.stdout.splitlines()[-1])
    return ModelCost(tuple(size), mode, *numbers)


def _main() -> None:
    size, mode, repeats, threads, expand_chunk = json.loads(sys.argv[1])
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    moving, fixed = torch.rand(2, 1, 1, *size, generator=generator).unbind()
    model = NestedMorph(expand_chunk=expand_chunk)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, amsgrad=True)
    model.train(mode == "training step")

    def run() -> None:
        if mode == "forward":
            with torch.inference_mode():
                model(moving, fixed)
            return
        optimizer.zero_grad()
        warped, displacement = model(moving, fixed)
        loss = local_ncc_loss(warped, fixed) + diffusion_energy(displacement)
        loss.backward()
        optimizer.step()

    idle = resident_mib("VmRSS")
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    peak = resident_mib("VmHWM") - idle
    print(json.dumps([size, mode, statistics.median(times), min(times), max(times), repeats, peak]))
