"""One form for attention, state-space models and gated recurrent networks: a linear system that varies with time.

Sieber, Amo Alonso, Didier, Zeilinger and Orvieto 2024 (arXiv 2405.15731):

    h_i = Lambda_i h_{i-1} + B_i u_i,    y_i = C_i h_i + D_i u_i,    Lambda diagonal

so y = Phi u with Phi_ij = C_i (prod_{r=j+1}^{i} Lambda_r) B_j, plus D_i for i = j. In all models here, B and C act in
the same way on each channel of u ("I kron b"). A system therefore consists of four arrays, and the map Phi is one
matrix for each head or, if Lambda differs between channels, for each head and channel.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .gated_scan import decaying_memory, gated_scan
from .mixer import CS, NS, Mixed, Pattern, check_call, key_mask, mixing, spread_heads


class DynamicalSystem(NamedTuple):
    """Lambda, B, C and D of each step; the state h of a head is an (n, d) matrix, y_i = c_i^T h_i + D_i u_i."""

    decay: Tensor  # (..., L, n or 1, d or 1): Lambda
    write: Tensor  # (..., L, n, d or 1): B; write * u is added to h
    read: Tensor  # (..., L, n, d or 1): C
    through: Tensor | None = None  # (..., L, 1 or d): D

    def run(self, u: Tensor) -> Tensor:
        """The outputs (..., L, d) for inputs u (..., L, d), computed by a scan over the states."""
        received = self.write * u.unsqueeze(-2)  # (..., L, n, d)
        decay = self.decay.expand(*self.decay.shape[:-2], *received.shape[-2:])
        h, _ = gated_scan(decay.flatten(-2), received.flatten(-2))
        y = (self.read * h.view_as(received)).sum(-2)
        return y if self.through is None else y + self.through * u

    def map(self) -> Tensor:
        """Phi, (..., channels, L, L), with a single matrix (channels = 1) if it is the same for all channels."""
        length = self.write.shape[-3]
        shape = (self.read * self.write * self.decay)[..., 0, 0, :].shape
        rows = []
        for i in range(length):
            row = [self.read.new_zeros(shape)] * length
            product = torch.ones_like(self.decay[..., 0, :, :])
            for j in range(i, -1, -1):
                row[j] = (self.read[..., i, :, :] * product * self.write[..., j, :, :]).sum(-2).expand(shape)
                product = product * self.decay[..., j, :, :]
            if self.through is not None:
                row[i] = row[i] + self.through[..., i, :]
            rows.append(torch.stack(row, -1))
        return torch.stack(rows, -2)


def linear_attention_system(q: Tensor, k: Tensor, *, normaliser: Tensor | None = None) -> DynamicalSystem:
    """Linear attention, of features q and k (..., L, n): Lambda_i = eta_{i-1} / eta_i, B = k / eta_i, C = q.

    Args:
        q: phi(q), positive.
        k: phi(k), positive.
        normaliser: eta (..., L); the sum q_i·(k_1 + ... + k_i) if None. "Normalised attention" uses the learned
            exp(w·u_i) instead, which needs no sum.
    """
    eta = (q * k.cumsum(-2)).sum(-1) if normaliser is None else normaliser
    before = torch.cat([eta[..., :1], eta[..., :-1]], -1)  # there is no state before the first step
    return DynamicalSystem((before / eta)[..., None, None], (k / eta.unsqueeze(-1)).unsqueeze(-1), q.unsqueeze(-1))


def state_space_system(delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None = None) -> DynamicalSystem:
    """S6 (Mamba): Lambda = exp(-delta a), B = delta b, C = c.

    Args:
        delta: (..., L, d), step sizes after the softplus.
        a: (n, d), positive rates.
        b: (..., L, n).
        c: (..., L, n).
        d: (d,), factors of the direct path from input to output.
    """
    decay = torch.exp(-delta.unsqueeze(-2) * a)
    through = None if d is None else d.expand_as(delta)
    return DynamicalSystem(decay, delta.unsqueeze(-2) * b.unsqueeze(-1), c.unsqueeze(-1), through)


def duality_system(x: Tensor, a: float | Tensor, b: Tensor, c: Tensor) -> DynamicalSystem:
    """SSD (Mamba-2): Lambda_i = sigmoid(-x_i)^a, which is exp(-a softplus(x_i)), times the identity.

    Args:
        x: (..., L), gate before the sigmoid.
        a: positive power.
        b: (..., L, n), keys.
        c: (..., L, n), queries.
    """
    return DynamicalSystem((torch.sigmoid(-x) ** a)[..., None, None], b.unsqueeze(-1), c.unsqueeze(-1))


def gated_rnn_system(
    forget: Tensor, receive: Tensor, read: Tensor, *, reversed_power: float | None = None
) -> DynamicalSystem:
    """A gated RNN (qLSTM) with one state per channel and the gates sigma(forget), sigma(receive) and sigma(read).

    Args:
        forget: (..., L, d), before the sigmoid.
        receive: (..., L, d).
        read: (..., L, d).
        reversed_power: if given, the state-space gate sigma(-forget)^reversed_power replaces sigma(forget).
    """
    decay = torch.sigmoid(forget) if reversed_power is None else torch.sigmoid(-forget) ** reversed_power
    return DynamicalSystem(decay.unsqueeze(-2), torch.sigmoid(receive).unsqueeze(-2), torch.sigmoid(read).unsqueeze(-2))


class DualityState(NamedTuple):
    """The memory after the tokens so far."""

    memory: Tensor  # (B, H, D, Dv)


class DualityAttention(nn.Module):
    """SSD as a mixer: W = (q k^T) ⊙ L, where L_ts is the product of the decays from s to t.

    The decay of a token is sigmoid(-x)^a with x computed from its key. Causal self attention returns a `DualityState`;
    without causality, the output is the sum of a forward and a backward run (ours). The weights are not normalised.

    Args:
        heads: query heads.
        channels: channels of a head, D.
    """

    patterns = frozenset({NS, CS})
    v_linear = True

    def __init__(self, heads: int, channels: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(heads, channels) * channels**-0.5)
        self.gate_bias = nn.Parameter(torch.full((heads,), -3.0))  # a decay of about 0.95 per token
        self.log_power = nn.Parameter(torch.zeros(heads))
        self.scale = channels**-0.5

    @mixing
    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        pattern: Pattern = NS,
        q_start: int | None = None,
        mask: Tensor | None = None,
        state: DualityState | None = None,
    ) -> Mixed[DualityState, None]:
        check_call(self, q, k, v, pattern, q_start)
        if q_start or (state is not None and pattern is not CS):
            raise ValueError(f"state needs causal self attention, and q_start 0, got {pattern.value}, {q_start}")
        wide = torch.promote_types(q.dtype, torch.float32)
        heads = q.shape[1]
        seen = key_mask(mask, k)[:, None]
        keys, values = spread_heads(k, heads).to(wide), spread_heads(v, heads).to(wide)
        x = torch.einsum("bhld,hd->bhl", keys, self.gate.to(wide)) + self.gate_bias.to(wide).unsqueeze(1)
        log_decay = (
            -self.log_power.to(wide).exp().unsqueeze(1) * F.softplus(x) * seen
        )  # a masked token does not decay the memory
        query, keys = self.scale * q.to(wide), keys * seen.unsqueeze(-1)
        out, memory = decaying_memory(query, keys, values, log_decay, memory=None if state is None else state.memory)
        if pattern is CS:
            return Mixed(out.to(q.dtype), state=DualityState(memory))
        # in the backward run, the path from token s to an earlier token t has the decays of t ... s - 1
        back, _ = decaying_memory(query.flip(2), keys.flip(2), values.flip(2), log_decay.flip(2))
        own = (query * keys).sum(-1, keepdim=True) * values
        return Mixed((out + back.flip(2) - own).to(q.dtype))


def reference(
    mixer: DualityAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    pattern: Pattern = NS,
    q_start: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """The explicit map, with the product of decays computed for each entry."""
    keys, values = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    live = torch.ones_like(keys[:, :, :, 0]) if mask is None else mask[:, :, 0].to(q).expand(keys.shape[:3])
    x = (keys * mixer.gate.unsqueeze(1)).sum(-1) + mixer.gate_bias.unsqueeze(1)
    decay = torch.where(live > 0, torch.sigmoid(-x) ** mixer.log_power.exp().unsqueeze(1), 1.0)
    length = q.shape[2]
    rows = []
    for t in range(length):
        row = []
        for s in range(length):
            between = decay[..., s + 1 : t + 1] if s <= t else decay[..., t:s]
            between = between.prod(-1) * (pattern is NS or s <= t) * live[..., s]
            row.append(between * mixer.scale * (q[:, :, t] * keys[:, :, s]).sum(-1))
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, -2) @ values
