"""What the heads of a trained network do on its inputs: importance, patterns, sinks and the dictionary."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...attention_analysis.dictionary import make_dictionary
from ...attention_analysis.edits import intervene, remove_heads
from ...attention_analysis.importance import Interval, bootstrap, heads_of, jensen_shannon, random_orders
from ...attention_analysis.indicators import causal_keys, concentration, entropy, first_key_share, is_causal
from ...attention_analysis.sinks import attention_sinks
from ...attention_analysis.trace import Head, record_run
from .subject import Subject

_SIZE = 24  # side of a mean map
_RANDOM = 5  # random orders of removal


class HeadRow(NamedTuple):
    """One head."""

    head: Head
    importance: Interval  # divergence in bits of the decisions without it, mean over inputs
    changed: float  # share of decisions that change
    entropy: float  # 0 to 1; NaN without a map
    concentration: float  # Frobenius norm over the root of the number of rows, 0 to 1
    first: float  # weight on the first token
    sinks: str  # the places that are sinks in most inputs
    pattern: int | None  # number in the dictionary
    map: Tensor | None  # (24, 24), mean over the inputs


class Removal(NamedTuple):
    """Share of unchanged decisions with 0, 1, 2, ... heads removed."""

    largest_first: list[float]
    smallest_first: list[float]
    random: list[float]  # mean of random orders


@torch.no_grad()
def describe_heads(subject: Subject) -> list[HeadRow]:
    """Measure every head on all inputs."""
    heads = heads_of(subject.model)
    full = [case.run() for case in subject.cases]
    importance, changed = {}, {}
    for head in heads:
        with intervene(subject.model, remove_heads(subject.model, [head])):
            without = [case.run() for case in subject.cases]
        bits = [float(jensen_shannon(a, b).mean()) for a, b in zip(full, without, strict=True)]
        importance[head] = bootstrap(torch.tensor(bits))
        changed[head] = 1 - _agreement(full, without)
    figures, maps, sinks = _patterns(subject)
    labels: dict[Head, int] = {}
    if len(maps) >= 3:
        found = make_dictionary(torch.stack(list(maps.values())), steps=200, most_clusters=6)
        labels = dict(zip(maps, found.labels.tolist(), strict=True))
    rows = []
    for head in heads:
        spread, focus, first = torch.tensor(figures.get(head, [[torch.nan] * 3])).nanmean(0).tolist()
        known = importance[head], changed[head], spread, focus, first
        rows.append(HeadRow(head, *known, sinks.get(head, ""), labels.get(head), maps.get(head)))
    return rows


@torch.no_grad()
def removal(subject: Subject, rows: list[HeadRow]) -> Removal:
    """Remove heads one after the other, in the order of importance, in reverse and at random."""
    full = [case.run() for case in subject.cases]
    order = [row.head for row in sorted(rows, key=lambda row: -row.importance.mean)]
    marks = sorted({round(len(order) * part / 12) for part in range(13)})

    def curve(heads: list[Head]) -> list[float]:
        found = []
        for count in marks:
            with intervene(subject.model, remove_heads(subject.model, heads[:count])):
                found.append(_agreement(full, [case.run() for case in subject.cases]))
        return found

    random = torch.tensor([curve(one) for one in random_orders(order, _RANDOM)], dtype=torch.float64)
    return Removal(curve(order), curve(order[::-1]), random.mean(0).tolist())


def removal_counts(count: int) -> list[int]:
    """The numbers of removed heads at which `removal` measures."""
    return sorted({round(count * part / 12) for part in range(13)})


def _agreement(full: Iterable[Tensor], other: Iterable[Tensor]) -> float:
    same = [(a.argmax(1) == b.argmax(1)).double().mean() for a, b in zip(full, other, strict=True)]
    return float(torch.stack(same).mean())


def _patterns(subject: Subject) -> tuple[dict[Head, list[list[float]]], dict[Head, Tensor], dict[Head, str]]:
    """Indicators per input, mean maps, and sinks of each head with a map."""
    figures: dict[Head, list[list[float]]] = {}
    sums: dict[Head, Tensor] = {}
    places: dict[Head, Counter[str]] = {}
    for case in subject.cases:
        for call in record_run(subject.model, case.run).calls:
            if call.weights is None or min(call.weights.shape[-2:]) < 2:
                continue
            a = call.weights.double().mean(0)  # (H, Lq, Lk)
            causal = is_causal(a)
            visible = causal_keys(a.shape[-1]) if causal else None
            measured = torch.stack([entropy(a, visible), concentration(a) / a.shape[-2] ** 0.5, first_key_share(a)], -1)
            marked = attention_sinks(a, causal=causal)
            small = F.interpolate(a.unsqueeze(1), size=(_SIZE, _SIZE), mode="area").squeeze(1)
            for h in range(len(a)):
                head = Head(call.layer, h)
                figures.setdefault(head, []).append(measured[h].tolist())
                sums[head] = sums.get(head, torch.zeros_like(small[h])) + small[h]
                names = {_place(i, a.shape[-1]) for i in marked[h].nonzero().flatten().tolist()}
                places.setdefault(head, Counter()).update(names)
    maps = {head: total / len(figures[head]) for head, total in sums.items()}
    common = {
        head: ", ".join(name for name, count in found.most_common() if 2 * count > len(figures[head]))
        for head, found in places.items()
    }
    return figures, maps, common


def _place(index: int, count: int) -> str:
    return "first" if index == 0 else "last" if index == count - 1 else "inner"
