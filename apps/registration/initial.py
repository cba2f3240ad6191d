"""A linear transform from which a registration starts.

The moving image is given the position to which the transform moves it. What is then found is put after the transform.
"""

from dataclasses import replace
from pathlib import Path
from typing import overload

from ...registration.result import Registration
from ...volumes import AffineTransform, Volume, compose_to_field, read_transform, resample


def read_initial(path: Path | None) -> AffineTransform | None:
    """Read the transform; None gives None.

    Raises:
        ValueError: it is not linear.
    """
    if path is None:
        return None
    found = read_transform(path)
    if not isinstance(found, AffineTransform):
        raise ValueError(f"--initial must be a linear transform, got {path}")
    return found


@overload
def moved_by(image: Volume, start: AffineTransform | None) -> Volume: ...
@overload
def moved_by(image: Volume | None, start: AffineTransform | None) -> Volume | None: ...
def moved_by(image: Volume | None, start: AffineTransform | None) -> Volume | None:
    """An image at the position to which a transform (fixed to moving world) moves it."""
    return image if image is None or start is None else replace(image, affine=start.inverse().matrix @ image.affine)


def after_initial(result: Registration, start: AffineTransform | None, moving: Volume, fixed: Volume) -> Registration:
    """The result of registering the image that `moved_by` gives, as one of registering the image itself."""
    if start is None:
        return result
    forward = compose_to_field([result.forward, start], fixed)
    return replace(
        result,
        forward=forward,
        inverse=compose_to_field([start.inverse(), result.inverse], moving),
        affine=start.matrix @ result.affine,
        warped=resample(moving, fixed, forward),
    )
