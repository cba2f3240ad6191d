"""A source of randomness for each item of a data set, so that a resumed training gets the same items."""

import numpy as np
import torch


def item_generator(seed: int, number: int) -> torch.Generator:
    """A separate source of randomness for each item and seed.

    Example:
        >>> first, again, next_item = (torch.rand(1, generator=item_generator(0, n)) for n in (5, 5, 6))
        >>> bool(first == again), bool(first == next_item)
        (True, False)
    """
    state = int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state >> 1)
