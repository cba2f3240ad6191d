"""The fidelity of a mechanism's memory: random pairs are written and read back.

An idea after arXiv 2508.08289.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.attention.mixer import CS, NC, Mixer


class Fidelity(NamedTuple):
    """What is read back after n pairs have been written."""

    pairs: int
    cosine: float  # mean cosine of the read and the written value
    recall: float  # share of reads whose nearest written value is the right one


@torch.no_grad()
def memory_fidelity(
    mixer: Mixer, pairs: int, *, heads: int = 1, channels: int = 64, repeats: int = 8, seed: int = 0
) -> Fidelity:
    """Write n random pairs of unit length into a mechanism, and read each of them back by its key.

    The pairs are the visible keys of a call, and the queries are the keys again. Mechanisms that are causal only read
    after all pairs, at masked tokens, which write nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (repeats, heads, pairs, channels)
    keys, values = (torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1) for _ in range(2))
    if NC in mixer.patterns:
        read = mixer(keys, keys, values, pattern=NC).out
    else:
        none = torch.zeros_like(keys)
        mask = (torch.arange(2 * pairs) < pairs).view(1, 1, 1, -1)
        twice = torch.cat([keys, keys], 2)
        read = mixer(twice, torch.cat([keys, none], 2), torch.cat([values, none], 2), pattern=CS, mask=mask).out
        read = read[:, :, pairs:]
    return Fidelity(pairs, *_compare(read, values))


def capacity_curve(mixer: Mixer, counts: list[int], **options: int) -> list[Fidelity]:
    """`memory_fidelity` against the number of pairs."""
    return [memory_fidelity(mixer, count, **options) for count in counts]


def _compare(read: Tensor, values: Tensor) -> tuple[float, float]:
    cosine = torch.nn.functional.cosine_similarity(read, values, dim=-1)
    nearest = (torch.nn.functional.normalize(read, dim=-1) @ values.mT).argmax(-1)
    right = nearest == torch.arange(values.shape[2])
    return float(cosine.double().mean()), float(right.double().mean())
