"""Text on one line, for messages."""


def one_line(message: object) -> str:
    """Fold an error or a text onto one line; an error without words gives the name of its type.

    Example:
        >>> one_line(ValueError("no such\\n   file"))
        'no such file'
    """
    text = " ".join(str(message).split())
    if isinstance(message, MemoryError):
        return f"not enough memory: {text or 'the image is too large for this machine'}"
    return text or type(message).__name__
