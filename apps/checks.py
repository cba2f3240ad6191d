"""Checks of what a command was given."""


def at_least(least: int, **values: int | None) -> None:
    """Refuse numbers below `least`; None is left alone.

    Example:
        >>> at_least(1, jobs=2, threads=None)
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
