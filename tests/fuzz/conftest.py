"""Shared parts of the two fuzz tests: mutants of a file, and limits of time and memory for reading one."""

import os
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest

Mutate = Callable[..., bytes]
Limits = Callable[[int, int], AbstractContextManager[None]]


@pytest.fixture
def mutated() -> Mutate:
    """`mutated(content, generator, values=, words=, ...)` returns the content with a few changes."""
    return _mutated


@pytest.fixture
def limits() -> Limits:
    """`limits(seconds, gib)` is a context that limits the time and the additional memory of reading."""
    return _limits


def _mutated(
    content: bytes,
    generator: np.random.Generator,
    *,
    values: Sequence[bytes],
    words: Sequence[bytes],
    most_changes: int,
    header: int,
    longest: int,
    fields: bool = False,
) -> bytes:
    """The content with one to `most_changes` changes, most of them in the first part, where headers are.

    Args:
        values: binary numbers to write.
        words: texts to write.
        header: bytes of the first part.
        longest: bytes that are removed, repeated or padded at most.
        fields: also write words padded with spaces, as fields of fixed width hold them.
    """
    changed = bytearray(content)
    kinds = ("byte", "value", "word", *(("field",) if fields else ()), "remove", "repeat", "cut")
    for _ in range(generator.integers(1, most_changes + 1)):
        end = len(changed) if generator.random() < 0.4 else min(len(changed), header)
        place, size = int(generator.integers(0, max(end, 1))), int(generator.integers(1, longest + 1))
        kind = kinds[generator.integers(0, len(kinds))]
        if kind == "byte":
            changed[place : place + 1] = bytes([int(generator.integers(0, 256))])
        elif kind in ("value", "word"):
            choice = values if kind == "value" else words
            new = choice[generator.integers(0, len(choice))]
            changed[place : place + len(new)] = new
        elif kind == "field":
            changed[place : place + size] = words[generator.integers(0, len(words))].ljust(size)
        elif kind == "remove":
            del changed[place : place + size]
        elif kind == "repeat":
            changed[place:place] = changed[place : place + size]
        else:
            del changed[int(generator.integers(0, max(len(changed), 1))) :]
    return bytes(changed)


@contextmanager
def _limits(seconds: int, gib: int) -> Iterator[None]:
    """Raise KeyboardInterrupt, which no reader catches, after some seconds, and MemoryError beyond some GiB."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt(f"longer than {seconds} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, end)
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + gib * 2**30, hard))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
