"""Neural memory: a memory that is trained while tokens are read, by gradient descent with momentum on its recall error.

Behrouz, Zhong and Mirrokni 2025 (Titans, arXiv 2501.00663), equations 9 to 14. With gates alpha, eta, theta in [0, 1]

    M_t = (1 - alpha_t) M_{t-1} + S_t,   S_t = eta_t S_{t-1} - theta_t grad l(M_t'; k_t, v_t),   y_t = M_t(q_t)

where l = |M(k) - v|^2 / 2 (the paper's factor 2 is absorbed by theta) and t' is the start of the token's chunk. Chunks
begin at multiples of `chunk` from the start of the stream, so a prefix of the stream gives the same results. With chunk
1, this is the recurrence of the paper; chunk 1 with alpha = eta = 0 is the delta rule, and one chunk over all tokens is
linear attention.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .gated_scan import gated_scan
from .mixer import CS, Mixed, Pattern, check_call, key_mask, mixing, spread_heads

_TOGETHER = 32  # chunks


class MemoryGates(NamedTuple):
    """The gates with which each token changes the memory, each (B, H, L) in [0, 1]."""

    forget: Tensor  # alpha
    momentum: Tensor  # eta
    rate: Tensor  # theta


class NeuralMemoryState(NamedTuple):
    """The memory after the tokens so far, with one tensor for each of its layers."""

    memory: tuple[Tensor, ...]  # M, each (B, H, out, in)
    surprise: tuple[Tensor, ...]  # S
    anchor: tuple[Tensor, ...]  # M at the start of the current chunk, at which gradients are computed
    position: int  # number of tokens in the current chunk


class NeuralMemory(nn.Module):
    """A memory for each head, which each token writes and reads; it supports causal self attention only.

    The linear memory (depth 1, M of Dv x D) is linear in v. The memory of depth 2 is W_2 silu(W_1 k), whose first layer
    has learned and whose second layer zero initial weights; the residual connection of the paper would need Dv = D.
    Keys and queries are divided by their norms, since the memory diverges for theta |k|^2 > 2. The gates are a sigmoid
    of a function of the head's keys, unless the call gives them. A masked token does not change the memory.

    Args:
        heads: number of query heads.
        channels: channels of a head, D.
        depth: 1 or 2.
        hidden: width of the deep memory; 2 D if None.
        chunk: number of tokens whose gradients are computed at the same memory; 16 to 64 train in parallel.
        adapts: False reads from a given state without writing to it.
    """

    patterns = frozenset({CS})

    def __init__(
        self,
        heads: int,
        channels: int,
        *,
        depth: int = 1,
        hidden: int | None = None,
        chunk: int = 64,
        adapts: bool = True,
    ) -> None:
        super().__init__()
        if depth not in (1, 2) or chunk < 1:
            raise ValueError(f"depth must be 1 or 2 and chunk at least 1, got {depth} and {chunk}")
        self.chunk, self.adapts = chunk, adapts
        self.gate_weight = nn.Parameter(torch.randn(3, heads, channels) * channels**-0.5)
        # little forgetting, and a learning rate so small that a chunk of equal keys does not overshoot
        self.gate_bias = nn.Parameter(torch.tensor([-4.0, 0.0, -4.0]).view(3, 1).repeat(1, heads))
        width = 2 * channels if hidden is None else hidden
        self.first = nn.Parameter(torch.randn(heads, width, channels) * channels**-0.5) if depth == 2 else None

    @property
    def v_linear(self) -> bool:
        """True for the linear memory only."""
        return self.first is None

    @mixing
    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        pattern: Pattern = CS,
        q_start: int | None = None,
        mask: Tensor | None = None,
        gates: MemoryGates | None = None,
        state: NeuralMemoryState | None = None,
    ) -> Mixed[NeuralMemoryState, MemoryGates]:
        """See `Mixer`; `gates` replaces the gates computed from the keys."""
        check_call(self, q, k, v, pattern, q_start)
        if q_start:
            raise ValueError(f"q_start must be 0, since the past is given by state, got {q_start}")
        wide = torch.promote_types(q.dtype, torch.float32)
        heads = q.shape[1]
        query, keys = (F.normalize(x.to(wide), dim=-1) for x in (q, spread_heads(k, heads)))
        values = spread_heads(v, heads).to(wide)
        if gates is None:
            signal = torch.einsum("bhld,ghd->gbhl", keys, self.gate_weight.to(wide))
            gates = MemoryGates(*(signal + self.gate_bias.to(wide)[:, None, :, None]).sigmoid())
        writes = key_mask(mask, k)[:, None].expand(keys.shape[:3]) & self.adapts
        alpha = gates.forget.to(wide) * writes
        eta = torch.where(writes, gates.momentum.to(wide), 1.0)  # a masked token keeps S and does not add S to M
        theta = gates.rate.to(wide) * writes
        state = self._start(query, values) if state is None else state
        begun = min(
            q.shape[2], (self.chunk - state.position) % self.chunk
        )  # number of tokens that complete the current chunk
        full = (q.shape[2] - begun) // self.chunk
        lengths = [n for n in (begun, *[self.chunk] * full, (q.shape[2] - begun) % self.chunk) if n]
        steps = [query, keys, values, alpha, eta, theta, writes.to(wide)]
        pieces = zip(*(x.split(lengths, 2) for x in steps), strict=True) if lengths else iter(())
        products = self._products_of_chunks([x[:, :, begun:] for x in (alpha, eta, steps[-1])], full)
        outs = []
        for inputs in pieces:
            if state.position == self.chunk:
                state = state._replace(anchor=state.memory, position=0)
            if self.first is not None:
                out, state = _read_deep(inputs, state)
            else:
                whole = inputs[0].shape[2] == self.chunk
                product = next(products) if whole else _products(inputs[3], inputs[4], inputs[6])
                out, state = _read_linear(inputs, product, state)
            outs.append(out)
        out = torch.cat(outs, 2) if outs else torch.zeros_like(values)
        return Mixed(out.to(q.dtype), state=state, extras=gates)

    def _products_of_chunks(self, gates: list[Tensor], full: int) -> Iterator["_Products"]:
        """The products of each complete chunk; those of some chunks are computed at once, while they fit the cache."""
        for start in range(0, full, _TOGETHER):
            count = min(_TOGETHER, full - start)
            part = slice(start * self.chunk, (start + count) * self.chunk)
            some = _products(*(x[:, :, part].unflatten(2, (count, self.chunk)) for x in gates))
            yield from (_Products(*each) for each in zip(*(x.unbind(2) for x in some), strict=True))

    def recall(self, q: Tensor, state: NeuralMemoryState) -> Tensor:
        """The values (B, H, L, Dv) that a memory recalls for queries (B, H, L, D), without changing the memory."""
        x = F.normalize(q.to(state.memory[0].dtype), dim=-1)
        for matrix in state.memory[:-1]:
            x = F.silu(x @ matrix.mT)
        return (x @ state.memory[-1].mT).to(q.dtype)

    def empty(self, q: Tensor, value_channels: int) -> NeuralMemoryState:
        """The memory before the first token, for the heads and the batch of q (B, H, L, D)."""
        wide = torch.promote_types(q.dtype, torch.float32)
        return self._start(q.to(wide), q.new_zeros(*q.shape[:3], value_channels, dtype=wide))

    def _start(self, q: Tensor, v: Tensor) -> NeuralMemoryState:
        if self.first is None:
            memory: tuple[Tensor, ...] = (q.new_zeros(*q.shape[:2], v.shape[3], q.shape[3]),)
        else:
            first = self.first.to(q).expand(q.shape[0], -1, -1, -1)
            memory = (first, q.new_zeros(*q.shape[:2], v.shape[3], first.shape[2]))
        return NeuralMemoryState(memory, tuple(torch.zeros_like(m) for m in memory), memory, 0)


class _Products(NamedTuple):
    """Products of the gates of a chunk."""

    kept: Tensor  # A, (..., T): products of 1 - alpha from the start
    from_start: Tensor  # E, (..., T): products of eta from the start
    old: Tensor  # Q E, (..., T)
    momentum: Tensor  # P, (..., T, T)
    weights: Tensor  # Q P, (..., T, T)


def _products(alpha: Tensor, eta: Tensor, adds: Tensor) -> _Products:
    """P_ts = prod_{s<r<=t} eta_r and Q_ts = prod_{s<r<=t} (1 - alpha_r), without dividing by a gate."""
    eye = torch.eye(alpha.shape[-1], dtype=alpha.dtype, device=alpha.device).expand(*alpha.shape, -1)
    momentum, _ = gated_scan(eta.unsqueeze(-1), eye)
    decay, _ = gated_scan(1 - alpha.unsqueeze(-1), eye)
    decay = decay * adds.unsqueeze(-2)  # masked tokens add nothing to M
    from_start = eta.cumprod(-1)
    old = (decay @ from_start.unsqueeze(-1)).squeeze(-1)
    return _Products((1 - alpha).cumprod(-1), from_start, old, momentum, decay @ momentum)


def _read_linear(
    inputs: tuple[Tensor, ...], products: _Products, state: NeuralMemoryState
) -> tuple[Tensor, NeuralMemoryState]:
    """Read and write the tokens of one chunk, or of a part of it, in closed form.

    With u_s = theta_s (v_s - anchor k_s): Y = A (q M) + (Q E) (q S) + ((q k^T) Q P) u.
    """
    q, k, v, _, _, theta, _ = inputs
    (memory,), (surprise,), (anchor,) = state.memory, state.surprise, state.anchor
    kept, from_start, old, momentum, weights = products
    written = theta.unsqueeze(-1) * (v - k @ anchor.mT)  # u
    out = kept.unsqueeze(-1) * (q @ memory.mT) + old.unsqueeze(-1) * (q @ surprise.mT)
    out = out + ((q @ k.mT) * weights) @ written
    last_m, last_s = ((x[..., -1, :, None] * written).mT @ k for x in (weights, momentum))
    last_m = last_m + kept[..., -1, None, None] * memory + old[..., -1, None, None] * surprise
    last_s = last_s + from_start[..., -1, None, None] * surprise
    return out, NeuralMemoryState((last_m,), (last_s,), state.anchor, state.position + q.shape[2])


def _read_deep(inputs: tuple[Tensor, ...], state: NeuralMemoryState) -> tuple[Tensor, NeuralMemoryState]:
    """The same for W_2 silu(W_1 k), with the gradients of all tokens at the anchor and two scans over the weights."""
    q, k, v, alpha, eta, theta, adds = inputs
    first, second = state.anchor
    inner = k @ first.mT  # (B, H, T, hidden)
    active = F.silu(inner)
    error = active @ second.mT - v
    slope = inner.sigmoid() * (1 + inner * (1 - inner.sigmoid()))
    back = (error @ second) * slope
    memories, surprises, tracks = [], [], []
    for left, right, memory, surprise in zip((back, error), (k, active), state.memory, state.surprise, strict=True):
        gradient = left.unsqueeze(-1) * right.unsqueeze(-2)  # (B, H, T, out, in)
        steps = (-theta[..., None, None] * gradient).flatten(-2)
        moved, last_s = gated_scan(eta.unsqueeze(-1), steps, h0=surprise.flatten(-2))
        track, last_m = gated_scan(1 - alpha.unsqueeze(-1), moved * adds.unsqueeze(-1), h0=memory.flatten(-2))
        tracks.append(track.unflatten(-1, memory.shape[-2:]))
        memories.append(last_m.view_as(memory))
        surprises.append(last_s.view_as(surprise))
    hidden = F.silu((tracks[0] @ q.unsqueeze(-1)).squeeze(-1))
    out = (tracks[1] @ hidden.unsqueeze(-1)).squeeze(-1)
    position = state.position + q.shape[2]
    return out, NeuralMemoryState(tuple(memories), tuple(surprises), state.anchor, position)


def reference(
    mixer: NeuralMemory,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    pattern: Pattern = CS,
    q_start: int = 0,
    mask: Tensor | None = None,
    gates: MemoryGates | None = None,
) -> Tensor:
    """The recurrence, one token at a time, with the gradient of the loss computed by autograd."""
    shared = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    if gates is None:
        w, bias = mixer.gate_weight, mixer.gate_bias
        gates = MemoryGates(*(torch.sigmoid((k * w[n].unsqueeze(1)).sum(-1) + bias[n].unsqueeze(1)) for n in range(3)))
    live = (
        torch.ones(q.shape[0], q.shape[2], dtype=torch.bool) if mask is None else mask.expand(len(q), 1, 1, -1)[:, 0, 0]
    )
    outs = []
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            memory = [q.new_zeros(v.shape[3], q.shape[3])]
            if mixer.first is not None:
                memory = [mixer.first[h], q.new_zeros(v.shape[3], mixer.first.shape[1])]
            surprise = [torch.zeros_like(m) for m in memory]
            for t in range(q.shape[2]):
                if t % mixer.chunk == 0:
                    anchor = memory
                if live[b, t] and mixer.adapts:
                    slopes = _reference_gradient(anchor, k[b, h, t], v[b, h, t])
                    alpha, eta, theta = (gate[b, h, t] for gate in gates)
                    surprise = [eta * s - theta * g for s, g in zip(surprise, slopes, strict=True)]
                    memory = [(1 - alpha) * m + s for m, s in zip(memory, surprise, strict=True)]
                outs.append(_recall(memory, q[b, h, t]))
    return torch.stack(outs).view(*q.shape[:3], -1)


def _recall(memory: list[Tensor], x: Tensor) -> Tensor:
    for matrix in memory[:-1]:
        x = F.silu(matrix @ x)
    return memory[-1] @ x


def _reference_gradient(memory: list[Tensor], k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        if not memory[0].requires_grad:
            memory = [m.clone().requires_grad_() for m in memory]
        memory = [m if m.requires_grad else m.clone().requires_grad_() for m in memory]
        loss = (_recall(memory, k) - v).square().sum() / 2
        return torch.autograd.grad(loss, memory, create_graph=True)
