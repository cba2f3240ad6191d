"""Routing attention: tokens attend within clusters, which are found by online k-means.

Roy, Saffar, Vaswani and Grangier 2021 (arXiv 2003.05997). Each head has C centroids of norm 1; the affinity of a query
or key to a centroid is their product after normalisation. With C near sqrt(L), the cost is O(L^1.5 D).

There are two ways to form clusters:

- "balanced", as in the paper: each centroid takes its `window` nearest queries and its `window` nearest keys; a token
  in several clusters gets the mean of its outputs. This choice depends on the whole sequence: even with a causal mask,
  later tokens change the outputs of a prefix by O(1), so causal patterns are not supported. A query in no cluster (10
  of 32 queries at window = L / C, measured) would get 0; here it attends in the cluster of its nearest centroid.
- "assign" (ours): each token belongs to its nearest centroid, and in self attention also attends to itself. In cross
  attention, a query chooses only among centroids that have keys. Clusters may have any size.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .dense import dense_attention, visible_keys
from .mixer import ALL_PATTERNS, CS, NON_CAUSAL, NS, Mixed, Pattern, check_call, key_mask, mixing, spread_heads
from .selection import top_k


class RoutedClusters(NamedTuple):
    """The clusters of the tokens, and the loss that pulls the tokens towards their centroids."""

    queries: Tensor  # (B, H, Lq), index of the nearest centroid
    keys: Tensor  # (B, H, Lk)
    commitment: Tensor  # scalar: mean squared distance to the nearest centroid; its weight in the paper is 1e-4


class RoutingAttention(nn.Module):
    """Attention within clusters.

    In training mode, each call updates the centroids (a buffer without gradient); the first call initialises them by
    k-means on its own tokens. Masked tokens belong to no cluster and do not affect the centroids.

    Args:
        heads: number of query heads.
        channels: channels of a head, D.
        clusters: number of centroids of a head; sqrt(L) is a good choice.
        mode: "assign" or "balanced", see the docstring of the file.
        window: number of queries and of keys in a balanced cluster; L / clusters, rounded up, if None.
        decay: weight of the old centroid in an update.
        scale: factor on the scores; 1 / sqrt(D) if None.
    """

    v_linear = True
    centroids: Tensor  # (H, C, D)
    placed: Tensor  # bool scalar: whether the centroids have been initialised from data

    def __init__(
        self,
        heads: int,
        channels: int,
        clusters: int,
        *,
        mode: Literal["assign", "balanced"] = "assign",
        window: int | None = None,
        decay: float = 0.999,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if clusters < 1 or (window is not None and window < 1) or not 0 <= decay <= 1:
            raise ValueError(
                "clusters and window must be at least 1 and decay between 0 and 1, "
                f"got {clusters}, {window} and {decay}"
            )
        self.mode, self.window, self.decay, self.scale = mode, window, decay, scale
        self.register_buffer("centroids", F.normalize(torch.randn(heads, clusters, channels), dim=-1))
        self.register_buffer("placed", torch.tensor(False))

    @property
    def patterns(self) -> frozenset[Pattern]:
        """All four patterns, or the two non-causal ones for balanced clusters."""
        return ALL_PATTERNS if self.mode == "assign" else NON_CAUSAL

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
    ) -> Mixed[None, RoutedClusters]:
        start = check_call(self, q, k, v, pattern, q_start)
        seen = key_mask(mask, k)
        wide = torch.promote_types(q.dtype, torch.float32)
        heads = q.shape[1]
        query, keys, values = q.to(wide), spread_heads(k, heads).to(wide), spread_heads(v, heads).to(wide)
        centroids = self.centroids.to(wide)
        query = query * (q.shape[3] ** -0.5 if self.scale is None else self.scale)
        unit_q, unit_k = F.normalize(q.to(wide), dim=-1), F.normalize(keys, dim=-1)
        self_attention = pattern in (NS, CS)
        query_seen = seen[:, start : start + q.shape[2]] if self_attention else seen.new_ones(q.shape[0], q.shape[2])
        if self.training:
            self.update(unit_q, unit_k, query_seen, seen)
            centroids = self.centroids.to(wide)
        clusters = centroids.shape[1]
        groups = q.shape[0] * heads * clusters
        with torch.no_grad():
            near_q, near_k = unit_q @ centroids.mT, unit_k @ centroids.mT  # (B, H, L, C)
            key_cluster = near_k.argmax(-1)
            if self.mode == "assign" and not self_attention:  # a query must not choose a centroid without keys
                counts = seen[:, None].expand_as(key_cluster).to(wide)
                stocked = torch.zeros_like(near_q[:, :, :1].sum(2)).scatter_add(2, key_cluster, counts) > 0
                near_q = near_q.masked_fill(~stocked.unsqueeze(2), -torch.inf)
            query_cluster = near_q.argmax(-1)
            if self.mode == "assign":
                members, key_members = _as_pairs(query_cluster, clusters), _as_pairs(key_cluster, clusters, seen)
            else:
                members, key_members = self._take_nearest(near_q, near_k, query_cluster, query_seen, seen)
        own = None
        if self.mode == "assign" and self_attention:
            at = torch.arange(q.shape[2], device=q.device) + start
            apart = (key_cluster[:, :, at] != query_cluster) & seen[:, None, at]
            scores = (query * keys[:, :, at]).sum(-1).masked_fill(~apart, -torch.inf)
            own = scores.flatten(), values[:, :, at].flatten(0, 2)
        out = _attend_in_groups(
            query, keys, values, members, key_members, groups, start if pattern is CS else None, own
        )
        rows = members.row
        mixed = values.new_zeros(q[..., 0].numel(), v.shape[3]).index_add(0, rows, out)
        times = torch.bincount(rows, minlength=len(mixed)).clamp_min(1)
        out = (mixed / times.unsqueeze(1)).view(*q.shape[:3], v.shape[3])
        commitment = self._commitment(unit_q, query_cluster, query_seen) + self._commitment(unit_k, key_cluster, seen)
        return Mixed(out.to(q.dtype), extras=RoutedClusters(query_cluster, key_cluster, commitment / 2))

    @torch.no_grad()
    def update(self, unit_q: Tensor, unit_k: Tensor, query_seen: Tensor, key_seen: Tensor) -> None:
        """Move each centroid towards its nearest tokens and normalise it; a centroid without tokens does not move.

        mu_c <- decay mu_c + (1 - decay) / 2 (sum of its queries + sum of its keys), with sums over the batch.

        Args:
            unit_q: (B, H, Lq, D), normalised queries.
            unit_k: (B, H, Lk, D), normalised keys.
            query_seen: bool (B, Lq), queries that are not masked.
            key_seen: bool (B, Lk), keys that are not masked.
        """
        tokens = torch.cat([unit_q, unit_k], 2).transpose(0, 1).flatten(1, 2).to(self.centroids)  # (H, B L, D)
        counts = torch.cat([query_seen, key_seen], 1).flatten()
        tokens = tokens[:, counts]
        if not tokens.shape[1]:
            return
        if not self.placed:
            places = torch.randint(tokens.shape[1], self.centroids.shape[1:2], device=tokens.device)
            if tokens.shape[1] >= self.centroids.shape[1]:
                places = torch.randperm(tokens.shape[1], device=tokens.device)[: self.centroids.shape[1]]
            self.centroids.copy_(tokens[:, places])
            for _ in range(10):  # Lloyd's algorithm
                self._move(tokens, 0.0)
            self.placed.fill_(True)
        self._move(tokens, self.decay)

    def _move(self, tokens: Tensor, decay: float) -> None:
        nearest = (tokens @ self.centroids.mT).argmax(-1, keepdim=True)  # (H, n, 1)
        sums = torch.zeros_like(self.centroids).scatter_add(1, nearest.expand_as(tokens), tokens)
        met = torch.zeros_like(self.centroids[..., :1]).scatter_add(1, nearest, torch.ones_like(tokens[..., :1])) > 0
        moved = F.normalize(decay * self.centroids + (1 - decay) / 2 * sums, dim=-1)
        self.centroids.copy_(torch.where(met, moved, self.centroids))

    def _take_nearest(
        self, near_q: Tensor, near_k: Tensor, query_cluster: Tensor, query_seen: Tensor, key_seen: Tensor
    ) -> tuple["_Pairs", "_Pairs"]:
        """The nearest queries of each centroid, including queries that no centroid took, and its nearest keys."""
        batch, heads, n_queries, clusters = near_q.shape
        window = self.window or -(-near_k.shape[2] // clusters)
        taken = []
        for near, seen in ((near_q, query_seen), (near_k, key_seen)):
            order = top_k(near.mT.masked_fill(~seen[:, None, None], -torch.inf), window)  # (B, H, C, w)
            row = order + torch.arange(batch * heads, device=near.device).view(batch, heads, 1, 1) * near.shape[2]
            group = torch.arange(batch * heads * clusters, device=near.device).view(batch, heads, clusters, 1)
            real = seen[:, None, None].expand(*near.mT.shape).gather(3, order)
            taken.append(_Pairs(row[real], group.expand_as(row)[real]))
        free = torch.ones(batch * heads * n_queries, dtype=torch.bool, device=near_q.device)
        free[taken[0].row] = False
        left = _as_pairs(query_cluster, clusters)
        queries = _Pairs(*(torch.cat([a, b[free]]) for a, b in zip(taken[0], left, strict=True)))
        return queries, taken[1]

    def _commitment(self, unit: Tensor, cluster: Tensor, seen: Tensor) -> Tensor:
        head = torch.arange(unit.shape[1], device=unit.device).view(1, -1, 1)
        distance = (unit - self.centroids.to(unit)[head, cluster]).square().mean(-1)  # (B, H, L)
        weight = seen[:, None].expand_as(distance).to(unit)
        return (distance * weight).sum() / weight.sum().clamp_min(1)


class _Pairs(NamedTuple):
    """Tokens, as rows of (B H L), and the cluster of each of them, among (B H C)."""

    row: Tensor
    group: Tensor


def _as_pairs(cluster: Tensor, clusters: int, seen: Tensor | None = None) -> _Pairs:
    """Every token of (B, H, L) that is not masked, once, in its cluster."""
    batch, heads, length = cluster.shape
    group = cluster + torch.arange(batch * heads, device=cluster.device).view(batch, heads, 1) * clusters
    row = torch.arange(batch * heads * length, device=cluster.device)
    if seen is None:
        return _Pairs(row, group.flatten())
    real = seen[:, None].expand_as(cluster).flatten()
    return _Pairs(row[real], group.flatten()[real])


def _attend_in_groups(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    members: _Pairs,
    key_members: _Pairs,
    groups: int,
    first_query: int | None,
    own: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """The output of each member: softmax over the keys of its cluster.

    Clusters of similar size (within a factor of sqrt 2) are padded and computed together.

    Args:
        q: (B, H, Lq, D), already scaled.
        k: (B, H, Lk, D).
        v: (B, H, Lk, Dv).
        members: P queries with their clusters.
        key_members: keys with their clusters.
        groups: number of clusters, B H C.
        first_query: position of the first query among the keys, for causal attention.
        own: an additional score for each query (B H Lq,), and its value (B H Lq, Dv).
    """
    device, value_channels = q.device, v.shape[3]
    tables = []
    for pairs in (members, key_members):
        order = pairs.group.argsort(stable=True)
        counts = torch.bincount(pairs.group, minlength=groups)
        tables.append((order, counts, counts.cumsum(0) - counts))
    (q_order, q_counts, q_first), (k_order, k_counts, k_first) = tables
    q_rows, k_rows, v_rows = q.flatten(0, 2), k.flatten(0, 2), v.flatten(0, 2)
    size = torch.maximum(q_counts, k_counts) * (q_counts > 0)
    level = (2 * size.clamp_min(1).log2()).ceil().long().masked_fill(size == 0, -1)
    places, outs = [], []
    for bucket in level.unique().tolist():
        if bucket < 0:
            continue
        chosen = (level == bucket).nonzero().squeeze(1)
        q_slot = torch.arange(int(q_counts[chosen].max()), device=device)
        k_slot = torch.arange(int(k_counts[chosen].max()), device=device)
        q_real, k_real = q_slot < q_counts[chosen, None], k_slot < k_counts[chosen, None]  # (g, n)
        q_place = q_order[(q_first[chosen, None] + q_slot).masked_fill(~q_real, 0)]
        row = members.row[q_place]
        queries = _rows(q_rows, row)
        if len(k_slot):
            key_row = key_members.row[k_order[(k_first[chosen, None] + k_slot).masked_fill(~k_real, 0)]]
            scores = queries @ _rows(k_rows, key_row).mT
            hidden = ~k_real[:, None]
            if first_query is not None:
                hidden = hidden | (key_row[:, None] % k.shape[2] > (row % q.shape[2] + first_query).unsqueeze(2))
            scores.masked_fill_(hidden, -torch.inf)
            values = _rows(v_rows, key_row)
        else:
            scores, values = queries[..., :0], queries.new_zeros(len(chosen), 0, value_channels)
        outs.append(_softmax_with_own(scores, values, own, row)[q_real])
        places.append(q_place[q_real])
    if not outs:
        return v.new_zeros(0, value_channels)
    return torch.cat(outs).index_select(0, torch.cat(places).argsort())


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(0, index.flatten()).view(*index.shape, x.shape[1])


def _softmax_with_own(scores: Tensor, values: Tensor, own: tuple[Tensor, Tensor] | None, row: Tensor) -> Tensor:
    """The mean of the values, weighted by the softmax of the scores (g, n, m) and, if given, each query's own score."""
    top = scores.detach().amax(-1, keepdim=True) if scores.shape[-1] else scores.new_full((*row.shape, 1), -torch.inf)
    if own is not None:
        own_scores = own[0][row].unsqueeze(-1)
        top = torch.maximum(top, own_scores.detach())
    top = top.masked_fill(torch.isneginf(top), 0)
    weights = scores.sub_(
        top
    ).exp_()  # in place, since allocating a new tensor of this size takes longer than the arithmetic
    total, out = weights.sum(-1, keepdim=True), weights @ values
    if own is not None:
        own_weights = (own_scores - top).exp()
        total, out = total + own_weights, out + own_weights * _rows(own[1], row)
    return out / total.masked_fill(total == 0, 1)


def reference(
    mixer: RoutingAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    pattern: Pattern = NS,
    q_start: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """Attention with explicit masks: one mask for all clusters ("assign"), or the mean over one mask per cluster."""
    (batch, heads, n_queries, _), n_keys = q.shape, k.shape[2]
    keys = k.repeat_interleave(heads // k.shape[1], 1)
    live = torch.ones(batch, n_keys, dtype=torch.bool) if mask is None else mask.expand(batch, 1, 1, n_keys)[:, 0, 0]
    clusters = mixer.centroids.shape[1]
    near_q, near_k = (x.detach() / x.detach().norm(dim=-1, keepdim=True) @ mixer.centroids.mT for x in (q, keys))
    visible = visible_keys(n_queries, k, causal=pattern is CS, q_start=q_start, mask=mask)
    sees = torch.zeros(batch, heads, clusters, n_queries, n_keys, dtype=torch.bool)
    takes = torch.zeros(batch, heads, clusters, n_queries, dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            alive = live[b].nonzero()[:, 0].tolist()
            nearest_key = {j: int(near_k[b, h, j].argmax()) for j in alive}
            for i in range(n_queries):
                crosses = mixer.mode == "assign" and pattern not in (NS, CS)
                open_to = set(nearest_key.values()) if crosses else set(range(clusters))
                best = sorted(open_to, key=lambda c: (-near_q[b, h, i, c].item(), c))[:1]
                takes[b, h, best, i] = mixer.mode == "assign"
            window = mixer.window or -(-n_keys // clusters)
            for c in range(clusters):
                if mixer.mode == "assign":
                    inside = [j for j in alive if nearest_key[j] == c]
                else:
                    inside = sorted(alive, key=lambda j: (-near_k[b, h, j, c].item(), j))[:window]
                    askers = alive if pattern is NS else range(n_queries)
                    for i in sorted(askers, key=lambda i: (-near_q[b, h, i, c].item(), i))[:window]:
                        takes[b, h, c, i] = True
                sees[b, h, c][:, inside] = True
            for i in range(n_queries):
                if not takes[b, h, :, i].any():
                    takes[b, h, near_q[b, h, i].argmax(), i] = True
    if mixer.mode == "assign":
        together = (sees & takes.unsqueeze(-1)).any(2)
        if pattern in (NS, CS):
            together = together | torch.eye(n_keys, dtype=torch.bool)[q_start : q_start + n_queries]
        return dense_attention(q, k, v, together & visible, scale=mixer.scale)
    outs = torch.stack(
        [dense_attention(q, k, v, sees[:, :, c] & visible, scale=mixer.scale) for c in range(clusters)], 2
    )
    return (outs * takes.unsqueeze(-1)).sum(2) / takes.sum(2).unsqueeze(-1)
