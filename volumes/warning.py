"""How the readers say that they handled something odd."""

import warnings


class VolumeWarning(UserWarning):
    """A file was read, but with a decision about something unusual: the text gives the finding and the decision."""


def warn(text: str) -> None:
    """Warn of a finding in a file, in one line."""
    warnings.warn(text, VolumeWarning, stacklevel=5)
