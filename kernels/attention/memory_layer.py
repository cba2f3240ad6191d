"""Layers that combine a neural memory with attention over the recent past.

Behrouz, Zhong and Mirrokni 2025 (Titans, arXiv 2501.00663), section 4: memory as a gate, as a layer, or as a context.
Persistent tokens are learned keys and values to which every query attends.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .finite import as_nan, without_unfit
from .mixer import CS
from .neural_memory import NeuralMemory, NeuralMemoryState
from .parts import HIDDEN, Part, attend_parts
from .softmax import attention


class PersistentTokens(NamedTuple):
    """Learned keys and values to which every query attends."""

    keys: Tensor  # (H, P, D)
    values: Tensor  # (H, P, Dv)


def sliding_window_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, persistent: PersistentTokens | None = None
) -> Tensor:
    """Causal softmax attention to the last `window` tokens, including the token itself, and to persistent tokens.

    Args:
        q: (B, H, L, D).
        k: (B, H, L, D).
        v: (B, H, L, Dv).
        window: number of tokens in the window.
        persistent: tokens to which all queries attend.

    Returns:
        (B, H, L, Dv), in O(L window D); NaN where the window holds a key or value that is not finite.
    """
    batch, heads, length, channels = q.shape
    if not length:
        return torch.zeros_like(v)
    k, v, unfit = without_unfit(k, v)
    padding = -length % window
    rows, keys, values = (F.pad(x, (0, 0, 0, padding)).unflatten(2, (-1, window)).flatten(0, 1) for x in (q, k, v))
    blocks = rows.shape[1]
    parts = [Part(rows, keys, values, causal=True)]
    if blocks > 1 and window > 1:  # in the previous block, query i may attend to the keys after i
        reach = torch.full((window, window), HIDDEN, dtype=q.dtype, device=q.device).tril()
        parts.append(Part(rows[:, 1:], keys[:, :-1], values[:, :-1], slice(1, blocks), False, reach))
    if persistent is not None and persistent.keys.shape[1]:
        k_fixed, v_fixed = (
            x.to(q).expand(batch, -1, -1, -1).flatten(0, 1).unsqueeze(1).expand(-1, blocks, -1, -1) for x in persistent
        )
        parts.append(Part(rows, k_fixed, v_fixed))
    out = attend_parts(parts, blocks, scale=channels**-0.5)
    by_head: Tensor = out.flatten(1, 2)[:, :length].unflatten(0, (batch, heads))
    if unfit is None:
        return by_head
    so_far = unfit.tokens.cumsum(-1)
    return as_nan(by_head, so_far > F.pad(so_far, (window, 0))[..., :length])


class MemoryLayer(nn.Module):
    """A causal layer that combines attention with a neural memory.

    - "gate": attention over a sliding window, multiplied by the sigmoid of the normalised memory branch.
    - "layer": the memory, followed by attention over a sliding window of its outputs.
    - "context": segments of `window` tokens are processed one after the other. A segment attends to the persistent
      tokens, to the values that the memory recalls for its tokens, and causally to itself; the memory then reads and
      writes the result and gates it.

    Args:
        dim: channels.
        heads: number of heads, which divides dim.
        join: the kind of combination, see above.
        window: number of tokens in the window or segment.
        persistent: number of persistent tokens.
        chunk: chunk length of the memory.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        join: Literal["gate", "layer", "context"] = "gate",
        window: int = 64,
        persistent: int = 4,
        chunk: int = 16,
    ) -> None:
        super().__init__()
        if dim % heads or window < 1 or join not in ("gate", "layer", "context"):
            raise ValueError(
                'heads must divide dim, window be at least 1 and join "gate", "layer" or "context", '
                f'got {heads} of {dim}, {window} and "{join}"'
            )
        channels = dim // heads
        self.heads, self.join, self.window = heads, join, window
        self.memory = NeuralMemory(heads, channels, chunk=chunk)
        self.memory_projection = nn.Linear(dim, 3 * dim, bias=False)
        self.attention_projection = nn.Linear(dim, 3 * dim, bias=False)
        self.persistent_keys = nn.Parameter(torch.randn(heads, persistent, channels))
        self.persistent_values = nn.Parameter(torch.randn(heads, persistent, channels))
        self.memory_norm = nn.RMSNorm(dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, dim) -> (B, L, dim); the output of a token does not depend on later tokens."""
        if self.join == "gate":
            mixed = self._near(x) * self.memory_norm(self._remembered(x)).sigmoid()
        elif self.join == "layer":
            mixed = self._near(self.memory_norm(self._remembered(x)))
        else:
            outs, state = [], None
            for segment in x.split(self.window, 1):
                out, state = self._segment(segment, state)
                outs.append(out)
            mixed = torch.cat(outs, 1)
        projected: Tensor = self.output(mixed)
        return projected

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in projected.chunk(3, -1))
        return q, k, v

    def _near(self, x: Tensor) -> Tensor:
        persistent = PersistentTokens(self.persistent_keys, self.persistent_values)
        out = sliding_window_attention(*self._split(self.attention_projection(x)), self.window, persistent)
        return out.transpose(1, 2).flatten(2)

    def _remembered(self, x: Tensor) -> Tensor:
        out: Tensor = self.memory(*self._split(self.memory_projection(x)), pattern=CS).out
        return out.transpose(1, 2).flatten(2)

    def _segment(self, x: Tensor, state: NeuralMemoryState | None) -> tuple[Tensor, NeuralMemoryState]:
        asked, _, _ = self._split(self.memory_projection(x))
        state = self.memory.empty(asked, asked.shape[3]) if state is None else state
        recalled = self.memory.recall(asked, state).transpose(1, 2).flatten(2)
        q, k, v = self._split(self.attention_projection(x))
        _, k_old, v_old = self._split(self.attention_projection(recalled))
        fixed = (p.to(x).expand(len(x), -1, -1, -1) for p in (self.persistent_keys, self.persistent_values))
        keys, values = (torch.cat(parts, 2) for parts in zip(fixed, (k_old, v_old), (k, v), strict=True))
        earlier = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        always = earlier.new_ones(x.shape[1], self.persistent_keys.shape[1])
        mixed = attention(q, keys, values, mask=torch.cat([always, earlier, earlier], 1)).transpose(1, 2).flatten(2)
        written = self.memory(*self._split(self.memory_projection(mixed)), pattern=CS, state=state)
        gate = self.memory_norm(written.out.transpose(1, 2).flatten(2)).sigmoid()
        assert written.state is not None
        return mixed * gate, written.state


def reference(layer: MemoryLayer, x: Tensor) -> Tensor:
    """The attention of "gate" and "layer", with the window as an explicit mask over all tokens and persistent ones."""
    q, k, v = layer._split(layer.attention_projection(x))
    keys = torch.cat([layer.persistent_keys.expand(len(x), -1, -1, -1), k], 2)
    values = torch.cat([layer.persistent_values.expand(len(x), -1, -1, -1), v], 2)
    age = torch.arange(x.shape[1]).unsqueeze(1) - torch.arange(x.shape[1])
    near = (age >= 0) & (age < layer.window)
    seen = torch.cat([near.new_ones(x.shape[1], layer.persistent_keys.shape[1]), near], 1)
    scores = (q @ keys.mT * q.shape[3] ** -0.5).masked_fill(~seen, -torch.inf)
    out: Tensor = scores.softmax(-1) @ values
    return out.transpose(1, 2).flatten(2)
