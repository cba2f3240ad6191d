"""Time the Triton scan on a GPU, with peers in the same process, for `voxelwave bench kernels --device cuda`.

It has not run on a GPU yet, so the project publishes no GPU times.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference, triton
from .peers import parallel_scan, trained_inputs
from .reference import ScanInputs
from .triton import ScanShape
from .triton_aot import H100_BYTES_PER_S, fewest_bytes

# This memory is written between two runs, so that no run finds its inputs in the L2 cache (50 MiB on an H100).
FLUSHED_BYTES = 256 * 2**20
# The parallel scan in PyTorch holds a few tensors of all states; beyond this size it is left out.
PARALLEL_SCAN_ELEMENTS = 2**29
# The float64 reference needs one launch per step and operation; longer sequences are not compared with it.
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
    gigabytes_per_s: float  # the fewest possible bytes divided by the median time; the kernel moves more bytes
    h100_floor_fraction: (
        float  # the time that the memory of an H100 needs for the fewest bytes, divided by the median time
    )
    peer_ratio: dict[str, float]  # time of the peer / our median
    max_error: float | None  # largest error against float64, divided by the largest value


def gpu_benchmark(*, quick: bool = False, seed: int = 0, repeats: int = 50) -> list[GpuRow]:
    """Time forward, forward with checkpoints and backward of every size, with CUDA events and a flushed L2 cache.

    Args:
        quick: only the first two sizes.
        seed: seed of the random inputs.
        repeats: timed runs of our kernels; peers run a tenth as often.

    Raises:
        RuntimeError: there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("timing the CUDA kernels needs a CUDA device, and PyTorch finds none on this machine")
    return [row for size in (SIZES[:2] if quick else SIZES) for row in _rows(*size, seed, repeats)]


def _rows(shape: ScanShape, dtype: torch.dtype, seed: int, repeats: int, device: str = "cuda") -> list[GpuRow]:
    batch, length, groups, _, states = shape
    inputs = trained_inputs(
        shape.channels, length, states, batch=batch, groups=groups, seed=seed, device=device, dtype=dtype
    )
    arguments = ScanInputs(*inputs[:6], None, inputs.delta_bias, True, None)
    out, _, checkpoints = triton.scan_forward(arguments)
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed + 1)).to(out)
    ours: dict[str, Callable[[], object]] = {
        "forward": lambda: triton.scan_forward(arguments, checkpointed=False),
        "forward with checkpoints": lambda: triton.scan_forward(arguments),
        "backward": lambda: triton.scan_backward(grad_out, None, arguments, checkpoints),
    }
    peers = _peers(shape, arguments, grad_out)
    gradients = triton.scan_backward(grad_out, None, arguments, checkpoints)
    errors = _errors(shape, arguments, grad_out, out, gradients)
    rows = []
    for what, run in ours.items():
        direction = "backward" if what == "backward" else "forward"
        times = _times_us(run, repeats)
        median = times[len(times) // 2]
        least = fewest_bytes(shape, backward=what == "backward", directional=False, item_size=out.element_size())
        ratios = {}
        for peer, peer_run in peers[direction].items():
            peer_times = _times_us(peer_run, max(repeats // 10, 3))
            ratios[peer] = peer_times[len(peer_times) // 2] / median
        floor = least / H100_BYTES_PER_S * 1e6
        rate = least / median / 1e3
        rows.append(GpuRow(shape, dtype, what, median, times[0], rate, floor / median, ratios, errors.get(direction)))
    return rows


def _peers(shape: ScanShape, arguments: ScanInputs, grad_out: Tensor) -> dict[str, dict[str, Callable[[], object]]]:
    """The peers that can run at this size; the backward pass is repeated on the graph of one forward pass."""
    peers: dict[str, dict[str, Callable[[], object]]] = {"forward": {}, "backward": {}}
    scans: dict[str, Callable[..., Tensor]] = {}
    if shape.batch * shape.channels * shape.length * shape.states <= PARALLEL_SCAN_ELEMENTS:
        scans["parallel scan in PyTorch"] = parallel_scan
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # an optional peer, for CUDA only
    except ImportError:
        pass
    else:
        scans["mamba_ssm"] = lambda *inputs: selective_scan_fn(*inputs[:6], None, inputs[6], True)
    inputs = [v for v in arguments if isinstance(v, Tensor)]
    for name, scan in scans.items():

        def forward(scan: Callable[..., Tensor] = scan) -> Tensor:
            with torch.no_grad():
                return scan(*inputs)

        leaves = [v.clone().requires_grad_() for v in inputs]
        try:
            graph = scan(*leaves)
        except torch.OutOfMemoryError:
            continue

        def backward(graph: Tensor = graph, leaves: list[Tensor] = leaves) -> object:
            return torch.autograd.grad(graph, leaves, grad_out, retain_graph=True)

        peers["forward"][name] = forward
        peers["backward"][name] = backward
    return peers


def _errors(
    shape: ScanShape, arguments: ScanInputs, grad_out: Tensor, out: Tensor, gradients: tuple[Tensor | None, ...]
) -> dict[str, float]:
    """Largest error against float64 divided by the largest value, of out and of the worst gradient."""
    if shape.length > REFERENCE_STEPS or shape.batch > 1:
        return {}
    u, delta, A, B, C, D, bias = (v.double() for v in arguments if isinstance(v, Tensor))
    exact = ScanInputs(u, delta, A, B, C, D, None, bias, True, None)
    expected, _, checkpoints = reference.scan_forward(exact)
    expected_gradients = reference.scan_backward(grad_out.double(), None, exact, checkpoints)

    def error(actual: Tensor, truth: Tensor) -> float:
        return ((actual.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-30)).item()

    pairs = [(a, e) for a, e in zip(gradients, expected_gradients, strict=True) if a is not None and e is not None]
    return {"forward": error(out, expected), "backward": max(error(a, e) for a, e in pairs)}


def _times_us(run: Callable[[], object], repeats: int) -> list[float]:
    """Sorted times of single runs in microseconds, each with a cold L2 cache and including launches from Python."""
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
