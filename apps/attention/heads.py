"""What the heads of a trained network do on its inputs: importance, patterns, sinks and the dictionary."""

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...attention_analysis.dictionary import make_dictionary
from ...attention_analysis.edits import intervene, remove_heads
from ...attention_analysis.importance import Interval, heads_of, random_orders
from ...attention_analysis.indicators import causal_keys, concentration, entropy, first_key_share, is_causal
from ...attention_analysis.sinks import relative_columns
from ...attention_analysis.trace import Head, record_run
from .subject import MOST_KEYS, Subject

_SIZE = 24  # side of a mean map
SINK = 5.0  # a token with more than this many times its part of uniform attention is a sink


class HeadRow(NamedTuple):
    """One head."""

    head: Head
    importance: Interval  # effect of its removal in the unit of the subject, mean over units, as all figures
    changed: Interval  # share of decisions that change
    entropy: Interval  # 0 to 1; NaN without a map
    concentration: Interval  # Frobenius norm over the root of the number of rows, 0 to 1
    first: Interval  # weight on the first token
    sinks: str  # the places that are sinks in most inputs
    pattern: int | None  # number in the dictionary
    map: Tensor | None  # (24, 24), mean over the inputs


class Removal(NamedTuple):
    """Share of unchanged decisions with 0, 1, 2, ... heads removed, mean over units."""

    largest_first: list[Interval]
    smallest_first: list[Interval]
    random: list[Interval]  # mean of random orders
    right: list[Interval]  # share of right decisions, largest effect first; empty if the true classes are not known


@torch.no_grad()
def describe_heads(subject: Subject) -> list[HeadRow]:
    """Measure every head on all inputs."""
    heads = heads_of(subject.model)
    full = [case.run() for case in subject.cases]
    importance, changed = {}, {}
    for head in heads:
        with intervene(subject.model, remove_heads(subject.model, [head])):
            without = [case.run() for case in subject.cases]
        pairs = list(zip(full, without, strict=True))
        importance[head] = subject.over([subject.effect.size(a, b) for a, b in pairs])
        changed[head] = subject.over([1 - subject.effect.unchanged(a, b) for a, b in pairs])
    figures, maps, sinks = _patterns(subject)
    labels: dict[Head, int] = {}
    if len(maps) >= 3:
        found = make_dictionary(torch.stack(list(maps.values())), steps=200, most_clusters=6)
        labels = dict(zip(maps, found.labels.tolist(), strict=True))
    rows = []
    for head in heads:
        own = figures.get(head, {})
        nothing = [torch.nan] * 3
        spread, focus, first = (
            subject.over([own.get(number, nothing)[i] for number in range(len(subject.cases))]) for i in range(3)
        )
        rest = sinks.get(head, ""), labels.get(head), maps.get(head)
        rows.append(HeadRow(head, importance[head], changed[head], spread, focus, first, *rest))
    return rows


@torch.no_grad()
def removal(subject: Subject, rows: list[HeadRow]) -> Removal:
    """Remove heads one after the other, in the order of importance, in reverse and at random."""
    full = [case.run() for case in subject.cases]
    order = [row.head for row in sorted(rows, key=lambda row: -row.importance.mean)]
    counts = removal_counts(len(order))
    labels = [case.label for case in subject.cases]
    known = bool(subject.classes) and None not in labels
    measured: dict[frozenset[Head], tuple[list[float], list[float]]] = {}

    def after(heads: list[Head]) -> tuple[list[float], list[float]]:
        """Share of unchanged decisions and, if the classes are known, right or wrong, for each input."""
        if (removed := frozenset(heads)) not in measured:
            with intervene(subject.model, remove_heads(subject.model, heads)):
                found = [case.run() for case in subject.cases]
            same = [subject.effect.unchanged(a, b) for a, b in zip(full, found, strict=True)]
            right = [float(one.argmax(1)[0] == c) for one, c in zip(found, labels, strict=True)] if known else []
            measured[removed] = same, right
        return measured[removed]

    def curve(heads: list[Head]) -> list[Interval]:
        return [subject.over(after(heads[:count])[0]) for count in counts]

    shuffled = random_orders(order, subject.random_orders)
    random = [torch.tensor([after(one[:count])[0] for one in shuffled]).mean(0).tolist() for count in counts]
    right = [subject.over(after(order[:count])[1]) for count in counts] if known else []
    return Removal(curve(order), curve(order[::-1]), [subject.over(one) for one in random], right)


def removal_counts(count: int) -> list[int]:
    """The numbers of removed heads at which `removal` measures."""
    return sorted({round(count * part / 12) for part in range(13)})


def _patterns(
    subject: Subject,
) -> tuple[dict[Head, dict[int, list[float]]], dict[Head, Tensor], dict[Head, str]]:
    """Indicators of each input, mean maps, and sinks of each head with a map."""
    figures: dict[Head, dict[int, list[float]]] = {}
    sums: dict[Head, Tensor] = {}
    places: dict[Head, Counter[str]] = {}
    for number, case in enumerate(subject.cases):
        for call in record_run(subject.model, case.run, most_keys=MOST_KEYS).calls:
            if call.weights is None or min(call.weights.shape[-2:]) < 2:
                continue
            a = call.weights.double().mean(0)  # (H, Lq, Lk)
            causal = is_causal(a)
            visible = causal_keys(a.shape[-1]) if causal else None
            measured = torch.stack([entropy(a, visible), concentration(a) / a.shape[-2] ** 0.5, first_key_share(a)], -1)
            received = relative_columns(a, causal=causal)
            if call.received is not None:
                received = call.received.double().mean(0) * a.shape[-1]
            marked = received > SINK
            small = F.interpolate(a.unsqueeze(1), size=(_SIZE, _SIZE), mode="area").squeeze(1)
            for h in range(len(a)):
                head = Head(call.layer, h)
                figures.setdefault(head, {})[number] = measured[h].tolist()
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
