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
from .neural_memory import NeuralMemory
from .power import PowerAttention
from .recurrent import RecurrentAttention
from .routing import RoutingAttention
from .workspace import WorkspaceAttention

HEADS, CHANNELS = 4, 32
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
PASSES = ("forward", "backward")  # the output only; the output and the gradients of q, k and v
PEER = "SDPA"
_MOST_SECONDS, _MOST_MIB = 20.0, 8192.0
_CALLS = 3
_FITTED = (256, 8192)  # lengths to which the models of the cost are fitted


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


def _grid(length: int) -> BilevelAttention:
    """A grid of 8 x 8 regions; it is a square, or twice as wide as high."""
    high = 1 << (length.bit_length() - 1) // 2
    return BilevelAttention((high, length // high), (max(high // 8, 1), max(length // high // 8, 1)), 4)


METHODS: dict[str, Method] = {
    "softmax": Method(CS, lambda _: SoftmaxAttention()),
    "power": Method(CS, lambda _: PowerAttention(block=64, window=5), 8.0, 1.2),
    "landmark, top 4": Method(CS, lambda _: LandmarkAttention(block=64, top=4), 6.0),
    "bi-level": Method(NS, _grid, 10.0),
    "routing": Method(NS, lambda length: RoutingAttention(HEADS, CHANNELS, math.isqrt(length)).eval(), 5.0, 1.6),
    "dynamic sparse": Method(CS, lambda _: DynamicSparseAttention(budget=1024), 4.0),
    "recurrent": Method(CS, lambda _: RecurrentAttention(HEADS, CHANNELS), 20.0, 1.1),
    "efficient": Method(CS, lambda _: EfficientAttention(), 20.0, 1.1),
    "associative, elu": Method(CS, lambda _: AssociativeMemory("elu"), 20.0, 1.1),
    "associative, taylor": Method(CS, lambda _: AssociativeMemory("taylor"), None, 1.1),
    "neural memory": Method(CS, lambda _: NeuralMemory(HEADS, CHANNELS, chunk=64), None, 1.1),
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
            break  # the next length is twice this one, and no method grows faster than the square
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


class Fit(NamedTuple):
    """A model of a cost: quadratic L^2 + linear L + constant, and the share of the variance that it explains."""

    quadratic: float
    linear: float
    constant: float
    r2: float


def fit_cost(lengths: Sequence[int], values: Sequence[float], *, quadratic: bool) -> Fit | None:
    """Fit a model to costs at lengths from 256 to 8,192 by least squares; None if there are too few.

    Args:
        lengths: numbers of tokens.
        values: time or memory at each length.
        quadratic: whether the model has a quadratic term.
    """
    chosen = [(x, y) for x, y in zip(lengths, values, strict=True) if _FITTED[0] <= x <= _FITTED[1]]
    degree = 2 if quadratic else 1
    if len(chosen) < degree + 2:
        return None
    x, y = np.array(chosen, float).T
    scale = x.max()  # for the condition of the system
    terms = np.polyfit(x / scale, y, degree) / scale ** np.arange(degree, -1, -1)
    rest = float(np.square(y - np.polyval(terms, x)).sum())
    spread = float(np.square(y - y.mean()).sum())
    a, b, c = (float(term) for term in (terms if quadratic else (0.0, *terms)))
    return Fit(a, b, c, 1 - rest / spread if spread else 1.0)


def fitted_efficiency_length(plain: Fit, other: Fit) -> int | str:
    """The length from which the model of the other method is below that of plain attention (CAB, section 4.4).

    Returns:
        the larger root of the difference; "always" if it is below at any length, "never" if it stays above.
    """
    a, b, c = plain.quadratic - other.quadratic, plain.linear - other.linear, plain.constant - other.constant
    if a <= 0:  # the difference is at most linear, as for memory
        if b <= 0:
            return "always" if b == 0 and c > 0 else "never"
        return "always" if c >= 0 else round(-c / b)
    inside = b * b - 4 * a * c
    root = (-b + math.sqrt(inside)) / (2 * a) if inside >= 0 else 0.0
    return round(root) if root > 0 else "always"


class FitRow(NamedTuple):
    """The models of time and memory of a method, and the lengths from which it takes less than the peer."""

    method: str
    pattern: str
    time: Fit | None  # seconds of CPU time
    time_from: int | str | None
    memory: Fit | None  # MiB
    memory_from: int | str | None


def fit_rows(costs: dict[tuple[str, str], list[Cost]]) -> list[FitRow]:
    """The fitted models of all methods; those of the peer and of softmax attention are quadratic."""
    fits = {}
    for key, own in costs.items():
        lengths, quadratic = [c.length for c in own], key[0] in (PEER, "softmax")
        fits[key] = tuple(
            fit_cost(lengths, values, quadratic=quadratic)
            for values in ([c.cpu_seconds for c in own], [c.peak_mib for c in own])
        )
    rows = []
    for (name, pattern), (seconds, memory) in fits.items():
        since: list[int | str | None] = []
        for peer, own_fit in zip(fits[PEER, pattern], (seconds, memory), strict=True):
            comparable = name != PEER and peer is not None and own_fit is not None
            since.append(fitted_efficiency_length(peer, own_fit) if comparable else None)  # type: ignore[arg-type]
        rows.append(FitRow(name, pattern, seconds, since[0], memory, since[1]))
    return rows


Costs = dict[tuple[str, str], list[Cost]]  # (method, pattern) -> costs


def measure_all(
    lengths: Sequence[int],
    *,
    passes: Sequence[str] = PASSES,
    threads: int,
    seed: int,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Costs]:
    """Measure the peer and every method, one after the other, each in a process of its own.

    Returns:
        pass -> (method, pattern) -> costs.
    """
    todo = [(PEER, CS), (PEER, NS), *((name, method.pattern) for name, method in METHODS.items())]
    found: dict[str, Costs] = {each: {} for each in passes}
    for name, pattern in todo:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            for each in passes:
                task = pool.submit(
                    measure_method, name, pattern, lengths, backward=each == "backward", threads=threads, seed=seed
                )
                costs = task.result()
                found[each][name, pattern.value] = costs
                shown = ", ".join(f"{cost.length}: {cost.seconds:.3g} s" for cost in costs)
                tell(f"{name} ({pattern.value}){', forward and backward' if each == 'backward' else ''}: {shown}")
    return found
