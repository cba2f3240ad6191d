"""The number of threads that numerical libraries use."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

from threadpoolctl import threadpool_limits


class _ThreadLimits:
    """The limits of all open blocks of `limited_threads`: nested blocks, and blocks in other threads of a Dask
    worker."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: list[int] = []  # the last one applies
        self._environment: str | None = None  # before the first block
        self._libraries: threadpool_limits | None = None  # remembers the numbers before the first block

    def add(self, count: int) -> None:
        with self._lock:
            limits = threadpool_limits(count)
            if not self._counts:
                self._environment, self._libraries = os.environ.get("OMP_NUM_THREADS"), limits
            self._counts.append(count)
            os.environ["OMP_NUM_THREADS"] = str(count)  # for libraries that load later

    def remove(self, count: int) -> None:
        with self._lock:
            del self._counts[len(self._counts) - 1 - self._counts[::-1].index(count)]
            if self._counts:
                threadpool_limits(self._counts[-1])
                os.environ["OMP_NUM_THREADS"] = str(self._counts[-1])
                return
            assert self._libraries is not None
            self._libraries.restore_original_limits()
            if self._environment is None:
                os.environ.pop("OMP_NUM_THREADS", None)
            else:
                os.environ["OMP_NUM_THREADS"] = self._environment


_thread_limits = _ThreadLimits()


@contextlib.contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Let BLAS, OpenMP and torch use `count` threads, since the order of summation affects the last digits.

    Blocks may be nested and may overlap in several threads: the limits end with the last block.
    """
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None  # torch's number belongs to the calling thread
    _thread_limits.add(count)
    try:
        if torch:
            torch.set_num_threads(count)
        yield
    finally:
        _thread_limits.remove(count)
        if torch:
            torch.set_num_threads(before)
