"""The selective scan in plain PyTorch: the slow, obvious version, and a fall-back that needs no compiler.

`selective_scan_reference` and `directional_scan_reference` are the formula in a few lines; autograd differentiates
them, which keeps one state per step and is quadratic in L. `scan_forward` and `scan_backward` are the same recurrence
with the gradients written out and the states recomputed from checkpoints, in O(B D L) memory; they run where no
compiled kernel does (no compiler at install time) and for float64.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# The state is stored once per this many steps; the backward pass recomputes the steps in between.
CHECKPOINT_STEPS = 128


def selective_scan_reference(
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
    """The selective scan, one step after the other; arguments and results as in `scan.selective_scan`.

    Gu and Dao 2023 (arXiv 2312.00752), algorithm 2, with B discretised as delta * B.
    """
    real = state_dtype(u)
    batch, channels, length = u.shape
    u_, dl, A = u.to(real), delta.to(real), A.to(real)
    if delta_bias is not None:
        dl = dl + delta_bias.to(real)[:, None]
    if delta_softplus:
        dl = F.softplus(dl)
    B, C = (_per_channel(X.to(real), channels) for X in (B, C))  # (B or 1, D, N, L or 1)
    h = u_.new_zeros(batch, channels, A.shape[1]) if initial_state is None else initial_state.to(real)
    y = []
    for t in range(length):
        h = torch.exp(dl[:, :, t, None] * A) * h + (dl * u_)[:, :, t, None] * B[..., t % B.shape[-1]]
        y.append((h * C[..., t % C.shape[-1]]).sum(-1))
    out = torch.stack(y, -1) if y else u_.clone()
    if D is not None:
        out = out + D.to(real)[:, None] * u_
    if z is not None:
        out = out * F.silu(z.to(real))
    out = out.to(u.dtype)
    return (out, h) if return_last_state else out


def directional_scan_reference(
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
    """Gather along each direction, scan, put back; arguments and result as in `scan.directional_scan`."""
    u, delta, B, C = _to_scan_order(x, delta, B, C, permutation)
    out = selective_scan_reference(u, delta, A, B, C, D, None, delta_bias, delta_softplus)
    assert isinstance(out, Tensor)
    return _to_image_order(out, permutation)


def state_dtype(u: Tensor) -> torch.dtype:
    """float64 for float64 input, else float32: a long running sum in half precision would lose its last digits."""
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def _per_channel(X: Tensor, channels: int) -> Tensor:
    """(D, N) or (B, N, L) or (B, G, N, L) -> (1, D, N, 1) or (B, D, N, L)."""
    if X.ndim == 2:
        return X[None, :, :, None]
    if X.ndim == 3:
        X = X[:, None]
    return X.repeat_interleave(channels // X.shape[1], dim=1)


def _grouped(X: Tensor, groups: int) -> Tensor:
    """(D, N) -> (1, G, D/G, N, 1); (B, G, N, L) -> (B, G, 1, N, L)."""
    if X.ndim == 2:
        return X.unflatten(0, (groups, X.shape[0] // groups))[None, ..., None]
    return X.unsqueeze(2)


def _groups(B: Tensor, C: Tensor) -> int:
    return B.shape[1] if B.ndim == 4 else C.shape[1] if C.ndim == 4 else 1


def _step_sizes(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool, real: torch.dtype) -> Tensor:
    dl = delta.to(real)
    if delta_bias is not None:
        dl = dl + delta_bias.to(real)[:, None]
    return F.softplus(dl) if delta_softplus else dl


def _finite_rates(A: Tensor, real: torch.dtype) -> Tensor:
    """A decay rate of -inf as the lowest number, so that a step of size 0 and the gradients make no NaN of it."""
    return A.to(real).clamp_min(torch.finfo(real).min)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Forward pass without autograd.

    Args:
        u: (B, D, L); the other arguments as in `scan.selective_scan`, B and C as (B, G, N, L) or (D, N).

    Returns:
        out (B, D, L) in the type of u, the last state (B, D, N), and the states before steps 0, CHECKPOINT_STEPS, ...
        (B, ceil(L / CHECKPOINT_STEPS), D, N); float32, or float64 if u is.
    """
    real, groups = state_dtype(u), _groups(B, C)
    batch, channels, length = u.shape
    split = (groups, channels // groups)
    dl = _step_sizes(delta, delta_bias, delta_softplus, real).unflatten(1, split)  # (B, G, M, L)
    x = dl * u.to(real).unflatten(1, split)
    A_ = _finite_rates(A, real).unflatten(0, split)
    B_, C_ = _grouped(B.to(real), groups), _grouped(C.to(real), groups)
    h = x.new_zeros(batch, *A_.shape)
    if initial_state is not None:
        h = initial_state.to(real).unflatten(1, split)
    y, checkpoints = torch.empty_like(x), []
    for t in range(length):
        if t % CHECKPOINT_STEPS == 0:
            checkpoints.append(h.flatten(1, 2))
        h = torch.exp(dl[..., t, None] * A_) * h + x[..., t, None] * B_[..., t % B_.shape[-1]]
        torch.sum(h * C_[..., t % C_.shape[-1]], -1, out=y[..., t])
    out = y.flatten(1, 2)
    if D is not None:
        out = out + D.to(real)[:, None] * u.to(real)
    if z is not None:
        out = out * F.silu(z.to(real))
    h = h.flatten(1, 2)
    saved = torch.stack(checkpoints, 1) if checkpoints else h.new_empty(batch, 0, *h.shape[1:])
    return out.to(u.dtype), h.clone(), saved


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
    """Gradients of `scan_forward`; None for an argument that is None.

    Args:
        grad_out: (B, D, L), gradient of out.
        grad_last_state: (B, D, N), gradient of the last state, or None.
        checkpoints: as `scan_forward` returned them.

    Returns:
        Gradients of u, delta, A, B, C, D, z, delta_bias, initial_state, each in its argument's shape and type.
    """
    real, groups = state_dtype(u), _groups(B, C)
    batch, channels, length = u.shape
    split = (groups, channels // groups)
    raw = delta.to(real) if delta_bias is None else delta.to(real) + delta_bias.to(real)[:, None]
    dl = (F.softplus(raw) if delta_softplus else raw).unflatten(1, split)
    u_ = u.to(real).unflatten(1, split)
    x = dl * u_
    A_ = _finite_rates(A, real).unflatten(0, split)
    B_, C_ = _grouped(B.to(real), groups), _grouped(C.to(real), groups)
    grad = grad_out.to(real)
    if z is not None:
        gate = torch.sigmoid(z.to(real))
        gy = (grad * z.to(real) * gate).unflatten(1, split)
    else:
        gy = grad.unflatten(1, split)

    y = torch.empty_like(x) if z is not None else None
    sum_gB, sum_gAp = torch.empty_like(x), torch.empty_like(x)
    dA, dB, dC = torch.zeros_like(A_), torch.zeros_like(B_), torch.zeros_like(C_)
    carry = x.new_zeros(batch, *A_.shape)
    if grad_last_state is not None:
        carry = carry + grad_last_state.to(real).unflatten(1, split)
    for chunk in reversed(range(checkpoints.shape[1])):
        start, stop = chunk * CHECKPOINT_STEPS, min(length, (chunk + 1) * CHECKPOINT_STEPS)
        states, decays = [checkpoints[:, chunk].unflatten(1, split)], []
        for t in range(start, stop):
            decays.append(torch.exp(dl[..., t, None] * A_))
            states.append(decays[-1] * states[-1] + x[..., t, None] * B_[..., t % B_.shape[-1]])
        for t in reversed(range(start, stop)):
            a, h, h_before = decays[t - start], states[t - start + 1], states[t - start]
            tB, tC = t % B_.shape[-1], t % C_.shape[-1]
            if y is not None:
                torch.sum(h * C_[..., tC], -1, out=y[..., t])
            g = C_[..., tC] * gy[..., t, None] + carry
            gp = g * (a * h_before)
            sum_gB[..., t] = (g * B_[..., tB]).sum(-1)
            sum_gAp[..., t] = (gp * A_).sum(-1)
            dA += (gp * dl[..., t, None]).sum(0)
            dB[..., tB] += (g * x[..., t, None]).sum_to_size(dB.shape[:-1])
            dC[..., tC] += (h * gy[..., t, None]).sum_to_size(dC.shape[:-1])
            carry = a * g

    du = dl * sum_gB
    ddelta = (u_ * sum_gB + sum_gAp).flatten(1, 2)
    if delta_softplus:
        ddelta = ddelta * torch.where(raw > 20, 1, torch.sigmoid(raw))
    dD = dz = None
    if D is not None:
        du = du + D.to(real).unflatten(0, split)[..., None] * gy
        dD = (gy * u_).sum((0, 3)).flatten().to(D.dtype)
    if z is not None:
        assert y is not None
        ungated = y.flatten(1, 2) if D is None else y.flatten(1, 2) + D.to(real)[:, None] * u.to(real)
        dz = (grad * ungated * gate * (1 + z.to(real) * (1 - gate))).to(z.dtype)
    return (
        du.flatten(1, 2).to(u.dtype),
        ddelta.to(delta.dtype),
        dA.flatten(0, 1).to(A.dtype),
        (dB.squeeze(2) if B.ndim == 4 else dB.reshape(B.shape)).to(B.dtype),
        (dC.squeeze(2) if C.ndim == 4 else dC.reshape(C.shape)).to(C.dtype),
        dD,
        dz,
        None if delta_bias is None else ddelta.sum((0, 2)).to(delta_bias.dtype),
        None if initial_state is None else carry.flatten(1, 2).to(initial_state.dtype),
    )


def _to_scan_order(
    x: Tensor, delta: Tensor, B: Tensor, C: Tensor, permutation: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Channel-last in image order -> u, delta (B, K*C, L) and B, C (B, K, N, L) in the order of each direction."""
    order = permutation.long()
    directions = order.shape[0]
    u = x[:, order].transpose(2, 3).flatten(1, 2)  # (B, K, L, C) -> (B, K*C, L)

    def gather(v: Tensor) -> Tensor:  # (B, L, K, X) -> (B, K, X, L)
        return torch.stack([v[:, order[k], k] for k in range(directions)], 1).transpose(2, 3)

    return u, gather(delta).flatten(1, 2), gather(B), gather(C)


def _to_image_order(out: Tensor, permutation: Tensor) -> Tensor:
    """(B, K*C, L) in the order of each direction -> (B, L, K, C) in image order."""
    directions = permutation.shape[0]
    inverse = torch.argsort(permutation.long(), dim=1)
    per_direction = out.unflatten(1, (directions, -1))  # (B, K, C, L)
    return torch.stack([per_direction[:, k, :, inverse[k]] for k in range(directions)], 1).permute(0, 3, 1, 2)


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
) -> tuple[Tensor, Tensor]:
    """Forward pass of `scan.directional_scan` without autograd.

    Returns:
        out (B, L, K, C) in the type of x, and the checkpoints of `scan_forward` for K*C channels.
    """
    u, delta, B, C = _to_scan_order(x, delta, B, C, permutation)
    out, _, checkpoints = scan_forward(u, delta, A, B, C, D, None, delta_bias, delta_softplus, None)
    return _to_image_order(out, permutation).contiguous(), checkpoints


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
    """Gradients of `directional_forward`.

    Args:
        grad_out: (B, L, K, C), gradient of out.
        checkpoints: as `directional_forward` returned them.

    Returns:
        Gradients of x, delta, A, B, C, D, delta_bias, each in its argument's shape and type; None where it is None.
    """
    u, delta_, B_, C_ = _to_scan_order(x, delta, B, C, permutation)
    grad = _to_scan_order(x, grad_out, B, C, permutation)[1]
    du, ddelta, dA, dB, dC, dD, _, dbias, _ = scan_backward(
        grad, None, u, delta_, A, B_, C_, D, None, delta_bias, delta_softplus, None, checkpoints
    )
    assert du is not None
    assert ddelta is not None
    assert dB is not None
    assert dC is not None
    dx = _to_image_order(du, permutation).sum(2)
    return (
        dx.to(x.dtype),
        _to_image_order(ddelta, permutation),
        dA,
        _to_image_order(dB.flatten(1, 2), permutation),
        _to_image_order(dC.flatten(1, 2), permutation),
        dD,
        dbias,
    )
