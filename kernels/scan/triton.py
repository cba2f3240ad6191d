"""The selective scan on CUDA, by the Triton kernels of `scan_triton_device`; `scan` documents the arguments.

The sequence is cut in segments that run at the same time. A first pass finds what each segment does to a state that
enters as 0, a short scan over the segments gives the state that enters each, and a second pass runs the segments from
there (the backward pass does the same from the last step to the first). Where batch items and channels alone fill the
GPU there is one segment and no first pass. What this costs and what to expect of it stands in `scan_triton.md`.

Triton is imported at the first call: it is not there on macOS and Windows, and this module is.
"""

from contextlib import nullcontext
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Steps between two stored states, N/16 times the memory of u; the backward kernel's registers hold no longer a chunk.
CHECKPOINT_STEPS = 16
# Channels of one program, the lanes of a warp.
LANES = 32
# States of one lane; more are spread over more warps.
LANE_STATES = 16
LOG2_E = 1.4426950408889634
# ptxas at its default level moves loads so far ahead that the 16-state backward kernel spills; at level 1 it does not.
BACKWARD_PTX_OPTIONS = "--opt-level 1"
# Warps that keep an H100 busy (132 multiprocessors, 16 each), and the shortest segment worth a program. Not tuned.
FULL_GPU_WARPS = 2000
SHORTEST_SEGMENT = 64


class ScanShape(NamedTuple):
    """Sizes of one scan: `width` channels in each of `groups` groups."""

    batch: int
    length: int
    groups: int
    width: int
    states: int

    @property
    def channels(self) -> int:
        return self.groups * self.width

    @property
    def blocks(self) -> int:
        """Programs side by side in one group."""
        return -(-self.width // LANES)

    @property
    def padded_states(self) -> int:
        return 1 << (self.states - 1).bit_length()

    @property
    def tile(self) -> dict[str, int]:
        """NQ, NV, NL, BD of the kernels."""
        in_lane = min(self.padded_states, LANE_STATES)
        vector = min(in_lane, 4)
        return {"NQ": in_lane // vector, "NV": vector, "NL": self.padded_states // in_lane, "BD": LANES}

    def segment(self, segment: int | None = None) -> int:
        """Steps per program: as asked, or all if that fills the GPU, or as few as fill it; a multiple of the chunk."""
        if segment is None:
            warps = self.batch * self.groups * self.blocks * self.tile["NL"]
            wanted = 1 if warps >= FULL_GPU_WARPS else -(-FULL_GPU_WARPS // warps)
            segment = max(-(-self.length // wanted), SHORTEST_SEGMENT) if wanted > 1 else self.length
        return -(-max(segment, 1) // CHECKPOINT_STEPS) * CHECKPOINT_STEPS


def scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    *,
    checkpointed: bool = True,
    segment: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Forward pass; arguments and results as in `scan_reference.scan_forward`, without float64.

    Args:
        checkpointed: also store the states that `scan_backward` needs; else the third result is empty.
        segment: steps that one program walks, for tests and tuning.
    """
    batch, channels, length = u.shape
    groups = _groups(B, C)
    shape = ScanShape(batch, length, groups, channels // groups, A.shape[1])
    B, C = (X if X.ndim == 2 else X.permute(0, 3, 1, 2) for X in (B, C))
    return _forward(
        shape, u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, None, checkpointed, segment
    )


def scan_backward(
    grad_out: Tensor,
    grad_last_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    checkpoints: Tensor,
    *,
    segment: int | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of `scan_forward`; arguments and results as in `scan_reference.scan_backward`.

    No atomic additions: the same input gives the same bits.
    """
    batch, channels, length = u.shape
    groups = _groups(B, C)
    shape = ScanShape(batch, length, groups, channels // groups, A.shape[1])
    B_, C_ = (X if X.ndim == 2 else X.permute(0, 3, 1, 2) for X in (B, C))
    arguments = (u, delta, A, B_, C_, D, z, delta_bias, delta_softplus, None, checkpoints, segment)
    du, ddelta, dA, dB, dC, dD, dz, dbias, dfirst = _backward(shape, grad_out, grad_last_state, *arguments)
    dB, dC = (dX if dX.ndim == 2 else dX.permute(0, 2, 3, 1) for dX in (dB, dC))
    return (
        du.to(u.dtype),
        ddelta,
        dA.to(A.dtype),
        dB.to(B.dtype).contiguous(),
        dC.to(C.dtype).contiguous(),
        None if D is None else dD.to(D.dtype),
        None if z is None else dz,
        None if delta_bias is None else dbias.to(delta_bias.dtype),
        None if initial_state is None else dfirst.to(initial_state.dtype),
    )


def directional_forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    permutation: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    *,
    checkpointed: bool = True,
    segment: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Forward pass; arguments and results as in `scan_reference.directional_forward`, without float64."""
    batch, length, width = x.shape
    shape = ScanShape(batch, length, permutation.shape[0], width, A.shape[1])
    out, _, checkpoints = _forward(
        shape, x, delta, A, B, C, D, None, delta_bias, delta_softplus, None, permutation, checkpointed, segment
    )
    return out, checkpoints


def directional_backward(
    grad_out: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    permutation: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    checkpoints: Tensor,
    *,
    segment: int | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of `directional_forward`; arguments and results as in `scan_reference.directional_backward`."""
    batch, length, width = x.shape
    shape = ScanShape(batch, length, permutation.shape[0], width, A.shape[1])
    arguments = (x, delta, A, B, C, D, None, delta_bias, delta_softplus, permutation, checkpoints, segment)
    du, ddelta, dA, dB, dC, dD, _, dbias, _ = _backward(shape, grad_out, None, *arguments)
    return (
        du.sum(2, dtype=torch.float32).to(x.dtype),
        ddelta,
        dA.to(A.dtype),
        dB.to(B.dtype),
        dC.to(C.dtype),
        None if D is None else dD.to(D.dtype),
        None if delta_bias is None else dbias.to(delta_bias.dtype),
    )


def _device_code() -> ModuleType:
    try:
        from . import triton_device as scan_triton_device
    except ImportError as error:
        raise ImportError(
            "the scan on CUDA needs Triton, which comes with PyTorch for Linux: pip install triton"
        ) from error
    return scan_triton_device


def _groups(B: Tensor, C: Tensor) -> int:
    return B.shape[1] if B.ndim == 4 else C.shape[1] if C.ndim == 4 else 1


def _forward(
    shape: ScanShape,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    first: Tensor | None,
    permutation: Tensor | None,
    checkpointed: bool,
    segment: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Either layout; B and C (B, L, G, N) or (D, N)."""
    batch, length, groups, width, states = shape
    channels = shape.channels
    real: dict[str, Any] = {"dtype": torch.float32, "device": u.device}
    n_chunks = -(-length // CHECKPOINT_STEPS) if checkpointed else 0
    out = torch.empty_like(delta, memory_format=torch.contiguous_format)
    last = torch.zeros(batch, channels, states, **real) if first is None else first.to(**real).clone()
    checkpoints = torch.empty(batch, n_chunks, channels, states, **real)
    if out.numel() == 0:
        return out, last, checkpoints
    kernels = _device_code()
    u, delta, A = u.contiguous(), delta.contiguous(), _decay_rates(A)
    B, C = (_padded(X, shape) for X in (B, C))
    D_, z_, bias_, perm = (A if X is None else X.contiguous() for X in (D, z, bias, permutation))
    steps = shape.segment(segment)
    n_segments = -(-length // steps)
    programs = batch * groups * shape.blocks
    layout = _layout(shape, permutation)
    sizes = (length, groups, width, states, shape.blocks, n_segments, steps)
    start = last
    with _on_device(u):
        if n_segments > 1:
            start = _segment_starts(
                kernels, shape, delta, u, B, None, A, bias, perm, first, softplus, True, False, layout, sizes
            )
        kernels.scan_segments[(programs * n_segments,)](
            u, delta, A, B, C, D_, z_, bias_, perm, start, out, last, checkpoints,
            *sizes, n_chunks,
            SOFTPLUS=softplus, HAS_D=D is not None, HAS_Z=z is not None, HAS_BIAS=bias is not None,
            HAS_START=n_segments > 1 or first is not None, CONST_B=B.ndim == 2, CONST_C=C.ndim == 2,
            SAVE=checkpointed, **layout, **shape.tile, num_warps=shape.tile["NL"],
        )  # fmt: skip
    return out, last, checkpoints


def _backward(
    shape: ScanShape,
    grad_out: Tensor,
    grad_last: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    permutation: Tensor | None,
    checkpoints: Tensor,
    segment: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Either layout; du has the shape of delta; dB and dC are (B, L, G, N) or (D, N), float32."""
    batch, length, groups, width, states = shape
    channels = shape.channels
    real: dict[str, Any] = {"dtype": torch.float32, "device": u.device}
    # the directions share x: their gradients are added in float32
    du = torch.empty(delta.shape, device=u.device, dtype=u.dtype if permutation is None else torch.float32)
    ddelta = torch.empty_like(delta, memory_format=torch.contiguous_format)
    dz = ddelta if z is None else torch.empty_like(ddelta)
    dfirst = torch.zeros(batch, channels, states, **real) if grad_last is None else grad_last.to(**real).clone()
    dBC_shape = (batch, length, groups, states)
    if du.numel() == 0:
        dA, per_channel = torch.zeros(channels, states, **real), torch.zeros(channels, **real)
        dB, dC = (torch.zeros_like(dA) if X.ndim == 2 else torch.zeros(dBC_shape, **real) for X in (B, C))
        return du, ddelta, dA, dB, dC, per_channel, dz, per_channel.clone(), dfirst
    kernels = _device_code()
    u, delta, A, grad_out = u.contiguous(), delta.contiguous(), _decay_rates(A), grad_out.contiguous()
    B, C = (_padded(X, shape) for X in (B, C))
    D_, z_, bias_, perm = (A if X is None else X.contiguous() for X in (D, z, bias, permutation))
    steps = shape.segment(segment)
    n_segments = -(-length // steps)
    programs = batch * groups * shape.blocks
    layout = _layout(shape, permutation)
    sizes = (length, groups, width, states, shape.blocks, n_segments, steps)
    const_B, const_C = B.ndim == 2, C.ndim == 2
    dBC = torch.empty(0, **real)
    if not (const_B and const_C):
        dBC = torch.empty(batch, length, groups, shape.blocks, 2, shape.padded_states, **real)
    dA = torch.empty(batch, n_segments, channels, states, **real)
    dB = torch.empty_like(dA) if const_B else dA
    dC = torch.empty_like(dA) if const_C else dA
    dD, dbias = (torch.empty(batch, n_segments, channels, **real) for _ in range(2))
    carry = dfirst
    with _on_device(u):
        if n_segments > 1:
            carry = _segment_starts(
                kernels, shape, delta, grad_out, C, z, A, bias, perm, grad_last, softplus, False, True, layout, sizes
            )
        elif grad_last is not None:
            carry = grad_last.to(**real).contiguous()
        kernels.backward_segments[(programs * n_segments,)](
            grad_out, u, delta, A, B, C, D_, z_, bias_, perm, carry, checkpoints.contiguous(),
            du, ddelta, dz, dBC, dA, dB, dC, dD, dbias, dfirst,
            *sizes, checkpoints.shape[1],
            SOFTPLUS=softplus, HAS_D=D is not None, HAS_Z=z is not None, HAS_BIAS=bias is not None,
            HAS_CARRY=n_segments > 1 or grad_last is not None, CONST_B=const_B, CONST_C=const_C,
            **layout, **shape.tile, num_warps=shape.tile["NL"], ptx_options=BACKWARD_PTX_OPTIONS,
        )  # fmt: skip
    sums = dBC if const_B and const_C else dBC.sum(3)  # (B, L, G, 2, NP)
    dB = dB.sum((0, 1)) if const_B else sums[..., 0, :states]
    dC = dC.sum((0, 1)) if const_C else sums[..., 1, :states]
    return du, ddelta, dA.sum((0, 1)), dB, dC, dD.sum((0, 1)), dz, dbias.sum((0, 1)), dfirst


def _segment_starts(
    kernels: ModuleType,
    shape: ScanShape,
    delta: Tensor,
    w: Tensor,
    M: Tensor,
    z: Tensor | None,
    A: Tensor,
    bias: Tensor | None,
    perm: Tensor,
    first: Tensor | None,
    softplus: bool,
    w_shared: bool,
    reverse: bool,
    layout: dict[str, bool],
    sizes: tuple[int, ...],
) -> Tensor:
    """The state that enters each segment, (B, segments, D, N): the first pass and the scan over segments."""
    _, groups, width, states, blocks, n_segments, _ = sizes
    ends = torch.empty(shape.batch, n_segments, shape.channels, states, dtype=torch.float32, device=delta.device)
    sums = torch.empty(shape.batch, n_segments, shape.channels, dtype=torch.float32, device=delta.device)
    starts = torch.empty_like(ends)
    programs = shape.batch * groups * blocks
    kernels.segment_ends[(programs * n_segments,)](
        delta, w, M, A if z is None else z.contiguous(), A, A if bias is None else bias, perm, ends, sums,
        *sizes,
        SOFTPLUS=softplus, HAS_BIAS=bias is not None, HAS_Z=z is not None, CONST_M=M.ndim == 2, W_SHARED=w_shared,
        REVERSE=reverse, **layout, **shape.tile, num_warps=shape.tile["NL"],
    )  # fmt: skip
    kernels.carry_states[(programs,)](
        ends, sums, A, A if first is None else first.to(torch.float32).contiguous(), starts,
        groups, width, states, blocks, n_segments,
        HAS_FIRST=first is not None, REVERSE=reverse, **shape.tile, num_warps=shape.tile["NL"],
    )  # fmt: skip
    return starts


def _decay_rates(A: Tensor) -> Tensor:
    """A log2(e), finite: absent steps multiply it by 0."""
    return (A.to(torch.float32) * LOG2_E).clamp_min(-1e38).contiguous()


def _padded(X: Tensor, shape: ScanShape) -> Tensor:
    """B or C (B, L, G, N) with zeros up to a power of two of states; a constant one (D, N) as it is."""
    if X.ndim == 2:
        return X.to(torch.float32).contiguous()
    return F.pad(X, (0, shape.padded_states - shape.states)).contiguous()


def _layout(shape: ScanShape, permutation: Tensor | None) -> dict[str, bool]:
    ragged = shape.length % CHECKPOINT_STEPS != 0
    return {
        "DIRECTIONAL": permutation is not None,
        "VECTOR": permutation is None and not ragged,
        "RAGGED": ragged,
    }


def _on_device(tensor: Tensor):
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
