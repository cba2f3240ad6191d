"""The cost of every mixer, compared with PyTorch's fused attention: time, peak memory, growth with the length.

Each method runs in a separate process, so that its peak memory can be measured. Times are medians of a few calls; a
method stops at the first length at which one call takes too much time or memory.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runs.footprint import resident_mib
from .associative import AssociativeMemory
from .baselines import EfficientAttention, SoftmaxAttention
from .bilevel import BilevelAttention
from .dynamic_sparse import DynamicSparseAttention
from .graph_window import GraphWindowAttention
from .landmark import LandmarkAttention
from .mixer import CS, NS, Mixer, Pattern
from .power import PowerAttention
from .recurrent import RecurrentAttention
from .routing import RoutingAttention
from .workspace import WorkspaceAttention

HEADS, CHANNELS = 4, 32
LENGTHS = (1024, 4096, 16384, 65536)
PEER = "SDPA"
_MOST_SECONDS, _MOST_MIB = 20.0, 8192.0
_CALLS = 3


class Method(NamedTuple):
    """A mixer to measure.

    `make` returns the mixer for a length. `goal` is the required ratio of the peer's time to its own at 16,384 tokens,
    `most_exponent` the largest allowed exponent of the growth of time with length. No length above `longest` is
    measured.
    """

    pattern: Pattern
    make: Callable[[int], Mixer]
    goal: float | None = None
    most_exponent: float | None = None
    longest: int | None = None


def _square(length: int) -> BilevelAttention:
    side = math.isqrt(length)
    return BilevelAttention((side, side), (max(side // 8, 1),) * 2, 4)


METHODS: dict[str, Method] = {
    "softmax": Method(CS, lambda _: SoftmaxAttention()),
    "power": Method(CS, lambda _: PowerAttention(block=64, window=5), 8.0, 1.2),
    "landmark, top 4": Method(CS, lambda _: LandmarkAttention(block=64, top=4), 6.0),
    "bi-level": Method(NS, _square, 10.0),
    "routing": Method(NS, lambda length: RoutingAttention(HEADS, CHANNELS, math.isqrt(length)).eval(), 5.0, 1.6),
    "dynamic sparse": Method(CS, lambda _: DynamicSparseAttention(budget=1024), 4.0),
    "recurrent": Method(CS, lambda _: RecurrentAttention(HEADS, CHANNELS), 20.0, 1.1),
    "efficient": Method(CS, lambda _: EfficientAttention(), 20.0, 1.1),
    "associative, elu": Method(CS, lambda _: AssociativeMemory("elu"), 20.0, 1.1),
    "associative, taylor": Method(CS, lambda _: AssociativeMemory("taylor"), None, 1.1),
    "associative, delta": Method(CS, lambda _: AssociativeMemory("elu", "delta"), None, 1.1),
    "graph window": Method(
        NS, lambda length: GraphWindowAttention(_path(length), 1), longest=4096
    ),  # the graph needs a matrix
    "workspace": Method(NS, lambda _: WorkspaceAttention(HEADS, CHANNELS)),
}


def _path(length: int) -> Tensor:
    """The graph of a line of nodes: bool (L, L)."""
    return torch.diag(torch.ones(length - 1), 1).bool()


class Cost(NamedTuple):
    """One call of a method at one length."""

    length: int
    seconds: float  # wall time, median
    cpu_seconds: float
    peak_mib: float  # in addition to the process before the call


def measure_method(
    name: str, pattern: Pattern, lengths: Sequence[int], *, backward: bool, threads: int = 2, seed: int = 0
) -> list[Cost]:
    """Time a method at increasing lengths until it takes too much time or memory.

    Args:
        name: a name in `METHODS`, or `PEER` for PyTorch's fused attention.
        pattern: attention pattern of the call.
        lengths: numbers of tokens in increasing order.
        backward: also compute the gradients of q, k and v.
        threads: CPU threads.
        seed: seed of the random inputs.
    """
    torch.set_num_threads(threads)
    costs: list[Cost] = []
    longest = METHODS[name].longest if name in METHODS else None
    for length in lengths:
        if longest is not None and length > longest:
            break
        try:
            call = _call(name, pattern, length, backward, seed)
            cost = _time(call, length)
        except (RuntimeError, MemoryError):  # PyTorch reports exhausted memory as a RuntimeError
            break
        costs.append(cost)
        if cost.seconds * 4 > _MOST_SECONDS or cost.peak_mib * 4 > _MOST_MIB:
            break  # the next length is four times this one
    return costs


def _call(name: str, pattern: Pattern, length: int, backward: bool, seed: int) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, HEADS, length, CHANNELS, generator=generator) for _ in range(3))
    for tensor in (q, k, v):
        tensor.requires_grad_(backward)
    if name == PEER:
        causal = pattern is CS

        def forward() -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    else:
        mixer = METHODS[name].make(length)
        if isinstance(mixer, nn.Module):
            mixer.requires_grad_(backward)

        def forward() -> Tensor:
            return mixer(q, k, v, pattern=pattern).out

    def call() -> None:
        with torch.set_grad_enabled(backward):
            out = forward()
            if backward:
                out.sum().backward()

    return call


def _time(call: Callable[[], None], length: int) -> Cost:
    before = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current size
    wall, cpu = _once(call)
    peak = resident_mib("VmHWM") - before
    times = [(wall, cpu)] if wall > _MOST_SECONDS / 4 else [_once(call) for _ in range(_CALLS)]
    walls, cpus = zip(*times, strict=True)
    return Cost(length, statistics.median(walls), statistics.median(cpus), max(peak, 0.0))


def _once(call: Callable[[], None]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


class Row(NamedTuple):
    """A method compared with the peer, as a row of the table."""

    method: str
    pattern: str
    length: int  # number of tokens for which the ratio was computed
    seconds: float
    ratio: float | None  # the peer's CPU time over the method's, at that length
    goal: float | None
    exponent: float | None  # b of time ~ L^b over the three largest lengths
    most_exponent: float | None
    peak_mib: float
    efficiency_length: int | None  # above this length the method is faster than the peer
    met: bool | None


def cost_rows(costs: dict[tuple[str, str], list[Cost]], *, at: int) -> list[Row]:
    """The table of all methods.

    Args:
        costs: (method, pattern) -> costs of the method, including those of the peer for each pattern.
        at: length for which ratios are computed; if a method did not reach it, the largest common length is used.
    """
    rows = []
    for (name, pattern), own in costs.items():
        peer = {cost.length: cost for cost in costs[PEER, pattern]}
        common = [cost for cost in own if cost.length in peer and cost.length <= at]
        if not common:
            continue
        last = common[-1]
        ratio = None if name == PEER else peer[last.length].cpu_seconds / last.cpu_seconds
        exponent = _exponent(own)
        method = METHODS.get(name)
        goal, most = (None, None) if method is None else (method.goal, method.most_exponent)
        enough = [goal is None or (ratio or 0) >= goal, most is None or exponent is None or exponent <= most]
        met = all(enough) if (goal or most) and last.length == at else None
        rows.append(
            Row(name, pattern, last.length, last.seconds, ratio, goal, exponent, most, last.peak_mib,
                _efficiency_length(own, peer), met)
        )  # fmt: skip
    return rows


def _exponent(costs: Sequence[Cost]) -> float | None:
    """The slope of log time over log length at the three largest lengths."""
    last = costs[-3:]
    if len(last) < 2:
        return None
    x, y = np.log([c.length for c in last]), np.log([c.cpu_seconds for c in last])
    return float(np.polyfit(x, y, 1)[0])


def _efficiency_length(own: Sequence[Cost], peer: dict[int, Cost]) -> int | None:
    """The length above which the method is faster than the peer, interpolated on logarithmic axes, or None."""
    points = [(c.length, math.log(c.cpu_seconds / peer[c.length].cpu_seconds)) for c in own if c.length in peer]
    if not points or points[-1][1] >= 0:
        return None
    for (a, y), (b, z) in reversed(list(itertools.pairwise(points))):
        if y >= 0:
            share = y / (y - z)
            return round(math.exp(math.log(a) + share * (math.log(b) - math.log(a))))
    return points[0][0]


def measure_all(
    lengths: Sequence[int],
    *,
    backward: bool,
    threads: int,
    seed: int,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[tuple[str, str], list[Cost]]:
    """Measure the peer and every method, one after the other; return (method, pattern) -> costs."""
    todo = [(PEER, CS), (PEER, NS), *((name, method.pattern) for name, method in METHODS.items())]
    found = {}
    for name, pattern in todo:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            costs = pool.submit(
                measure_method, name, pattern, lengths, backward=backward, threads=threads, seed=seed
            ).result()
        found[name, pattern.value] = costs
        shown = ", ".join(f"{cost.length}: {cost.seconds:.3g} s" for cost in costs)
        tell(f"{name} ({pattern.value}){', forward and backward' if backward else ''}: {shown}")
    return found
