"""`voxelwave registration apply`: move an image or a label map by a transform written before."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from .work import FORWARD, INVERSE


def apply(
    transform: Path,
    image: Path,
    *,
    like: Path,
    output: Path,
    inverse: bool = False,
    labels: bool = False,
) -> None:
    """Move IMAGE by a TRANSFORM onto the grid of another image, with one interpolation.

    Args:
        transform: a folder that `register` wrote, or an ITK transform file (.nii.gz field, .h5, .mat, .txt).
        image: what to move; 3-D, or 4-D volume by volume.
        like: gives the grid of the result: the fixed image, or with --inverse the moving one.
        output: the .nii.gz, .nii or .mgz to write.
        inverse: go from moving to fixed space's other direction; a single file is inverted numerically.
        labels: the image is a label map: nearest neighbour, integers stay integers.
    """
    from ...volumes import invert, read_transform, read_volume, resample, write_volume

    grid = read_volume(like)
    source = read_volume(image)
    if transform.is_dir():
        chosen = read_transform(transform / (INVERSE if inverse else FORWARD))
    else:
        chosen = read_transform(transform)
        if inverse:
            chosen = invert(chosen, grid)
    moved = resample(source, grid, chosen, order="nearest" if labels else "linear")
    write_volume(output, moved, space="aligned")
    print(f"wrote {output}: {' x '.join(map(str, moved.array.shape))}, {moved.array.dtype}")
