"""Pairs of scans and NestedMorph: the inputs of a page, where the network looks, and whether it needs both images."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from torch import Tensor, nn

from ...attention_analysis.divergence import dependence
from ...attention_analysis.grounding import best_region, hit
from ...attention_analysis.importance import Interval
from ...attention_analysis.pictures import Slice, attention_over_slices
from ...attention_analysis.trace import Head, Trace, attention_layers, record_run
from ...registration.affine import align_affine
from ...registration.cross_attention import STRIDES, CrossAttention
from ...registration.doubt import start_is_better
from ...registration.nestedmorph import MULTIPLE
from ...registration.nestedmorph_files import TrainedNetwork
from ...registration.pairs import Pair, read_pairs
from ...registration.register import network_grid, network_images, working_grid
from ...registration.series import reference_image
from ...runs.words import one_line
from ...volumes import AffineTransform, Volume, resample
from ..registration.options import PAIR_LISTS
from ..registration.scans import read_labels, read_scan
from .subject import MOST_KEYS, Case, Effect, PairInput, Subject
from .where import SHOWN, Reliance, Where, mean_dependence, reliance

_SHIFT = 4  # voxels by which the moving image is shifted
_IGNORED = 0.01  # share of the displacement; with less change, an image counts as ignored
_FOLLOWED = 0.1  # share of a shift; a network that follows less does not align by it
_STILL = 0.01  # voxels; a network that moves less does nothing


def pairs_at(place: Path, fixed: Path | None, label: Path | None) -> list[Pair]:
    """The pairs to explain: one of two scans, or those of a table or of a folder with one.

    Raises:
        ValueError: there is no second scan and no table.
    """
    if fixed is not None:
        return [Pair(place, fixed, "", label)]
    tables = [place] if place.suffix.lower() in (".tsv", ".csv", ".json") else [place / name for name in PAIR_LISTS]
    table = next((one for one in tables if one.is_file()), None)
    if table is None:
        raise ValueError(
            f"weights of a registration network need two scans, --input MOVING --fixed FIXED, or a table of pairs "
            f"({', '.join(PAIR_LISTS)}), got {place}"
        )
    return read_pairs(table)


def pair_subject(network: TrainedNetwork, pairs: Sequence[Pair], most: int) -> Subject:
    """NestedMorph and pairs of scans, which are first aligned by an affine map, as `registration register` does."""
    cases: list[Case] = []
    failed: list[tuple[str, str]] = []
    for pair in pairs:
        if len(cases) == most:
            break
        try:
            cases.append(pair_case(network.network, _read(network, pair), _name(pair), unit=pair.subject))
        except (ValueError, OSError) as error:
            failed.append((_name(pair), one_line(error)))
    return registration_subject(network.network, cases, failed)


def registration_subject(model: nn.Module, cases: list[Case], failed: list[tuple[str, str]]) -> Subject:
    """What is explained of a registration network, `model(moving, fixed) -> (warped, displacement)`."""
    half = min((_half_voxel(case) for case in cases), default=0.5)

    def size(full: Tensor, other: Tensor) -> float:
        return float((full - other).norm(dim=1).mean())

    def unchanged(full: Tensor, other: Tensor) -> float:
        return float(((full - other).norm(dim=1) < half).double().mean())

    explained = (
        "An effect is the mean distance, in mm, between the displacements before and after a change of the network or "
        f"of its input, over the voxels of the head. A displacement counts as changed if it differs by more than half "
        f"a voxel of the network's grid ({half:.2g} mm)."
    )
    return Subject(
        "What the registration network looks at",
        "pair",
        "displacement field",
        model.eval(),
        [_readable(name) for name in attention_layers(model)],
        cases,
        failed,
        (),
        unit="subject",
        effect=Effect("mm", size, unchanged, explained),
        decisions="displacements",
        random_orders=2,
    )


def pair_case(model: nn.Module, pair: PairInput, name: str, *, unit: str = "") -> Case:
    """The case of one pair."""
    return Case(name, lambda: displacements(model, pair), pair=pair, unit=unit)


def displacements(
    model: nn.Module, pair: PairInput, *, moving: Tensor | None = None, fixed: Tensor | None = None
) -> Tensor:
    """The displacement in mm at the voxels of the head, (voxels, 3), also with another image in place of one."""
    moving = pair.moving if moving is None else moving
    fixed = pair.fixed if fixed is None else fixed
    _, found = model(moving, fixed)
    inside: Tensor = found[0][:, pair.content].T.double() * pair.spacing_mm
    return inside


def _read(network: TrainedNetwork, pair: Pair) -> PairInput:
    moving, fixed = (_three_axes(reference_image(read_scan(path), path), path) for path in (pair.moving, pair.fixed))
    matrix = align_affine(moving, fixed)
    if start_is_better(moving, fixed, matrix):
        matrix = np.eye(4)
    affine = AffineTransform(matrix)
    seen = network_grid(fixed, working_grid(fixed), network.spacing_mm)
    images = network_images(moving, fixed, affine, seen)
    label = None
    if (labels := read_labels(pair.moving_labels)) is not None:
        label = torch.from_numpy(np.asarray(resample(labels, seen, affine, order="nearest").array) != 0)
        if not label.any():
            raise ValueError(f"{pair.moving_labels} must mark voxels of the moving scan, got none on the common grid")
    return pair_input(*images, spacing=seen.spacing, label=label, affine=seen.affine)


def pair_input(
    moving: Tensor,
    fixed: Tensor,
    *,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    label: Tensor | None = None,
    affine: np.ndarray | None = None,
) -> PairInput:
    """A pair of images (1, D, H, W) in [0, 1] on one grid."""
    content = fixed[0] > 0.05
    names = {"L": "sagittal", "R": "sagittal", "A": "coronal", "P": "coronal", "S": "axial", "I": "axial"}
    first, second, third = (names[code] for code in nib.aff2axcodes(np.eye(4) if affine is None else affine))
    return PairInput(
        moving[None],
        fixed[None],
        content if content.any() else torch.ones_like(content),
        label,
        torch.tensor(list(spacing), dtype=torch.float64),
        (first, second, third),
    )


def _three_axes(volume: Volume, path: Path) -> Volume:
    if min(volume.shape) < 2:
        raise ValueError(f"{path.name} must be a volume, since the network reads volumes, got {volume.shape}")
    return volume


def _name(pair: Pair) -> str:
    return f"{pair.moving.name} to {pair.fixed.name}"


def _half_voxel(case: Case) -> float:
    assert case.pair is not None
    return float(case.pair.spacing_mm.min()) / 2


def _readable(name: str) -> str:
    """The name of a layer of NestedMorph in words; other names stay."""
    if "backbone.block" in name:
        return f"encoder {name.split('backbone.block')[1][0]}"
    if "tran_layer" in name:
        return f"decoder, block {name.split('tran_layer')[1][0]}"
    return name


class Use(NamedTuple):
    """What a registration network makes of its two images, in mm unless it says otherwise."""

    moved: Interval  # mean length of a displacement
    voxel: float  # smallest side of a voxel
    empty_moving: Interval  # change of the displacement with an empty moving image
    fixed_as_moving: Interval  # with the fixed image in place of the moving one
    shifted: Interval  # with the moving image shifted
    shift: float
    followed: Interval  # share of the shift by which the displacement follows
    empty_fixed: Interval  # with an empty fixed image


@torch.no_grad()
def look_at_pairs(subject: Subject) -> Where:
    """Whether the network needs both images, which heads read the moving one, and where the attention goes."""
    use, rows, heads = _measured(subject)
    sentences, warnings = in_words(use, single=not subject.several)
    pictures: list[tuple[str, str]] = []
    ground: list[tuple[float, bool]] = []
    for case in subject.cases:
        assert case.pair is not None
        record = record_run(subject.model, case.run, most_keys=MOST_KEYS)
        drawn = _attention_volume(subject, record, case.pair)
        if drawn is None:
            continue
        name, volume, of_moving = drawn
        if len(pictures) < SHOWN:
            pictures.append(_overlay(case, name, volume, of_moving))
        if case.pair.label is not None:
            ground.append(_grounded(case.pair, volume))
    if ground:
        sentences += _grounding_words(subject, ground)
    return Where(sentences, pictures, rows, warnings, heads, "the moving image")


def _measured(subject: Subject) -> tuple[Use, list[Reliance], dict[Head, float]]:
    effect, model = subject.effect, subject.model
    values: dict[str, list[tuple[float, float]]] = {}
    moved, followed, shifts, heads = [], [], [], []
    for case in subject.cases:
        pair = case.pair
        assert pair is not None
        full = record_run(model, case.run, weights=False)
        u: Tensor = full.output
        moved.append(float(u.norm(dim=1).mean()))
        blank = torch.zeros_like(pair.moving)
        lacking = record_run(model, partial(displacements, model, pair, moving=blank), weights=False)
        shifted = displacements(model, pair, moving=_shifted(pair.moving))
        shifts.append(_SHIFT * float(pair.spacing_mm[0]))
        followed.append(float((shifted - u)[:, 0].mean()) / shifts[-1])
        found = {
            "the moving image, replaced by an empty one": lacking.output,
            "the moving image, replaced by the fixed one": displacements(model, pair, moving=pair.fixed),
            f"the moving image, shifted by {_SHIFT} voxels": shifted,
            "the fixed image, replaced by an empty one": displacements(model, pair, fixed=blank),
        }
        if pair.label is not None:
            for part, image in _without_label(pair).items():
                found[part] = displacements(model, pair, moving=image)
        for part, other in found.items():
            values.setdefault(part, []).append((effect.size(u, other), 1 - effect.unchanged(u, other)))
        heads.append(dependence(full, lacking))
    labelled = replace(subject, cases=[case for case in subject.cases if case.pair and case.pair.label is not None])
    rows = [
        reliance(subject if len(one) == len(subject.cases) else labelled, part, one) for part, one in values.items()
    ]
    voxel = 2 * min(_half_voxel(case) for case in subject.cases)
    empty, swapped, moved_on, blank_fixed = (row.effect for row in rows[:4])
    use = Use(
        subject.over(moved), voxel, empty, swapped, moved_on, sum(shifts) / len(shifts), subject.over(followed),
        blank_fixed,
    )  # fmt: skip
    return use, rows, mean_dependence(heads)


def _shifted(image: Tensor) -> Tensor:
    """The image moved by some voxels along its first axis, with background behind it."""
    moved = torch.zeros_like(image)
    moved[:, :, _SHIFT:] = image[:, :, :-_SHIFT]
    return moved


def _without_label(pair: PairInput) -> dict[str, Tensor]:
    """The moving image with the labelled part, and with an equal part on the other side, set to its median."""
    assert pair.label is not None
    inside = pair.moving[0, 0] > 0.05
    median = pair.moving[0, 0][inside].median() if inside.any() else torch.tensor(0.0)
    parts = {"the labelled part of the moving image": pair.label, "its mirror image": pair.label.flip(0)}
    return {f"{name}, set to the median": pair.moving.masked_fill(part, float(median)) for name, part in parts.items()}


def in_words(use: Use, *, single: bool) -> tuple[list[str], list[str]]:
    """Sentences on what the network makes of its two images, and warnings."""
    moved = use.moved.mean
    words = [f"The network displaces the head by {moved:.2g} mm on average."]
    of_moving = max(use.empty_moving.mean, use.fixed_as_moving.mean, use.shifted.mean)
    if moved < _STILL * use.voxel and max(of_moving, use.empty_fixed.mean) < _STILL * use.voxel:
        return words, ["The network does almost nothing with these scans, so nothing can be said about what it uses."]
    warnings = []
    if of_moving <= _IGNORED * moved:
        warnings.append(
            "The network ignores the moving image: with an empty image, with the fixed image or with a shifted image "
            f"in its place, the displacements change by at most {of_moving:.2g} mm. Its displacements follow from the "
            "fixed image alone, so it cannot align these scans."
        )
    elif use.followed.mean < _FOLLOWED:
        warnings.append(
            f"The network reads the moving image, but hardly aligns by it: if that image is shifted by {use.shift:.3g} "
            f"mm, the displacements follow by {100 * use.followed.mean:.0f} % of the shift."
        )
    else:
        words.append(
            f"It uses the moving image: without it, the displacements change by {use.empty_moving.mean:.2g} mm, and if "
            f"it is shifted by {use.shift:.3g} mm, they follow by {100 * use.followed.mean:.0f} % of the shift."
        )
    if use.empty_fixed.mean <= _IGNORED * moved:
        warnings.append(
            "The network ignores the fixed image: with an empty image in its place, the displacements change by at "
            f"most {use.empty_fixed.mean:.2g} mm, so it cannot align these scans."
        )
    if single:
        words.append("These figures come from one pair, so their spread is not known.")
    return words, warnings


def _attention_volume(subject: Subject, record: Trace, pair: PairInput) -> tuple[str, Tensor, bool] | None:
    """The layer that is drawn, its attention at each voxel (D, H, W), 1 = uniform, and whether its keys are moving.

    This is the finest layer; with a branch for each image, the finest one that attends to the moving image.
    """
    names = list(attention_layers(subject.model).items())
    cross = [i for i, (_, layer) in enumerate(names) if isinstance(layer, CrossAttention)]
    encoder = [i for i, (name, _) in enumerate(names) if "backbone.block" in name]
    chosen = next(iter(cross or encoder), None)
    if chosen is None:
        return None
    call = next(call for call in record.calls if call.layer == chosen)
    if call.weights is None:
        return None
    stride = STRIDES[int(names[chosen][0].split("backbone.block")[1][0]) - 1]
    sides = pair.moving.shape[2:]
    missing = [-n % MULTIPLE for n in sides]
    grid = [(n + more) // stride for n, more in zip(sides, missing, strict=True)]
    weights = call.column_means()[0].double().mean(0)
    if weights.numel() != math.prod(grid):
        return None
    volume = (weights * weights.numel()).view(*grid)
    for axis, (n, more) in enumerate(zip(sides, missing, strict=True)):
        volume = volume.repeat_interleave(stride, axis).narrow(axis, more // 2, n)
    return subject.layers[chosen], volume, bool(cross)


def _overlay(case: Case, layer: str, volume: Tensor, of_moving: bool) -> tuple[str, str]:
    pair = case.pair
    assert pair is not None
    image, label = pair.moving[0, 0], pair.label
    shown = pair.content if label is None else label
    slices = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        at = int(shown.sum(others).argmax()) if label is not None else int(_middle(shown, axis))
        planes = [_upright(one.select(axis, at)) for one in (image.float(), volume)]
        box = None if label is None else _box(_upright(label.select(axis, at)))
        slices.append(Slice(pair.planes[axis], planes[0].numpy(), planes[1].numpy(), box))
    what = "the places of the moving image" if of_moving else "the places, of which each holds both images,"
    caption = (
        f"{case.name}: attention that {what} receive in {layer}, mean over its heads and queries, drawn over the "
        "moving image after the affine map."
    )
    if label is not None:
        caption += " Blue box: the label."
    return attention_over_slices(slices, label="attention, 1 = uniform"), caption


def _middle(mask: Tensor, axis: int) -> float:
    return float(mask.nonzero()[:, axis].double().mean().round())


def _upright(plane: Tensor) -> Tensor:
    return plane.T.flip(0)


def _box(plane: Tensor) -> tuple[float, float, float, float] | None:
    places = plane.nonzero()
    if not len(places):
        return None
    (top, left), (bottom, right) = places.amin(0).tolist(), (places.amax(0) + 1).tolist()
    return top, left, bottom, right


def _grounded(pair: PairInput, volume: Tensor) -> tuple[float, bool]:
    """The attention on the label, 1 = uniform, and whether the strongest region of its largest slice is in its box."""
    assert pair.label is not None
    ratio = float(volume[pair.label].mean() / volume.mean())
    at = int(pair.label.sum((0, 1)).argmax())
    plane, box = volume[:, :, at], _box(pair.label[:, :, at])
    assert box is not None
    region = best_region(plane)
    return ratio, hit((region.row, region.column), box)


def _grounding_words(subject: Subject, ground: Sequence[tuple[float, bool]]) -> list[str]:
    known = [case for case in subject.cases if case.pair is not None and case.pair.label is not None]
    part = replace(subject, cases=known)
    found = part.over([ratio for ratio, _ in ground])
    words = f"The label gets {found.mean:.2f} times the attention of an average place"
    if part.several:
        words += f" (95 % interval {found.low:.2f} to {found.high:.2f})"
    hits = sum(inside for _, inside in ground)
    end = f"is inside its box in {hits} of {len(ground)} pairs"
    if len(ground) == 1:
        end = f"lies {'inside' if hits else 'outside'} its box"
    return [f"{words}; in the slice through it, the region of most attention {end}."]
