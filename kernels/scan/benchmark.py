"""Measure the kernels on this machine, beside their peers in the same process and beside the machine's own limits."""

import ctypes
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.live import Live
from rich.table import Table
from torch import Tensor

from . import cpu as scan_cpu
from .benchmark_ggml import GgmlScan
from .selective import directional_scan, selective_scan

# (D, L, N) at batch 1 and 4 groups: MaIR's light and classical super-resolution
SIZES = ((240, 4096, 16), (720, 4096, 16))
GROUPS = 4


@dataclass(frozen=True)
class Row:
    """One measurement; `goal` says what it is held to, `met` whether it holds (None: no goal)."""

    name: str
    value: float
    unit: str
    spread: str = ""
    goal: str = ""
    met: bool | None = None


def bench_kernels(
    device: Literal["cpu", "cuda"] = "cpu", *, threads: int = 2, repeats: int = 15, quick: bool = False, seed: int = 0
) -> list[Row]:
    """Time the selective scan against its peers and the machine's limits, print a table, and return its rows.

    Peers run in the same process with the same threads and inputs: the published recurrence of mamba_ssm in sequential
    PyTorch, a Hillis-Steele scan over the full (B, L, D, N) tensor, and ggml's ssm_scan where `pip install ggml-python`
    has brought it. Times are the smallest of the repeats, since other processes only ever add; the spread beside them
    is smallest to median.

    Args:
        device: "cpu", or "cuda" for times and ratios of the Triton kernels.
        threads: torch threads during the measurement.
        repeats: runs of the own kernel per figure; slow peers get fewer.
        quick: only the smaller size and short sequences.
        seed: of the random inputs.

    Returns:
        The printed rows.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device must be cpu here: no CUDA device was found")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    parts = [_speed(device, repeats, quick), _length_scaling(device, quick), _directional(device, repeats)]
    parts.append(_accuracy(device))
    if device == "cpu":
        parts += [_memory(quick), _thread_scaling(repeats, threads)]
    if device == "cpu" and scan_cpu.levels():
        parts.append(_floor(threads, repeats, quick))
    where = torch.cuda.get_device_name() if device == "cuda" else f"{threads} threads, build {scan_cpu.levels()[:1]}"
    table = Table(title=f"Kernels on {device} ({where}), torch {torch.__version__}")
    for heading in ("measure", "value", "min/median", "goal", "met"):
        table.add_column(heading, justify="left" if heading in ("measure", "goal") else "right")
    rows = []
    try:
        with Live(table, console=Console(width=140)):
            for row in itertools.chain(*parts):
                rows.append(row)
                met = "" if row.met is None else "yes" if row.met else "NO"
                table.add_row(row.name, f"{row.value:.4g} {row.unit}", row.spread, row.goal, met)
    finally:
        torch.set_num_threads(before)
    return rows


# ---- inputs and peers


def _inputs(channels: int, length: int, states: int, device: str = "cpu", groups: int = GROUPS) -> dict[str, Tensor]:
    """Step sizes log-uniform in 1e-3..1e-1 and A = -(1..N), jittered, as a trained model has them."""
    generator = torch.Generator().manual_seed(torch.initial_seed())
    target = torch.exp(torch.empty(channels).uniform_(math.log(1e-3), math.log(1e-1), generator=generator))
    jitter = 1 + 0.1 * torch.rand(channels, states, generator=generator)
    tensors = {
        "u": torch.randn(1, channels, length, generator=generator),
        "delta": 0.5 * torch.randn(1, channels, length, generator=generator),
        "A": -torch.arange(1.0, states + 1) * jitter,
        "B": torch.randn(1, groups, states, length, generator=generator),
        "C": torch.randn(1, groups, states, length, generator=generator),
        "D": torch.randn(channels, generator=generator),
        "delta_bias": torch.log(torch.expm1(target)),
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def sequential_recurrence(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """The published pure-PyTorch recurrence: exp(delta A) and delta B u of all steps at once, then step by step."""
    delta = F.softplus(delta + delta_bias[:, None])
    repeat = u.shape[1] // B.shape[1]
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    B, C = B.repeat_interleave(repeat, 1), C.repeat_interleave(repeat, 1)
    inflow = torch.einsum("bdl,bdnl,bdl->bdln", delta, B, u)
    h = torch.zeros_like(decay[:, :, 0])
    y = []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + inflow[:, :, t]
        y.append(torch.einsum("bdn,bdn->bd", h, C[..., t]))
    return torch.stack(y, 2) + u * D[:, None]


def parallel_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    """Hillis-Steele scan in log2(L) passes over the full (B, L, D, N) tensor; differentiable by autograd."""
    delta = F.softplus(delta + delta_bias[:, None]).transpose(1, 2)  # (B, L, D)
    repeat = u.shape[1] // B.shape[1]
    B, C = (X.repeat_interleave(repeat, 1).permute(0, 3, 1, 2) for X in (B, C))  # (B, L, D, N)
    decay = torch.exp(delta[..., None] * A)
    h = (delta * u.transpose(1, 2))[..., None] * B
    step = 1
    while step < u.shape[2]:
        h = torch.cat([h[:, :step], torch.addcmul(h[:, step:], decay[:, step:], h[:, :-step])], 1)
        if step * 2 < u.shape[2]:
            decay = torch.cat([decay[:, :step], decay[:, step:] * decay[:, :-step]], 1)
        step *= 2
    return (h * C).sum(-1).transpose(1, 2) + u * D[:, None]


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


def _with_gradients(scan: Callable[..., Tensor], inputs: dict[str, Tensor]) -> Callable[[], object]:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    grad_out = torch.randn_like(inputs["u"])
    return lambda: torch.autograd.grad(scan(**leaves), list(leaves.values()), grad_out)


def _own(**inputs: Any) -> Tensor:
    out = selective_scan(**inputs, delta_softplus=True)
    assert isinstance(out, Tensor)
    return out


# ---- the measurements


def _speed(device: str, repeats: int, quick: bool) -> Iterator[Row]:
    """Must show 1 and 2: forward, and forward with backward, against both peers."""
    for channels, length, states in SIZES[: 1 if quick else None]:
        inputs = _inputs(channels, length, states, device)
        size = f"{channels} x {length}, N {states}"
        with torch.no_grad():
            own, spread = _time(functools.partial(_own, **inputs), repeats, device)
            yield Row(f"forward {size}", own * 1e3, "ms", spread)
            for name, peer, goal in (
                ("sequential recurrence", sequential_recurrence, 150),
                ("parallel scan", parallel_scan, 100),
            ):
                peer_time, spread = _time(functools.partial(peer, **inputs), 3, device, warm=1)
                ratio = peer_time / own
                yield Row(f"  {name} / own, forward", ratio, "x", spread, f">= {goal} x", ratio >= goal)
            if device == "cpu" and GgmlScan.installed():
                with GgmlScan(**inputs, threads=torch.get_num_threads()) as ggml_scan:
                    peer_time, spread = _time(ggml_scan, repeats)
                yield Row("  ssm_scan of ggml / own, forward", peer_time / own, "x", spread)
        both, spread = _time(_with_gradients(_own, inputs), repeats, device)
        yield Row(f"forward + backward {size}", both * 1e3, "ms", spread)
        peer_time, spread = _time(_with_gradients(parallel_scan, inputs), 2, device, warm=1)
        yield Row("  parallel scan / own", peer_time / both, "x", spread, ">= 50 x", peer_time / both >= 50)


def _memory(quick: bool) -> Iterator[Row]:
    """Must show 2: what forward and backward allocate at most, by the profiler of torch's allocator, in units of u."""
    for channels, length, states in SIZES[: 1 if quick else None]:
        inputs = _inputs(channels, length, states)
        work = _with_gradients(_own, inputs)
        work()
        peak = _peak_allocation(work) / inputs["u"].nbytes
        yield Row(f"peak extra memory {channels} x {length}, N {states}", peak, "x u", goal="< 4 x", met=peak < 4)


def _peak_allocation(work: Callable[[], object]) -> int:
    """Largest sum of live bytes that `work` has allocated through torch, results included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    live = peak = 0
    for event in sorted(_memory_events(profile), key=lambda e: e[0]):
        live += event[1]
        peak = max(peak, live)
    return peak


def _memory_events(profile) -> list[tuple[int, int]]:
    pending, found = list(profile.profiler.kineto_results.experimental_event_tree()), []
    while pending:
        event = pending.pop()
        pending.extend(event.children)
        if event.tag == torch._C._profiler._EventType.Allocation:
            found.append((event.start_time_ns, event.extra_fields.alloc_size))
    return found


def _thread_scaling(repeats: int, threads: int) -> Iterator[Row]:
    """Must show 3: the same work by one thread and by all."""
    inputs = _inputs(*SIZES[1])
    times = {}
    for count in (1, threads):
        torch.set_num_threads(count)
        with torch.no_grad():
            forward = _time(functools.partial(_own, **inputs), repeats)[0]
        times[count] = (forward, _time(_with_gradients(_own, inputs), repeats)[0])
    for i, name in enumerate(("forward", "forward + backward")):
        gain = times[1][i] / times[threads][i]
        spread = f"{times[1][i] * 1e3:.1f}/{times[threads][i] * 1e3:.1f} ms"
        yield Row(f"{threads} threads against 1, {name}", gain, "x", spread, ">= 1.7 x", gain >= 1.7)


def _length_scaling(device: str, quick: bool) -> Iterator[Row]:
    """Must show 3: the slope of log time over log length."""
    lengths = [2**k for k in range(10, 15 if quick else 19)]
    times = []
    with torch.no_grad():
        for length in lengths:
            inputs = _inputs(64, length, 16, device)
            times.append(_time(functools.partial(_own, **inputs), 9, device)[0])
    x, y = torch.tensor(lengths).log().double(), torch.tensor(times).log().double()
    slope = (((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()).item()
    name = f"slope of log time over log L, {lengths[0]}..{lengths[-1]}, 64 channels"
    spread = f"{times[0] * 1e3:.2f}..{times[-1] * 1e3:.1f} ms"
    yield Row(name, slope, "", spread, "0.95 .. 1.1", 0.95 <= slope <= 1.1)


def _directional(device: str, repeats: int) -> Iterator[Row]:
    """Must show 4: four directions at once against index_select, scan, inverse index_select."""
    width, length, states, directions = 180, 4096, 16, 4
    generator = torch.Generator().manual_seed(torch.initial_seed())
    flat = _inputs(directions * width, length, states, device)
    x = torch.randn(1, length, width, generator=generator).to(device)
    delta = flat["delta"].unflatten(1, (directions, width)).permute(0, 3, 1, 2).contiguous()
    B, C = (flat[k].permute(0, 3, 1, 2).contiguous() for k in "BC")
    order = torch.stack([torch.randperm(length, generator=generator) for _ in range(directions)]).to(device)
    inverse = torch.argsort(order, 1)
    rest = {k: flat[k] for k in ("D", "delta_bias")}
    # the peer starts and ends channel-first, as its network would hold the image
    image = x.transpose(1, 2).contiguous()
    raster = {"delta": flat["delta"].unflatten(1, (directions, width)), "B": flat["B"], "C": flat["C"]}

    def permuted() -> Tensor:
        u = torch.cat([image.index_select(2, order[k]) for k in range(directions)], 1)
        ordered = {
            name: torch.stack([v[:, k].index_select(-1, order[k]) for k in range(directions)], 1)
            for name, v in raster.items()
        }
        ordered["delta"] = ordered["delta"].flatten(1, 2)
        out = _own(u=u, A=flat["A"], **ordered, **rest).unflatten(1, (directions, width))
        return torch.stack([out[:, k].index_select(-1, inverse[k]) for k in range(directions)], 1)

    def fused() -> Tensor:
        return directional_scan(x, delta, flat["A"], B, C, order, **rest, delta_softplus=True)

    with torch.no_grad():
        torch.testing.assert_close(fused().permute(0, 2, 3, 1), permuted(), rtol=1e-4, atol=1e-4)
        own, own_spread = _time(fused, repeats, device)
        peer, spread = _time(permuted, repeats, device)
    yield Row("directional_scan 4 x 180 x 4096, N 16", own * 1e3, "ms", own_spread)
    yield Row("  index_select, scan, inverse / own", peer / own, "x", spread, ">= 1.7 x", peer / own >= 1.7)


def _accuracy(device: str) -> Iterator[Row]:
    """Must show 6: largest error against float64 over largest value, of the output and of every gradient."""
    inputs = _inputs(32, 1024, 16, device)
    leaves = [{k: v.to(dtype).requires_grad_() for k, v in inputs.items()} for dtype in (torch.float32, torch.float64)]
    results = []
    for leaf in leaves:
        out = _own(**leaf)
        grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        results.append([out, *torch.autograd.grad(out, list(leaf.values()), grad_out)])
    errors = [((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(*results, strict=True)]
    for name, error in (("output", errors[0]), ("worst gradient", max(errors[1:]))):
        yield Row(f"error against float64, {name}, 32 x 1024", error, "", goal="<= 1e-5", met=error <= 1e-5)


def _floor(threads: int, repeats: int, quick: bool) -> Iterator[Row]:
    """Must show 5: what exponentials, multiply-adds and memory cost at least on this machine, and our share of it."""
    exp2 = _rate("vw_bench_exp2", 2000, threads)
    fma = _rate("vw_bench_fma", 50_000, threads)
    count = 1 << 24
    a, b, c = (torch.ones(count) for _ in range(3))
    add = scan_cpu.function("vw_bench_add")
    pointers = [ctypes.c_void_p(v.data_ptr()) for v in (a, b, c)]
    seconds, _ = _time(lambda: add(*pointers, ctypes.c_int64(count), ctypes.c_int64(threads)), 9)
    bandwidth = 16 * count / seconds  # a is fetched before it is written
    yield Row("exp2 from L1", exp2 / 1e9, "G/s")
    yield Row("multiply-add issue", fma / 1e9, "G lanes/s")
    yield Row("memory, a = b + c with write-allocate", bandwidth / 1e9, "GB/s")
    for channels, length, states in SIZES[: 1 if quick else None]:
        inputs = _inputs(channels, length, states)
        u, delta, A, B, C, D, bias = inputs.values()
        out = torch.empty_like(u)
        arguments: tuple[Any, ...] = (u, delta, A, B, C, D, None, bias, True, None)
        given = functools.partial(scan_cpu.scan_forward, *arguments, checkpointed=False, out=out)
        forward, forward_spread = _time(given, repeats)
        checkpoints = scan_cpu.scan_forward(*arguments)[2]
        backward, backward_spread = _time(
            functools.partial(scan_cpu.scan_backward, *(torch.randn_like(u), None, *arguments, checkpoints)), repeats
        )
        elements = channels * length * states
        # per state and step: 9 multiply-adds forward (5 of them the exponential), 16 backward
        moved = 4 * (3 * channels + 2 * GROUPS * states) * length, 4 * (5 * channels + 4 * GROUPS * states) * length
        size = f"{channels} x {length}, N {states}"
        for name, seconds, spread, operations, bytes_ in (
            ("forward", forward, forward_spread, 9, moved[0]),
            ("backward", backward, backward_spread, 16, moved[1]),
        ):
            bounds = {"exp2": elements / exp2, "fma": operations * elements / fma, "memory": bytes_ / bandwidth}
            largest = max(bounds, key=bounds.__getitem__)
            label = f"{name} {size}, outputs given: {seconds * 1e3:.2f} ms; floor ({largest})"
            yield Row(label, bounds[largest] * 1e3, "ms", spread)
            yield Row("  floor / own", bounds[largest] / seconds, "")


def _rate(name: str, repeats: int, threads: int) -> float:
    """Lanes per second of a loop in the library."""
    loop = scan_cpu.function(name)
    loop.restype = ctypes.c_int64
    out = (ctypes.c_float * max(64, threads))()
    done = 0

    def run() -> None:
        nonlocal done
        done = loop(ctypes.c_int64(repeats), ctypes.c_int64(threads), out)

    seconds, _ = _time(run, 15)
    return done / seconds
