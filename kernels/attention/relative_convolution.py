"""Relative convolutional attention: short filters over time, then attention with learned terms for relative positions.

arXiv 2308.03429 (RCMHA; official code MIT). Queries, keys and values each pass through a depthwise convolution over
time, whose kernels are shared by the heads. With P = `reach`, the scores are

    s_ij = scale [ (q_i + u)·k_j + q_i·r_{P + j - i} + b_{P + j - i} ]

The scale also multiplies the relative terms. Distances above P use the outermost terms.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .dense import dense_attention, visible_keys
from .mixer import ALL_PATTERNS, CC, CS, NS, Mixed, Pattern, check_call, key_mask, mixing
from .softmax import attention


class RelativeConvolutionState(NamedTuple):
    """The tokens so far: filtered keys and values, and the last unfiltered tokens that the filters still need."""

    keys: Tensor  # (B, Hk, L, D)
    values: Tensor  # (B, Hk, L, Dv)
    tails: tuple[Tensor, Tensor, Tensor]  # last unfiltered q, k and v, each (B, heads, kernel - 1, channels)


class RelativeConvolutionAttention(nn.Module):
    """Softmax attention of filtered tokens with relative terms, in all patterns.

    In causal self attention, the filters cover the tokens t - kernel + 1 ... t; without causality (ours), they are
    centred; in the causal cross pattern, the filter of the queries is causal. Masked tokens count as 0. The relative
    terms need a tensor of (B, H, Lq, Lk) in memory.

    A causal call returns a `RelativeConvolutionState`, from which a later call can continue; then q, k and v hold only
    the new tokens, and the mask covers all tokens. Keys may also begin before the queries (q_start), as with a memory
    segment.

    Args:
        heads: number of query heads.
        channels: channels of queries and keys of a head, D.
        value_channels: channels of values of a head; D if None.
        kernel: number of taps of a filter, odd.
        reach: largest distance P with its own terms; 4096 in the paper.
        scale: factor on the scores; 1 / sqrt(D) if None.

    Initially, the filters are the identity and all relative terms are 0, which gives plain attention.
    """

    patterns = ALL_PATTERNS
    v_linear = False  # each channel of the values has its own filter

    def __init__(
        self,
        heads: int,
        channels: int,
        *,
        value_channels: int | None = None,
        kernel: int = 3,
        reach: int = 4096,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0 or reach < 1:
            raise ValueError(f"kernel must be odd and reach at least 1, got {kernel} and {reach}")
        self.kernel, self.reach = kernel, reach
        self.scale = channels**-0.5 if scale is None else scale
        widths = (channels, channels, channels if value_channels is None else value_channels)
        self.filters = nn.ParameterList(nn.Parameter(torch.zeros(width, kernel)) for width in widths)
        self.filter_biases = nn.ParameterList(nn.Parameter(torch.zeros(width)) for width in widths)
        self.content = nn.Parameter(torch.zeros(heads, channels))  # u
        self.relative = nn.Parameter(torch.zeros(2 * reach, heads, channels))  # r
        self.relative_bias = nn.Parameter(torch.zeros(2 * reach, heads))  # b
        self._identity(causal=True)

    def _identity(self, *, causal: bool) -> None:
        for taps in self.filters:
            taps.data.zero_()
            taps.data[:, -1 if causal else self.kernel // 2] = 1

    def centre(self) -> "RelativeConvolutionAttention":
        """Set the filters to the identity of the patterns without causality, whose tap is the centre one."""
        self._identity(causal=False)
        return self

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
        state: RelativeConvolutionState | None = None,
    ) -> Mixed[RelativeConvolutionState, None]:
        if state is not None:
            if pattern is not CS or q_start is not None:
                raise ValueError(
                    f"state needs causal self attention and replaces q_start, got {pattern.value} and q_start {q_start}"
                )
            start = state.keys.shape[2]
            check_call(self, q, k, v, pattern, None)
        else:
            start = check_call(self, q, k, v, pattern, q_start)
        wide = torch.promote_types(q.dtype, torch.float32)
        before = 0 if state is None else start
        new_keys = torch.cat([k.new_zeros(*k.shape[:2], before, k.shape[3]), k], 2)
        seen = key_mask(mask, new_keys)
        live = seen[:, None, before:, None]
        asked: Tensor | bool = seen[:, None, start : start + q.shape[2], None] if pattern in (NS, CS) else True
        tokens = [q.to(wide) * asked, k.to(wide) * live, v.to(wide) * live]
        tails = None if state is None else state.tails
        query = self._filtered(0, tokens[0], causal=pattern in (CS, CC), tail=tails and tails[0])
        keys, values = (self._filtered(n, tokens[n], causal=pattern is CS, tail=tails and tails[n]) for n in (1, 2))
        after = None
        if state is not None:
            keys, values = torch.cat([state.keys, keys], 2), torch.cat([state.values, values], 2)
        if pattern is CS:
            kept = self.kernel - 1
            old = [x.new_zeros(*x.shape[:2], kept, x.shape[3]) for x in tokens] if tails is None else tails
            joined = (torch.cat([a, x], 2) for a, x in zip(old, tokens, strict=True))
            ends = [x[:, :, x.shape[2] - kept :] for x in joined]
            after = RelativeConvolutionState(keys, values, (ends[0], ends[1], ends[2]))
        bias = self._relative_terms(query, start, keys.shape[2])
        query = query + self.content.to(wide).unsqueeze(1)
        out = attention(
            query, keys, values, mask=mask, bias=bias, causal=pattern is CS, q_start=start, scale=self.scale
        )
        return Mixed(out.to(q.dtype), state=after)

    def _filtered(self, which: int, x: Tensor, *, causal: bool, tail: Tensor | None) -> Tensor:
        if not x.shape[2]:
            return x
        taps, bias = self.filters[which].to(x), self.filter_biases[which].to(x)
        if causal and tail is not None:
            x = torch.cat([tail, x], 2)
        else:
            both = (self.kernel - 1, 0) if causal else (self.kernel // 2, self.kernel // 2)
            x = F.pad(x, (0, 0, *both))
        signal = x.mT.flatten(0, 1)  # (B heads, channels, time)
        filtered = F.conv1d(signal, taps.unsqueeze(1), bias, groups=len(taps))
        back: Tensor = filtered.unflatten(0, x.shape[:2])
        return back.mT

    def _relative_terms(self, query: Tensor, start: int, n_keys: int) -> Tensor:
        n_queries = query.shape[2]
        ahead = torch.arange(n_keys, device=query.device) - torch.arange(n_queries, device=query.device).unsqueeze(1)
        place = (self.reach + ahead - start).clamp(0, 2 * self.reach - 1)  # (Lq, Lk)
        if not place.numel():
            return query.new_zeros(n_queries, n_keys)
        low, high = int(place.min()), int(place.max()) + 1  # the distances that occur
        terms = torch.einsum("bhid,phd->bhip", query, self.relative[low:high].to(query))
        terms = terms + self.relative_bias[low:high].to(query).mT.unsqueeze(1)
        return self.scale * terms.gather(-1, (place - low).expand(*query.shape[:3], n_keys))


def reference(
    mixer: RelativeConvolutionAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    pattern: Pattern = NS,
    q_start: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """Filters computed tap by tap, relative terms entry by entry, and softmax over the explicit scores."""
    live = visible_keys(1, k, mask=mask).mT  # (B, 1, Lk, 1)
    sources = [q * (live[:, :, q_start : q_start + q.shape[2]] if pattern in (NS, CS) else 1), k * live, v * live]
    filtered = []
    for n, x in enumerate(sources):
        causal = pattern is CS or (pattern is CC and n == 0)
        first = mixer.kernel - 1 if causal else mixer.kernel // 2
        total = mixer.filter_biases[n].expand(x.shape)
        for tap in range(mixer.kernel):
            moved = torch.zeros_like(x)
            for t in range(x.shape[2]):
                if 0 <= t + tap - first < x.shape[2]:
                    moved[:, :, t] = x[:, :, t + tap - first]
            total = total + mixer.filters[n][:, tap] * moved
        filtered.append(total)
    query, keys, values = filtered
    rows = []
    for i in range(q.shape[2]):
        at = [min(max(mixer.reach + j - i - q_start, 0), 2 * mixer.reach - 1) for j in range(k.shape[2])]
        rows.append(torch.einsum("bhd,jhd->bhj", query[:, :, i], mixer.relative[at]) + mixer.relative_bias[at].mT)
    bias = mixer.scale * torch.stack(rows, 2)
    visible = visible_keys(q.shape[2], k, causal=pattern is CS, q_start=q_start, mask=mask)
    query = query + mixer.content.unsqueeze(1)
    return dense_attention(query, keys, values, visible, bias=bias, scale=mixer.scale)
