"""The compiled CPU scan (csrc/selective_scan.cpp), called through ctypes.

It uses as many threads as torch, and torch's own pool if both use OpenMP; no result depends on their number. `serves`
returns False if there is no library; the caller then uses `reference`.
"""

import ctypes
import weakref
from typing import Any

import torch
from torch import Tensor

from .. import arena, native
from ..threads import kernel_threads
from .reference import DirectionalInputs, ScanInputs, group_count

# CHUNK of csrc/selective_scan.cpp; 64 to 256 measured the same
CHECKPOINT_STEPS = 128

_TYPES = {torch.float32: 0, torch.float64: 0, torch.float16: 1, torch.bfloat16: 2}  # float64 has functions of its own
_Strides = ctypes.c_int64 * 4

# permutations that were checked, by their id: the tensor and the number of its changes then
_CHECKED: dict[int, tuple[weakref.ref[Tensor], int]] = {}
_MOST_CHECKED = 64


class _Scan(ctypes.Structure):
    """struct Scan of csrc/selective_scan.cpp, of floats or of doubles."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "channels", "groups", "states", "length")),
        *((name, ctypes.c_int64) for name in ("type", "softplus", "threads", "splits", "b_varies", "c_varies")),
        *((name, ctypes.c_void_p) for name in ("u", "delta", "z", "B", "C", "grad_out")),
        *((f"{name}_stride", _Strides) for name in ("u", "delta", "z", "grad_out", "B", "C")),
        *((name, ctypes.c_void_p) for name in ("A", "D", "delta_bias", "initial_state", "grad_last_state")),
        ("permutation", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in ("out", "last_state", "checkpoints", "du", "ddelta", "dz")),
        ("out_stride", _Strides),
        ("dB", ctypes.c_void_p),
        ("dC", ctypes.c_void_p),
        ("dB_stride", _Strides),
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
    call = _Call(u, A, B, C, delta_softplus)
    batch, channels, length = u.shape
    call.sequence(u=u, delta=delta, z=z)
    call.matrices(B=B, C=C)
    call.tensors(A=A, D=D, delta_bias=delta_bias, initial_state=initial_state)
    out = u.new_empty(u.shape) if out is None else out
    last_state = A.new_empty(batch, channels, A.shape[1])
    chunks = -(-length // CHECKPOINT_STEPS)
    checkpoints = A.new_empty((batch, chunks, channels, A.shape[1]) if checkpointed else 0)
    call.in_place(out=out, last_state=last_state, checkpoints=checkpoints)
    call.out_strides(channels * length, call.width * length, 1, length)
    call.run("forward")
    return out, last_state, checkpoints


def scan_backward(
    grad_out: Tensor,
    grad_last_state: Tensor | None,
    inputs: ScanInputs,
    checkpoints: Tensor,
) -> tuple[Tensor | None, ...]:
    """Same as `reference.scan_backward`, from the checkpoints of this module's `scan_forward`."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state = inputs
    call = _Call(u, A, B, C, delta_softplus)
    batch, channels, length = u.shape
    call.sequence(u=u, delta=delta, z=z, grad_out=grad_out)
    call.matrices(B=B, C=C)
    call.tensors(A=A, D=D, delta_bias=delta_bias, initial_state=initial_state, grad_last_state=grad_last_state)
    du, ddelta = u.new_empty(u.shape), u.new_empty(u.shape)
    dz = None if z is None else u.new_empty(u.shape)
    call.in_place(checkpoints=checkpoints, du=du, ddelta=ddelta, dz=dz)
    call.out_strides(channels * length, call.width * length, 1, length)
    states = A.shape[1]
    call.matrix_gradient_strides(call.groups * states * length, states * length, 1, length)
    dA, dB, dC, dD, dbias = call.parameter_gradients((batch, call.groups, states, length), D, delta_bias)
    dinitial = None if initial_state is None else A.new_empty(batch, channels, states)
    call.in_place(dinitial_state=dinitial)
    call.run("backward")
    return du, ddelta, _first(dA), _first(dB, B), _first(dC, C), _first(dD), dz, _first(dbias), dinitial


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
    batch, length, width = x.shape
    directions = permutation.shape[0]
    _check_permutation(permutation)
    call = _Call(x, A, B, C, delta_softplus, permutation)
    call.sequence(u=x, delta=delta)
    call.matrices(B=B, C=C)
    call.tensors(A=A, D=D, delta_bias=delta_bias)
    out = x.new_empty(batch, length, directions, width)
    chunks = -(-length // CHECKPOINT_STEPS)
    checkpoints = A.new_empty((batch, chunks, directions * width, A.shape[1]) if checkpointed else 0)
    call.in_place(out=out, checkpoints=checkpoints)
    call.out_strides(length * directions * width, width, directions * width, 1)
    call.run("forward")
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
    _check_permutation(permutation)
    call = _Call(x, A, B, C, True, permutation)
    call.sequence(u=x, delta=step)
    call.matrices(B=B, C=C)
    call.tensors(A=A, D=D, delta_bias=delta_bias, delta_weight=step_weight)
    call.fields["rank"] = step.shape[3]
    out, sums = arena.empty(batch, length, directions, width), x.new_empty(batch, directions, width)
    call.in_place(out=out, out_sums=sums)
    call.out_strides(length * directions * width, width, directions * width, 1)
    call.run("forward")
    return out, sums


def directional_backward(
    grad_out: Tensor,
    inputs: DirectionalInputs,
    checkpoints: Tensor,
) -> tuple[Tensor | None, ...]:
    """Same as `reference.directional_backward`, from the checkpoints of this module's `directional_forward`."""
    x, delta, A, B, C, permutation, D, delta_bias, delta_softplus = inputs
    batch, length, width = x.shape
    directions, states = permutation.shape[0], A.shape[1]
    call = _Call(x, A, B, C, delta_softplus, permutation)
    call.sequence(u=x, delta=delta, grad_out=grad_out)
    call.matrices(B=B, C=C)
    call.tensors(A=A, D=D, delta_bias=delta_bias)
    dx, ddelta = x.new_empty(x.shape), x.new_empty(delta.shape)
    du_directions = A.new_empty(delta.shape)
    call.in_place(checkpoints=checkpoints, du=dx, ddelta=ddelta, du_directions=du_directions)
    call.out_strides(length * directions * width, width, directions * width, 1)
    call.matrix_gradient_strides(length * directions * states, states, directions * states, 1)
    dA, dB, dC, dD, dbias = call.parameter_gradients((batch, length, directions, states), D, delta_bias)
    call.run("backward")
    return dx, ddelta, _first(dA), _first(dB, B), _first(dC, C), _first(dD), _first(dbias)


def _check_permutation(permutation: Tensor) -> None:
    length = permutation.shape[1]
    numbers = permutation.numpy()  # whose reductions take a fifth of the time of torch's
    within = bool(numbers.min() >= 0 and numbers.max() < length)  # else the library would read foreign memory
    found = _CHECKED.get(id(permutation)) if within else None
    if found is not None and found[0]() is permutation and found[1] == permutation._version:
        return
    _check_each_row(permutation, within)
    if not permutation.is_inference():  # such a tensor does not count its changes
        if len(_CHECKED) >= _MOST_CHECKED:
            _CHECKED.clear()
        _CHECKED[id(permutation)] = weakref.ref(permutation), permutation._version


def _check_each_row(permutation: Tensor, within: bool) -> None:
    directions, length = permutation.shape
    seen = torch.zeros(directions, length, dtype=torch.bool)
    if within:
        seen.scatter_(1, permutation.long(), True)
    if not seen.all():
        row = int((~seen.all(1)).nonzero()[0])
        raise ValueError(
            f"permutation must list each of 0..{length - 1} once in every row, got row {row} that does not"
        )


def _first(parts: Tensor | None, like: Tensor | None = None) -> Tensor | None:
    """The sum that the library stored in the first part, in the type of `like`; the other parts can be freed."""
    if parts is None:
        return None
    result = parts[0] if like is None else parts[0].to(like.dtype)
    return result.clone() if len(parts) > 1 and result.dtype == parts.dtype else result


class _Call:
    """One call of the library: the fields of its struct, and the tensors that must stay alive until it returns."""

    def __init__(
        self, u: Tensor, A: Tensor, B: Tensor, C: Tensor, delta_softplus: bool, permutation: Tensor | None = None
    ) -> None:
        self.alive: list[Tensor] = []
        double = u.dtype == torch.float64
        self.type, self.prefix = (torch.float64, "vw_scan_double_") if double else (torch.float32, "vw_scan_")
        channels, states = A.shape
        self.directional = permutation is not None
        if permutation is not None:
            batch, length, self.width = u.shape
            self.groups = permutation.shape[0]
        else:
            batch, _, length = u.shape
            self.groups = group_count(B, C)
            self.width = channels // self.groups
        self.fields: dict[str, Any] = {
            **{"batch": batch, "channels": channels, "groups": self.groups, "states": states, "length": length},
            **{"type": _TYPES[u.dtype], "softplus": delta_softplus, "threads": kernel_threads()},
        }
        if permutation is not None:
            self.tensors(permutation=permutation)

    def sequence(self, **tensors: Tensor | None) -> None:
        """Pass u and tensors of its layout, with their strides {batch, group, step or position, channel}."""
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            strides = tensor.stride()
            if strides[-1] != 1:
                tensor = tensor.contiguous()
                strides = tensor.stride()
            self._pass(name, tensor)
            if not self.directional:
                passed = strides[0], self.width * strides[1], 1, strides[1]
            elif len(strides) == 3:  # x, which all directions share
                passed = strides[0], 0, strides[1], 1
            else:
                passed = strides[0], strides[2], strides[1], 1
            self.fields[name + "_stride"] = passed

    def matrices(self, **tensors: Tensor) -> None:
        """Pass B and C, with their strides {batch, group, step or position, state}."""
        for name, tensor in tensors.items():
            self.fields[name.lower() + "_varies"] = varies = tensor.ndim == 4
            if not varies:
                self.tensors(**{name: tensor})
                continue
            self._pass(name, tensor)
            first, second, third, last = tensor.stride()
            by_position = self.directional
            self.fields[name + "_stride"] = (
                (first, third, second, last) if by_position else (first, second, last, third)
            )

    def tensors(self, **tensors: Tensor | None) -> None:
        """Pass tensors whose layout the library fixes, copied if they are not contiguous."""
        for name, tensor in tensors.items():
            if tensor is not None:
                self._pass(name, tensor.contiguous())

    def in_place(self, **tensors: Tensor | None) -> None:
        """Pass tensors in their memory layout, without a copy."""
        for name, tensor in tensors.items():
            if tensor is not None and tensor.numel() > 0:
                self._pass(name, tensor)

    def _pass(self, name: str, tensor: Tensor) -> None:
        self.alive.append(tensor)
        self.fields[name] = tensor.data_ptr()

    def out_strides(self, *strides: int) -> None:
        self.fields["out_stride"] = strides

    def matrix_gradient_strides(self, *strides: int) -> None:
        self.fields["dB_stride"] = strides

    def parameter_gradients(
        self, varying: tuple[int, ...], D: Tensor | None, delta_bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """Tensors for the gradients of A, B, C, D and delta_bias; the library sums over their first axis."""
        fields = self.fields
        batch, channels = fields["batch"], fields["channels"]
        fields["splits"] = splits = self._splits()
        dA = torch.empty(batch, channels, fields["states"], dtype=self.type, device="cpu")
        dB, dC = (
            torch.empty((splits, *varying) if varies else dA.shape, dtype=self.type, device="cpu")
            for varies in (fields["b_varies"], fields["c_varies"])
        )
        fields["dB_part"] = dB[0].numel() if fields["b_varies"] else dC[0].numel()
        dD, dbias = (None if v is None else dA.new_empty(batch, channels) for v in (D, delta_bias))
        self.in_place(dA=dA, dB=dB, dC=dC, dD=dD, ddelta_bias=dbias)
        return dA, dB, dC, dD, dbias

    def _splits(self) -> int:
        """Number of tasks per group; it depends on shapes only, which fixes the order of the sums.

        Each task processes some of the group's channels and has its own dB and dC; all of these together may take half
        the memory of u.
        """
        fields = self.fields
        blocks = -(-self.width // native.function(self.prefix + "lanes", ctypes.c_int)())
        wanted: int = -(-16 // (fields["batch"] * self.groups))
        if fields["b_varies"] or fields["c_varies"]:
            wanted = min(wanted, max(1, fields["channels"] // (4 * self.groups * fields["states"])))
        per_split = -(-blocks // min(blocks, wanted))
        return -(-blocks // per_split)

    def run(self, name: str) -> None:
        scan = _Scan(**self.fields)
        address, name = ctypes.byref(scan), self.prefix + name
        count = native.function(name + "_scratch", ctypes.c_int64)(address)
        scratch = torch.empty(count, dtype=torch.uint8, device="cpu")
        scan.scratch = scratch.data_ptr()
        native.function(name)(address)
