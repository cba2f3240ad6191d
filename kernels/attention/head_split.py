"""Different mechanisms in different heads, such as half of the heads local and half routed (arXiv 2003.05997)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor, nn

from .dense import dense_attention, visible_keys
from .memory_layer import sliding_window_attention
from .mixer import CS, NS, Mixed, Mixer, Pattern, check_call, in_one_type, spread_heads
from .softmax import attention


@dataclass(frozen=True)
class SlidingWindowAttention:
    """Causal softmax attention to the last `window` tokens, including the token itself; O(L window D).

    Args:
        window: number of tokens in the window.
    """

    patterns: ClassVar[frozenset[Pattern]] = frozenset({CS})
    v_linear: ClassVar[bool] = True

    window: int = 64

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")

    @in_one_type
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        pattern: Pattern = NS,
        q_start: int | None = None,
        mask: Tensor | None = None,
    ) -> Mixed[None, None]:
        start = check_call(self, q, k, v, pattern, q_start)
        if mask is None and not start and q.shape[2] == k.shape[2]:
            wide = torch.promote_types(q.dtype, torch.float32)
            keys, values = (spread_heads(x, q.shape[1]).to(wide) for x in (k, v))
            return Mixed(sliding_window_attention(q.to(wide), keys, values, self.window).to(q.dtype))
        first = max(0, start - self.window + 1)  # the keys that any of these queries sees
        age = torch.arange(q.shape[2], device=q.device).unsqueeze(1) + start
        age = age - torch.arange(first, k.shape[2], device=q.device)
        near = (age >= 0) & (age < self.window)
        seen = near if mask is None else near & mask[..., first:]
        return Mixed(attention(q, k[:, :, first:], v[:, :, first:], mask=seen))


class HeadSplit(nn.Module):
    """The first heads use the first mixer, the next heads the second mixer, and so on.

    The mixers must not need a state: the past must be in the keys and values.

    Args:
        mixers: the mechanisms; modules among them are trained with this module.
        heads: number of query heads of each mixer.
    """

    def __init__(self, mixers: Sequence[Mixer], heads: Sequence[int]) -> None:
        super().__init__()
        if len(mixers) != len(heads) or not mixers or min(heads) < 1:
            raise ValueError(f"heads must give a positive number for each of {len(mixers)} mixers, got {list(heads)}")
        self.mixers, self.heads = tuple(mixers), tuple(heads)
        self.modules_inside = nn.ModuleList(m for m in mixers if isinstance(m, nn.Module))

    @property
    def patterns(self) -> frozenset[Pattern]:
        """The patterns that all mixers support."""
        return frozenset.intersection(*(mixer.patterns for mixer in self.mixers))

    @property
    def v_linear(self) -> bool:
        """Whether the output of all mixers is linear in v."""
        return all(mixer.v_linear for mixer in self.mixers)

    @in_one_type
    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        pattern: Pattern = NS,
        q_start: int | None = None,
        mask: Tensor | None = None,
    ) -> Mixed[None, tuple[object, ...]]:
        """See `Mixer`; the extras are those of each mixer."""
        check_call(self, q, k, v, pattern, q_start)
        if sum(self.heads) != q.shape[1]:
            raise ValueError(f"q must have {sum(self.heads)} heads, {self.heads} for the mixers, got {q.shape[1]}")
        shared = q.shape[1] // k.shape[1]
        if any(count % shared for count in self.heads):  # the boundary of two mixers divides a group of query heads
            k, v, shared = spread_heads(k, q.shape[1]), spread_heads(v, q.shape[1]), 1
        parts = []
        for mixer, count, stop in zip(self.mixers, self.heads, accumulate(self.heads), strict=True):
            own = slice(stop - count, stop)
            of_keys = slice(own.start // shared, own.stop // shared)
            parts.append(mixer(q[:, own], k[:, of_keys], v[:, of_keys], pattern=pattern, q_start=q_start, mask=mask))
        return Mixed(torch.cat([part.out for part in parts], 1), extras=tuple(part.extras for part in parts))


def reference(
    mixer: SlidingWindowAttention | HeadSplit,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    pattern: Pattern = NS,
    q_start: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """The window as an explicit mask; for a split, each mixer is computed for all heads and its own heads are kept."""
    n_queries = q.shape[2]
    visible = visible_keys(n_queries, k, causal=pattern is CS, q_start=q_start, mask=mask)
    age = torch.arange(n_queries).unsqueeze(1) + q_start - torch.arange(k.shape[2])
    if isinstance(mixer, SlidingWindowAttention):
        return dense_attention(q, k, v, visible & (age < mixer.window))
    outs, stop = [], 0
    for inner, count in zip(mixer.mixers, mixer.heads, strict=True):
        window = inner.window if isinstance(inner, SlidingWindowAttention) else k.shape[2] + q_start + 1
        outs.append(dense_attention(q, k, v, visible & (age < window))[:, stop : stop + count])
        stop += count
    return torch.cat(outs, 1)
