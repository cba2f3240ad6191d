"""The compiled CPU scan (csrc/selective_scan.cpp), called through ctypes.

It uses as many threads as torch, and torch's own pool if both use OpenMP; no result depends on their number. `serves`
returns False if there is no library; the caller then uses `reference`. A small scan takes 10 us, so all that follows
from the sizes of the tensors is computed once for equal sizes (`_plan`).
"""

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import arena, native
from ..threads import kernel_threads
from .reference import DirectionalInputs, ScanInputs, group_count

# CHUNK of csrc/selective_scan.cpp
CHECKPOINT_STEPS = 128

_TYPES = {torch.float32: 0, torch.float64: 0, torch.float16: 1, torch.bfloat16: 2}  # float64 has functions of its own
_MOST_KEPT = 1 << 20  # bytes of scratch memory, per thread
_kept = threading.local()
_FourNumbers = ctypes.c_int64 * 4
_Strides = tuple[int, ...]


class _Scan(ctypes.Structure):
    """struct Scan of csrc/selective_scan.cpp, of floats or of doubles."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "channels", "groups", "states", "length")),
        *((name, ctypes.c_int64) for name in ("type", "softplus", "threads", "splits", "b_varies", "c_varies")),
        *((name, ctypes.c_void_p) for name in ("u", "delta", "z", "B", "C", "grad_out")),
        *((f"{name}_stride", _FourNumbers) for name in ("u", "delta", "z", "grad_out", "B", "C")),
        *((name, ctypes.c_void_p) for name in ("A", "D", "delta_bias", "initial_state", "grad_last_state")),
        ("permutation", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in ("out", "last_state", "checkpoints", "du", "ddelta", "dz")),
        ("out_stride", _FourNumbers),
        ("dB", ctypes.c_void_p),
        ("dC", ctypes.c_void_p),
        ("dB_stride", _FourNumbers),
        ("dB_part", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in ("dA", "dD", "ddelta_bias", "dinitial_state", "du_directions", "scratch")
        ),
        ("rank", ctypes.c_int64),
        ("delta_weight", ctypes.c_void_p),
        ("out_sums", ctypes.c_void_p),
    )


def serves(u: Tensor) -> bool:
    """Whether the compiled library can process this input."""
    return u.device.type == "cpu" and u.dtype in _TYPES and u.numel() > 0 and native.library() is not None


def scan_forward(
    inputs: ScanInputs,
    *,
    checkpointed: bool = True,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Same as `reference.scan_forward`, with the checkpoints in the order that `scan_backward` expects.

    Args:
        out: tensor for the result, contiguous, with the shape and type of u.
    """
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state = inputs
    call = _Call("forward", u, delta, A, B, C, D, delta_bias, delta_softplus, z=z)
    batch, channels, length = u.shape
    out = _empty_like(u) if out is None else out
    last_state = A.new_empty(batch, channels, A.shape[1])
    checkpoints = _checkpoints(A, batch, channels, length, checkpointed)
    initial_state = _packed(initial_state)
    call.struct.initial_state = _address(initial_state)
    call.struct.out, call.struct.last_state = out.data_ptr(), last_state.data_ptr()
    call.struct.checkpoints = checkpoints.data_ptr()
    call.run()
    return out, last_state, checkpoints


def scan_backward(
    grad_out: Tensor,
    grad_last_state: Tensor | None,
    inputs: ScanInputs,
    checkpoints: Tensor,
    *,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor | None, ...]:
    """Same as `reference.scan_backward`, from the checkpoints of this module's `scan_forward`.

    Args:
        out: tensors for the gradients of u and delta, contiguous, with their shapes and types.
    """
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state = inputs
    call = _Call("backward", u, delta, A, B, C, D, delta_bias, delta_softplus, z=z, grad_out=grad_out)
    du, ddelta = (_empty_like(u), _empty_like(delta)) if out is None else out
    dz = None if z is None else _empty_like(z)
    dinitial = None if initial_state is None else _empty_like(initial_state)
    initial_state, grad_last_state = _packed(initial_state), _packed(grad_last_state)
    struct = call.struct
    struct.initial_state, struct.grad_last_state = _address(initial_state), _address(grad_last_state)
    struct.checkpoints, struct.dinitial_state = checkpoints.data_ptr(), _address(dinitial)
    struct.du, struct.ddelta, struct.dz = du.data_ptr(), ddelta.data_ptr(), _address(dz)
    dA, dB, dC, dD, dbias = call.run_with_gradients()
    return du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial


def directional_forward(
    inputs: DirectionalInputs,
    *,
    checkpointed: bool = True,
) -> tuple[Tensor, Tensor]:
    """Same as `reference.directional_forward`.

    Raises:
        ValueError: a row of `permutation` is not a permutation.
    """
    x, delta, A, B, C, permutation, D, delta_bias, delta_softplus = inputs
    call = _Call("forward", x, delta, A, B, C, D, delta_bias, delta_softplus, permutation)
    call.check_permutation()
    out = _empty_like(delta)
    checkpoints = _checkpoints(A, x.shape[0], A.shape[0], x.shape[1], checkpointed)
    call.struct.out, call.struct.checkpoints = out.data_ptr(), checkpoints.data_ptr()
    call.run()
    return out, checkpoints


def directional_low_rank(
    x: Tensor,
    step: Tensor,
    step_weight: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    permutation: Tensor,
    D: Tensor,
    delta_bias: Tensor,
) -> tuple[Tensor, Tensor]:
    """`selective.directional_scan` with a softplus, whose step sizes are products, without gradients; for float32.

    Args:
        x, A, B, C, permutation, D, delta_bias: as in `selective.directional_scan`.
        step: (B, L, K, R).
        step_weight: (K*C, R); delta is the product of `step` with the rows of its direction.

    Returns:
        out (B, L, K, C), and its sums over the positions (B, K, C).

    Raises:
        ValueError: a row of `permutation` is not a permutation, or its shape does not fit.
    """
    batch, length, width = x.shape
    directions = permutation.shape[0]
    if permutation.shape[1] != length or tuple(step.shape[:3]) != (batch, length, directions):
        raise ValueError(
            f"permutation must have shape {(step.shape[2], length)} to match step and x, got {tuple(permutation.shape)}"
        )
    call = _Call("forward", x, step, A, B, C, D, delta_bias, True, permutation, rank=step.shape[3])
    call.check_permutation()
    step_weight = step_weight.contiguous()
    out, sums = arena.empty(batch, length, directions, width), x.new_empty(batch, directions, width)
    call.struct.delta_weight, call.struct.out_sums = step_weight.data_ptr(), sums.data_ptr()
    call.struct.out = out.data_ptr()
    call.run()
    return out, sums


def directional_backward(
    grad_out: Tensor,
    inputs: DirectionalInputs,
    checkpoints: Tensor,
) -> tuple[Tensor | None, ...]:
    """Same as `reference.directional_backward`, from the checkpoints of this module's `directional_forward`."""
    x, delta, A, B, C, permutation, D, delta_bias, delta_softplus = inputs
    call = _Call("backward", x, delta, A, B, C, D, delta_bias, delta_softplus, permutation, grad_out=grad_out)
    dx, ddelta = _empty_like(x), _empty_like(delta)
    struct = call.struct
    struct.checkpoints, struct.du, struct.ddelta = checkpoints.data_ptr(), dx.data_ptr(), ddelta.data_ptr()
    struct.du_directions = struct.scratch + call.plan.du_directions
    return dx, ddelta, *call.run_with_gradients()


def _empty_like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return arena.with_large_pages(torch.empty_like(tensor, dtype=dtype, memory_format=torch.contiguous_format))


def _checkpoints(A: Tensor, batch: int, channels: int, length: int, wanted: bool) -> Tensor:
    if not wanted:
        return A.new_empty(0)
    return arena.with_large_pages(A.new_empty(batch, -(-length // CHECKPOINT_STEPS), channels, A.shape[1]))


def _packed(tensor: Tensor | None) -> Tensor | None:
    """A tensor whose layout the library fixes, copied if it is not contiguous."""
    return None if tensor is None else tensor.contiguous()


def _with_unit_stride(tensor: Tensor) -> tuple[Tensor, _Strides]:
    """A tensor whose last axis is contiguous, copied if it is not so, and its strides."""
    strides = tensor.stride()
    if strides[-1] != 1:
        tensor = tensor.contiguous()
        strides = tensor.stride()
    return tensor, strides


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class _Plan(NamedTuple):
    """What follows from the sizes of the tensors of a call."""

    constants: bytes  # the struct without addresses
    scratch: int  # bytes
    du_directions: int  # its place in the scratch memory
    run: Callable[..., int]
    row_without_permutation: Callable[..., int]
    batch: int
    b_parts: int
    c_parts: int


class _Call:
    """One call of the library: its struct, and the tensors that must stay alive until it returns.

    The callers set the addresses that only one of them needs, and keep those tensors alive themselves.

    Args:
        name: "forward" or "backward".
        u: the input sequence, or the image of a directional scan.
        permutation: the directions of a directional scan.
        grad_out: gradient of the result.
        rank: number of columns of delta if its rows are multiplied by `delta_weight`; 0 if not.
    """

    __slots__ = ("alive", "plan", "struct")

    def __init__(
        self,
        name: str,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
        permutation: Tensor | None = None,
        *,
        z: Tensor | None = None,
        grad_out: Tensor | None = None,
        rank: int = 0,
    ) -> None:
        A, D, delta_bias, permutation = A.contiguous(), _packed(D), _packed(delta_bias), _packed(permutation)
        if B.ndim == 2:
            B = B.contiguous()
        if C.ndim == 2:
            C = C.contiguous()
        u, u_strides = _with_unit_stride(u)
        delta, delta_strides = _with_unit_stride(delta)
        z, z_strides = (None, None) if z is None else _with_unit_stride(z)
        grad_out, grad_out_strides = (None, None) if grad_out is None else _with_unit_stride(grad_out)
        self.plan = plan = _plan(
            name,
            native.chosen_level(),
            u.dtype,
            delta_softplus,
            kernel_threads(),
            permutation is not None,
            group_count(B, C) if permutation is None else permutation.shape[0],
            rank,
            u.shape,
            A.shape,
            u_strides,
            delta_strides,
            B.stride(),
            C.stride(),
            z_strides,
            grad_out_strides,
        )
        scratch = _scratch(plan.scratch)
        self.alive = A, B, C, D, delta_bias, u, delta, permutation, z, grad_out, scratch
        self.struct = struct = _Scan.from_buffer_copy(plan.constants)
        struct.u, struct.delta = u.data_ptr(), delta.data_ptr()
        struct.z, struct.grad_out = _address(z), _address(grad_out)
        struct.A, struct.B, struct.C = A.data_ptr(), B.data_ptr(), C.data_ptr()
        struct.D, struct.delta_bias = _address(D), _address(delta_bias)
        struct.permutation, struct.scratch = _address(permutation), scratch.data_ptr()

    def check_permutation(self) -> None:
        """Check that the rows are permutations; other numbers would lead the library to foreign memory."""
        struct = self.struct
        row = self.plan.row_without_permutation(struct.permutation, struct.groups, struct.length, struct.scratch)
        if row >= 0:
            raise ValueError(
                f"permutation must list each of 0..{struct.length - 1} once in every row, got row {row} that does not"
            )

    def run(self) -> None:
        self.plan.run(ctypes.byref(self.struct))

    def run_with_gradients(self) -> tuple[Tensor | None, ...]:
        """Run, and return the gradients of A, B, C, D and delta_bias in their types.

        The library writes the gradient of each sample, or of each split of a group, and adds all to the first.
        """
        plan, struct, (A, B, C, D, delta_bias, *_) = self.plan, self.struct, self.alive
        real = A.dtype
        dA, dB, dC = _parts(A, plan.batch, real), _parts(B, plan.b_parts, real), _parts(C, plan.c_parts, real)
        dD = None if D is None else _parts(D, plan.batch, real)
        dbias = None if delta_bias is None else _parts(delta_bias, plan.batch, real)
        struct.dA, struct.dB, struct.dC = dA.data_ptr(), dB.data_ptr(), dC.data_ptr()
        struct.dD, struct.ddelta_bias = _address(dD), _address(dbias)
        self.run()
        return (
            _sum_in(dA, plan.batch, real),
            _sum_in(dB, plan.b_parts, B.dtype),
            _sum_in(dC, plan.c_parts, C.dtype),
            None if dD is None else _sum_in(dD, plan.batch, real),
            None if dbias is None else _sum_in(dbias, plan.batch, real),
        )


def _parts(tensor: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    return _empty_like(tensor, dtype) if count == 1 else tensor.new_empty(count, *tensor.shape, dtype=dtype)


def _sum_in(parts: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """The sum that the library stored in the first part; the other parts can be freed."""
    if count == 1:
        return parts if parts.dtype == dtype else parts.to(dtype)
    return parts[0].clone() if parts.dtype == dtype else parts[0].to(dtype)


def _scratch(count: int) -> Tensor:
    """Memory that lasts until the next call of this thread; small pieces are kept, since allocating one takes 2 us."""
    kept: Tensor | None = getattr(_kept, "scratch", None)
    if kept is not None and kept.numel() >= count:
        return kept
    scratch = torch.empty(count, dtype=torch.uint8, device="cpu")
    if count <= _MOST_KEPT:
        _kept.scratch = scratch
    return scratch


@functools.lru_cache(maxsize=256)
def _plan(
    name: str,
    level: str,
    dtype: torch.dtype,
    softplus: bool,
    threads: int,
    directional: bool,
    groups: int,
    rank: int,
    u_shape: tuple[int, ...],
    A_shape: tuple[int, ...],
    u: _Strides,
    delta: _Strides,
    B: _Strides,
    C: _Strides,
    z: _Strides | None,
    grad_out: _Strides | None,
) -> _Plan:
    """The plan of a call; `level`, whose functions it has, and `threads` are arguments because they can change."""
    channels, states = A_shape
    width = channels // groups
    batch, length = u_shape[0], u_shape[1 if directional else 2]
    struct = _Scan(
        **{"batch": batch, "channels": channels, "groups": groups, "states": states, "length": length},
        **{"type": _TYPES[dtype], "softplus": softplus, "threads": threads, "rank": rank},
        **{"b_varies": len(B) == 4, "c_varies": len(C) == 4, "dB_part": batch * groups * states * length},
    )
    for sequence, strides in (("u", u), ("delta", delta), ("z", z), ("grad_out", grad_out)):
        if strides is not None:
            setattr(struct, f"{sequence}_stride", _sequence_strides(strides, directional, width))
    for matrix, strides in (("B", B), ("C", C)):
        if len(strides) == 4:
            setattr(struct, f"{matrix}_stride", _matrix_strides(strides, directional))
    if directional:
        struct.out_stride = length * channels, width, channels, 1
        struct.dB_stride = length * groups * states, states, groups * states, 1
    else:
        struct.out_stride = channels * length, width * length, 1, length
        struct.dB_stride = groups * states * length, states * length, 1, length
    prefix = "vw_scan_double_" if dtype == torch.float64 else "vw_scan_"
    struct.splits = _splits(struct, width, native.function(prefix + "lanes", ctypes.c_int)())
    scratch = native.function(f"{prefix}{name}_scratch", ctypes.c_int64)(ctypes.byref(struct))
    numbers = batch * length * channels if directional and grad_out is not None else 0
    return _Plan(
        constants=bytes(struct),
        scratch=max(scratch + numbers * (8 if dtype == torch.float64 else 4), length),
        du_directions=scratch,
        run=native.function(prefix + name),
        row_without_permutation=native.function("vw_row_without_permutation", ctypes.c_int64, integers=4),
        batch=batch,
        b_parts=struct.splits if struct.b_varies else batch,
        c_parts=struct.splits if struct.c_varies else batch,
    )


def _sequence_strides(strides: _Strides, directional: bool, width: int) -> tuple[int, int, int, int]:
    """The strides {batch, group, step or position, channel} of u or a tensor of its layout."""
    if not directional:
        return strides[0], width * strides[1], 1, strides[1]
    if len(strides) == 3:  # x, which all directions share
        return strides[0], 0, strides[1], 1
    return strides[0], strides[2], strides[1], 1


def _matrix_strides(strides: _Strides, directional: bool) -> tuple[int, int, int, int]:
    """The strides {batch, group, step or position, state} of a varying B or C."""
    first, second, third, last = strides
    return (first, third, second, last) if directional else (first, second, last, third)


def _splits(struct: _Scan, width: int, lanes: int) -> int:
    """Number of tasks per group; it depends on shapes only, which fixes the order of the sums.

    Each task processes some of the group's channels and has its own dB and dC; all of these together may take half the
    memory of u.
    """
    blocks = -(-width // lanes)
    wanted: int = -(-16 // (struct.batch * struct.groups))
    if struct.b_varies or struct.c_varies:
        wanted = min(wanted, max(1, struct.channels // (4 * struct.groups * struct.states)))
    per_split = -(-blocks // min(blocks, wanted))
    return -(-blocks // per_split)
