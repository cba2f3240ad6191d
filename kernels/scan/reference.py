"""The selective scan in plain PyTorch: a slow, plain version, and a fallback that needs no compiler.

`selective_scan_reference` and `directional_scan_reference` write the formula in a few lines. Autograd differentiates
them, which stores one state per step and takes time quadratic in L. `scan_forward` and `scan_backward` compute the same
recurrence with explicit gradients and recompute states from checkpoints, in O(B D L) memory. They are used for float64
on CUDA and on machines without a compiled kernel, and they document the arguments and results of the other paths.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# number of steps between two stored states; the backward pass recomputes the states in between
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
    """Run the selective scan step by step; arguments and results as in `selective_scan`.

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
    """Gather along each direction, scan, and scatter back; arguments and result as in `directional_scan`."""
    u, delta, B, C = _to_scan_order(x, delta, B, C, permutation)
    out = selective_scan_reference(u, delta, A, B, C, D, None, delta_bias, delta_softplus)
    assert isinstance(out, Tensor)
    return _to_image_order(out, permutation)


def state_dtype(u: Tensor) -> torch.dtype:
    """The type of sums and states: float64 for float64 input, otherwise float32; half precision loses small terms."""
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def group_count(B: Tensor, C: Tensor) -> int:
    """G of a B or C of shape (B, G, N, L); 1 if neither has groups. The arguments need not have been checked."""
    for X in (B, C):
        if isinstance(X, Tensor) and X.ndim == 4:
            return X.shape[1]
    return 1


def _per_channel(X: Tensor, channels: int) -> Tensor:
    """(D, N) or (B, N, L) or (B, G, N, L) -> (1, D, N, 1) or (B, D, N, L)."""
    if X.ndim == 2:
        return X[None, :, :, None]
    if X.ndim == 3:
        X = X[:, None]
    return X.repeat_interleave(channels // X.shape[1], dim=1)


class ScanInputs(NamedTuple):
    """Arguments of a scan, as in `selective_scan`, with B and C as (B, G, N, L) or (D, N)."""

    u: Tensor  # (B, D, L)
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool
    initial_state: Tensor | None


class DirectionalInputs(NamedTuple):
    """Arguments of a scan along directions, as in `directional_scan`."""

    x: Tensor  # (B, L, C)
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    permutation: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool


class _Grouped(NamedTuple):
    """Inputs in the type of the state, with D channels split into G groups of M = D / G."""

    raw: Tensor  # (B, D, L): step sizes before the softplus
    dl: Tensor  # (B, G, M, L): step sizes
    u: Tensor  # (B, G, M, L)
    x: Tensor  # (B, G, M, L): dl u
    A: Tensor  # (G, M, N)
    B: Tensor  # (B, G, 1, N, L), or (1, G, M, N, 1) if constant
    C: Tensor  # as B


def _grouped(inputs: ScanInputs) -> _Grouped:
    u, delta, A, B, C, _, _, delta_bias, delta_softplus, _ = inputs
    real, groups = state_dtype(u), group_count(B, C)
    split = (groups, u.shape[1] // groups)
    raw = delta.to(real) if delta_bias is None else delta.to(real) + delta_bias.to(real)[:, None]
    dl = (F.softplus(raw) if delta_softplus else raw).unflatten(1, split)
    grouped_u = u.to(real).unflatten(1, split)
    # a rate of -inf becomes the lowest number: times a step of size 0, and in gradients, -inf would give NaN
    rates = A.to(real).clamp_min(torch.finfo(real).min).unflatten(0, split)
    B, C = (X.unflatten(0, split)[None, ..., None] if X.ndim == 2 else X.unsqueeze(2) for X in (B.to(real), C.to(real)))
    return _Grouped(raw, dl, grouped_u, dl * grouped_u, rates, B, C)


def scan_forward(
    inputs: ScanInputs,
    *,
    checkpointed: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Forward pass without autograd.

    Args:
        inputs: the arguments of the scan.
        checkpointed: keep the states that `scan_backward` needs.

    Returns:
        out (B, D, L) in the type of u; the last state (B, D, N); and the checkpoints, which are the states before steps
        0, CHECKPOINT_STEPS, ..., (B, ceil(L / CHECKPOINT_STEPS), D, N), or an empty tensor without `checkpointed`.
        States are float32, or float64 if u is float64.
    """
    u, D, z, initial_state = inputs.u, inputs.D, inputs.z, inputs.initial_state
    g = _grouped(inputs)
    real, batch, length = g.x.dtype, u.shape[0], u.shape[2]
    h = g.x.new_zeros(batch, *g.A.shape)
    if initial_state is not None:
        h = initial_state.to(real).unflatten(1, g.A.shape[:2])
    y, checkpoints = torch.empty_like(g.x), []
    for t in range(length):
        if checkpointed and t % CHECKPOINT_STEPS == 0:
            checkpoints.append(h.flatten(1, 2))
        h = torch.exp(g.dl[..., t, None] * g.A) * h + g.x[..., t, None] * g.B[..., t % g.B.shape[-1]]
        torch.sum(h * g.C[..., t % g.C.shape[-1]], -1, out=y[..., t])
    out = y.flatten(1, 2)
    if D is not None:
        out = out + D.to(real)[:, None] * u.to(real)
    if z is not None:
        out = out * F.silu(z.to(real))
    h = h.flatten(1, 2)
    empty = h.new_empty((batch, 0, *h.shape[1:]) if checkpointed else 0)
    return out.to(u.dtype), h.clone(), torch.stack(checkpoints, 1) if checkpoints else empty


def scan_backward(
    grad_out: Tensor,
    grad_last_state: Tensor | None,
    inputs: ScanInputs,
    checkpoints: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of `scan_forward`; None for an argument that is None.

    Args:
        grad_out: (B, D, L), gradient of out.
        grad_last_state: (B, D, N), gradient of the last state, or None.
        inputs: those of `scan_forward`.
        checkpoints: as `scan_forward` returned them.

    Returns:
        Gradients of u, delta, A, B, C, D, z, delta_bias, initial_state, each with the shape and type of its argument.
    """
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state = inputs
    g = _grouped(inputs)
    real, split = g.x.dtype, g.A.shape[:2]
    grad = grad_out.to(real)
    if z is not None:
        gate = torch.sigmoid(z.to(real))
        gy = (grad * z.to(real) * gate).unflatten(1, split)
    else:
        gy = grad.unflatten(1, split)
    carry = g.x.new_zeros(u.shape[0], *g.A.shape)
    if grad_last_state is not None:
        carry = carry + grad_last_state.to(real).unflatten(1, split)
    sums = _walk_back(g, gy, carry, checkpoints, gated=z is not None)

    du = g.dl * sums.gB
    ddelta = (g.u * sums.gB + sums.gpA).flatten(1, 2)
    if delta_softplus:
        ddelta = ddelta * torch.where(g.raw > 20, 1, torch.sigmoid(g.raw))
    dD = dz = None
    if D is not None:
        du = du + D.to(real).unflatten(0, split)[..., None] * gy
        dD = (gy * g.u).sum((0, 3)).flatten().to(D.dtype)
    if z is not None:
        assert sums.y is not None
        y = sums.y.flatten(1, 2)
        ungated = y if D is None else y + D.to(real)[:, None] * u.to(real)
        dz = (grad * ungated * gate * (1 + z.to(real) * (1 - gate))).to(z.dtype)
    dB, dC = (
        (dX.squeeze(2) if X.ndim == 4 else dX.reshape(X.shape)).to(X.dtype) for dX, X in ((sums.dB, B), (sums.dC, C))
    )
    return (
        du.flatten(1, 2).to(u.dtype),
        ddelta.to(delta.dtype),
        sums.dA.flatten(0, 1).to(A.dtype),
        dB,
        dC,
        dD,
        dz,
        None if delta_bias is None else ddelta.sum((0, 2)).to(delta_bias.dtype),
        None if initial_state is None else sums.carry.flatten(1, 2).to(initial_state.dtype),
    )


class _Sums(NamedTuple):
    """Results of the loop from the last step to the first; g_t is the gradient of h_t, and gp_t = g_t a_t h_{t-1}."""

    y: Tensor | None  # (B, G, M, L): output before skip and gate, if there is a gate
    gB: Tensor  # (B, G, M, L): sum over states of g_t B_t
    gpA: Tensor  # (B, G, M, L): sum over states of gp_t A
    dA: Tensor  # (G, M, N)
    dB: Tensor  # as `_Grouped.B`
    dC: Tensor
    carry: Tensor  # (B, G, M, N): gradient of the state before the first step


def _walk_back(inputs: _Grouped, gy: Tensor, carry: Tensor, checkpoints: Tensor, *, gated: bool) -> _Sums:
    """Recompute the states of each chunk from its checkpoint and sum the gradients, last chunk first.

    Args:
        gy: (B, G, M, L), gradient of the output before skip and gate.
        carry: (B, G, M, N), gradient of the last state.
        gated: also compute y.
    """
    _, dl, _, x, A, B, C = inputs
    y = torch.empty_like(x) if gated else None
    sum_gB, sum_gpA = torch.empty_like(x), torch.empty_like(x)
    dA, dB, dC = torch.zeros_like(A), torch.zeros_like(B), torch.zeros_like(C)
    for chunk in reversed(range(checkpoints.shape[1])):
        start, stop = chunk * CHECKPOINT_STEPS, min(x.shape[-1], (chunk + 1) * CHECKPOINT_STEPS)
        states, decays = [checkpoints[:, chunk].unflatten(1, A.shape[:2])], []
        for t in range(start, stop):
            decays.append(torch.exp(dl[..., t, None] * A))
            states.append(decays[-1] * states[-1] + x[..., t, None] * B[..., t % B.shape[-1]])
        for t in reversed(range(start, stop)):
            a, h, h_before = decays[t - start], states[t - start + 1], states[t - start]
            tB, tC = t % B.shape[-1], t % C.shape[-1]
            if y is not None:
                torch.sum(h * C[..., tC], -1, out=y[..., t])
            g = C[..., tC] * gy[..., t, None] + carry
            gp = g * (a * h_before)
            sum_gB[..., t] = (g * B[..., tB]).sum(-1)
            sum_gpA[..., t] = (gp * A).sum(-1)
            dA += (gp * dl[..., t, None]).sum(0)
            dB[..., tB] += (g * x[..., t, None]).sum_to_size(dB.shape[:-1])
            dC[..., tC] += (h * gy[..., t, None]).sum_to_size(dC.shape[:-1])
            carry = a * g
    return _Sums(y, sum_gB, sum_gpA, dA, dB, dC, carry)


def _to_scan_order(
    x: Tensor, delta: Tensor, B: Tensor, C: Tensor, permutation: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image order, channels last -> u, delta (B, K*C, L) and B, C (B, K, N, L) in the order of each direction."""
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
    inputs: DirectionalInputs,
    *,
    checkpointed: bool = True,
) -> tuple[Tensor, Tensor]:
    """Forward pass of `directional_scan` without autograd.

    Args:
        inputs: the arguments of the scan.
        checkpointed: keep the states that `directional_backward` needs.

    Returns:
        out (B, L, K, C) in the type of x, and the checkpoints of `scan_forward` for K*C channels.
    """
    x, delta, A, B, C, permutation, D, delta_bias, delta_softplus = inputs
    u, delta, B, C = _to_scan_order(x, delta, B, C, permutation)
    in_order = ScanInputs(u, delta, A, B, C, D, None, delta_bias, delta_softplus, None)
    out, _, checkpoints = scan_forward(in_order, checkpointed=checkpointed)
    return _to_image_order(out, permutation).contiguous(), checkpoints


def directional_backward(
    grad_out: Tensor,
    inputs: DirectionalInputs,
    checkpoints: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of `directional_forward`.

    Args:
        grad_out: (B, L, K, C), gradient of out.
        inputs: those of `directional_forward`.
        checkpoints: as `directional_forward` returned them.

    Returns:
        Gradients of x, delta, A, B, C, D, delta_bias, each with the shape and type of its argument; None for None.
    """
    x, delta, A, B, C, permutation, D, delta_bias, delta_softplus = inputs
    u, delta_, B_, C_ = _to_scan_order(x, delta, B, C, permutation)
    grad = _to_scan_order(x, grad_out, B, C, permutation)[1]
    in_order = ScanInputs(u, delta_, A, B_, C_, D, None, delta_bias, delta_softplus, None)
    du, ddelta, dA, dB, dC, dD, _, dbias, _ = scan_backward(grad, None, in_order, checkpoints)
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
