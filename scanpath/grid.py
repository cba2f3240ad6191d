"""Fit the grid of a collage to some of its boxes."""

from dataclasses import dataclass

import numpy as np

_FEWEST, _REGULAR = (
    10,
    0.7,
)  # number of centres that a search needs, and the required agreement of their phases (1 is perfect)


@dataclass(frozen=True)
class Axis:
    """Evenly spaced centres along x or y.

    Args:
        count: number of places.
        first: centre of place 0 in pixels.
        pitch: pixels from one centre to the next.
        residual: largest distance in pixels of a given centre from its place.
    """

    count: int
    first: float
    pitch: float
    residual: float

    @property
    def centres(self) -> np.ndarray:
        """(count,) centres of the places in pixels."""
        return self.first + self.pitch * np.arange(self.count)

    def place(self, position: np.ndarray) -> np.ndarray:
        """The nearest place for each position in pixels, int64 of the same shape."""
        nearest = np.rint((np.asarray(position, dtype=np.float64) - self.first) / self.pitch)
        return np.clip(nearest, 0, self.count - 1).astype(np.int64)


def regularity(centres: np.ndarray, extents: np.ndarray, count: int) -> float:
    """How well centres fit `count` evenly spaced places: the length of the mean phase vector, 0 to 1.

    Args:
        centres: (n,) in pixels.
        extents: (n,) size in pixels of the picture that holds each centre.
        count: number of places.

    Example:
        >>> round(regularity(np.array([10, 50, 70]), np.full(3, 80), 4), 3)
        1.0
    """
    return float(np.abs(np.mean(np.exp(2j * np.pi * np.asarray(centres) * count / np.asarray(extents)))))


def fit_axis(centres: np.ndarray, extents: np.ndarray, count: int | None = None, *, most: int = 40) -> Axis:
    """The grid places along one axis: their number from the agreement of phases, centre and pitch by least squares.

    Args:
        centres: (n,) centres of boxes in pixels, from any number of pictures with the same grid.
        extents: (n,) size of the picture along this axis in pixels.
        count: number of places, if known.
        most: largest number of places to try.

    Raises:
        ValueError: the centres do not lie on a grid.
    """
    centres, extents = np.asarray(centres, dtype=np.float64), np.asarray(extents, dtype=np.float64)
    if count is None:
        if len(centres) < _FEWEST:
            raise ValueError(f"a grid is found from {_FEWEST} boxes or more, got {len(centres)}: give rows and columns")
        found = [regularity(centres, extents, k) for k in range(2, most + 1)]
        count = 2 + int(np.argmax(found))
        if max(found) < _REGULAR:
            raise ValueError(
                f"the boxes lie on no grid of 2 to {most} places ({count} fit best, with agreement {max(found):.2f} of"
                f" 1, {_REGULAR} is needed): give rows and columns"
            )
    place = np.clip(np.floor(centres * count / extents), 0, count - 1)
    first, pitch = float(extents.mean()) / count / 2, float(extents.mean()) / count
    for _ in range(20):  # assign places and fit the line alternately, until no place changes
        if len(np.unique(place)) > 1:
            pitch, first = (float(v) for v in np.polyfit(place, centres, 1))
        nearest = np.clip(np.rint((centres - first) / pitch), 0, count - 1)
        if np.array_equal(nearest, place):
            break
        place = nearest
    residual = float(np.abs(centres - first - pitch * place).max())
    if residual > pitch / 2:
        raise ValueError(f"a box is {residual:.0f} px from its grid position, over half the pitch of {pitch:.0f} px")
    return Axis(count, first, pitch, residual)
