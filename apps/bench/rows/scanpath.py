"""Rows of scanpaths: decoding with a cache beside reading the whole path again."""

import functools

import torch

from ....scanpath.benchmark import COLUMNS, ROWS, SIZES, decode_all, grid_scenes
from ....scanpath.oat import OAT
from .row import Row, cpu_seconds

_STEPS = 30
_GOALS = {("small", 1): 100.0, ("small", 100): 600.0, ("published", 1): 16.0}


def rows(*, quick: bool) -> list[Row]:
    """The rows, with one thread."""
    found = []
    for size in ("small",) if quick else ("small", "published"):
        torch.manual_seed(0)
        network = OAT(rows=ROWS, columns=COLUMNS, appearance="none", steps=_STEPS, **SIZES[size]).eval()
        for batch in (1, 100):
            count = 100 if size == "small" else 20
            batches = grid_scenes(count, batch=min(batch, count))
            decode = functools.partial(decode_all, network, batches, _STEPS, seed=0)
            own, again = (count / cpu_seconds(functools.partial(decode, cache=cache), 3) for cache in (True, False))
            found.append(
                Row(
                    what=f"decoding, network of size {size}, {min(batch, count)} scenes at once",
                    unit="scenes/CPU s",
                    ours=own,
                    peer="the whole path again at every step",
                    theirs=again,
                    least=_GOALS.get((size, batch)),
                )
            )
    return found
