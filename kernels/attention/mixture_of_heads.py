"""Mixture-of-head attention: each token chooses the heads that are active for it.

Jin, Zhu, Yuan and Yan 2024 (arXiv 2410.11842). The output of a multi-head layer is a sum over heads,
y_t = sum_h g_{t,h} head_h(t) W_O^h, with gates g from a router. The first heads are shared by all tokens, the others
are routed. It can be used with any mixer: `MixingLayer(dim, heads, mixer, gates=HeadGates(dim, heads, ...))`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layer import Gates
from .mixer import spread_heads
from .selection import top_k
from .softmax import attention


class HeadGates(nn.Module):
    """Gates of the heads, computed from the token itself and no other token, so all patterns remain valid.

    With r = softmax(W_r x_t) over the routed heads and K_t the `active` largest of them,

        shared:  g_i = 2 a_1 h_s softmax(W_s x_t)_i
        routed:  g_i = 2 a_2 K r_i / sum_{j in K_t} r_j    for i in K_t, else 0,    a = softmax(W_h x_t)

    where 2 a is replaced by 1 if all heads are shared or all are routed. The factors 2, h_s and K and the division keep
    the mean gate at 1; they are part of the official code, but not of equations 6 and 7 of the paper.

    Args:
        dim: channels of a token.
        heads: number of all heads, shared and routed.
        shared: number of heads that are active for every token.
        active: number K of routed heads that are active for a token; at most heads - shared.
        normalised: False uses the form of the paper, a_1 softmax(W_s x)_i and a_2 r_i.
    """

    def __init__(self, dim: int, heads: int, *, shared: int, active: int, normalised: bool = True) -> None:
        super().__init__()
        _check_counts(heads, shared, active)
        self.shared, self.routed, self.active, self.normalised = shared, heads - shared, active, normalised
        self.between = nn.Parameter(torch.empty(2, dim))
        self.share = nn.Parameter(torch.empty(shared, dim))
        self.route = nn.Parameter(torch.empty(heads - shared, dim))
        for weight in self.parameters():
            nn.init.uniform_(weight, -(dim**-0.5), dim**-0.5)

    def forward(self, x: Tensor) -> Gates:
        """Gates (B, L, H) of tokens x (B, L, dim), and the balance loss.

        The loss is h_r sum_i f_i p_i, where f_i is the fraction of tokens that choose head i and p_i the mean of r_i.
        It is K if all heads are chosen equally often, and larger if choices and probabilities concentrate on the same
        heads; the paper uses a weight of 0.01 and the mean over the layers.
        """
        wide = torch.promote_types(x.dtype, torch.float32)
        between = F.linear(x, self.between).to(wide).softmax(-1)
        if self.normalised:
            between = 2 * between
        if not self.shared or not self.routed:
            between = torch.ones_like(between)
        share = F.linear(x, self.share).to(wide).softmax(-1)
        gates = [between[..., :1] * (self.shared * share if self.normalised else share)]
        balance = between.new_zeros(())
        if self.routed:
            route = F.linear(x, self.route).to(wide).softmax(-1)
            works = torch.zeros_like(route).scatter(-1, top_k(route, self.active), 1.0)
            kept = route * works
            if self.normalised and self.active:
                kept = self.active * kept / kept.sum(-1, keepdim=True)
            gates.append(between[..., 1:] * kept)
            if route.numel():
                balance = self.routed * (works.flatten(0, -2).mean(0) * route.flatten(0, -2).mean(0)).sum()
        return Gates(torch.cat(gates, -1).to(x.dtype), balance)


def gates_from_query_norms(q: Tensor, *, shared: int, active: int) -> Gates:
    """Gates of 0 and 1 for a model trained without a router: the heads with the largest query norms are active.

    The router is the softmax over the routed heads of a token's query norms, divided by their standard deviation
    (section 3.3 of the paper, "continue-tuning").

    Args:
        q: (B, H, L, D).
        shared: number of the first heads, which are always active.
        active: number of routed heads that are active for a token.
    """
    heads = q.shape[1]
    _check_counts(heads, shared, active)
    norms = q.detach().to(torch.promote_types(q.dtype, torch.float32)).norm(dim=-1).transpose(1, 2)  # (B, L, H)
    routed = norms[..., shared:]
    spread = routed.std(-1, correction=0, keepdim=True) if routed.shape[-1] else routed
    route = (routed / spread.clamp_min(torch.finfo(spread.dtype).tiny)).softmax(-1)
    works = torch.zeros_like(route).scatter(-1, top_k(routed, active), 1.0)
    balance = (heads - shared) * (works.flatten(0, 1).mean(0) * route.flatten(0, 1).mean(0)).sum()
    return Gates(torch.cat([torch.ones_like(norms[..., :shared]), works], -1).to(q.dtype), balance)


def attend_where_gated(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor, *, causal: bool = False, mask: Tensor | None = None
) -> Tensor:
    """Softmax attention times the gates, computed only for the (token, head) pairs whose gate is not 0.

    Each head gathers the queries that chose it; keys and values of all tokens are still needed. This saves time only if
    few heads are active. A causal call stores the mask of the gathered queries, (B, H, chosen, Lk).

    Args:
        q: (B, H, L, D).
        k: (B, Hk, Lk, D); Lk = L if causal.
        v: (B, Hk, Lk, Dv).
        gates: (B, L, H).
        causal: token i attends to the tokens j <= i.
        mask: bool, one value for each key, (B or 1, 1, 1, Lk).

    Returns:
        (B, H, L, Dv).
    """
    if causal and q.shape[2] != k.shape[2]:
        raise ValueError(f"causal attention needs as many queries as keys ({k.shape[2]}), got {q.shape[2]}")
    by_head = gates.transpose(1, 2)  # (B, H, L)
    works = by_head != 0
    most = int(works.sum(-1).max()) if works.numel() else 0
    place = (
        (~works).to(torch.uint8).argsort(dim=-1, stable=True)[..., :most]
    )  # the tokens of a head in order, then other tokens
    queries = q.gather(2, place.unsqueeze(-1).expand(-1, -1, -1, q.shape[3]))
    seen = mask
    if causal:
        earlier = torch.arange(k.shape[2], device=q.device) <= place.unsqueeze(-1)
        seen = earlier if mask is None else earlier & mask
    out = attention(queries, spread_heads(k, q.shape[1]), spread_heads(v, q.shape[1]), mask=seen)
    out = out * by_head.gather(2, place).unsqueeze(-1).to(out.dtype)
    whole = out.new_zeros(*q.shape[:3], v.shape[3])
    return whole.scatter(2, place.unsqueeze(-1).expand_as(out), out)


def reference(gates: HeadGates, x: Tensor) -> Tensor:
    """The gates (B, L, H) of `HeadGates`, one token at a time, by the equations."""
    rows = []
    for token in x.flatten(0, 1):
        first, second = torch.softmax(gates.between @ token, 0)
        if gates.normalised:
            first, second = 2 * first, 2 * second
        if not gates.shared or not gates.routed:
            first = second = token.new_ones(())
        row = list(first * torch.softmax(gates.share @ token, 0) * (gates.shared if gates.normalised else 1))
        r = torch.softmax(gates.route @ token, 0)
        chosen = sorted(range(gates.routed), key=lambda i: (-r[i].item(), i))[: gates.active]
        for i in range(gates.routed):
            gate = second * r[i] if i in chosen else token.new_zeros(())
            if i in chosen and gates.normalised:
                gate = gate * gates.active / torch.stack([r[j] for j in chosen]).sum()
            row.append(gate)
        rows.append(torch.stack(row))
    return torch.stack(rows).view(*x.shape[:2], -1)


def _check_counts(heads: int, shared: int, active: int) -> None:
    if not 0 <= shared <= heads:
        raise ValueError(f"shared must be between 0 and the {heads} heads, got {shared}")
    if not 0 <= active <= heads - shared:
        raise ValueError(f"active must be between 0 and the {heads - shared} routed heads, got {active}")
