"""Where weights lie: those that come with the package by name, the others by path."""

import os
from pathlib import Path

_SHIPPED = Path(__file__).parent / "shipped"


def shipped_weights() -> list[str]:
    """The names of the weights that come with the package; a model card lies beside each.

    Example:
        >>> "denoise-grey" in shipped_weights()
        True
    """
    return sorted(file.stem for file in _SHIPPED.glob("*.safetensors"))


def weights_file(weights: str | os.PathLike) -> Path:
    """The file of shipped weights by their name, or the path itself.

    Args:
        weights: a name of `shipped_weights`, or a path; a path without a suffix can only be such a name.

    Raises:
        FileNotFoundError: it has no suffix and is no such name.
    """
    path = Path(weights)
    if path.suffix:
        return path
    if path.name not in shipped_weights() or str(path) != path.name:
        raise FileNotFoundError(f"weights must be a file or one of {', '.join(shipped_weights())}, got {path}")
    return _SHIPPED / f"{path}.safetensors"
