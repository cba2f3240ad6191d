"""How the readers say that they handled something odd."""


class VolumeWarning(UserWarning):
    """A file was read, but with a decision about something unusual: the text gives the finding and the decision."""
