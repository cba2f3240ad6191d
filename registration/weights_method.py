"""The method of registration that a file of weights is for. Loads no heavy library."""

import os
from pathlib import Path

import safetensors

from .choices import Method

TISSUE_RECORD = "tissue_network"  # key of the metadata that describes a network that finds tissues


def method_of_weights(path: str | os.PathLike[str] | None) -> Method:
    """ "tissues" for weights of a network that finds tissues, "nestedmorph" for others, and "field" without weights."""
    if path is None:
        return "field"
    if Path(path).suffix != ".safetensors":
        return "nestedmorph"
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return "tissues" if TISSUE_RECORD in (file.metadata() or {}) else "nestedmorph"
    except (safetensors.SafetensorError, OSError):
        return "nestedmorph"  # whose reader says what is wrong
