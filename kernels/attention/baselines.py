"""Softmax attention and efficient linear attention with the interface of the other mechanisms.

Both support all four patterns. `softmax.py` contains the computation and `reference.py` the plain versions.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .mixer import ALL_PATTERNS, CS, NS, Mixed, Pattern, check_call, in_one_type
from .reference import attention_reference, linear_attention_reference
from .softmax import LinearAttentionState, attention, linear_attention


@dataclass(frozen=True)
class SoftmaxAttention:
    """out_i = sum_j softmax_j(scale q_i·k_j + bias_ij) v_j, for comparison. Rows of the weights sum to 1."""

    patterns: ClassVar[frozenset[Pattern]] = ALL_PATTERNS
    v_linear: ClassVar[bool] = True

    scale: float | None = None
    with_lse: bool = False  # also return the log-sum-exp, for which the (Lq, Lk) scores are held in memory

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
        bias: Tensor | None = None,
    ) -> Mixed[None, None]:
        start = check_call(self, q, k, v, pattern, q_start)
        causal = pattern is CS
        if not self.with_lse:
            return Mixed(attention(q, k, v, mask=mask, bias=bias, causal=causal, q_start=start, scale=self.scale))
        out, lse = attention(
            q, k, v, mask=mask, bias=bias, causal=causal, q_start=start, scale=self.scale, return_lse=True
        )
        return Mixed(out, lse)


@dataclass(frozen=True)
class EfficientAttention:
    """Linear attention of Shen et al. 2021: softmax of queries over channels and of keys over tokens.

    Causal calls return a `LinearAttentionState`, from which a later call can continue. Rows of the weights sum to 1.
    """

    patterns: ClassVar[frozenset[Pattern]] = ALL_PATTERNS
    v_linear: ClassVar[bool] = True

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
        state: LinearAttentionState | None = None,
    ) -> Mixed[LinearAttentionState, None]:
        check_call(self, q, k, v, pattern, q_start)
        if pattern is not CS:
            if state is not None:
                raise ValueError(f"state needs causal self attention, got {pattern.value}")
            return Mixed(linear_attention(q, k, v, mask=mask))
        out, after = linear_attention(q, k, v, mask=mask, causal=True, state=state, return_state=True)
        return Mixed(out, state=after)


def reference(
    mixer: SoftmaxAttention | EfficientAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    pattern: Pattern = NS,
    q_start: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """The output of either mixer, one query row at a time."""
    if isinstance(mixer, EfficientAttention):
        return linear_attention_reference(q, k, v, mask=mask, causal=pattern is CS)[0]
    return attention_reference(q, k, v, mask=mask, causal=pattern is CS, q_start=q_start, scale=mixer.scale)[0]
