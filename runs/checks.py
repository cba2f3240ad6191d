"""Checks of the files that a training is asked to continue."""

from pathlib import Path

from .exit import UsageError


def check_resume(checkpoint: Path, resume: bool) -> None:
    """Refuse to resume from a missing checkpoint, or to overwrite an existing one.

    Raises:
        FileNotFoundError: `resume` without the checkpoint.
        UsageError: the checkpoint without `resume`.
    """
    if resume and not checkpoint.is_file():
        raise FileNotFoundError(f"--resume needs {checkpoint}, which does not exist")
    if not resume and checkpoint.exists():
        raise UsageError(f"{checkpoint} exists already: continue with --resume, or choose another --output")
