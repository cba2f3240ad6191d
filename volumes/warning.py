"""The warning of the readers about unusual input."""

import warnings


class VolumeWarning(UserWarning):
    """A file was read although something is unusual; the text gives the finding and the decision."""


def warn(text: str) -> None:
    """Warn of a finding in a file, in one line."""
    warnings.warn(text, VolumeWarning, stacklevel=5)
