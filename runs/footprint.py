"""The memory of the running process."""

from pathlib import Path


def resident_mib(field: str) -> float:
    """The resident set of this process in MiB.

    Args:
        field: "VmRSS" for the present size, "VmHWM" for the largest so far.

    Raises:
        RuntimeError: this system has no /proc.
    """
    # not getrusage, because its maximum includes that of the parent process at the fork
    status = Path("/proc/self/status")
    if not status.exists():
        raise RuntimeError("the resident set is read from /proc, which this system does not have")
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024
