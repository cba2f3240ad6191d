"""What a command computes with: how many threads of the CPU, and which device."""

from pathlib import Path

import torch


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


# torch loads in the functions, so that --help answers at once


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads below 1; None is all.

    Raises:
        ValueError: it is below 1.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}")


def use_threads(threads: int | None) -> None:
    """Let torch compute with so many threads; None leaves them as they are."""

    check_threads(threads)
    if threads is not None:
        torch.set_num_threads(threads)


def choose_device(device: str) -> str:
    """The device for "auto", "cpu" or "cuda": "auto" takes a GPU if there is one.

    Raises:
        ValueError: "cuda" without a GPU.
    """

    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise ValueError("--device cuda needs a CUDA GPU, and none is found; leave it out or say cpu")
    return ("cuda" if there else "cpu") if device == "auto" else device
