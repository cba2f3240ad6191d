"""NestedMorph beside its published form: equal results, and the CPU time of both.

The peer is the published code if a file with it is given, and otherwise the plain form in `nestedmorph_plain.py`, which
follows the description of the published code step by step.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..runs.words import one_line
from .nestedmorph import NestedMorph
from .nestedmorph_plain import PlainNestedMorph

Mode = Literal["forward", "forward + backward"]
Case = tuple[tuple[int, int, int], Mode, int]

SMALL: tuple[Case, ...] = (((64, 64, 64), "forward", 7), ((64, 64, 64), "forward + backward", 5))
LARGE: tuple[Case, ...] = (((160, 192, 224), "forward", 1), ((160, 192, 224), "forward + backward", 1))


@dataclass(frozen=True)
class PeerCost:
    """Our network beside the peer, with the same weights and images, in float32 and in turn.

    Args:
        peer: "published" or "plain".
        size: voxels of the images.
        mode: "forward" in inference mode, or "forward + backward" in training mode.
        cpu_seconds: median processor time of a run of ours, after one warm-up.
        peer_cpu_seconds: the same for the peer.
        ratio: cpu_seconds / peer_cpu_seconds.
        repeats: number of runs of each.
        largest_displacement: the longest component of the displacement, in voxels.
        difference: largest difference of the two displacements in evaluation mode, in voxels.
        difference_float64: the same in float64; None for a size at which the peer would need too much memory.
    """

    peer: str
    size: tuple[int, int, int]
    mode: Mode
    cpu_seconds: float
    peer_cpu_seconds: float
    ratio: float
    repeats: int
    largest_displacement: float
    difference: float
    difference_float64: float | None


def peer_cost_table(
    cases: Sequence[Case], *, published: Path | None = None, progress: Callable[[str], None] | None = None
) -> list[PeerCost]:
    """Compare our network with the peer, on the CPU, with the current number of threads.

    Args:
        cases: (size, mode, repeats) each; the sizes are multiples of 32.
        published: a Python file with the published model, whose code is run; see `published_network`.
        progress: called with a line about each case.

    Raises:
        ValueError: the file does not hold the published model.
    """
    generator = torch.Generator().manual_seed(0)
    ours = NestedMorph(official=True)
    # a new network displaces by less than 0.001 voxels, which would hide differences
    ours.flow.weight.data.normal_(0, 0.3, generator=generator)
    peer: nn.Module = PlainNestedMorph() if published is None else published_network(published)
    name = "plain" if published is None else "published"
    rows = []
    for size, mode, repeats in cases:
        moving, fixed = torch.rand(2, 1, 1, *size, generator=generator).unbind()
        peer.load_state_dict(ours.state_dict())  # training mode changes the running statistics, each in its rounding
        largest, difference = _difference(ours, peer, moving, fixed)
        exact = None
        if max(size) <= 64:
            exact = _difference(ours.double(), peer.double(), moving.double(), fixed.double())[1]
            ours.float(), peer.float()
        seconds = _times(ours, peer, moving, fixed, mode, repeats)
        ratio = seconds[0] / seconds[1]
        rows.append(PeerCost(name, size, mode, *seconds, ratio, repeats, largest, difference, exact))
        if progress is not None:
            progress(f"{'x'.join(map(str, size))} {mode}: {seconds[0]:.3g} and {seconds[1]:.3g} CPU s")
    return rows


def published_network(path: Path) -> nn.Module:
    """Build the published model from a file with its code, such as Models/NestedMorph/models.py of its repository.

    The file is run as it is, with the packages that it imports.

    Args:
        path: a Python file with a class NestedMorph, which is built with the size of the images and called with
            (moving, fixed).

    Raises:
        ValueError: the file cannot be run, or holds another revision of the model.
    """
    try:
        spec = importlib.util.spec_from_file_location("published_nestedmorph", path)
        if spec is None or spec.loader is None:
            raise ValueError("it must end in .py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        network: nn.Module = module.NestedMorph((64, 64, 64))
        network.load_state_dict(NestedMorph(official=True).state_dict(), strict=True)
    except Exception as error:  # the code of others can fail in any way
        text = f"{type(error).__name__}: {one_line(error)}"[:300]
        raise ValueError(f"{path} must hold the published NestedMorph of 2025-07-14 or later: {text}") from error
    return network


def _times(
    ours: NestedMorph, peer: nn.Module, moving: Tensor, fixed: Tensor, mode: Mode, repeats: int
) -> tuple[float, float]:
    """The median CPU seconds of ours and of the peer, which run in turn."""
    training = mode == "forward + backward"
    calls: list[tuple[nn.Module, Callable[[], tuple[Tensor, Tensor]]]] = [
        (ours, lambda: ours(moving, fixed)),
        (peer, lambda: peer((moving, fixed))),
    ]
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(repeats + 1):
        for kept, (network, call) in zip(seconds, calls, strict=True):
            network.train(training)
            network.zero_grad()
            started = time.process_time()
            if training:
                warped, displacement = call()
                (warped.mean() + displacement.square().mean()).backward()
            else:
                with torch.inference_mode():
                    call()
            if number:  # the first run is a warm-up
                kept.append(time.process_time() - started)
            network.zero_grad()
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _difference(ours: NestedMorph, peer: nn.Module, moving: Tensor, fixed: Tensor) -> tuple[float, float]:
    """The largest component of our displacement, and its largest difference to the peer's, in voxels."""
    with torch.inference_mode():
        found = ours.eval()(moving, fixed)[1]
        expected = peer.eval()((moving, fixed))[1]
    return float(found.abs().max()), float((found - expected).abs().max())
