"""The selective scan on CUDA, through the Triton kernels of `triton_device`; `reference` documents the arguments.

The sequence is divided into segments that are processed in parallel. A first pass computes the end state of each
segment for an initial state of 0, a short scan over the segments gives the state that enters each segment, and a second
pass processes the segments from these states. The backward pass does the same from the last step to the first. If batch
items and channels alone fill the GPU, there is one segment and no first pass. Costs and expected times are in
`triton.md`.

Triton is imported at the first call, since it does not exist for macOS and Windows.
"""

import functools
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import DirectionalInputs, ScanInputs, group_count

# Steps between two stored states, which take N/16 times the memory of u. A longer chunk does not fit into the registers
# of the backward kernel.
CHECKPOINT_STEPS = 16
# Channels of one program, one per lane of a warp.
LANES = 32
# States per lane; more states need more warps.
LANE_STATES = 16
LOG2_E = 1.4426950408889634
# At its default level ptxas moves loads so far ahead that the 16-state backward kernel spills; at level 1 it does not.
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
        """Number of programs into which the channels of a group are divided."""
        return -(-self.width // LANES)

    @property
    def padded_states(self) -> int:
        return 1 << (self.states - 1).bit_length()

    @property
    def tile(self) -> dict[str, int]:
        """The compile-time sizes NQ, NV, NL and BD of the kernels."""
        in_lane = min(self.padded_states, LANE_STATES)
        vector = min(in_lane, 4)
        return {"NQ": in_lane // vector, "NV": vector, "NL": self.padded_states // in_lane, "BD": LANES}

    def segment(self, segment: int | None = None) -> int:
        """Steps per program, a multiple of CHECKPOINT_STEPS: `segment` if given, else as many as still fill the GPU."""
        if segment is None:
            warps = self.batch * self.groups * self.blocks * self.tile["NL"]
            wanted = 1 if warps >= FULL_GPU_WARPS else -(-FULL_GPU_WARPS // warps)
            segment = max(-(-self.length // wanted), SHORTEST_SEGMENT) if wanted > 1 else self.length
        return -(-max(segment, 1) // CHECKPOINT_STEPS) * CHECKPOINT_STEPS


class _Inputs(NamedTuple):
    """The arguments of one call, in scan order or in image order."""

    u: Tensor  # (B, D, L), or (B, L, C) with a permutation
    delta: Tensor  # (B, D, L), or (B, L, K, C)
    A: Tensor  # (D, N)
    B: Tensor  # (B, L, G, N), or constant (D, N)
    C: Tensor  # as B
    D: Tensor | None  # (D,)
    z: Tensor | None  # as delta
    bias: Tensor | None  # (D,)
    softplus: bool
    permutation: Tensor | None  # (K, L)

    def prepared(self, shape: ScanShape) -> "_Inputs":
        """The inputs in the layout of the kernels: contiguous, with padded states, and A multiplied by log2(e)."""
        B, C = (_padded(X, shape) for X in (self.B, self.C))
        D, z, bias, permutation = (
            None if X is None else X.contiguous() for X in (self.D, self.z, self.bias, self.permutation)
        )
        u, delta = self.u.contiguous(), self.delta.contiguous()
        return _Inputs(u, delta, _decay_rates(self.A), B, C, D, z, bias, self.softplus, permutation)

    def pointer(self, tensor: Tensor | None) -> Tensor:
        """The tensor itself; if it is absent, a placeholder that the kernel does not read."""
        return self.A if tensor is None else tensor


class _Grid(NamedTuple):
    """The division of one call into programs, and the arguments that its kernels share."""

    shape: ScanShape
    steps: int  # steps per segment
    directional: bool

    @property
    def segments(self) -> int:
        return -(-self.shape.length // self.steps)

    @property
    def programs(self) -> int:
        """Number of programs for one segment."""
        return self.shape.batch * self.shape.groups * self.shape.blocks

    @property
    def sizes(self) -> tuple[int, ...]:
        """L, G, width, N, n_blocks, n_segments and segment of the kernels."""
        _, length, groups, width, states = self.shape
        return length, groups, width, states, self.shape.blocks, self.segments, self.steps

    @property
    def tile(self) -> dict[str, int]:
        return {**self.shape.tile, "num_warps": self.shape.tile["NL"]}

    @property
    def flags(self) -> dict[str, int | bool]:
        ragged = self.shape.length % CHECKPOINT_STEPS != 0
        vector = not self.directional and not ragged
        return {"DIRECTIONAL": self.directional, "VECTOR": vector, "RAGGED": ragged, **self.tile}


def scan_forward(
    inputs: ScanInputs,
    *,
    checkpointed: bool = True,
    segment: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Same as `reference.scan_forward`, without float64.

    Args:
        segment: steps per program, for tests and tuning.
    """
    return _forward(_scan_shape(inputs), _in_scan_order(inputs), inputs.initial_state, checkpointed, segment)


def scan_backward(
    grad_out: Tensor,
    grad_last_state: Tensor | None,
    inputs: ScanInputs,
    checkpoints: Tensor,
    *,
    segment: int | None = None,
) -> tuple[Tensor | None, ...]:
    """Same as `reference.scan_backward`, from the checkpoints of this module's `scan_forward`.

    There are no atomic additions, so the same input gives the same bits.
    """
    u, _, A, B, C, D, z, delta_bias, _, initial_state = inputs
    g = _backward(_scan_shape(inputs), _in_scan_order(inputs), grad_out, grad_last_state, checkpoints, segment)
    dB, dC = (dX if dX.ndim == 2 else dX.permute(0, 2, 3, 1) for dX in (g.B, g.C))
    return (
        g.u.to(u.dtype),
        g.delta,
        g.A.to(A.dtype),
        dB.to(B.dtype).contiguous(),
        dC.to(C.dtype).contiguous(),
        None if D is None else g.D.to(D.dtype),
        None if z is None else g.z,
        None if delta_bias is None else g.bias.to(delta_bias.dtype),
        None if initial_state is None else g.first.to(initial_state.dtype),
    )


def directional_forward(
    inputs: DirectionalInputs,
    *,
    checkpointed: bool = True,
    segment: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Same as `reference.directional_forward`, without float64."""
    shape, prepared = _in_image_order(inputs)
    out, _, checkpoints = _forward(shape, prepared, None, checkpointed, segment)
    return out, checkpoints


def directional_backward(
    grad_out: Tensor,
    inputs: DirectionalInputs,
    checkpoints: Tensor,
    *,
    segment: int | None = None,
) -> tuple[Tensor | None, ...]:
    """Same as `reference.directional_backward`, from the checkpoints of this module's `directional_forward`."""
    x, _, A, B, C, _, D, delta_bias, _ = inputs
    shape, prepared = _in_image_order(inputs)
    g = _backward(shape, prepared, grad_out, None, checkpoints, segment)
    return (
        g.u.sum(2, dtype=torch.float32).to(x.dtype),
        g.delta,
        g.A.to(A.dtype),
        g.B.to(B.dtype),
        g.C.to(C.dtype),
        None if D is None else g.D.to(D.dtype),
        None if delta_bias is None else g.bias.to(delta_bias.dtype),
    )


def device_code() -> ModuleType:
    """The module of the kernels; needs Triton, which does not exist for every system."""
    try:
        from . import triton_device
    except ImportError as error:
        raise ImportError(
            "the scan on CUDA needs Triton, which comes with PyTorch for Linux: pip install triton"
        ) from error
    return triton_device


def _scan_shape(inputs: ScanInputs) -> ScanShape:
    batch, channels, length = inputs.u.shape
    groups = group_count(inputs.B, inputs.C)
    return ScanShape(batch, length, groups, channels // groups, inputs.A.shape[1])


def _in_scan_order(inputs: ScanInputs) -> _Inputs:
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, _ = inputs
    B, C = (X if X.ndim == 2 else X.permute(0, 3, 1, 2) for X in (B, C))
    return _Inputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, None)


def _in_image_order(inputs: DirectionalInputs) -> tuple[ScanShape, _Inputs]:
    x, delta, A, B, C, permutation, D, delta_bias, delta_softplus = inputs
    batch, length, width = x.shape
    shape = ScanShape(batch, length, permutation.shape[0], width, A.shape[1])
    return shape, _Inputs(x, delta, A, B, C, D, None, delta_bias, delta_softplus, permutation)


def _forward(
    shape: ScanShape, inputs: _Inputs, first: Tensor | None, checkpointed: bool, segment: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """out, the last state and the checkpoints, for inputs in scan order or in image order."""
    batch, length, _, _, states = shape
    real = functools.partial(torch.empty, dtype=torch.float32, device=inputs.u.device)
    n_chunks = -(-length // CHECKPOINT_STEPS) if checkpointed else 0
    out = torch.empty_like(inputs.delta, memory_format=torch.contiguous_format)
    last = real(batch, shape.channels, states).zero_() if first is None else first.to(torch.float32).clone()
    checkpoints = real((batch, n_chunks, shape.channels, states) if checkpointed else 0)
    if out.numel() == 0:
        return out, last, checkpoints
    i = inputs.prepared(shape)
    grid = _Grid(shape, shape.segment(segment), i.permutation is not None)
    start = last
    with _on_device(out):
        if grid.segments > 1:
            start = _segment_starts(grid, i, i.u, first, reverse=False)
        device_code().scan_segments[(grid.programs * grid.segments,)](
            i.u, i.delta, i.A, i.B, i.C, i.pointer(i.D), i.pointer(i.z), i.pointer(i.bias), i.pointer(i.permutation),
            start, out, last, checkpoints,
            *grid.sizes, n_chunks,
            SOFTPLUS=i.softplus, HAS_D=i.D is not None, HAS_Z=i.z is not None, HAS_BIAS=i.bias is not None,
            HAS_START=grid.segments > 1 or first is not None, CONST_B=i.B.ndim == 2, CONST_C=i.C.ndim == 2,
            SAVE=checkpointed, **grid.flags,
        )  # fmt: skip
    return out, last, checkpoints


class _Gradients(NamedTuple):
    """Gradients of `_Inputs` and of the state before the first step; undefined for absent inputs."""

    u: Tensor  # has the shape of delta: the directions share u, and the caller adds their gradients
    delta: Tensor
    A: Tensor  # float32, like the others unless stated
    B: Tensor  # (B, L, G, N) or (D, N)
    C: Tensor
    D: Tensor
    z: Tensor  # in the type of z
    bias: Tensor
    first: Tensor


def _backward(
    shape: ScanShape,
    inputs: _Inputs,
    grad_out: Tensor,
    grad_last: Tensor | None,
    checkpoints: Tensor,
    segment: int | None,
) -> _Gradients:
    """The gradients, for inputs in scan order or in image order."""
    batch, length, groups, _, states = shape
    delta = inputs.delta
    real = functools.partial(torch.empty, dtype=torch.float32, device=delta.device)
    # float32 if the gradients of several directions have yet to be added
    du = torch.empty(
        delta.shape, device=delta.device, dtype=delta.dtype if inputs.permutation is None else torch.float32
    )
    ddelta = torch.empty_like(delta, memory_format=torch.contiguous_format)
    dz = ddelta if inputs.z is None else torch.empty_like(ddelta)
    dfirst = real(batch, shape.channels, states).zero_() if grad_last is None else grad_last.to(torch.float32).clone()
    if du.numel() == 0:
        dA, per_channel = real(shape.channels, states).zero_(), real(shape.channels).zero_()
        dB, dC = (
            torch.zeros_like(dA) if X.ndim == 2 else real(batch, length, groups, states).zero_()
            for X in (inputs.B, inputs.C)
        )
        return _Gradients(du, ddelta, dA, dB, dC, per_channel, dz, per_channel.clone(), dfirst)
    i, grad_out = inputs.prepared(shape), grad_out.contiguous()
    grid = _Grid(shape, shape.segment(segment), i.permutation is not None)
    const_B, const_C = i.B.ndim == 2, i.C.ndim == 2
    # sums over the channels of one program
    dBC = real(0 if const_B and const_C else (batch, length, groups, shape.blocks, 2, shape.padded_states))
    # sums over the steps of one segment
    dA = real(batch, grid.segments, shape.channels, states)
    dB, dC = (torch.empty_like(dA) if constant else dA for constant in (const_B, const_C))
    dD, dbias = (real(batch, grid.segments, shape.channels) for _ in range(2))
    carry = dfirst
    with _on_device(du):
        if grid.segments > 1:
            carry = _segment_starts(grid, i, grad_out, grad_last, reverse=True)
        elif grad_last is not None:
            carry = grad_last.to(torch.float32).contiguous()
        device_code().backward_segments[(grid.programs * grid.segments,)](
            grad_out, i.u, i.delta, i.A, i.B, i.C, i.pointer(i.D), i.pointer(i.z), i.pointer(i.bias),
            i.pointer(i.permutation), carry, checkpoints.contiguous(),
            du, ddelta, dz, dBC, dA, dB, dC, dD, dbias, dfirst,
            *grid.sizes, checkpoints.shape[1],
            SOFTPLUS=i.softplus, HAS_D=i.D is not None, HAS_Z=i.z is not None, HAS_BIAS=i.bias is not None,
            HAS_CARRY=grid.segments > 1 or grad_last is not None, CONST_B=const_B, CONST_C=const_C,
            **grid.flags, ptx_options=BACKWARD_PTX_OPTIONS,
        )  # fmt: skip
    sums = dBC if const_B and const_C else dBC.sum(3)  # (B, L, G, 2, NP)
    dB = dB.sum((0, 1)) if const_B else sums[..., 0, :states]
    dC = dC.sum((0, 1)) if const_C else sums[..., 1, :states]
    return _Gradients(du, ddelta, dA.sum((0, 1)), dB, dC, dD.sum((0, 1)), dz, dbias.sum((0, 1)), dfirst)


def _segment_starts(grid: _Grid, i: _Inputs, w: Tensor, first: Tensor | None, *, reverse: bool) -> Tensor:
    """The state that enters each segment, (B, segments, D, N): the first pass and the scan over segments.

    Args:
        w: the input of the scan: u, or the gradient of out if `reverse`.
        first: (B, D, N), the state that enters the first segment, or the last one if `reverse`; None for 0.
    """
    shape, kernels = grid.shape, device_code()
    M, z = (i.C, i.z) if reverse else (i.B, None)
    ends = torch.empty(shape.batch, grid.segments, shape.channels, shape.states, dtype=torch.float32, device=w.device)
    sums = torch.empty(shape.batch, grid.segments, shape.channels, dtype=torch.float32, device=w.device)
    starts = torch.empty_like(ends)
    kernels.segment_ends[(grid.programs * grid.segments,)](
        i.delta, w, M, i.pointer(z), i.A, i.pointer(i.bias), i.pointer(i.permutation), ends, sums,
        *grid.sizes,
        SOFTPLUS=i.softplus, HAS_BIAS=i.bias is not None, HAS_Z=z is not None, CONST_M=M.ndim == 2,
        W_SHARED=not reverse, REVERSE=reverse, **grid.flags,
    )  # fmt: skip
    kernels.carry_states[(grid.programs,)](
        ends, sums, i.A, i.pointer(None if first is None else first.to(torch.float32).contiguous()), starts,
        *grid.sizes[1:6],
        HAS_FIRST=first is not None, REVERSE=reverse, **grid.tile,
    )  # fmt: skip
    return starts


def _decay_rates(A: Tensor) -> Tensor:
    """A log2(e), made finite, since it is multiplied by 0 for absent steps."""
    return (A.to(torch.float32) * LOG2_E).clamp_min(-1e38).contiguous()


def _padded(X: Tensor, shape: ScanShape) -> Tensor:
    """B or C (B, L, G, N), padded with zeros so that the number of states is a power of two; (D, N) is unchanged."""
    if X.ndim == 2:
        return X.to(torch.float32).contiguous()
    return F.pad(X, (0, shape.padded_states - shape.states)).contiguous()


def _on_device(tensor: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
