"""The number of threads of the compiled kernels, and sums that do not depend on the number of threads.

torch and BLAS divide sums and matrix products among their threads, so that the last digits depend on how many there
are; a fit of many steps then ends elsewhere. The compiled kernels compute each value in one order on any number.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch

from ..runs.threads import limited_threads

_kept: ContextVar[int | None] = ContextVar("kernel_threads", default=None)


def kernel_threads() -> int:
    """The number of threads of the compiled kernels: that of torch, inside `ordered_sums` that of torch outside it."""
    kept = _kept.get()
    return torch.get_num_threads() if kept is None else kept


@contextlib.contextmanager
def ordered_sums() -> Iterator[None]:
    """Let torch and BLAS use one thread, so that equal inputs give equal bits; only the compiled kernels use all.

    Example:
        >>> with ordered_sums():
        ...     torch.get_num_threads()
        1
    """
    token = _kept.set(kernel_threads())
    try:
        with limited_threads(1):
            yield
    finally:
        _kept.reset(token)
