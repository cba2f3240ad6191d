"""`voxelwave registration apply`: apply a saved transform to an image or a label map."""

from ...runs.files import output_lock
from ...volumes import invert, read_transform, read_volume, resample, write_volume
from .options import Apply
from .work import FORWARD, INVERSE


def apply(options: Apply) -> None:
    """Run the command."""
    with output_lock(options.output):
        _apply(options)


def _apply(options: Apply) -> None:
    grid = read_volume(options.like, fix_tilt=options.fix_tilt)
    source = read_volume(options.image, fix_tilt=options.fix_tilt)
    if options.transform.is_dir():
        chosen = read_transform(options.transform / (INVERSE if options.inverse else FORWARD))
    else:
        chosen = read_transform(options.transform)
        if options.inverse:
            chosen = invert(chosen, grid)
    moved = resample(source, grid, chosen, order="nearest" if options.labels else "linear")
    write_volume(options.output, moved, space="aligned")
    print(f"wrote {options.output}: {' x '.join(map(str, moved.array.shape))}, {moved.array.dtype}")
