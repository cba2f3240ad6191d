"""The recurrence h_t = a_t h_{t-1} + b_t of linear attention, retention and state-space models, computed in chunks.

`gated_scan` computes it elementwise; in `decaying_memory`, the state is a sum of outer products that a query reads. The
plain versions are in the same file and share no code with the fast ones.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .running import running_memory, serves_memory


def gated_scan(
    a: Tensor, b: Tensor, *, h0: Tensor | None = None, reverse: bool = False, chunk: int = 64
) -> tuple[Tensor, Tensor]:
    """All h_t = a_t h_{t-1} + b_t along the second-to-last axis, and the last of them.

    Chunks of `chunk` steps are computed in parallel, and the same scan combines their ends, which takes
    chunk * log_chunk(L) sequential steps instead of L. Nothing is divided by a gate, so gates may be 0, negative or
    larger than 1.

    Args:
        a: (..., L, 1 or M), gates.
        b: (..., L, M), inputs, with the leading sizes of a.
        h0: (..., M), the value before the first step; 0 if not given.
        reverse: compute from the last token to the first: h_t = a_t h_{t+1} + b_t.
        chunk: number of sequential steps in a chunk.

    Returns:
        h (..., L, M) and the value after the last step (..., M), h0 if L = 0.

    Example:
        >>> h, last = gated_scan(torch.full((4, 1), 0.5), torch.ones(4, 1))
        >>> h.flatten().tolist()
        [1.0, 1.5, 1.75, 1.875]
    """
    if b.dim() < 2 or a.shape[:-1] != b.shape[:-1] or a.shape[-1] not in (1, b.shape[-1]):
        raise ValueError(f"a must have shape {(*b.shape[:-1], 1)} or {tuple(b.shape)} to match b, got {tuple(a.shape)}")
    start = torch.zeros_like(b[..., 0, :]) if h0 is None and b.shape[-2] else h0
    if start is None:
        start = b.new_zeros(*b.shape[:-2], b.shape[-1])
    if start.shape != (*b.shape[:-2], b.shape[-1]):
        raise ValueError(f"h0 must have shape {(*b.shape[:-2], b.shape[-1])} to match b, got {tuple(start.shape)}")
    if reverse:
        a, b = a.flip(-2), b.flip(-2)
    h = _GatedScan.apply(a, b, start, chunk)
    last = h[..., -1, :] if h.shape[-2] else start
    return (h.flip(-2) if reverse else h), last


def gated_scan_reference(
    a: Tensor, b: Tensor, *, h0: Tensor | None = None, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """The same as `gated_scan`, one step after the other."""
    h = b.new_zeros(*b.shape[:-2], b.shape[-1]) if h0 is None else h0
    steps = range(b.shape[-2])
    states = {}
    for t in reversed(steps) if reverse else steps:
        h = states[t] = a[..., t, :] * h + b[..., t, :]
    return (torch.stack([states[t] for t in steps], -2) if states else b), h


class _GatedScan(torch.autograd.Function):
    """The scan with its gradient, which is a scan in the other direction; of the forward pass, only h is kept."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, h0: Tensor, chunk: int) -> Tensor:
        h = _scan(a, b, h0, chunk)
        ctx.save_for_backward(a, h, h0)
        ctx.chunk = chunk
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        a, h, h0 = ctx.saved_tensors
        if not h.shape[-2]:
            return torch.zeros_like(a), torch.zeros_like(h), torch.zeros_like(h0), None
        following = torch.cat([a[..., 1:, :], torch.zeros_like(a[..., :1, :])], -2)
        carried = _scan(following.flip(-2), grad.flip(-2), torch.zeros_like(h0), ctx.chunk).flip(-2)
        before = torch.cat([h0.unsqueeze(-2), h[..., :-1, :]], -2)
        return (carried * before).sum_to_size(a.shape), carried, a[..., 0, :] * carried[..., 0, :], None


def _scan(a: Tensor, b: Tensor, h0: Tensor, chunk: int) -> Tensor:
    length = b.shape[-2]
    if length <= chunk:
        h, steps = h0, []
        for t in range(length):
            h = torch.addcmul(b[..., t, :], a[..., t, :], h)
            steps.append(h)
        return torch.stack(steps, -2) if steps else torch.empty_like(b)
    full = length // chunk * chunk  # the last chunk, which may be shorter, starts from the result of the others
    gates, inputs = (x[..., :full, :].unflatten(-2, (-1, chunk)) for x in (a, b))  # (..., C, chunk, M)
    local = _scan(gates, inputs, torch.zeros_like(inputs[..., 0, :]), chunk)
    products = gates.cumprod(-2)
    ends = _scan(products[..., -1, :], local[..., -1, :], h0, chunk)  # (..., C, M)
    carry = torch.cat([h0.unsqueeze(-2), ends[..., :-1, :]], -2).unsqueeze(-2)
    h = torch.addcmul(local, products, carry).flatten(-3, -2)
    if full == length:
        return h
    return torch.cat([h, _scan(a[..., full:, :], b[..., full:, :], ends[..., -1, :], chunk)], -2)


def decaying_memory(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, *, memory: Tensor | None = None, chunk: int = 64
) -> tuple[Tensor, Tensor]:
    """out_t = q_t S_t with the memory S_t = exp(log_decay_t) S_{t-1} + k_t v_tᵀ.

    It uses block products within chunks and a scan over their ends: O(L (chunk (D + Dv) + D Dv)) multiply-adds, with
    all chunks computed in parallel. Without gradients, on the CPU, a compiled kernel reads one token after the other.

    Args:
        q: (..., L, D).
        k: (..., L, D).
        v: (..., L, Dv).
        log_decay: (..., L), at most 0; no decay if not given.
        memory: (..., D, Dv), S before the first token; 0 if not given.
        chunk: tokens in a block.

    Returns:
        out (..., L, Dv) and the memory after the last token (..., D, Dv).

    Example:
        >>> one = torch.ones(3, 1)
        >>> decaying_memory(one, one, one, torch.full((3,), 0.5).log())[0].flatten().tolist()
        [1.0, 1.5, 1.75]
    """
    length, channels, value_channels = q.shape[-2], q.shape[-1], v.shape[-1]
    start = q.new_zeros(*q.shape[:-2], channels, value_channels) if memory is None else memory
    if not length:
        return q @ start, start
    if serves_memory(q, k, v, log_decay, start):
        return running_memory(q, k, v, None if log_decay is None else log_decay.exp(), start)
    chunk = min(chunk, length)  # a single step of a stream needs no full block
    padding = -length % chunk
    if padding:  # a token of zeros without decay changes neither the memory nor earlier outputs
        q, k, v = (torch.nn.functional.pad(x, (0, 0, 0, padding)) for x in (q, k, v))
    blocks = tuple(x.unflatten(-2, (-1, chunk)) for x in (q, k, v))  # (..., C, T, channels)
    q, k, v = blocks
    weights = (q @ k.mT).tril()
    if log_decay is None:
        written = k.mT @ v  # (..., C, D, Dv)
        after = written.cumsum(-3) + start.unsqueeze(-3)
    else:
        log_decay = torch.nn.functional.pad(log_decay, (0, padding)).unflatten(-1, (-1, chunk))
        total = log_decay.cumsum(-1)  # (..., C, T)
        lower = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril()
        since = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(~lower, 0)  # log decay from key s to query t
        weights = weights * since.exp()
        written = (k * (total[..., -1:] - total).exp().unsqueeze(-1)).mT @ v
        ends, _ = gated_scan(total[..., -1:].exp(), written.flatten(-2), h0=start.flatten(-2))
        after = ends.unflatten(-1, (channels, value_channels))
        q = q * total.exp().unsqueeze(-1)
    before = torch.cat([start.unsqueeze(-3), after[..., :-1, :, :]], -3)
    out = (weights @ v + q @ before).flatten(-3, -2)
    return out[..., :length, :], after[..., -1, :, :]


def decaying_memory_reference(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, *, memory: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same as `decaying_memory`, one token after the other."""
    state = q.new_zeros(*q.shape[:-2], q.shape[-1], v.shape[-1]) if memory is None else memory
    outs = []
    for t in range(q.shape[-2]):
        if log_decay is not None:
            state = log_decay[..., t].exp()[..., None, None] * state
        state = state + k[..., t, :, None] * v[..., t, None, :]
        outs.append((q[..., t, None, :] @ state).squeeze(-2))
    return torch.stack(outs, -2), state
