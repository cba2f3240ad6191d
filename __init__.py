"""voxelwave: registration, EEG diagnosis, restoration and scanpath prediction on one layer of kernels."""

from typing import TYPE_CHECKING

from .runs.public import public_names

if TYPE_CHECKING:
    from .runs.version import __version__ as __version__

__all__ = public_names(
    __name__,
    {
        **dict.fromkeys(("eeg", "kernels", "registration", "restoration", "scanpath", "volumes"), ""),
        "__version__": "runs.version",
    },
)
