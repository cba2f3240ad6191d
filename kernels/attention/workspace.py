"""Workspace attention: a few slots select tokens, and all tokens read the slots.

This is our construction after "The consciousness prior" (Bengio 2017, arXiv 1709.08568), which gives no formula: a few
elements enter a bottleneck, from which they are broadcast. Slot s of a head selects the k keys with the largest
scale sigma_s·k_j and holds their mean value c_s and mean key kappa_s, weighted by the softmax p_s; a token reads
out_i = sum_s softmax_s(scale q_i·kappa_s) c_s. The weights have rank at most S, at most S k columns that are not 0, and
rows that sum to 1.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .mixer import NC, NS, Mixed, Pattern, check_call, key_mask, mixing, spread_heads
from .selection import top_k


class Slots(NamedTuple):
    """The contents of the workspace."""

    chosen: Tensor  # (B, H, S, k), key indices, best first
    weights: Tensor  # (B, H, S, k), weights of the chosen keys
    values: Tensor  # (B, H, S, Dv), the broadcast values
    diversity: Tensor  # scalar: mean overlap of the weights of two slots; as a loss, it makes slots differ


class WorkspaceAttention(nn.Module):
    """Attention through a bottleneck of slots, O(L S D). It supports self and cross attention without causality.

    In the forward pass, a slot's weights are the softmax over its k best keys. In the backward pass with
    `straight_through`, they are differentiated as if they were the softmax over all keys.

    Args:
        heads: number of query heads.
        channels: channels of a head, D.
        slots: number of slots of each head, S.
        top: number of keys that a slot selects; all if there are fewer.
        straight_through: see above; gradients then differ from finite differences by design.
        scale: factor on the scores; 1 / sqrt(D) if None.
    """

    patterns = frozenset({NS, NC})
    v_linear = True

    def __init__(
        self,
        heads: int,
        channels: int,
        *,
        slots: int = 6,
        top: int = 2,
        straight_through: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if slots < 1 or top < 1:
            raise ValueError(f"slots and top must be at least 1, got {slots} and {top}")
        self.slots = nn.Parameter(torch.randn(heads, slots, channels))
        self.top, self.straight_through = top, straight_through
        self.scale = channels**-0.5 if scale is None else scale

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
    ) -> Mixed[None, Slots]:
        check_call(self, q, k, v, pattern, q_start)
        wide = torch.promote_types(q.dtype, torch.float32)
        heads = q.shape[1]
        keys, values = spread_heads(k, heads).to(wide), spread_heads(v, heads).to(wide)
        seen = key_mask(mask, k)[:, None, None]  # (B, 1, 1, Lk)
        scores = self.scale * self.slots.to(wide) @ keys.mT  # (B, H, S, Lk)
        scores = scores.masked_fill(~seen, torch.finfo(wide).min)
        chosen = top_k(scores, min(self.top, k.shape[2]))
        best = scores.gather(-1, chosen).softmax(-1) * seen.expand_as(scores).gather(-1, chosen)
        share = torch.zeros_like(scores).scatter(-1, chosen, best)
        if self.straight_through:
            soft = scores.softmax(-1) * seen
            share = share.detach() + soft - soft.detach()
        slot_keys, slot_values = share @ keys, share @ values  # (B, H, S, D), (B, H, S, Dv)
        reads = (self.scale * q.to(wide) @ slot_keys.mT).softmax(-1)
        overlap = F.normalize(share, dim=-1) @ F.normalize(share, dim=-1).mT
        count = overlap.shape[-1]
        diversity = (overlap.sum((-1, -2)) - overlap.diagonal(dim1=-2, dim2=-1).sum(-1)).mean() / max(
            1, count * (count - 1)
        )
        return Mixed((reads @ slot_values).to(q.dtype), extras=Slots(chosen, best, slot_values, diversity))


class SlotVerifier(nn.Module):
    """The energy of a set of slots: a sum of sparse factors, each over at most `order` slots.

    It is trained with `verifier_loss` to be low for true sets of slots and high for sets shuffled over the batch.

    Args:
        channels: channels of a slot's value.
        slots: number of slots.
        order: number of slots in a factor; there is a factor for each run of `order` neighbouring slots.
        hidden: width of the hidden layer of a factor.
    """

    def __init__(self, channels: int, slots: int, *, order: int = 2, hidden: int = 32) -> None:
        super().__init__()
        if not 1 <= order <= slots:
            raise ValueError(f"order must be between 1 and the {slots} slots, got {order}")
        self.register_buffer("members", torch.arange(slots).unfold(0, order, 1))
        factors = len(self.members)
        self.first = nn.Parameter(torch.randn(factors, order * channels, hidden) * (order * channels) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(factors, hidden))
        self.last = nn.Parameter(torch.randn(factors, hidden) * hidden**-0.5)

    members: Tensor

    def forward(self, values: Tensor) -> Tensor:
        """Energies (...,) of slot values (..., S, Dv)."""
        sets = values[..., self.members, :].flatten(-2)  # (..., factors, order Dv)
        inner = F.gelu(torch.einsum("...fc,fch->...fh", sets, self.first) + self.bias)
        return (inner * self.last).sum((-1, -2))


def verifier_loss(verifier: SlotVerifier, values: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Logistic loss that distinguishes slot sets (B, S, Dv) from sets whose slots come from different batch items."""
    order = torch.stack([torch.randperm(len(values), generator=generator) for _ in range(values.shape[1])], 1)
    shuffled = values[order.to(values.device), torch.arange(values.shape[1], device=values.device)]
    return F.softplus(verifier(values)).mean() + F.softplus(-verifier(shuffled)).mean()


def reference(
    mixer: WorkspaceAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    pattern: Pattern = NS,
    q_start: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """The weights softmax(q kappa^T) P as a product of explicit matrices, one head at a time."""
    shared, outs = q.shape[1] // k.shape[1], []
    for b in range(q.shape[0]):
        live = torch.arange(k.shape[2])
        if mask is not None:
            live = live[mask.expand(q.shape[0], 1, 1, -1)[b, 0, 0]]
        for h in range(q.shape[1]):
            keys, values = k[b, h // shared], v[b, h // shared]
            rows = []
            for slot in mixer.slots[h]:
                scores = mixer.scale * keys[live] @ slot
                best = scores.argsort(descending=True, stable=True)[: mixer.top]
                row = keys.new_zeros(len(keys))
                rows.append(row.index_put((live[best],), torch.softmax(scores[best], 0)))
            share = torch.stack(rows)
            outs.append(torch.softmax(mixer.scale * q[b, h] @ (share @ keys).mT, -1) @ share @ values)
    return torch.stack(outs).view(*q.shape[:3], -1)
