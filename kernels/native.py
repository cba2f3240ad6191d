"""The compiled CPU kernels: load the library in this folder and choose the build for this CPU.

The library (csrc/) contains one build per instruction-set level and depends on neither torch nor Python. It is missing
if the package was built without a compiler; this is reported once, and the callers then use plain PyTorch.
"""

import ctypes
import functools
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIBRARY = Path(__file__).with_name("cpu.native" + {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so"))

# vw_cpu_level() -> the builds that the CPU can run, best first; CPUs other than x86-64 have only "generic"
_LEVELS = {4: ("v4", "v3", "v2"), 3: ("v3", "v2"), 2: ("v2",), 1: ("generic",)}
_chosen_level: str | None = None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded library; None, with one warning, if it cannot be loaded."""
    try:
        return ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        warnings.warn(
            f"the compiled kernels are missing ({error}); using plain PyTorch, which scans about 100 times slower. "
            "Install a C++ compiler and reinstall voxelwave, or install a binary wheel",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def levels() -> tuple[str, ...]:
    """Instruction-set levels that this CPU can run, best first; empty without a library."""
    loaded = library()
    return () if loaded is None else _levels(loaded)


@functools.cache
def _levels(loaded: ctypes.CDLL) -> tuple[str, ...]:
    return _LEVELS[loaded.vw_cpu_level()]


def chosen_level() -> str:
    """The level whose functions are called: the best one, or that of `use_level`."""
    return _chosen_level or levels()[0]


@contextmanager
def use_level(level: str) -> Iterator[None]:
    """Use the build of a given level instead of the best one, for tests and benchmarks.

    Raises:
        ValueError: this CPU cannot run the level.
    """
    global _chosen_level
    if level not in levels():
        raise ValueError(f"level must be one of {levels()}, got {level!r}")
    before, _chosen_level = _chosen_level, level
    try:
        yield
    finally:
        _chosen_level = before


def function(
    name: str, result: type[ctypes.c_int | ctypes.c_int64] | None = None, integers: int = 0
) -> Callable[..., int]:
    """A function of the library, from the build of the chosen level.

    Args:
        name: name of the function without the suffix of the level.
        result: C type of the returned value; None for void.
        integers: number of arguments, if all are addresses or of type int64_t; they may then be passed as ints.
    """
    loaded = library()
    assert loaded is not None
    return _function(loaded, f"{name}_{chosen_level()}", result, integers)


@functools.cache  # looking a function up takes as long as a small scan
def _function(
    loaded: ctypes.CDLL, name: str, result: type[ctypes.c_int | ctypes.c_int64] | None, integers: int
) -> Callable[..., int]:
    try:
        found: Any = loaded[name]  # not the attribute, whose type of result all callers share
    except AttributeError as error:
        raise RuntimeError(
            f"{LIBRARY.name} must have the function {name}, but its sources were older: run pip install -e . again"
        ) from error
    found.restype = result
    if integers:
        found.argtypes = (ctypes.c_int64,) * integers
    call: Callable[..., int] = found
    return call


def call(name: str, sizes: ctypes.Structure, *arguments: Any, keep: Sequence[object] = ()) -> None:
    """Call a function of the library that takes a struct of sizes first.

    Args:
        name: name of the function without the suffix of the level.
        sizes: passed by its address.
        arguments: contiguous tensors, passed by the address of their memory; None for a null pointer; C values.
        keep: objects to which the struct points; they stay alive until the function returns.
    """
    places = [ctypes.c_void_p(each.data_ptr()) if hasattr(each, "data_ptr") else each for each in arguments]
    function(name)(ctypes.byref(sizes), *places)
