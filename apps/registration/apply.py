"""`voxelwave registration apply`: apply a saved transform to an image or a label map, or to each image of a folder."""

from pathlib import Path

import numpy as np

from ...runs.files import output_lock, outputs_together
from ...volumes import (
    CompositeTransform,
    DisplacementField,
    Transform,
    Volume,
    invert,
    read_transform,
    resample,
    write_volume,
)
from .options import Apply
from .scans import read_scan
from .work import FORWARD, INVERSE

_LEAST_INSIDE = 0.2  # least fraction of the new grid inside the grid of the transform


def apply(options: Apply) -> None:
    """Run the command."""
    grid = read_scan(options.like, fix_tilt=options.fix_tilt)
    chosen = _transform(options, grid)
    images = options.images
    if not images:
        with output_lock(options.output):
            _move(options, options.image, grid, chosen, options.output)
        return
    with outputs_together(options.output) as folder:
        for image in images:
            _move(options, image, grid, chosen, folder / image.name)
    print(f"wrote {len(images)} images to {options.output}/")


def _transform(options: Apply, grid: Volume) -> Transform:
    """The transform in the wanted direction.

    Raises:
        ValueError: the grid of the result fits the other direction, or lies outside the grid of the transform.
    """
    folder = options.transform
    if not folder.is_dir():
        chosen = read_transform(folder)
        chosen = invert(chosen, grid) if options.inverse else chosen
        if not options.inverse:
            _check_inside(chosen, grid, options)
        return chosen
    chosen = read_transform(folder / (INVERSE if options.inverse else FORWARD))
    other = folder / (FORWARD if options.inverse else INVERSE)
    if isinstance(chosen, DisplacementField) and not _on_grid(grid, chosen) and other.is_file():
        back = read_transform(other)
        if isinstance(back, DisplacementField) and _on_grid(grid, back):
            was, is_now = ("moving", "fixed") if options.inverse else ("fixed", "moving")
            raise ValueError(
                f"--like must be an image in the {was} space of {folder}, got {options.like}, whose grid is that of the"
                f" {is_now} image; {'leave out' if options.inverse else 'add'} --inverse, or give another --like"
            )
    _check_inside(chosen, grid, options)
    return chosen


def _on_grid(grid: Volume, field: DisplacementField) -> bool:
    return grid.shape == field.shape and np.allclose(grid.affine, field.affine, atol=1e-3)


def _check_inside(transform: Transform, grid: Volume, options: Apply) -> None:
    """Refuse a grid that lies outside a displacement field."""
    first = transform.parts[0] if isinstance(transform, CompositeTransform) else transform
    if not isinstance(first, DisplacementField):
        return
    places = [np.linspace(0, n - 1, min(n, 16)) for n in grid.shape]
    voxels = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1).reshape(-1, 3)
    mapped = first.map(voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3])
    inside = float(np.isfinite(mapped[:, 0]).mean())
    if inside < _LEAST_INSIDE:
        raise ValueError(
            f"--like must overlap the grid of {options.transform}, got {options.like} with {100 * inside:.0f} % of its"
            " voxels there; for the other direction, add or leave out --inverse"
        )


def _move(options: Apply, image: Path, grid: Volume, transform: Transform, output: Path) -> None:
    source = read_scan(image, fix_tilt=options.fix_tilt)
    moved = resample(source, grid, transform, order="nearest" if options.labels else "linear")
    write_volume(output, moved, space="aligned")
    shown = output if not options.images else options.output / output.name
    print(f"wrote {shown}: {' x '.join(map(str, moved.array.shape))}, {moved.array.dtype}")
