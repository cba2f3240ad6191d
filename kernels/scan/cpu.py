"""The compiled CPU scan: finds the library beside this file, chooses the build for the running CPU, calls it by ctypes.

The library (csrc/selective_scan.cpp) holds one build per instruction-set level and knows nothing of torch or Python. It
runs on as many threads as torch does, in torch's own pool where both use OpenMP, and no result depends on their number.
Where there is no library (no compiler when the package was built), or its state is float64, `serves` says no and the
caller takes `scan_reference`; the first is announced once.
"""

import ctypes
import functools
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

LIBRARY = Path(__file__).with_name("scan.native" + {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so"))

# CHUNK of csrc/selective_scan.cpp: 64 to 256 measured the same
CHECKPOINT_STEPS = 128

_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
# vw_cpu_level() -> the builds the CPU can run, best first; "generic" is the only one on anything but x86-64
_LEVELS = {4: ("v4", "v3", "v2"), 3: ("v3", "v2"), 2: ("v2",), 1: ("generic",)}
_chosen_level: str | None = None

_Strides = ctypes.c_int64 * 4


class _Scan(ctypes.Structure):
    """struct Scan of csrc/selective_scan.cpp."""

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
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded library, or None, with one warning, where there is none."""
    try:
        return ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        warnings.warn(
            f"the compiled selective scan is missing ({error}); using plain PyTorch, which is about 100 times slower. "
            "Install a C++ compiler and reinstall voxelwave, or take a binary wheel",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def levels() -> tuple[str, ...]:
    """Instruction-set levels that this CPU can run, best first; empty without a library."""
    loaded = library()
    return () if loaded is None else _LEVELS[loaded.vw_cpu_level()]


@contextmanager
def use_level(level: str) -> Iterator[None]:
    """Run the build of another level than the best, for tests and benchmarks."""
    global _chosen_level
    if level not in levels():
        raise ValueError(f"level must be one of {levels()}, got {level!r}")
    before, _chosen_level = _chosen_level, level
    try:
        yield
    finally:
        _chosen_level = before


def function(name: str):
    """A function of the library in the build of the chosen level."""
    loaded = library()
    assert loaded is not None
    return getattr(loaded, f"{name}_{_chosen_level or levels()[0]}")


def serves(u: Tensor) -> bool:
    """Whether the compiled library computes this input."""
    return u.device.type == "cpu" and u.dtype in _TYPES and u.numel() > 0 and library() is not None


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
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `scan_reference.scan_forward`; the numbers in the checkpoints are in an order of their own.

    Args:
        checkpointed: write the checkpoints; without, they have no elements.
        out: memory for the result, contiguous, in the shape and type of u.
    """
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
    call.run("vw_scan_forward")
    return out, last_state, checkpoints


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
) -> tuple[Tensor | None, ...]:
    """As `scan_reference.scan_backward`, from the checkpoints of this module's `scan_forward`."""
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
    call.run("vw_scan_backward")
    return du, ddelta, _first(dA), _first(dB, B), _first(dC, C), _first(dD), dz, _first(dbias), dinitial


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
) -> tuple[Tensor, Tensor]:
    """As `scan_reference.directional_forward`; raises ValueError where a row of `permutation` is no permutation."""
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
    call.run("vw_scan_forward")
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
) -> tuple[Tensor | None, ...]:
    """As `scan_reference.directional_backward`, from the checkpoints of this module's `directional_forward`."""
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
    call.run("vw_scan_backward")
    return dx, ddelta, _first(dA), _first(dB, B), _first(dC, C), _first(dD), _first(dbias)


def _check_permutation(permutation: Tensor) -> None:
    directions, length = permutation.shape
    seen = torch.zeros(directions, length, dtype=torch.bool)
    if permutation.min() >= 0 and permutation.max() < length:
        seen.scatter_(1, permutation.long(), True)
    if not seen.all():
        row = int((~seen.all(1)).nonzero()[0])
        raise ValueError(
            f"permutation must list each of 0..{length - 1} once in every row, got row {row} that does not"
        )


def _first(parts: Tensor | None, like: Tensor | None = None) -> Tensor | None:
    """The sum that the library left in the first part, in the type of `like`, without keeping the other parts alive."""
    if parts is None:
        return None
    result = parts[0] if like is None else parts[0].to(like.dtype)
    return result.clone() if len(parts) > 1 and result.dtype == parts.dtype else result


class _Call:
    """One call of the library: its arguments, and the tensors that must live until it returns."""

    def __init__(
        self, u: Tensor, A: Tensor, B: Tensor, C: Tensor, delta_softplus: bool, permutation: Tensor | None = None
    ):
        self.alive: list[Tensor] = []
        self.scan = scan = _Scan()
        channels, scan.states = A.shape
        self.directional = permutation is not None
        if permutation is not None:
            batch, length, self.width = u.shape
            self.groups = permutation.shape[0]
            self.tensors(permutation=permutation)
        else:
            batch, _, length = u.shape
            self.groups = B.shape[1] if B.ndim == 4 else C.shape[1] if C.ndim == 4 else 1
            self.width = channels // self.groups
        scan.batch, scan.channels, scan.groups, scan.length = batch, channels, self.groups, length
        scan.type, scan.softplus, scan.threads = _TYPES[u.dtype], delta_softplus, torch.get_num_threads()

    def sequence(self, **tensors: Tensor | None) -> None:
        """u and its kin, with their strides {batch, group, step or position, channel}."""
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            if tensor.stride(-1) != 1:
                tensor = tensor.contiguous()
            self.in_place(**{name: tensor})
            if not self.directional:
                batch, channel, step = tensor.stride()
                strides = (batch, self.width * channel, 1, channel)
            elif tensor.ndim == 3:  # x: every direction reads the same
                batch, step, _ = tensor.stride()
                strides = (batch, 0, step, 1)
            else:
                batch, step, group, _ = tensor.stride()
                strides = (batch, group, step, 1)
            setattr(self.scan, f"{name}_stride", _Strides(*strides))

    def matrices(self, **tensors: Tensor) -> None:
        """B and C, with their strides {batch, group, step or position, state}."""
        for name, tensor in tensors.items():
            setattr(self.scan, f"{name.lower()}_varies", tensor.ndim == 4)
            if tensor.ndim == 2:
                self.tensors(**{name: tensor})
                continue
            self.in_place(**{name: tensor})
            order = (0, 2, 1, 3) if self.directional else (0, 1, 3, 2)
            setattr(self.scan, f"{name}_stride", _Strides(*(tensor.stride(i) for i in order)))

    def tensors(self, **tensors: Tensor | None) -> None:
        for name, tensor in tensors.items():
            if tensor is not None:
                self.in_place(**{name: tensor.contiguous()})

    def in_place(self, **tensors: Tensor | None) -> None:
        for name, tensor in tensors.items():
            if tensor is not None and tensor.numel() > 0:
                self.alive.append(tensor)
                setattr(self.scan, name, tensor.data_ptr())

    def out_strides(self, *strides: int) -> None:
        self.scan.out_stride = _Strides(*strides)

    def matrix_gradient_strides(self, *strides: int) -> None:
        self.scan.dB_stride = _Strides(*strides)

    def parameter_gradients(
        self, varying: tuple[int, ...], D: Tensor | None, delta_bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """Memory for the gradients of A, B, C, D and delta_bias, whose first axis the library sums over."""
        scan = self.scan
        scan.splits = splits = self._splits()
        real = {"dtype": torch.float32}
        dA = torch.empty(scan.batch, scan.channels, scan.states, **real)  # type: ignore[call-overload]
        dB, dC = (
            torch.empty((splits, *varying) if varies else dA.shape, **real)  # type: ignore[call-overload]
            for varies in (scan.b_varies, scan.c_varies)
        )
        scan.dB_part = dB[0].numel() if scan.b_varies else dC[0].numel()
        dD, dbias = (
            None if v is None else torch.empty(scan.batch, scan.channels, **real)  # type: ignore[call-overload]
            for v in (D, delta_bias)
        )
        self.in_place(dA=dA, dB=dB, dC=dC, dD=dD, ddelta_bias=dbias)
        return dA, dB, dC, dD, dbias

    def _splits(self) -> int:
        """In how many tasks to cut the channels of a group, by shapes alone, so that sums keep their order.

        Each task has its own dB and dC; together they may take half the memory of u.
        """
        scan = self.scan
        blocks = -(-self.width // function("vw_scan_lanes")())
        wanted = -(-16 // (scan.batch * self.groups))
        if scan.b_varies or scan.c_varies:
            wanted = min(wanted, max(1, scan.channels // (4 * self.groups * scan.states)))
        per_split = -(-blocks // min(blocks, wanted))
        return -(-blocks // per_split)

    def run(self, name: str) -> None:
        size = function(f"{name}_scratch")
        size.restype = ctypes.c_int64
        scratch = torch.empty(size(ctypes.byref(self.scan)), dtype=torch.uint8)
        self.in_place(scratch=scratch)
        function(name)(ctypes.byref(self.scan))
