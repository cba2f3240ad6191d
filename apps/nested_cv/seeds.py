"""Seeds derived from a run's seed and a name."""

import hashlib


def derive_seed(seed: int, *words: str | int) -> int:
    """A seed of its own for each use of chance, from the seed of the run and what it is used for.

    Example:
        >>> derive_seed(0, "split", 1) == derive_seed(0, "split", 1) != derive_seed(0, "split", 2)
        True
    """
    text = "/".join(map(str, (seed, *words)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 2**31
