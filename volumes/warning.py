"""The warning that readers give for unusual input."""

import warnings


class VolumeWarning(UserWarning):
    """Warning that a file was read although it is unusual; the text gives the finding and the decision."""


def warn(text: str) -> None:
    """Warn of a finding in a file, in one line."""
    warnings.warn(text, VolumeWarning, stacklevel=5)
