"""Group the slices of a DICOM series into volumes, and order the volumes.

A volume is one phase: one time point, echo, b-value and so on. The frames of an enhanced image are sorted by the
indices of its dimensions that are not spatial, then by temporal position, trigger delay, inversion time and echo time;
classic images are sorted by their numbers, or by the same times if their numbers mix phases. A series whose phases
cannot be separated is refused.
"""

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np

from ..runs.words import first_few
from .dicom_frames import Frame
from .warning import warn

_Key = Callable[[Frame], Any]


def volumes_of(path: Path, places: list[list[Frame]], normal: np.ndarray) -> list[list[Frame]]:
    """Volumes of slices, from the frames found at each slice position.

    Raises:
        ValueError: positions have different numbers of images, or the phases cannot be distinguished.
    """
    _check_counts(path, places, normal)
    if len(places[0]) == 1:
        return [_one_phase(path, [place[0] for place in places])]
    indices = _dimension_indices(places)
    enhanced = all(frame.enhanced for place in places for frame in place)
    for order in _orders(indices, enhanced=enhanced):
        stacks = [sorted(place, key=order) for place in places]
        if _are_phases(stacks, indices, enhanced=enhanced):
            volumes = [[place[i] for place in stacks] for i in range(len(places[0]))]
            _say_kinds(path, volumes)
            return volumes if enhanced else sorted(volumes, key=lambda v: _by_number(v[0]))
    if not enhanced and (timed := _by_times(places)):
        _say_kinds(path, timed)
        return timed
    raise ValueError(
        f"{path} has {len(places[0])} images at every position, but their times, echo times, b-values or image numbers"
        " do not distinguish the volumes; keep one volume per folder, or convert the series with dcm2niix"
    )


def _check_counts(path: Path, places: list[list[Frame]], normal: np.ndarray) -> None:
    counts = [len(place) for place in places]
    if len(set(counts)) > 1:
        usual = max(set(counts), key=counts.count)
        odd = [
            f"{count} at {float(place[0].position @ normal):.2f} mm"
            for count, place in zip(counts, places, strict=True)
            if count != usual
        ]
        raise ValueError(
            f"{path}: every position must have {usual} image(s), got {first_few(odd)}; images are missing, or come"
            " twice"
        )


def _one_phase(path: Path, slices: list[Frame]) -> list[Frame]:
    """Refuse a single stack of an enhanced image whose slices belong to different phases."""
    if not slices[0].enhanced:
        return slices
    names = {0: "echo times", 1: "b-values", 3: "temporal positions", 4: "segments"}
    found: dict[str, set[Hashable]] = {name: {frame.kind[number] for frame in slices} for number, name in names.items()}
    for column in zip(*[frame.dimensions for frame in slices], strict=False):
        # an index that differs for every slice, such as its time, does not distinguish phases
        if 1 < len(set(column)) < len(slices):
            found["dimension indices"] = set(column)
    for name, values in found.items():
        if len(values) > 1:
            raise ValueError(
                f"{path} must hold one phase at every position, got {len(values)} {name} at different positions; images"
                " are missing"
            )
    return slices


def _orders(indices: dict[int, tuple[float, ...]], *, enhanced: bool) -> list[_Key]:
    """The sort keys for the frames of a position, in order of preference."""

    def by_phase(frame: Frame) -> tuple[Any, ...]:
        return indices[id(frame)], frame.phase, _by_number(frame)

    def by_kind(frame: Frame) -> tuple[Any, ...]:
        return str(frame.kind), frame.phase, _by_number(frame)

    def by_kind_and_number(frame: Frame) -> tuple[Any, ...]:
        return str(frame.kind), _by_number(frame)

    return [by_phase, by_kind] if enhanced else [_by_number, by_kind_and_number, by_phase, by_kind]


def _by_number(frame: Frame) -> tuple[int, str, int]:
    return frame.number or 0, str(frame.path), frame.index


def _dimension_indices(places: list[list[Frame]]) -> dict[int, tuple[float, ...]]:
    """For each frame, by `id`, its indices in the dimensions that distinguish the frames of a position."""
    frames = [frame for place in places for frame in place]
    if len({len(frame.dimensions) for frame in frames}) > 1:
        return {id(frame): () for frame in frames}
    columns: list[dict[int, float]] = []
    for number in range(len(frames[0].dimensions)):
        at_place = [{frame.dimensions[number] for frame in place} for place in places]
        if all(len(found) == 1 for found in at_place):  # the index is determined by the position
            continue
        column = {id(frame): float(frame.dimensions[number]) for frame in frames}
        if len(set().union(*at_place)) == sum(map(len, at_place)):  # no index is shared between positions: use ranks
            for place, found in zip(places, at_place, strict=True):
                column |= {id(frame): float(sorted(found).index(frame.dimensions[number])) for frame in place}
        columns.append(column)
    return {id(frame): tuple(column[id(frame)] for column in columns) for frame in frames}


def _are_phases(stacks: list[list[Frame]], indices: dict[int, tuple[float, ...]], *, enhanced: bool) -> bool:
    """Whether the i-th frames of all positions belong to one phase, and all phases can be distinguished."""
    exact = [[(indices[id(frame)], frame.kind) for frame in place] for place in stacks]
    if any(place != exact[0] for place in exact):
        return False
    if all(len(set(place)) == len(place) for place in exact):
        return True
    # times may differ slightly between slices, but not their order
    ranks = [_ranks([frame.phase for frame in place]) for place in stacks]
    if any(place != ranks[0] for place in ranks):
        return False
    labels = [list(zip(one, other, strict=True)) for one, other in zip(exact, ranks, strict=True)]
    if all(len(set(place)) == len(place) for place in labels):
        return True
    if enhanced:
        return _is_regular(stacks, lambda frame: (str(frame.path), frame.index))
    numbered = all(len({(f.number, f.index, f.kind) for f in place}) == len(place) for place in stacks)
    return numbered and _is_regular(stacks, _by_number)


def _ranks(phases: list[tuple[float, ...]]) -> list[Hashable]:
    columns = [[sorted(set(column)).index(value) for value in column] for column in zip(*phases, strict=True)]
    return list(zip(*columns, strict=True))


def _by_times(places: list[list[Frame]]) -> list[list[Frame]]:
    """Volumes of classic images by the first time that differs between all images of a position; none without one."""
    for column in range(len(places[0][0].times)):
        stacks = [sorted(place, key=lambda f: (str(f.kind), f.times[column] or 0.0)) for place in places]
        labels = [{(f.kind, f.times[column]) for f in place if f.times[column] is not None} for place in places]
        kinds = [[frame.kind for frame in place] for place in stacks]
        if all(len(found) == len(places[0]) for found in labels) and all(k == kinds[0] for k in kinds):
            return [[place[i] for place in stacks] for i in range(len(places[0]))]
    return []


def _is_regular(stacks: list[list[Frame]], order_of: _Key) -> bool:
    """Whether otherwise indistinguishable frames come volume by volume, or position by position."""
    placed = [(order_of(f), place) for place, frames in enumerate(stacks) for f in frames]
    order = [place for _, place in sorted(placed)]
    count, slices = len(stacks[0]), len(stacks)
    by_volume = [order[i : i + slices] for i in range(0, len(order), slices)]
    by_place = [order[i : i + count] for i in range(0, len(order), count)]
    return all(part == by_volume[0] for part in by_volume) or all(len(set(part)) == 1 for part in by_place)


def _say_kinds(path: Path, volumes: list[list[Frame]]) -> None:
    echoes = {volume[0].kind[0] for volume in volumes}
    types = {volume[0].kind[-1] for volume in volumes}
    if len(echoes) > 1 or len(types) > 1:
        warn(f"{path}: the {len(volumes)} volumes are of {len(echoes)} echo times and {len(types)} image types")
