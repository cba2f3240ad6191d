"""`voxelwave registration apply`: apply a saved transform to images, label maps or points."""

from pathlib import Path

import numpy as np

from ...runs.files import output_lock, outputs_together
from ...runs.outcome import add_outcome
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
from ...volumes.point_files import read_points, write_points
from .options import FORWARD, INVERSE, Apply
from .scans import read_scan

_LEAST_INSIDE = 0.2  # least fraction of the new grid inside the grid of the transform
_LPS = np.array([-1.0, -1.0, 1.0])


def apply(options: Apply) -> None:
    """Run the command."""
    if options.points is not None:
        _move_points(options, options.points)
        return
    assert options.like is not None  # see Apply.check
    grid = read_scan(options.like, fix_tilt=options.fix_tilt)
    chosen = _transform(options, grid)
    if not options.several:
        with output_lock(options.output):
            _move(options, options.image[0], grid, chosen, options.output)
        add_outcome(written=[options.output])
        return
    targets = options.targets
    with outputs_together(options.output) as folder:
        for image, name in targets.items():
            _move(options, image, grid, chosen, folder / name)
    add_outcome(written=[options.output / name for name in targets.values()])
    print(f"wrote {len(targets)} images to {options.output}/")


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
    is_field = isinstance(chosen, DisplacementField)
    if is_field and not _on_grid(grid, chosen) and _on_grid(grid, _other_direction(options)):
        was, is_now = ("moving", "fixed") if options.inverse else ("fixed", "moving")
        raise ValueError(
            f"--like must be an image in the {was} space of {folder}, got {options.like}, whose grid is that of the"
            f" {is_now} image; {'leave out' if options.inverse else 'add'} --inverse, or give another --like"
        )
    _check_inside(chosen, grid, options)
    return chosen


def _other_direction(options: Apply) -> Transform | None:
    """The transform of a folder in the direction that was not chosen."""
    path = options.transform / (FORWARD if options.inverse else INVERSE)
    return read_transform(path) if path.is_file() else None


def _on_grid(image: Volume, transform: Transform | None) -> bool:
    """Whether the transform is a displacement field on the grid of an image."""
    if not isinstance(transform, DisplacementField):
        return False
    return image.shape == transform.shape and np.allclose(image.affine, transform.affine, atol=1e-3)


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


def _check_space(source: Volume, image: Path, transform: Transform, options: Apply) -> None:
    """Refuse an image that lies on the grid of the image to which the transform leads, and not on that of the other.

    Raises:
        ValueError: it does, so the transform would move it a second time.
    """
    folder = options.transform
    if folder.is_dir() and _on_grid(source, transform) and not _on_grid(source, _other_direction(options)):
        is_now, was = ("moving", "fixed") if options.inverse else ("fixed", "moving")
        raise ValueError(
            f"{image} has the grid of the {is_now} image of {folder}, but {'with' if options.inverse else 'without'}"
            f" --inverse, images in the space of the {was} image are moved;"
            f" {'leave out' if options.inverse else 'add'} --inverse with another --like, or apply a transform file"
        )


def _move(options: Apply, image: Path, grid: Volume, transform: Transform, output: Path) -> None:
    source = read_scan(image, fix_tilt=options.fix_tilt)
    _check_space(source, image, transform, options)
    try:
        moved = resample(source, grid, transform, order="nearest" if options.labels else options.interpolation)
    except ValueError as error:
        raise ValueError(f"{image}: {error}") from None
    write_volume(output, moved, space="aligned")
    shown = options.output / output.name if options.several else output
    print(f"wrote {shown}: {' x '.join(map(str, moved.array.shape))}, {moved.array.dtype}")


def _move_points(options: Apply, file: Path) -> None:
    """Move the points of a file and write them.

    Raises:
        ValueError: the points lie outside the transform.
    """
    points = read_points(file)
    signs = _LPS if options.points_space == "lps" else np.ones(3)
    given = np.isfinite(points.coordinates[:, 0])  # a table may have rows without coordinates
    moved = np.full(points.coordinates.shape, np.nan)
    moved[given] = signs * moved_points(options.transform, signs * points.coordinates[given], inverse=options.inverse)
    lost = int(np.isnan(moved[:, 0]).sum())
    if lost == len(moved):
        raise ValueError(
            f"no point of {file} lies inside the transform: check --points-space (ras or lps), and add or leave out"
            " --inverse"
        )
    with output_lock(options.output):
        write_points(options.output, points, moved)
    if lost:
        print(f"note: {lost} of {len(moved)} points have no place inside the transform; their coordinates are empty")
    distances = np.linalg.norm(moved - points.coordinates, axis=1)
    add_outcome(written=[options.output], points=len(moved), outside=lost)
    print(f"wrote {options.output}: {len(moved) - lost} points, moved by {np.nanmean(distances):.2f} mm on average")


def moved_points(transform: Path, points: np.ndarray, *, inverse: bool) -> np.ndarray:
    """The places (N, 3) to which points (N, 3) move with the moving image, RAS mm; NaN outside the transform.

    Args:
        transform: a folder of `register`, or a transform file.
        points: in the space of the moving image; with `inverse`, in that of the fixed one.
        inverse: move from the space of the fixed image to that of the moving one.
    """
    if transform.is_dir():  # an image is pulled back by the forward transform, and points are pushed by the inverse
        return read_transform(transform / (FORWARD if inverse else INVERSE)).map(points)
    found = read_transform(transform)
    return found.map(points) if inverse else found.unmap(points)
