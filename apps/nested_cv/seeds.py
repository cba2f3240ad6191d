"""Seeds derived from a run's seed and a name."""

import hashlib


def derive_seed(seed: int, *words: str | int) -> int:
    """A separate seed for each random choice, derived from the seed of the run and the name of the choice.

    Example:
        >>> derive_seed(0, "split", 1) == derive_seed(0, "split", 1) != derive_seed(0, "split", 2)
        True
    """
    text = "/".join(map(str, (seed, *words)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 2**31
