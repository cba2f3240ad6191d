"""`voxelwave registration transform`: describe or convert a transform, or write its Jacobian map."""

from functools import reduce
from pathlib import Path

import numpy as np

from ...registration.jacobian import jacobian_map
from ...runs.files import output_lock
from ...runs.outcome import add_outcome
from ...volumes import (
    AffineTransform,
    CompositeTransform,
    DisplacementField,
    Transform,
    Volume,
    compose_to_field,
    invert,
    read_transform,
    write_transform,
    write_volume,
)
from ...volumes.describe import describe_transform
from ...volumes.lta import LTA_SUFFIX, write_lta
from .options import AFFINE, FORWARD, INVERSE
from .options import Transform as Options
from .scans import read_scan

_FIELDS = (".nii.gz", ".nii")


def transform(options: Options) -> None:
    """Run the command."""
    images = [None if path is None else read_scan(path) for path in (options.fixed, options.moving)]
    fixed, moving = images[::-1] if options.inverse else images
    chosen = _chosen(options, images[1])
    facts = describe_transform(chosen)
    for name, value in facts.items():
        print(f"{name:<14}{value}")
    written = [path for path in (options.output, options.jacobian) if path is not None]
    if options.output is not None:
        with output_lock(options.output):
            _write(options.output, chosen, fixed, moving)
    if options.jacobian is not None:
        with output_lock(options.jacobian):
            field = _as_field(chosen, fixed, options.jacobian)
            write_volume(options.jacobian, jacobian_map(field), space="aligned")
    for path in written:
        print(f"wrote {path}")
    add_outcome(transform=facts, written=written)


def _chosen(options: Options, moving: Volume | None) -> Transform:
    """The transform, or the part or the direction of it that is asked for."""
    place, inverse = options.transform, options.inverse
    if place.is_dir():
        if options.linear:
            place = place / AFFINE
        else:
            place, inverse = place / (INVERSE if inverse else FORWARD), False
    found = _linear(read_transform(place)) if options.linear else read_transform(place)
    if not inverse:
        return found
    if isinstance(found, AffineTransform):
        return found.inverse()
    if moving is None:
        raise ValueError("--inverse of a displacement field needs --moving, the image on whose grid it is given")
    return invert(found, moving)


def _linear(found: Transform) -> AffineTransform:
    """The linear part of a transform."""
    if isinstance(found, DisplacementField):
        return found.linear_part()
    if isinstance(found, CompositeTransform):
        return AffineTransform(reduce(np.matmul, [_linear(part).matrix for part in found.parts[::-1]]))
    return found


def _write(path: Path, found: Transform, fixed: Volume | None, moving: Volume | None) -> None:
    """Write a transform in the format that the name of the file asks for."""
    name = path.name.lower()
    if name.endswith(_FIELDS) and not isinstance(found, DisplacementField):
        found = _as_field(found, fixed, path)
    if not name.endswith((*_FIELDS, ".h5")) and not isinstance(found, AffineTransform):
        raise ValueError(f"{path.name} holds a linear transform only: add --linear, or write a .nii.gz or .h5 file")
    if not name.endswith(LTA_SUFFIX):
        write_transform(path, found)
        return
    assert isinstance(found, AffineTransform)
    if fixed is None or moving is None:
        print("note: give --fixed and --moving, without whose geometry FreeSurfer's programs cannot use the .lta file")
    write_lta(path, found, moving=moving, fixed=fixed)


def _as_field(found: Transform, fixed: Volume | None, path: Path) -> DisplacementField:
    """A transform as a displacement field, on the grid of `fixed` if it is none yet."""
    if isinstance(found, DisplacementField):
        return found
    if fixed is None:
        raise ValueError(f"{path.name} needs a grid: give the fixed image as --fixed (with --inverse, --moving)")
    return compose_to_field([found], fixed)
