"""Graph-window attention: a token attends to the tokens within a number of hops in a graph.

arXiv 2505.02130. With adjacency matrix G, the window of k hops is [(G + G^T + I)^k > 0]. With k = 0, a token attends to
itself only; in a connected graph, k of at least the diameter gives plain attention; the components of a graph that is
not connected never attend to each other. The paper trains with a few hops and evaluates with all tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .dense import dense_attention, visible_keys
from .mixer import CS, NC, NS, Mixed, Pattern, check_call, in_one_type
from .softmax import attention


@dataclass(frozen=True, eq=False)
class GraphWindowAttention:
    """Softmax attention within a number of hops. Rows of the weights sum to 1.

    Causal self attention keeps the lower triangle of the window (`uni` in the paper); hops may still lead through later
    tokens. In cross attention (ours), the first queries are the nodes of the same graph.

    Args:
        graph: bool (n, n) or (B, n, n), edges between the tokens in any direction; n is at least the number of tokens.
        hops: reach of a token in hops; None lets every token attend to all, also between unconnected components.
        everywhere: indices of tokens that attend to all tokens and to which all attend, such as a class token.
        softness: if given (ours), this value is subtracted from the score for each hop; tokens beyond `hops` and in
            unconnected components remain hidden.
        scale: factor on the scores; 1 / sqrt(D) if None.
    """

    patterns: ClassVar[frozenset[Pattern]] = frozenset({NS, CS, NC})
    v_linear: ClassVar[bool] = True

    graph: Tensor
    hops: int | None = 1
    everywhere: tuple[int, ...] = ()
    softness: float | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.graph.dim() not in (2, 3) or self.graph.shape[-1] != self.graph.shape[-2]:
            raise ValueError(f"graph must have shape (n, n) or (B, n, n), got {tuple(self.graph.shape)}")
        if self.hops is not None and self.hops < 0:
            raise ValueError(f"hops must not be negative, got {self.hops}")

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
        stop = start + q.shape[2]
        if max(stop, k.shape[2]) > self.graph.shape[-1]:
            raise ValueError(
                f"graph must have a node for each of {max(stop, k.shape[2])} tokens, got {self.graph.shape[-1]}"
            )
        distance = self.distances()[..., start:stop, : k.shape[2]]  # (1 or B, 1, Lq, Lk)
        window = None
        if self.hops is not None:
            window = distance <= self.hops
        if self.softness is not None:
            soft = (-self.softness * distance.to(q.dtype)).masked_fill(distance == UNREACHED, -torch.inf)
            bias = soft if bias is None else bias + soft
        seen = mask if window is None or mask is None else mask & window
        seen = window if mask is None else seen
        return Mixed(attention(q, k, v, mask=seen, bias=bias, causal=pattern is CS, q_start=start, scale=self.scale))

    def distances(self) -> Tensor:
        """Number of hops between all tokens up to `hops`, (1 or B, 1, n, n); 0 for the tokens in `everywhere`."""
        distance = hop_distance(self.graph, longest=self.hops)
        for token in self.everywhere:
            distance[..., token, :] = 0
            distance[..., :, token] = 0
        return (distance if distance.dim() == 3 else distance.unsqueeze(0)).unsqueeze(1)


UNREACHED = torch.iinfo(torch.int64).max


def hop_distance(graph: Tensor, *, longest: int | None = None) -> Tensor:
    """Number of edges on the shortest path between two nodes, ignoring directions; `UNREACHED` if there is no path.

    Args:
        graph: bool (..., n, n).
        longest: paths with more edges count as no path, which saves time in large graphs.

    Returns:
        int64, of the same shape.

    Example:
        >>> path = torch.tensor([[0, 1, 0], [0, 0, 1], [0, 0, 0]]).bool()
        >>> hop_distance(path).tolist()
        [[0, 1, 2], [1, 0, 1], [2, 1, 0]]
    """
    nodes = graph.shape[-1]
    eye = torch.eye(nodes, dtype=torch.bool, device=graph.device)
    step = (graph.bool() | graph.bool().mT | eye).float()
    reached = eye.expand(graph.shape)
    distance = torch.full(graph.shape, UNREACHED, device=graph.device).masked_fill(eye, 0)
    for hops in range(1, nodes if longest is None else min(nodes, longest + 1)):
        further = reached.float() @ step > 0
        if torch.equal(further, reached):
            break
        distance = distance.masked_fill(further & ~reached, hops)
        reached = further
    return distance


def within_hops(graph: Tensor, hops: int) -> Tensor:
    """The window, bool (..., n, n): the pairs of tokens within this number of hops of each other."""
    return hop_distance(graph, longest=hops) <= hops


def reference(
    mixer: GraphWindowAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    pattern: Pattern = NS,
    q_start: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """Softmax attention with masks from explicit powers of G + G^T + I; with `softness`, a bias for each hop."""
    n = mixer.graph.shape[-1]
    joined = (mixer.graph.reshape(-1, n, n) + 0.0 + mixer.graph.reshape(-1, n, n).mT + torch.eye(n)) > 0
    powers = [torch.eye(n).expand_as(joined) > 0]
    for _ in range(n):
        powers.append((powers[-1].double() @ joined.double()) > 0)
    for power in powers:
        for token in mixer.everywhere:
            power[:, token, :] = True
            power[:, :, token] = True
    window = torch.ones_like(joined) if mixer.hops is None else powers[min(mixer.hops, n)]
    rows, columns = slice(q_start, q_start + q.shape[2]), slice(0, k.shape[2])
    visible = visible_keys(q.shape[2], k, causal=pattern is CS, q_start=q_start, mask=mask)
    bias = None
    if mixer.softness is not None:
        window = window & powers[-1]
        hops = torch.stack([~power for power in powers[:-1]]).sum(0)
        bias = -mixer.softness * hops[:, None, rows, columns].to(q)
    return dense_attention(q, k, v, visible & window[:, None, rows, columns], bias=bias, scale=mixer.scale)
