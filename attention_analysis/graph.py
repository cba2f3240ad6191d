"""Attention against a graph of the tokens: electrodes that are neighbours, objects that stand near each other.

An idea after arXiv 2505.02130. `a` is a map (..., n, n), `adjacency` is bool (n, n).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.stats import ks_2samp, spearmanr, ttest_ind
from sklearn.metrics import roc_auc_score
from torch import Tensor

from .importance import jensen_shannon
from .indicators import graph_rings, ring_strength


class GraphFit(NamedTuple):
    """How well a map (n, n) follows a graph."""

    edge_auc: float  # the weights as a score for "is an edge", over pairs of different tokens; NaN without edges
    nearness: float  # Spearman correlation of the weight with -hops, over connected pairs
    divergence: float  # mean Jensen-Shannon divergence in bits of the rows and the row-normalised adjacency


class Difference(NamedTuple):
    """Two samples of a figure, such as a group before and after training."""

    kolmogorov_smirnov: float
    ks_p: float
    t: float
    t_p: float


def hop_profile(a: Tensor, adjacency: Tensor) -> Tensor:
    """(..., R): mean weight on a single token at 0, 1, 2, ... hops."""
    return ring_strength(a, graph_rings(adjacency)).per_token


def graph_fit(a: Tensor, adjacency: Tensor) -> GraphFit:
    """Compare a map (n, n) with a graph; rows of the graph without an edge do not count for the divergence."""
    edges = adjacency.bool()
    pairs = ~torch.eye(len(edges), dtype=torch.bool)
    truth, weight = edges[pairs].numpy(), a[pairs].double().numpy()
    auc = roc_auc_score(truth, weight) if 0 < truth.sum() < len(truth) else float("nan")
    hops = graph_rings(edges)
    reached = pairs & (hops > 0)
    far, near = hops[reached].numpy(), a[reached].double().numpy()
    constant = len(set(far)) < 2 or near.max() == near.min()
    nearness = float("nan") if constant else float(spearmanr(near, -far).statistic)
    rows = edges.any(1)
    target = edges[rows].to(a.dtype)
    divergence = jensen_shannon(a[rows], target / target.sum(-1, keepdim=True)).mean()
    return GraphFit(float(auc), nearness, float(divergence))


def compare(first: Tensor, second: Tensor) -> Difference:
    """Kolmogorov-Smirnov and Welch's t test of two samples, (N) and (M)."""
    ks = ks_2samp(first.numpy(), second.numpy())
    t = ttest_ind(first.numpy(), second.numpy(), equal_var=False)
    return Difference(float(ks.statistic), float(ks.pvalue), float(t.statistic), float(t.pvalue))


def rewired(adjacency: Tensor, degree: int, generator: torch.Generator) -> Tensor:
    """A changed copy of a graph, in four growing degrees.

    1 two neighbours of one node exchange their places; 2 two adjacent nodes do; 3 a quarter of the edges exchange their
    ends, so that each node keeps its number of edges; 4 the nodes are renumbered at random.
    """
    edges = adjacency.bool().clone()
    count = len(edges)
    if degree in (1, 2):
        hops = graph_rings(edges)
        pairs = torch.triu(hops == (2 if degree == 1 else 1), 1).nonzero()
        if not len(pairs):
            raise ValueError(f"a graph needs nodes {3 - degree} edges apart for degree {degree}")
        order = torch.arange(count)
        for i in torch.randperm(len(pairs), generator=generator).tolist():
            a, b = pairs[i].tolist()
            order = torch.arange(count)
            order[a], order[b] = b, a
            if not torch.equal(edges[order][:, order], edges):
                break
        return edges[order][:, order]
    if degree == 3:
        return _swap_ends(edges, generator)
    if degree == 4:
        order = torch.randperm(count, generator=generator)
        return edges[order][:, order]
    raise ValueError(f"degree must be 1, 2, 3 or 4, got {degree}")


def structure_test(
    output: Callable[[Tensor], Tensor], adjacency: Tensor, *, repeats: int = 10, seed: int = 0
) -> dict[int, float]:
    """degree -> mean relative change of the output when the graph is rewired; 0 for a model that ignores the graph.

    `output` runs the model with a graph.
    """
    plain = output(adjacency)
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for degree in (1, 2, 3, 4):
        changes = [(output(rewired(adjacency, degree, generator)) - plain).norm() for _ in range(repeats)]
        found[degree] = float(torch.stack(changes).mean() / plain.norm().clamp_min(1e-300))
    return found


def stripes(a: Tensor, adjacency: Tensor, *, times: float = 3.0, around: int = 2) -> list[int]:
    """Lags r at which the mean of a_{i, i - r} is more than `times` that of the diagonals around it, though no edges.

    A lag is left out if at least half of its pairs are edges. Negative lags are later tokens.
    """
    count = len(adjacency)
    means = {lag: float(a.diagonal(-lag).mean()) for lag in range(1 - count, count)}
    found = []
    for lag in range(2 - count, count - 1):
        near = [means[other] for other in range(lag - around, lag + around + 1) if other != lag and other in means]
        edges = adjacency.bool().diagonal(-lag).double().mean()
        if lag and edges < 0.5 and means[lag] > times * sum(near) / len(near):
            found.append(lag)
    return found


def _swap_ends(edges: Tensor, generator: torch.Generator) -> Tensor:
    wanted = max(1, int(edges.sum()) // 8)
    for _ in range(100 * wanted):
        pairs = torch.triu(edges, 1).nonzero()
        (a, b), (c, d) = pairs[torch.randperm(len(pairs), generator=generator)[:2]].tolist()
        if len({a, b, c, d}) == 4 and not edges[a, d] and not edges[c, b]:
            for x, y, on in ((a, b, False), (c, d, False), (a, d, True), (c, b, True)):
                edges[x, y] = edges[y, x] = on
            wanted -= 1
        if not wanted:
            break
    return edges
