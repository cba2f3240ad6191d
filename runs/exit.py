"""Exit codes of the commands, and the error for wrong usage."""

DONE, ERROR, USAGE, SOME_FAILED, REFUSED, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 4, 130, 143


class UsageError(ValueError):
    """Wrong usage: options that are unknown, out of range, or do not go together (exit code 2)."""
