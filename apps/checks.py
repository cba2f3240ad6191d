"""Checks of what a command was given."""

from pathlib import Path


def at_least(least: int, **values: int | None) -> None:
    """Refuse numbers below `least`; None is left alone.

    Example:
        >>> at_least(1, jobs=2, threads=None)
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def check_resume(checkpoint: Path, resume: bool) -> None:
    """Refuse to go on from a checkpoint that is not there, or to begin anew over one that is.

    Raises:
        FileNotFoundError: `resume` without the checkpoint.
        ValueError: the checkpoint without `resume`.
    """
    if resume and not checkpoint.is_file():
        raise FileNotFoundError(f"--resume needs {checkpoint}, which is not there")
    if not resume and checkpoint.exists():
        raise ValueError(f"{checkpoint} is there already; go on with --resume, or choose another --output")
