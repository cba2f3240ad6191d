"""Options of `voxelwave weights`."""

from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Literal

from ..options import Options


@dataclass(frozen=True, kw_only=True)
class Weights(Options):
    """List the trained weights that `--weights NAME` finds: task, size of the file, data, licence, figures,
    limits, and the sizes for --size if there are several.

    The search covers the package, the folders in the environment variable VOXELWAVE_WEIGHTS, and installed packages
    that provide weights. The hashes of the files are checked.

    Args:
        name: show one weight file with its full model card.
        field: only the weights of one field.
    """

    name: str | None = dataclass_field(default=None, kw_only=False)
    field: Literal["registration", "restoration", "eeg", "scanpath"] | None = None
