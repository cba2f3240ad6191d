"""Exit codes of the commands, and the error for wrong usage."""

DONE, ERROR, USAGE, SOME_FAILED, REFUSED, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 4, 130, 143


class UsageError(Exception):
    """The words of the command line do not fit the verb."""
