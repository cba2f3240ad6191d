"""Names of electrodes from their positions, for caps that do not use 10-20 names."""

import re
from collections.abc import Mapping, Sequence
from functools import cache

import mne
import numpy as np

from .channels import CED_ORDER, is_scalp_name

_FEWEST = 8  # number of electrodes that determine a sphere well
_ROUGHNESS = 0.15  # largest deviation of the electrodes from their sphere, root mean square over the radius
_FARTHEST_DEG = 12.0  # about 2 cm on an adult head; neighbours of the 10-10 system are about 18 degrees apart
_TEN_TEN = re.compile(r"^(Fp|AF|F|FT|FC|T|C|TP|CP|P|PO|O|I)(z|\d+)$")


def names_by_position(places: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The 10-05 name of each electrode that is within 12 degrees of that name's position on an average head.

    Directions from the centre of the head are compared, so the size of the head and the unit do not matter; the
    standard is the average head or the sphere of the 10-10 system, whichever fits better. The 19 positions of the 10-20
    system are matched to their nearest electrodes first, then those of the 10-10 system, then all others; no electrode
    and no name is used twice.

    Args:
        places: name in the file -> (3,) with x to the right ear and y to the nose.

    Returns:
        name in the file -> standard name; empty if there are too few electrodes or they are not on a head.
    """
    usable = {name: np.asarray(place, float) for name, place in places.items() if np.isfinite(place).all()}
    directions = _directions(np.array([*usable.values()])) if len(usable) >= _FEWEST else None
    if directions is None:
        return {}
    standard = min(_standard_directions(), key=lambda each: _misfit(directions, each))
    written, found = list(usable), {}
    free_places, free_names = set(range(len(written))), set(standard)
    for tier in (set(CED_ORDER), {name for name in standard if _TEN_TEN.match(name)}, set(standard)):
        names = sorted(tier & free_names)
        if not names:
            continue
        angles = _angles(directions, np.array([standard[name] for name in names]))
        for place, name in zip(*np.unravel_index(np.argsort(angles, axis=None), angles.shape), strict=True):
            if angles[place, name] > _FARTHEST_DEG:
                break
            if place in free_places and names[name] in free_names:
                found[written[place]] = names[name]
                free_places.remove(place)
                free_names.remove(names[name])
    return found


def neighbours(channels: Sequence[str]) -> np.ndarray:
    """Pairs of neighbouring electrodes on an average head, bool (n, n): no third electrode is between them.

    An electrode is between two others if it is within the sphere whose diameter joins these two (the Gabriel graph).
    The graph is connected, and adapts to the density of the cap.

    Args:
        channels: names in the 10-05 system.

    Raises:
        ValueError: an electrode has no standard position, or two electrodes have the same position.

    Example:
        >>> neighbours(["Fz", "Cz", "Pz"]).astype(int).tolist()
        [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    """
    places = {name.lower(): place for name, place in _standard_directions()[0].items()}
    unknown = [name for name in channels if name.lower() not in places]
    if unknown:
        raise ValueError(f"electrodes must have a position in the 10-05 system, got {', '.join(unknown)}")
    found = np.array([places[name.lower()] for name in channels])
    squared = ((found[:, None] - found[None]) ** 2).sum(axis=2)
    apart = ~np.eye(len(found), dtype=bool)
    if (squared[apart] == 0).any():
        raise ValueError(f"electrodes must have different positions, got {', '.join(channels)}")
    between = squared[:, :, None] + squared[:, None, :] < squared.T[None, :, :]  # [k, i, j]: k between i and j
    return np.asarray(apart & ~between.any(axis=0))


def _angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Degrees between unit vectors a (n, 3) and b (m, 3), as (n, m)."""
    return np.asarray(np.degrees(np.arccos(np.clip(a @ b.T, -1, 1))))


def _misfit(directions: np.ndarray, standard: Mapping[str, np.ndarray]) -> float:
    """Root mean square angle from the 19 positions of the 10-20 system to their nearest electrodes, degrees."""
    nearest = _angles(directions, np.array([standard[name] for name in CED_ORDER])).min(axis=0)
    return float(np.sqrt((nearest**2).mean()))


def _directions(places: np.ndarray) -> np.ndarray | None:
    """Unit vectors (n, 3) from the centre of the sphere through positions (n, 3); None if there is no such sphere."""
    scale = np.abs(places - places.mean(axis=0)).max()
    if not scale > 0:
        return None
    places = places / scale
    # |p - c|^2 = r^2 is linear in c and r^2 - |c|^2
    design = np.column_stack([2 * places, np.ones(len(places))])
    solution, _, rank, _ = np.linalg.lstsq(design, (places**2).sum(axis=1), rcond=1e-6)
    if rank < 4:
        return None
    from_centre = places - solution[:3]
    lengths = np.linalg.norm(from_centre, axis=1)
    if lengths.std() > _ROUGHNESS * lengths.mean() or lengths.min() == 0:
        return None
    return np.asarray(from_centre / lengths[:, None])


@cache
def _standard_directions() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Unit vectors of the standard electrodes on an average head (10-05) and on a sphere (10-10).

    Digitised positions have the shape of the head; makers of caps publish positions on a sphere whose vertex is Cz.
    Both are in MNE's head frame: ears on x, nose on y.
    """
    found = []
    for montage_name in ("colin27_1005", "easycap-M1"):
        montage = mne.channels.make_standard_montage(montage_name)
        to_head = mne.channels.compute_native_head_t(montage)
        places = montage.get_positions()["ch_pos"]
        names = [name for name in places if is_scalp_name(name) and name not in ("T3", "T4", "T5", "T6")]
        directions = _directions(mne.transforms.apply_trans(to_head, np.array([places[name] for name in names])))
        assert directions is not None
        found.append(dict(zip(names, directions, strict=True)))
    return found[0], found[1]
