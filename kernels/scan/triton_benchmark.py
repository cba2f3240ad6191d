"""Times the Triton scan on a GPU beside peers in the same process: what `voxelwave bench kernels --device cuda` prints.

Not run yet where it counts: no number of a GPU stands in this project before it was.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import reference as scan_reference
from . import triton as scan_triton
from .triton import ScanShape
from .triton_aot import H100_BYTES_PER_S, fewest_bytes

# Written between two runs so that neither finds its inputs in the L2 cache (50 MiB on an H100).
FLUSHED_BYTES = 256 * 2**20
# A parallel scan in PyTorch holds a few tensors of all states; beyond this it is left out.
PARALLEL_SCAN_ELEMENTS = 2**29
# float64 takes one launch per step and operation.
REFERENCE_STEPS = 4096

SIZES = [
    (ScanShape(1, 4096, 4, 60, 16), torch.float32),
    (ScanShape(1, 4096, 4, 180, 16), torch.float32),
    (ScanShape(1, 4096, 4, 360, 16), torch.float32),
    (ScanShape(1, 16384, 4, 60, 16), torch.float32),
    (ScanShape(1, 16384, 4, 180, 16), torch.float32),
    (ScanShape(1, 4096, 4, 60, 1), torch.float32),
    (ScanShape(1, 65536, 4, 66, 1), torch.float32),
    (ScanShape(4, 4096, 4, 180, 16), torch.float32),
    (ScanShape(1, 65536, 4, 180, 16), torch.float32),
    (ScanShape(16, 4096, 4, 180, 16), torch.float32),
    (ScanShape(1, 4096, 4, 180, 16), torch.bfloat16),
    (ScanShape(16, 4096, 4, 180, 16), torch.bfloat16),
]


class GpuRow(NamedTuple):
    """One size and pass on one GPU."""

    shape: ScanShape
    dtype: torch.dtype
    what: str  # "forward", "forward with checkpoints", "backward"
    median_us: float
    fastest_us: float
    gigabytes_per_s: float  # of the fewest bytes possible, not of those moved
    h100_floor_fraction: float  # of the time an H100's memory needs for them
    peer_ratio: dict[str, float]  # time of the peer / our median
    max_error: float | None  # against float64, of the largest value


def gpu_benchmark(*, quick: bool = False, seed: int = 0, repeats: int = 50) -> list[GpuRow]:
    """Time forward, forward with checkpoints and backward of every size, with CUDA events and a flushed L2 cache.

    Args:
        quick: the first two sizes only.
        seed: of the random inputs.
        repeats: timed runs of ours; peers run a tenth as often.

    Raises:
        RuntimeError: there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("timing the CUDA kernels needs a CUDA device, and PyTorch finds none on this machine")
    return [row for size in (SIZES[:2] if quick else SIZES) for row in _rows(*size, seed, repeats)]


def scan_arguments(shape: ScanShape, dtype: torch.dtype, device: str, seed: int) -> list[Any]:
    """Arguments of `scan_triton.scan_forward` as in a trained model: steps of 1e-3 to 1e-1, A near -(1 .. N)."""
    generator = torch.Generator().manual_seed(seed)
    batch, length, groups, _, states = shape
    channels = shape.channels

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    steps = torch.exp(torch.empty(channels).uniform_(-6.9, -2.3, generator=generator))
    A = -torch.arange(1.0, states + 1) * torch.empty(channels, states).uniform_(0.8, 1.25, generator=generator)
    u, delta, B, C = (
        v.to(device, dtype)
        for v in (
            normal(batch, channels, length),
            0.5 * normal(batch, channels, length),
            normal(batch, groups, states, length),
            normal(batch, groups, states, length),
        )
    )
    D, bias = torch.ones(channels), torch.log(torch.expm1(steps))
    return [u, delta, A.to(device), B, C, D.to(device), None, bias.to(device), True, None]


def parallel_scan(arguments: list[Any]) -> Tensor:
    """The peer: Hillis and Steele's scan (1986) over all states at once, log2(L) passes over (B, D, L, N)."""
    u, delta, A, B, C, D, _, bias, _, _ = arguments
    dl = torch.nn.functional.softplus(delta.float() + bias[:, None])
    B, C = (X.float().repeat_interleave(u.shape[1] // X.shape[1], 1).transpose(2, 3) for X in (B, C))
    a = torch.exp(dl[..., None] * A[:, None])
    h = (dl * u.float())[..., None] * B
    distance = 1
    while distance < u.shape[2]:
        h = torch.cat([h[:, :, :distance], h[:, :, distance:] + a[:, :, distance:] * h[:, :, :-distance]], 2)
        a = torch.cat([a[:, :, :distance], a[:, :, distance:] * a[:, :, :-distance]], 2)
        distance *= 2
    return ((h * C).sum(-1) + D[:, None] * u.float()).to(u.dtype)


def _rows(shape: ScanShape, dtype: torch.dtype, seed: int, repeats: int) -> list[GpuRow]:
    arguments = scan_arguments(shape, dtype, "cuda", seed)
    out, _, checkpoints = scan_triton.scan_forward(*arguments)
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed + 1)).to(out)
    backward_arguments: list[Any] = [grad_out, None, *arguments, checkpoints]
    ours: dict[str, Callable[[], object]] = {
        "forward": lambda: scan_triton.scan_forward(*arguments, checkpointed=False),
        "forward with checkpoints": lambda: scan_triton.scan_forward(*arguments),
        "backward": lambda: scan_triton.scan_backward(*backward_arguments),
    }
    peers = _peers(shape, arguments, grad_out)
    gradients = scan_triton.scan_backward(*backward_arguments)
    errors = _errors(shape, arguments, grad_out, out, gradients)
    rows = []
    for what, run in ours.items():
        times = _times_us(run, repeats)
        median = times[len(times) // 2]
        least = fewest_bytes(
            shape, backward=what == "backward", directional=False, item_size=arguments[0].element_size()
        )
        ratios = {}
        for peer, peer_run in peers["backward" if what == "backward" else "forward"].items():
            peer_times = _times_us(peer_run, max(repeats // 10, 3))
            ratios[peer] = peer_times[len(peer_times) // 2] / median
        floor = least / H100_BYTES_PER_S * 1e6
        error = errors.get("backward" if what == "backward" else "forward")
        rows.append(GpuRow(shape, dtype, what, median, times[0], least / median / 1e3, floor / median, ratios, error))
    return rows


def _peers(shape: ScanShape, arguments: list[Any], grad_out: Tensor) -> dict[str, dict[str, Callable[[], object]]]:
    """The peers that run at this size; backward runs the graph of one forward pass again and again."""
    peers: dict[str, dict[str, Callable[[], object]]] = {"forward": {}, "backward": {}}
    scans: dict[str, Callable[[list[Any]], Tensor]] = {}
    if shape.batch * shape.channels * shape.length * shape.states <= PARALLEL_SCAN_ELEMENTS:
        scans["parallel scan in PyTorch"] = parallel_scan
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        pass
    else:
        scans["mamba_ssm"] = lambda values: selective_scan_fn(*values[:9])
    for name, scan in scans.items():

        def forward(scan=scan) -> Tensor:
            with torch.no_grad():
                return scan(arguments)

        leaves = [v.clone().requires_grad_() if isinstance(v, Tensor) else v for v in arguments]
        try:
            graph = scan(leaves)
        except torch.OutOfMemoryError:
            continue
        inputs = [v for v in leaves if isinstance(v, Tensor)]

        def backward(graph=graph, inputs=inputs) -> object:
            return torch.autograd.grad(graph, inputs, grad_out, retain_graph=True)

        peers["forward"][name] = forward
        peers["backward"][name] = backward
    return peers


def _errors(
    shape: ScanShape, arguments: list[Any], grad_out: Tensor, out: Tensor, gradients: tuple[Tensor | None, ...]
) -> dict[str, float]:
    """Largest error against float64 over the largest value, of out and of the worst gradient."""
    if shape.length > REFERENCE_STEPS or shape.batch > 1:
        return {}
    exact: list[Any] = [v.double() if isinstance(v, Tensor) else v for v in arguments]
    expected, _, checkpoints = scan_reference.scan_forward(*exact)
    exact = [grad_out.double(), None, *exact, checkpoints]
    expected_gradients = scan_reference.scan_backward(*exact)

    def error(actual: Tensor, truth: Tensor) -> float:
        return ((actual.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-30)).item()

    pairs = [(a, e) for a, e in zip(gradients, expected_gradients, strict=True) if a is not None and e is not None]
    return {"forward": error(out, expected), "backward": max(error(a, e) for a, e in pairs)}


def _times_us(run: Callable[[], object], repeats: int) -> list[float]:
    """Sorted times of single runs in microseconds, each with a cold L2 cache; launches from Python are part of them."""
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda")
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        flushed.zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1e3)
    return sorted(times)
