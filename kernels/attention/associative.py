"""Linear attention as an associative memory: keys write their values to the memory, and queries read from it.

Li et al. 2025 (arXiv 2508.08289); Katharopoulos et al. 2020 (arXiv 2006.16236) for the features elu + 1; Yang et al.
2024 (arXiv 2406.06484) for the delta rule in chunks. With features phi, S_t = S_{t-1} + phi(k_t) v_t^T and
z_t = z_{t-1} + phi(k_t), a query reads phi(q)^T S / phi(q)·z. The write rules are:

    hebb   S + phi(k) v^T          decay  a_t S + phi(k) v^T          delta  S + rate phi(k) (v - S^T phi(k))^T
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .gated_scan import decaying_memory
from .mixer import ALL_PATTERNS, CS, NS, Mixed, Pattern, check_call, key_mask, mixing, spread_heads
from .selection import to_blocks

Feature = Literal["identity", "elu", "taylor", "exp"]


class AssociativeState(NamedTuple):
    """The memory after the tokens so far."""

    memory: Tensor  # (B, H, features, Dv, or Dv + 1 with the sums z in the last column)


def taylor_features(x: Tensor) -> Tensor:
    """Features whose product is 1 + s + s^2 / 2 with s = x·y: [1, x, x_i^2 / sqrt 2, x_i x_j for i < j].

    Each pair occurs once, with a weight that makes the product equal to that of [1, x, vec(x x^T) / sqrt 2].

    Example:
        >>> x, y = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
        >>> round(float(taylor_features(x) @ taylor_features(y)), 4)  # s = -1.5
        0.625
    """
    i, j = torch.triu_indices(x.shape[-1], x.shape[-1], device=x.device)
    pairs = x[..., i] * x[..., j] * torch.where(i == j, x.new_tensor(0.5).sqrt(), x.new_tensor(1.0))
    return torch.cat([torch.ones_like(x[..., :1]), x, pairs], -1)


def exp_features(x: Tensor, count: int, seed: int) -> Tensor:
    """Positive random features whose product is exp(x·y) in expectation (Choromanski et al. 2021, arXiv 2009.14794)."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(x.shape[-1], count, generator=generator).to(x)
    features: Tensor = (x @ directions - x.square().sum(-1, keepdim=True) / 2).exp() * count**-0.5
    return features


@dataclass(frozen=True)
class AssociativeMemory:
    """Linear attention with a choice of features and of the write rule. Sums are kept in float32 or wider.

    Rule "hebb" supports all patterns; "decay" and "delta" depend on the order of tokens and support causal self
    attention only. The cost is O(L F Dv) with F features: D for "identity" and "elu", 1 + D + D (D + 1) / 2 for
    "taylor". Causal calls return an `AssociativeState`, from which a later call can continue.

    Args:
        feature: features of keys and queries. "taylor" and "exp" approximate softmax attention with scale 1 / sqrt(D):
            "taylor" with an error O(s^3), "exp" in expectation.
        rule: the write rule.
        normalise: divide by phi(q)·z, so that rows of the weights sum to 1; needs positive features and rule "hebb"
            or "decay". None normalises unless the feature is "identity" or the rule is "delta".
        decay: factor on the memory at each token, one number or one for each head; a call may give `log_decay` instead.
        rate: learning rate of the delta rule, which divides the features of a key by their norm.
        count: number of "exp" features.
        seed: seed of the "exp" features.
    """

    v_linear: ClassVar[bool] = True

    feature: Feature = "elu"
    rule: Literal["hebb", "decay", "delta"] = "hebb"
    normalise: bool | None = None
    decay: float | tuple[float, ...] = 0.97
    rate: float = 1.0
    count: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.normalise and (self.feature == "identity" or self.rule == "delta"):
            raise ValueError("normalise needs positive features and the rule hebb or decay")
        decays = self.decay if isinstance(self.decay, tuple | list) else (self.decay,)
        if self.count < 1 or not self.rate >= 0 or not all(0 < decay <= 1 for decay in decays):
            raise ValueError(
                "count must be at least 1, rate not negative and decay above 0 and at most 1, "
                f"got {self.count}, {self.rate} and {self.decay}"
            )

    @property
    def patterns(self) -> frozenset[Pattern]:
        """All four patterns for rule "hebb", otherwise causal self attention."""
        return ALL_PATTERNS if self.rule == "hebb" else frozenset({CS})

    @property
    def is_normalised(self) -> bool:
        """Whether outputs are divided by phi(q)·z."""
        return self.feature != "identity" and self.rule != "delta" if self.normalise is None else self.normalise

    def features(self, x: Tensor) -> Tensor:
        """The features phi of queries or keys, (..., F)."""
        if self.feature == "elu":
            return x.clamp_max(0).exp() + x.relu()  # elu + 1; PyTorch's elu takes five times as long
        if self.feature == "taylor":
            return taylor_features(x * x.shape[-1] ** -0.25)
        if self.feature == "exp":
            return exp_features(x * x.shape[-1] ** -0.25, self.count, self.seed)
        return x

    @mixing
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        pattern: Pattern = NS,
        q_start: int | None = None,
        mask: Tensor | None = None,
        log_decay: Tensor | None = None,
        state: AssociativeState | None = None,
    ) -> Mixed[AssociativeState, None]:
        """See `Mixer`; `log_decay` (B, H, L), at most 0, replaces the constant decay of rule "decay"."""
        check_call(self, q, k, v, pattern, q_start)
        if q_start or ((state is not None or log_decay is not None) and pattern is not CS):
            raise ValueError(f"state and log_decay need causal self attention with q_start 0, got {pattern.value}")
        wide = torch.promote_types(q.dtype, torch.float32)
        heads = q.shape[1]
        query, keys = self.features(q.to(wide)), self.features(spread_heads(k, heads).to(wide))
        if self.rule == "delta":
            keys = F.normalize(keys, dim=-1)  # rate |k|^2 > 2 would diverge
        keys = keys * key_mask(mask, k)[:, None, :, None]  # a key of zeros writes nothing
        values = spread_heads(v, heads).to(wide)
        if self.is_normalised:
            values = torch.cat([values, torch.ones_like(values[..., :1])], -1)
        after = None
        if pattern is not CS:
            out = query @ (keys.mT @ values)
        elif self.rule == "delta":
            out, memory = delta_memory(query, keys, values, self.rate, memory=None if state is None else state.memory)
            after = AssociativeState(memory)
        else:
            if log_decay is None and self.rule == "decay":
                log_decay = query.new_tensor(self.decay).log().view(1, -1, 1).expand(query.shape[:3])
            before = None if state is None else state.memory
            out, memory = decaying_memory(query, keys, values, log_decay, memory=before)
            after = AssociativeState(memory)
        if self.is_normalised:
            total = out[..., -1:]
            out = out[..., :-1] / total.masked_fill(total == 0, 1)
        return Mixed(out.to(q.dtype), state=after)


def delta_memory(
    q: Tensor, k: Tensor, v: Tensor, rate: float, *, memory: Tensor | None = None, chunk: int = 64
) -> tuple[Tensor, Tensor]:
    """out_t = q_t S_t with S_t = S_{t-1} + rate k_t (v_t - k_t S_{t-1}), which writes the error of the recalled value.

    Within a chunk, the written values u solve (I + rate tril(K K^T, -1)) u = rate (V - K S_0).

    Args:
        q: (..., L, D).
        k: (..., L, D); rate |k|^2 > 2 makes the memory diverge.
        v: (..., L, Dv).
        rate: step size; with 1 and keys of norm 1, the last written pair is recalled exactly.
        memory: (..., D, Dv), memory before the first token; 0 if not given.
        chunk: tokens in a block.

    Returns:
        out (..., L, Dv) and the memory after the last token (..., D, Dv).
    """
    state = q.new_zeros(*q.shape[:-2], q.shape[-1], v.shape[-1]) if memory is None else memory
    length = q.shape[-2]
    if not length:
        return q @ state, state
    chunk = min(chunk, length)  # a single step of a stream needs no full block
    queries, keys, values = (to_blocks(x, chunk) for x in (q, k, v))
    eye = torch.eye(chunk, dtype=q.dtype, device=q.device)
    inverse = torch.linalg.solve_triangular(
        eye + rate * (keys @ keys.mT).tril(-1), rate * eye.expand(*keys.shape[:-1], chunk), upper=False
    )
    from_values, from_keys = inverse @ values, inverse @ keys
    scores = (queries @ keys.mT).tril()
    outs = []
    chunks = zip(*(x.unbind(-3) for x in (queries, keys, from_values, from_keys, scores)), strict=True)
    for query, key, value_part, key_part, score in chunks:
        written = value_part - key_part @ state
        outs.append(query @ state + score @ written)
        state = state + key.mT @ written
    return torch.cat(outs, -2)[..., :length, :], state


def reference(
    mixer: AssociativeMemory,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    pattern: Pattern = NS,
    q_start: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """Explicit weights phi(q) phi(k)^T with mask and decay; for the delta rule, one token at a time."""
    shared, channels = q.shape[1] // k.shape[1], q.shape[3]
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    live = torch.ones(k.shape[0], 1, k.shape[2], 1) if mask is None else mask.mT.to(k)
    if mixer.rule == "delta":
        state, outs = torch.zeros(*q.shape[:2], channels, v.shape[3], dtype=q.dtype), []
        phi_q, phi_k = (torch.where(x > 0, x + 1, x.exp()) if mixer.feature == "elu" else x for x in (q, k))
        for t in range(q.shape[2]):
            key = phi_k[:, :, t] / phi_k[:, :, t].square().sum(-1, keepdim=True).sqrt() * live[:, :, t]
            error = v[:, :, t] - (key.unsqueeze(2) @ state).squeeze(2)
            state = state + mixer.rate * key.unsqueeze(3) * error.unsqueeze(2)
            outs.append((phi_q[:, :, t].unsqueeze(2) @ state).squeeze(2))
        return torch.stack(outs, 2)
    if mixer.feature == "taylor":
        s = q @ k.mT / channels**0.5
        weights = 1 + s + s * s / 2
    elif mixer.feature == "exp":
        w = torch.randn(channels, mixer.count, generator=torch.Generator().manual_seed(mixer.seed)).to(q)
        q, k = q / channels**0.25, k / channels**0.25
        sides = [torch.exp(x @ w) / torch.exp((x * x).sum(-1, keepdim=True) / 2) for x in (q, k)]
        weights = sides[0] @ sides[1].mT / mixer.count
    elif mixer.feature == "elu":
        weights = torch.where(q > 0, q + 1, q.exp()) @ torch.where(k > 0, k + 1, k.exp()).mT
    else:
        weights = q @ k.mT
    weights = weights * live.mT
    if pattern is CS:
        weights = weights.tril()
        if mixer.rule == "decay":
            age = torch.arange(q.shape[2]).unsqueeze(1) - torch.arange(q.shape[2])
            weights = weights * torch.as_tensor(mixer.decay, dtype=q.dtype).view(1, -1, 1, 1) ** age.clamp_min(0)
    if mixer.is_normalised:
        weights = weights / (weights.sum(-1, keepdim=True) + (weights.sum(-1, keepdim=True) == 0))
    out: Tensor = weights @ v
    return out
