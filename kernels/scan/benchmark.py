"""Measure the scan on this machine, compared with its peers in the same process and with the limits of the machine."""

import ctypes
import functools
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table
from torch import Tensor

from .. import native
from . import cpu
from .benchmark_ggml import GgmlScan
from .peers import TrainedInputs, parallel_scan, sequential_recurrence, trained_inputs
from .reference import ScanInputs
from .selective import directional_scan, selective_scan

# (D, L, N) at batch 1 and 4 groups: MaIR's light and classical super-resolution
SIZES = ((240, 4096, 16), (720, 4096, 16))
GROUPS = 4

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Row:
    """One measurement: `goal` is the value that it should reach, `met` whether it does (None without a goal)."""

    name: str
    value: float
    unit: str
    spread: str = ""
    goal: str = ""
    met: bool | None = None


class _Setting(NamedTuple):
    """The settings that all measurements of one run share."""

    device: Device
    threads: int
    repeats: int
    quick: bool
    seed: int

    @property
    def sizes(self) -> tuple[tuple[int, int, int], ...]:
        return SIZES[: 1 if self.quick else None]

    def inputs(self, channels: int, length: int, states: int, groups: int = GROUPS) -> TrainedInputs:
        return trained_inputs(channels, length, states, groups=groups, seed=self.seed, device=self.device)


def bench_kernels(
    device: Device = "cpu", *, threads: int = 2, repeats: int = 15, quick: bool = False, seed: int = 0
) -> list[Row]:
    """Time the selective scan, compare it with its peers and the limits of the machine, and print and return a table.

    The peers run in the same process with the same threads and inputs: the published recurrence of mamba_ssm in
    sequential PyTorch, a Hillis-Steele scan over the full (B, L, D, N) tensor, and ggml's ssm_scan if ggml-python is
    installed. Ratios use the smallest time of the repeats, since other processes can only add time; the table shows
    smallest and median time.

    Args:
        device: "cpu", or "cuda" for times and ratios of the Triton kernels.
        threads: torch threads during the measurement.
        repeats: runs of our own kernel per figure; slow peers get fewer.
        quick: only the smaller size and short sequences.
        seed: seed of the random inputs.

    Returns:
        The printed rows.

    Raises:
        ValueError: `device` is "cuda" and there is no CUDA device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device must be cpu here: no CUDA device was found")
    setting = _Setting(device, threads, repeats, quick, seed)
    parts = [_speed(setting), _length_scaling(setting), _directional(setting), _accuracy(setting)]
    if device == "cpu":
        parts += [_memory(setting), _thread_scaling(setting)]
    if device == "cpu" and native.levels():
        parts += [_double(setting), _floor(setting)]
    where = torch.cuda.get_device_name() if device == "cuda" else f"{threads} threads, build {native.levels()[:1]}"
    table = Table(title=f"Kernels on {device} ({where}), torch {torch.__version__}")
    for heading in ("measure", "value", "min/median", "goal", "met"):
        table.add_column(heading, justify="left" if heading in ("measure", "goal") else "right")
    rows = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with Live(table, console=Console(width=140)):
            for row in itertools.chain(*parts):
                rows.append(row)
                met = "" if row.met is None else "yes" if row.met else "NO"
                table.add_row(row.name, f"{row.value:.4g} {row.unit}", row.spread, row.goal, met)
    finally:
        torch.set_num_threads(before)
    return rows


# ---- clocks


def _time(work: Callable[[], object], repeats: int, device: str = "cpu", warm: int = 2) -> tuple[float, str]:
    """Smallest time in seconds, and "min/median" in milliseconds."""
    times = []
    for i in range(repeats + warm):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        if i >= warm:
            times.append(time.perf_counter() - start)
    return min(times), f"{min(times) * 1e3:.2f}/{statistics.median(times) * 1e3:.2f} ms"


def _with_gradients(scan: Callable[..., Tensor], inputs: TrainedInputs) -> Callable[[], object]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    grad_out = _gradient_of(inputs.u)
    return lambda: torch.autograd.grad(scan(*leaves), leaves, grad_out)


def _gradient_of(out: Tensor) -> Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)


def own_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    """Our scan with the arguments of the peers."""
    out = selective_scan(u, delta, A, B, C, D, None, delta_bias, delta_softplus=True)
    assert isinstance(out, Tensor)
    return out


# ---- the measurements


def _speed(setting: _Setting) -> Iterator[Row]:
    """Time of the forward pass, and of forward and backward pass, compared with the peers."""
    device, repeats = setting.device, setting.repeats
    for channels, length, states in setting.sizes:
        inputs = setting.inputs(channels, length, states)
        size = f"{channels} x {length}, N {states}"
        with torch.no_grad():
            own, spread = _time(functools.partial(own_scan, *inputs), repeats, device)
            yield Row(f"forward {size}", own * 1e3, "ms", spread)
            for name, peer, goal in (
                ("sequential recurrence", sequential_recurrence, 150),
                ("parallel scan", parallel_scan, 100),
            ):
                peer_time, spread = _time(functools.partial(peer, *inputs), 3, device, warm=1)
                ratio = peer_time / own
                yield Row(f"  {name} / own, forward", ratio, "x", spread, f">= {goal} x", ratio >= goal)
            if device == "cpu" and GgmlScan.installed():
                with GgmlScan(*inputs, threads=torch.get_num_threads()) as ggml_scan:
                    peer_time, spread = _time(ggml_scan, repeats)
                yield Row("  ssm_scan of ggml / own, forward", peer_time / own, "x", spread)
        both, spread = _time(_with_gradients(own_scan, inputs), repeats, device)
        yield Row(f"forward + backward {size}", both * 1e3, "ms", spread)
        peer_time, spread = _time(_with_gradients(parallel_scan, inputs), 2, device, warm=1)
        yield Row("  parallel scan / own", peer_time / both, "x", spread, ">= 50 x", peer_time / both >= 50)


def _memory(setting: _Setting) -> Iterator[Row]:
    """Peak memory that forward and backward pass allocate through torch, as a multiple of the memory of u."""
    for channels, length, states in setting.sizes:
        inputs = setting.inputs(channels, length, states)
        work = _with_gradients(own_scan, inputs)
        work()
        peak = peak_allocation(work) / inputs.u.nbytes
        yield Row(f"peak extra memory {channels} x {length}, N {states}", peak, "x u", goal="< 4 x", met=peak < 4)


def peak_allocation(work: Callable[[], object]) -> int:
    """Largest number of bytes that `work` has allocated on the CPU through torch at any time, including results."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    live = peak = 0
    for _, change in sorted(changes, key=lambda event: event[0]):
        live += change
        peak = max(peak, live)
    return peak


def _thread_scaling(setting: _Setting) -> Iterator[Row]:
    """Speed-up by all threads, compared with one thread."""
    inputs, threads, repeats = setting.inputs(*SIZES[1]), setting.threads, setting.repeats
    times = {}
    for count in (1, threads):
        torch.set_num_threads(count)
        with torch.no_grad():
            forward = _time(functools.partial(own_scan, *inputs), repeats)[0]
        times[count] = (forward, _time(_with_gradients(own_scan, inputs), repeats)[0])
    for i, name in enumerate(("forward", "forward + backward")):
        gain = times[1][i] / times[threads][i]
        spread = f"{times[1][i] * 1e3:.1f}/{times[threads][i] * 1e3:.1f} ms"
        yield Row(f"{threads} threads against 1, {name}", gain, "x", spread, ">= 1.7 x", gain >= 1.7)


def _length_scaling(setting: _Setting) -> Iterator[Row]:
    """Slope of log time against log length; 1 means linear growth."""
    lengths = [2**k for k in range(10, 15 if setting.quick else 19)]
    times = []
    with torch.no_grad():
        for length in lengths:
            inputs = setting.inputs(64, length, 16)
            times.append(_time(functools.partial(own_scan, *inputs), 9, setting.device)[0])
    x, y = torch.tensor(lengths).log().double(), torch.tensor(times).log().double()
    slope = (((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()).item()
    name = f"slope of log time over log L, {lengths[0]}..{lengths[-1]}, 64 channels"
    spread = f"{times[0] * 1e3:.2f}..{times[-1] * 1e3:.1f} ms"
    yield Row(name, slope, "", spread, "0.95 .. 1.1", 0.95 <= slope <= 1.1)


def _directional(setting: _Setting) -> Iterator[Row]:
    """Four directions at once, compared with index_select, scan and inverse index_select."""
    width, length, states, directions = 180, 4096, 16, 4
    generator = torch.Generator().manual_seed(setting.seed)
    flat = setting.inputs(directions * width, length, states)
    x = torch.randn(1, length, width, generator=generator).to(setting.device)
    delta = flat.delta.unflatten(1, (directions, width)).permute(0, 3, 1, 2).contiguous()
    B, C = (v.permute(0, 3, 1, 2).contiguous() for v in (flat.B, flat.C))
    order = torch.stack([torch.randperm(length, generator=generator) for _ in range(directions)]).to(setting.device)
    inverse = torch.argsort(order, 1)
    # the peer starts and ends with channels first, the layout in which its network holds the image
    image = x.transpose(1, 2).contiguous()
    raster = (flat.delta.unflatten(1, (directions, width)), flat.B, flat.C)

    def permuted() -> Tensor:
        u = torch.cat([image.index_select(2, order[k]) for k in range(directions)], 1)
        ordered_delta, ordered_B, ordered_C = (
            torch.stack([v[:, k].index_select(-1, order[k]) for k in range(directions)], 1) for v in raster
        )
        out = own_scan(u, ordered_delta.flatten(1, 2), flat.A, ordered_B, ordered_C, flat.D, flat.delta_bias)
        out = out.unflatten(1, (directions, width))
        return torch.stack([out[:, k].index_select(-1, inverse[k]) for k in range(directions)], 1)

    def fused() -> Tensor:
        return directional_scan(x, delta, flat.A, B, C, order, flat.D, flat.delta_bias, delta_softplus=True)

    with torch.no_grad():
        torch.testing.assert_close(fused().permute(0, 2, 3, 1), permuted(), rtol=1e-4, atol=1e-4)
        own, own_spread = _time(fused, setting.repeats, setting.device)
        peer, spread = _time(permuted, setting.repeats, setting.device)
    yield Row("directional_scan 4 x 180 x 4096, N 16", own * 1e3, "ms", own_spread)
    yield Row("  index_select, scan, inverse / own", peer / own, "x", spread, ">= 1.7 x", peer / own >= 1.7)


def _accuracy(setting: _Setting) -> Iterator[Row]:
    """Largest error against float64 divided by the largest value, of the output and of the worst gradient."""
    inputs = setting.inputs(32, 1024, 16)
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        out = own_scan(*leaves)
        results.append([out, *torch.autograd.grad(out, leaves, _gradient_of(out))])
    errors = [((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(*results, strict=True)]
    for name, error in (("output", errors[0]), ("worst gradient", max(errors[1:]))):
        yield Row(f"error against float64, {name}, 32 x 1024", error, "", goal="<= 1e-5", met=error <= 1e-5)


def _double(setting: _Setting) -> Iterator[Row]:
    """The time of the forward pass in float64, compared with that in float32."""
    inputs = setting.inputs(180, 1024, 16)
    with torch.no_grad():
        single, _ = _time(functools.partial(own_scan, *inputs), setting.repeats, setting.device)
        own, spread = _time(functools.partial(own_scan, *(v.double() for v in inputs)), setting.repeats, setting.device)
    yield Row("forward 180 x 1024, N 16, float64", own * 1e3, "ms", spread)
    yield Row("  float64 / float32", own / single, "x", "", "<= 5 x", own / single <= 5)


class _Limits(NamedTuple):
    """The highest rates of this machine, measured by loops in the library."""

    exp2: float  # exponentials per second
    fma: float  # multiply-adds of a lane per second
    bandwidth: float  # bytes per second

    def seconds(self, elements: int, operations: int, n_bytes: int) -> dict[str, float]:
        """The shortest time under each limit for `elements` (states x steps) with `operations` multiply-adds each."""
        return {
            "exp2": elements / self.exp2,
            "fma": operations * elements / self.fma,
            "memory": n_bytes / self.bandwidth,
        }


def _floor(setting: _Setting) -> Iterator[Row]:
    """The least time for exponentials, multiply-adds and memory on this machine, divided by our own time."""
    limits = _limits(setting.threads)
    yield Row("exp2 from L1", limits.exp2 / 1e9, "G/s")
    yield Row("multiply-add issue", limits.fma / 1e9, "G lanes/s")
    yield Row("memory, a = b + c with write-allocate", limits.bandwidth / 1e9, "GB/s")
    for channels, length, states in setting.sizes:
        u, delta, A, B, C, D, bias = setting.inputs(channels, length, states, groups=1)  # no lane is idle
        inputs = ScanInputs(u, delta, A, B, C, D, None, bias, True, None)
        out, _, checkpoints = cpu.scan_forward(inputs)
        du, ddelta = cpu.scan_backward(_gradient_of(u), None, inputs, checkpoints)[:2]
        assert du is not None
        assert ddelta is not None
        forward = functools.partial(cpu.scan_forward, inputs, checkpointed=False, out=out)
        backward = functools.partial(cpu.scan_backward, _gradient_of(u), None, inputs, checkpoints, out=(du, ddelta))
        # multiply-adds per state and step; the exponential takes 2 of them with the table of AVX-512, else 5
        exponential = 2 if native.levels()[0] == "v4" else 5
        passes: tuple[tuple[str, Callable[[], object], int, int, int], ...] = (
            ("forward", forward, 4 + exponential, 4 * (3 * channels + 2 * states) * length, 11),
            ("backward", backward, 11 + exponential, 4 * (5 * channels + 4 * states) * length, 24),
        )
        for name, work, operations, n_bytes, goal in passes:
            seconds, spread = _time(work, setting.repeats)
            elements = channels * length * states
            bounds = limits.seconds(elements, operations, n_bytes)
            largest = max(bounds, key=bounds.__getitem__)
            label = (
                f"{name} {channels} x {length}, N {states}, outputs given: {seconds * 1e3:.2f} ms; floor ({largest})"
            )
            yield Row(label, bounds[largest] * 1e3, "ms", spread)
            yield Row("  floor / own", bounds[largest] / seconds, "")
            slots = seconds * limits.fma / elements  # cycles of a vector, if it starts one in each
            met = slots <= goal if native.levels()[0] == "v4" else None
            yield Row("  the same time in multiply-adds", slots, "per state and step", "", f"<= {goal} (AVX-512)", met)


def _limits(threads: int) -> _Limits:
    count = 1 << 24
    a, b, c = (torch.ones(count) for _ in range(3))
    add = native.function("vw_bench_add")
    pointers = [ctypes.c_void_p(v.data_ptr()) for v in (a, b, c)]
    seconds, _ = _time(lambda: add(*pointers, ctypes.c_int64(count), ctypes.c_int64(threads)), 9)
    bandwidth = 16 * count / seconds  # a is fetched before it is written
    return _Limits(_rate("vw_bench_exp2", 2000, threads), _rate("vw_bench_fma", 50_000, threads), bandwidth)


def _rate(name: str, repeats: int, threads: int) -> float:
    """Lanes per second of a loop in the library."""
    loop = native.function(name, ctypes.c_int64)
    out = (ctypes.c_float * max(64, threads))()
    done = 0

    def run() -> None:
        nonlocal done
        done = loop(ctypes.c_int64(repeats), ctypes.c_int64(threads), out)

    seconds, _ = _time(run, 15)
    return done / seconds
