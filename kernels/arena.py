"""Memory for large maps that layers and tiles hand on to each other instead of returning it to the system.

A network without gradients needs the same large maps in each block. Memory that was returned to the system comes back
as new pages, which the system has to clear; this took a third of the time of MaIR. Within `reused`, `empty` takes the
memory of maps that nobody holds any more.
"""

import ctypes
import functools
import math
import mmap
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

_LEAST = 1 << 18  # floats, 1 MB; the allocator of the C library keeps smaller pieces
_ALIGNMENT = 16  # floats, a cache line
_LARGE_PAGE = 1 << 21  # bytes, on x86-64 and most ARM
_ADVICE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux only


class _Arena:
    def __init__(self) -> None:
        self.idle: list[np.ndarray] = []

    def empty(self, count: int) -> np.ndarray:
        fitting = [block for block in self.idle if count <= block.size <= 2 * count]
        if fitting:
            block = min(fitting, key=lambda each: each.size)
            self._drop(block)
        else:
            outgrown = [block for block in self.idle if count / 2 <= block.size < count]
            if outgrown:
                self._drop(max(outgrown, key=lambda each: each.size))
            memory = np.empty(count + _ALIGNMENT, np.float32)
            first = -memory.ctypes.data // memory.itemsize % _ALIGNMENT
            block = memory[first : first + count]
        lent = block[:count]
        weakref.finalize(lent, self.idle.append, block).atexit = False
        return lent

    def _drop(self, block: np.ndarray) -> None:
        self.idle[:] = [each for each in self.idle if each is not block]


_active = threading.local()


@contextmanager
def reused() -> Iterator[None]:
    """Let `empty` reuse memory in this thread, until the outermost of nested contexts ends."""
    if getattr(_active, "arena", None) is not None:
        yield
        return
    _active.arena = _Arena()
    try:
        yield
    finally:
        _active.arena = None


def reused_for_inference() -> AbstractContextManager[None]:
    """`reused`; nothing if gradients are enabled, which keep all maps, or if PyTorch compiles or exports the caller."""
    return nullcontext() if torch.is_grad_enabled() or torch.compiler.is_compiling() else reused()


def empty(*shape: int) -> Tensor:
    """Like `torch.empty`, float32 on the CPU; within `reused`, large tensors take memory that is no longer used.

    The memory of a tensor is reused when the tensor and all its views are gone, so nothing has to be given back. A
    tensor may stay alive after the context; its memory may be twice as large as it needs.
    """
    count = math.prod(shape)
    arena: _Arena | None = getattr(_active, "arena", None)
    if arena is None or count < _LEAST:
        return with_large_pages(torch.empty(shape, dtype=torch.float32, device="cpu"))
    return torch.from_numpy(arena.empty(count)).view(shape)


def with_large_pages(new: Tensor) -> Tensor:
    """Ask Linux to back the memory of a new CPU tensor by pages of 2 MB, as NumPy does with large arrays.

    A page takes time when it is touched first, and the processor finds the addresses of few pages quickly: with large
    pages, a scan of 720 channels and 4,096 steps takes 0.75 of the time, its gradients 0.8.

    Returns:
        The tensor itself. Smaller tensors, and tensors on other systems, stay as they are.
    """
    count = new.numel() * new.element_size()
    if count < 2 * _LARGE_PAGE or _ADVICE is None:
        return new
    start, stop = new.data_ptr(), new.data_ptr() + count
    first, last = -(-start // _LARGE_PAGE) * _LARGE_PAGE, stop // _LARGE_PAGE * _LARGE_PAGE
    _library().madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _ADVICE)  # it may refuse
    return new


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)
