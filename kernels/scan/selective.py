"""Selective scan (Gu and Dao 2023, arXiv 2312.00752): the public functions and the checks of their arguments.

    dl_t = softplus(delta_t + delta_bias)               or delta_t + delta_bias without delta_softplus
    h_t  = exp(dl_t A) h_{t-1} + dl_t u_t B_t           h_{-1} = initial_state or 0; (D, N) per batch item
    y_t  = sum_n C_t[n] h_t[n] + D u_t                  out_t = y_t silu(z_t) if z is given

Three paths give the same results: compiled SIMD code on the CPU (`cpu`), Triton on CUDA (`triton`), and plain PyTorch
(`reference`) for float64 on CUDA and if there is no compiled library. `operators` chooses between them; the operators
`voxelwave::selective_scan` and `voxelwave::directional_scan` work with torch.compile and autograd like built-in ones.
"""

from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor

from ..autocast import in_autocast
from .operators import run_directional_scan, run_selective_scan
from .reference import DirectionalInputs, ScanInputs, group_count, state_dtype

_INPUT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    initial_state: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the linear recurrence of a selective state-space model over the last axis, in time and memory O(L).

    u, delta, z and a varying B or C have the same type (float32, float16, bfloat16 or float64); sums and states are
    always float32 (float64 for float64). Under autocast, all types are float32. All tensor arguments and the last state
    are differentiable.

    Args:
        u: (B, D, L), the input sequence of each channel.
        delta: (B, D, L), step sizes before bias and softplus.
        A: (D, N), real; negative in a stable model.
        B: (B, N, L), or (B, G, N, L) where channel d uses group d // (D / G), or constant in time (D, N).
        C: as B, with the same G if both have groups.
        D: (D,), weight of u in the output.
        z: (B, D, L), gate.
        delta_bias: (D,), added to delta before the softplus.
        delta_softplus: pass delta + delta_bias through softplus.
        return_last_state: also return the state after the last step.
        initial_state: (B, D, N), the state before the first step; 0 if not given.

    Returns:
        out (B, D, L) in the type of u; with `return_last_state` the pair of out and the last state (B, D, N).

    Raises:
        ValueError, TypeError: a shape or type is wrong; the message names the argument.

    Example:
        >>> ones = torch.ones(1, 1, 4)
        >>> halving = torch.tensor([[0.5]]).log()
        >>> selective_scan(ones, ones, halving, ones, ones).flatten().tolist()
        [1.0, 1.5, 1.75, 1.875]
    """
    _check_tensor("u", u, ndim=3, layout="(B, D, L)")
    if in_autocast(u):
        u, delta, B, C = (_to_float32(v) for v in (u, delta, B, C))
        z = None if z is None else _to_float32(z)
    batch, channels, _ = u.shape
    _check_same("delta", delta, u)
    states = _check_rates(A, channels, "(D, N)", "u", u)
    groups = group_count(B, C)
    B = _check_input_matrix("B", B, u, states, groups)
    C = _check_input_matrix("C", C, u, states, groups)
    if z is not None:
        _check_same("z", z, u)
    _check_vector("D", D, channels, u)
    _check_vector("delta_bias", delta_bias, channels, u)
    if initial_state is not None:
        _check_tensor("initial_state", initial_state, ndim=3, layout="(B, D, N)")
        _check_shape("initial_state", initial_state, (batch, channels, states), "u and A", u)
    _check_devices(u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, initial_state=initial_state)

    real = state_dtype(u)
    D, delta_bias, initial_state = _to(D, real), _to(delta_bias, real), _to(initial_state, real)
    inputs = ScanInputs(u, delta, _to(A, real), B, C, D, z, delta_bias, delta_softplus, initial_state)
    out, last_state = run_selective_scan(inputs)
    return (out, last_state) if return_last_state else out


def selective_scan_step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Compute one step of `selective_scan` for streaming; `state` is updated in place, without gradients.

    Args:
        state: (B, D, N), float32 (float64 for float64 input); start from zeros.
        u: (B, D), one time step.
        delta: (B, D).
        A: (D, N).
        B: (B, G, N) with channel d in group d // (D / G), or constant (D, N).
        C: as B.
        D: (D,).
        z: (B, D).
        delta_bias: (D,).
        delta_softplus: pass delta + delta_bias through softplus.

    Returns:
        The output of this step, (B, D), in the type of u.

    Example:
        >>> state, one, halving = torch.zeros(1, 1, 1), torch.ones(1, 1), torch.tensor([[0.5]]).log()
        >>> [selective_scan_step(state, one, one, halving, one[..., None], one[..., None]).item() for _ in range(3)]
        [1.0, 1.5, 1.75]
    """
    _check_tensor("u", u, ndim=2, layout="(B, D)")
    if in_autocast(u):
        u, delta, B, C = (_to_float32(v) for v in (u, delta, B, C))
        z = None if z is None else _to_float32(z)
    batch, channels = u.shape
    states = _check_rates(A, channels, "(D, N)", "u", u)
    _check_same("delta", delta, u)
    if z is not None:
        _check_same("z", z, u)
    _check_vector("D", D, channels, u)
    _check_vector("delta_bias", delta_bias, channels, u)
    _check_tensor("state", state, ndim=3, layout="(B, D, N)")
    _check_shape("state", state, (batch, channels, states), "u and A", u)
    real = state_dtype(u)
    if state.dtype != real:
        raise TypeError(f"state must be {real} for u of type {u.dtype}, got {state.dtype}")
    B_, C_ = (_step_matrix(name, X, u, states).to(real) for name, X in (("B", B), ("C", C)))
    _check_devices(u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, state=state)
    with torch.no_grad():
        dl = delta.to(real) if delta_bias is None else delta.to(real) + delta_bias.to(real)
        if delta_softplus:
            dl = F.softplus(dl)
        state.mul_(torch.exp(dl[..., None] * A.to(real))).addcmul_((dl * u.to(real))[..., None], B_)
        y = (state * C_).sum(-1)
        if D is not None:
            y += D.to(real) * u.to(real)
        if z is not None:
            y *= F.silu(z.to(real))
        return y.to(u.dtype)


def directional_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    permutation: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Scan an image with channels last along K paths at once, without permuting it in memory.

    For each direction k the sequence is x[:, permutation[k, t]] for t = 0, 1, ...; delta, B, C and the result are in
    image order, so out[:, permutation[k, t], k] is the output of step t. The result is the same as that of gathering
    along each direction, applying `selective_scan` to K*C channels in K groups (channel k*C + c), and gathering with
    the inverse permutation.

    Args:
        x: (B, L, C), the image, with its positions in any fixed order, such as raster order.
        delta: (B, L, K, C), step size of each position and direction before bias and softplus.
        A: (K*C, N), direction-major.
        B: (B, L, K, N).
        C: (B, L, K, N).
        permutation: (K, L), int32 or int64; row k lists each position once, in the order of direction k.
        D: (K*C,), direction-major.
        delta_bias: (K*C,), direction-major.
        delta_softplus: pass delta + delta_bias through softplus.

    Returns:
        out (B, L, K, C) in image order, in the type of x.

    Raises:
        ValueError, TypeError: a shape or type is wrong, or a row of `permutation` is not a permutation (checked by the
            compiled CPU path only).

    Example:
        >>> x, ones, halving = torch.ones(1, 3, 1), torch.ones(1, 3, 2, 1), torch.full((2, 1), 0.5).log()
        >>> there_and_back = torch.tensor([[0, 1, 2], [2, 1, 0]])
        >>> directional_scan(x, ones, halving, ones, ones, there_and_back)[0, :, :, 0].tolist()
        [[1.0, 1.75], [1.5, 1.5], [1.75, 1.0]]
    """
    _check_tensor("x", x, ndim=3, layout="(B, L, C)")
    if in_autocast(x):
        x, delta, B, C = (_to_float32(v) for v in (x, delta, B, C))
    batch, length, width = x.shape
    if not isinstance(permutation, Tensor) or permutation.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"permutation must be a tensor of type int32 or int64, got {_kind(permutation)}")
    if permutation.ndim != 2 or permutation.shape[1] != length:
        raise ValueError(f"permutation must have shape (K, {length}) to match x {_shape(x)}, got {_shape(permutation)}")
    directions = permutation.shape[0]
    if directions < 1:
        raise ValueError(f"permutation must have at least one row, got shape {_shape(permutation)}")
    channels = directions * width
    states = _check_rates(A, channels, "(K*C, N)", "x and permutation", x)
    for name, tensor, last in (("delta", delta, width), ("B", B, states), ("C", C, states)):
        _check_tensor(name, tensor, ndim=4, layout="(B, L, K, C)" if name == "delta" else "(B, L, K, N)")
        _check_shape(name, tensor, (batch, length, directions, last), "x and permutation", x)
        _check_type(name, tensor, "x", x)
    _check_vector("D", D, channels, x)
    _check_vector("delta_bias", delta_bias, channels, x)
    _check_devices(x, delta=delta, A=A, B=B, C=C, permutation=permutation, D=D, delta_bias=delta_bias)

    real = state_dtype(x)
    order = _to(permutation, torch.int32)
    inputs = DirectionalInputs(x, delta, _to(A, real), B, C, order, _to(D, real), _to(delta_bias, real), delta_softplus)
    return run_directional_scan(inputs)


@overload
def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor: ...
@overload
def _to(tensor: None, dtype: torch.dtype) -> None: ...
def _to(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)


def _to_float32(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor) or tensor.dtype not in (torch.float16, torch.bfloat16):
        return tensor  # the checks report arguments that are not tensors
    return tensor.float()


# Checks of the public functions' arguments.


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


# A layout is formatted only when an error is raised, since torch.compile cannot print dynamic sizes.


def _check_tensor(name: str, tensor: object, *, ndim: int, layout: str | tuple[int, ...]) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor of shape {layout}, got {type(tensor).__name__}")
    if tensor.dtype not in _INPUT_TYPES:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {tensor.dtype}")
    if tensor.ndim != ndim:
        raise ValueError(f"{name} must have shape {layout}, got {_shape(tensor)}")


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], other_name: str, other: Tensor) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {shape} to match {other_name} {_shape(other)}, got {_shape(tensor)}")


def _check_type(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.dtype != other.dtype:
        raise TypeError(f"{name} must have the type of {other_name}, {other.dtype}, got {tensor.dtype}")


def _check_same(name: str, tensor: Tensor, u: Tensor) -> None:
    _check_tensor(name, tensor, ndim=u.ndim, layout=_shape(u))
    _check_shape(name, tensor, _shape(u), "u", u)
    _check_type(name, tensor, "u", u)


def _check_rates(A: Tensor, channels: int, layout: str, other_name: str, other: Tensor) -> int:
    """Check A and return the number of states."""
    _check_tensor("A", A, ndim=2, layout=layout)
    states = A.shape[1]
    _check_shape("A", A, (channels, states), other_name, other)
    if states < 1:
        raise ValueError(f"A must have at least one state, got shape {_shape(A)}")
    return states


def _check_vector(name: str, tensor: Tensor | None, channels: int, other: Tensor) -> None:
    if tensor is not None:
        _check_tensor(name, tensor, ndim=1, layout=(channels,))
        _check_shape(name, tensor, (channels,), "the channels of the input", other)


def _check_input_matrix(name: str, X: Tensor, u: Tensor, states: int, groups: int) -> Tensor:
    """Check B or C and return it as (B, G, N, L) in the type of u, or (D, N) in the type of the state."""
    batch, channels, length = u.shape
    if not isinstance(X, Tensor) or X.ndim not in (2, 3, 4):
        _check_tensor(name, X, ndim=4, layout="(D, N), (B, N, L) or (B, G, N, L)")
    _check_tensor(name, X, ndim=X.ndim, layout="")
    if X.ndim == 2:
        _check_shape(name, X, (channels, states), "u and A", u)
        return X.to(state_dtype(u))
    if groups < 1 or channels % groups:
        raise ValueError(f"{name} must have a number of groups that divides {channels} channels, got {_shape(X)}")
    ungrouped = X.ndim == 3 and groups == 1
    shape = (batch, states, length) if ungrouped else (batch, groups, states, length)
    _check_shape(name, X, shape, "u and A", u)
    _check_type(name, X, "u", u)
    return X.unsqueeze(1) if ungrouped else X


def _step_matrix(name: str, X: Tensor, u: Tensor, states: int) -> Tensor:
    """Check B or C of one step and return it as (D, N) or (B, D, N)."""
    batch, channels = u.shape
    if not isinstance(X, Tensor) or X.ndim not in (2, 3):
        _check_tensor(name, X, ndim=3, layout="(D, N) or (B, G, N)")
    _check_tensor(name, X, ndim=X.ndim, layout="")
    if X.ndim == 2:
        _check_shape(name, X, (channels, states), "u and A", u)
        return X
    groups = X.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"{name} must have a number of groups that divides {channels} channels, got {_shape(X)}")
    _check_shape(name, X, (batch, groups, states), "u and A", u)
    return X.repeat_interleave(channels // groups, dim=1)


def _check_devices(u: Tensor, **others: Tensor | None) -> None:
    device = u.device
    for name, tensor in others.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name} must be on {device} like the input, got {tensor.device}")
