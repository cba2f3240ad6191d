"""How the readers say that they handled something odd."""


class VolumeWarning(UserWarning):
    """A file was read, but something about it had to be decided: the text says what was found and what was done."""
