"""The result of the running command as plain values, which `--json` prints."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_FOUND: ContextVar[dict[str, Any] | None] = ContextVar("outcome", default=None)


@contextmanager
def collected_outcome() -> Iterator[dict[str, Any]]:
    """A dictionary that receives what `add_outcome` is given within the block."""
    token = _FOUND.set({})
    found = _FOUND.get()
    assert found is not None
    try:
        yield found
    finally:
        _FOUND.reset(token)


def add_outcome(**values: Any) -> None:
    """Add to the result of the running command; without one, nothing happens.

    Args:
        values: values that JSON can hold, and paths, arrays and dataclasses.

    Example:
        >>> with collected_outcome() as found:
        ...     add_outcome(metrics={"psnr": 30.0})
        >>> found
        {'metrics': {'psnr': 30.0}}
    """
    found = _FOUND.get()
    if found is not None:
        found.update(values)
