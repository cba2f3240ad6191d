"""Options that several commands share, each described once.

A command consists of a frozen dataclass of options, whose module loads nothing heavy, and a function that takes it. The
class is in the `options.py` of its field; the module of the function is imported when the work begins (see `cli`).
Fields become flags, and fields declared with `field(kw_only=False)` become positional arguments.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..runs.exit import UsageError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a command."""

    def check(self) -> None:
        """Refuse wrong usage and missing inputs, before anything heavy is imported.

        Raises:
            UsageError: options that do not go together, or a number out of range.
            FileNotFoundError: an input is missing.
        """


@dataclass(frozen=True, kw_only=True)
class ThreadOptions(Options):
    """Options of commands that compute on the CPU.

    Args:
        threads: CPU threads; all by default.
    """

    threads: int | None = None

    def check(self) -> None:
        super().check()
        at_least(1, threads=self.threads)


@dataclass(frozen=True, kw_only=True)
class WorkerOptions(ThreadOptions):
    """Options of a command that runs many fits.

    Args:
        jobs: processes on this machine, or fits running at once on a cluster.
        cluster: dask://HOST:PORT, slurm, or slurm-local to try Slurm's jobs on this machine.
        slurm: submitit's parameters, such as slurm_partition, mem_gb, timeout_min.
        threads: CPU threads per fit.
    """

    jobs: int | None = None
    cluster: str | None = None
    slurm: dict[str, Any] | None = None
    threads: int = 1

    def check(self) -> None:
        super().check()
        at_least(1, jobs=self.jobs)


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    """Options of commands that can use a GPU.

    Args:
        device: where the network runs; auto takes a GPU if there is one.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"


def at_least(least: int, **values: int | None) -> None:
    """Refuse an option below `least`; None is left alone.

    Raises:
        UsageError: a value is below `least`; the message names the option.

    Example:
        >>> at_least(1, jobs=2, threads=None)
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def must_exist(path: Path | None, what: str) -> None:
    """Refuse a missing input; None is left alone.

    Args:
        path: a file or folder.
        what: a noun for the input in the error, such as "scan" or "study".

    Raises:
        FileNotFoundError: there is nothing at `path`.
    """
    if path is not None and not path.exists():
        raise FileNotFoundError(f"no {what} at {path}")
