"""`voxelwave registration cross-validate`: held-out pairs, with settings chosen on pairs of other people."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...registration.network_files import read_network
from ...registration.pairs import Pair, read_pairs
from ...registration.settings import RegistrationSettings
from ...registration.weights_method import method_of_weights
from ...runs.exit import DONE
from ...runs.persons import join_persons
from ...runs.record import sha256
from ...runs.words import first_few
from ..nested_cv.measure import Grid
from ..nested_cv.measured_records import Figures, MeasuredFlow, MetricText
from ..nested_cv.measured_run import MeasuredStudy, run_measured, settings_grid
from ..nested_cv.records import AuditRow, ModelTexts, Settings, Split
from ..nested_cv.seeds import derive_seed
from ..nested_cv.splits import Cohort, check_splits, group_splits
from .options import CrossValidate
from .pair_table import measure_pair, unaligned_overlap

REGISTER, AFFINE, UNALIGNED, SYN = "register", "affine", "unaligned", "syn"
_METRICS: dict[str, MetricText] = {
    "dice": {"title": "Dice", "unit": "", "higher": True},
    "hd95_mm": {"title": "HD95", "unit": "mm", "higher": False},
    "folding_percent": {"title": "folded voxels", "unit": "%", "higher": False},
}
_TEXTS: dict[str, ModelTexts] = {
    REGISTER: {"title": "registration", "description": "settings chosen on pairs of other people"},
    SYN: {"title": "ANTs SyN", "description": "its default settings"},
    AFFINE: {"title": "affine alone", "description": "no deformation"},
    UNALIGNED: {"title": "unaligned", "description": "by the headers of the scans"},
}
_CHOICES = ("similarity", "effort", "diffeomorphic", "transform", "network")


class PairMeasure:
    """Overlap of labels after the registration of a pair; see `nested_cv.measure.Measure`.

    Args:
        pairs: the list of pairs.
        settings: fields of `RegistrationSettings`.
        weights: the weights of the network.
        cache: a folder for affine alignments.
        device: where networks and refinement run.
        listed: the places of the pairs in the list, one per unit.
    """

    def __init__(
        self,
        pairs: str,
        settings: dict[str, Any],
        weights: str | None,
        cache: str | None,
        device: str,
        listed: Sequence[int],
    ):
        every = read_pairs(pairs)
        self._pairs = [every[place] for place in listed]
        self._settings = RegistrationSettings(**settings)
        self._network = None if weights is None else read_network(weights)
        self._method = method_of_weights(weights)  # of the network
        self._cache, self._device = None if cache is None else Path(cache), device

    def __call__(self, model: str, unit: int, settings: Settings) -> Figures:
        """Mean Dice, mean 95 % Hausdorff distance in mm, and share of folded voxels of a pair."""
        pair = self._pairs[unit]
        if model == UNALIGNED:
            return {**_named(unaligned_overlap(pair), "before"), "folding_percent": 0.0}
        chosen: dict[str, Any] = dict(settings)
        network = self._network if chosen.pop("network", False) else None
        changes = {
            REGISTER: {"method": "field" if network is None else self._method, **chosen},
            SYN: {"method": "syn"},
            AFFINE: {"method": "field", "transform": "affine"},
        }[model]
        found = measure_pair(pair, replace(self._settings, **changes), network, self._device, self._cache)
        return {**_named(found, "after"), "folding_percent": found["non_positive_jacobian_percent"]}


def _named(figures: dict[str, float], when: str) -> Figures:
    return {"dice": figures[f"dice_{when}"], "hd95_mm": figures[f"hd95_mm_{when}"]}


def measure_of(**arguments: Any) -> PairMeasure:
    """Build the measure of a plan."""
    return PairMeasure(**arguments)


@dataclass(frozen=True)
class PairFolds:
    """The pairs that are measured, and their folds.

    Args:
        listed: places in the list, one per unit.
        groups: a name for each unit; units that share a person have one.
        splits: the outer folds, with indices of units.
        left_out: number of pairs whose two people are in different folds.
    """

    listed: tuple[int, ...]
    groups: tuple[str, ...]
    splits: list[Split]
    left_out: int


def folds_by_person(people: Sequence[tuple[str, str]], *, folds: int, seed: int) -> PairFolds:
    """Divide pairs into folds so that no person is in two of them.

    Chains of pairs that share people are kept together if there are enough chains. Otherwise the people are divided at
    random, and a pair whose two people fall into different folds is left out.

    Args:
        people: the two people of each pair, which may be the same.
        folds: number of folds.
        seed: seed of the division.

    Raises:
        ValueError: there are too few people, or a fold has no pair.
    """
    chains = _chains(people)
    if len(set(chains)) >= folds:
        cohort = Cohort(tuple(map(str, range(len(people)))), (), (), groups=chains)
        return PairFolds(tuple(range(len(people))), chains, group_splits(cohort, outer=folds, seed=seed), 0)
    names = sorted({name for pair in people for name in pair})
    if len(names) < 2 * folds:
        raise ValueError(f"{folds} folds of pairs need {2 * folds} people or more, got {len(names)}; lower --folds")
    order = np.random.default_rng(derive_seed(seed, "people")).permutation(len(names))
    fold_of = {names[k]: place % folds for place, k in enumerate(order.tolist())}
    listed = [k for k, (a, b) in enumerate(people) if fold_of[a] == fold_of[b]]
    own = [fold_of[people[k][0]] for k in listed]
    empty = [fold + 1 for fold in range(folds) if fold not in own]
    if empty:
        raise ValueError(f"fold {empty[0]} has no pair of two of its people; lower --folds, or list more pairs")
    splits: list[Split] = [
        {
            "repeat": 0,
            "fold": fold,
            "train": [unit for unit, other in enumerate(own) if other != fold],
            "test": [unit for unit, other in enumerate(own) if other == fold],
            "inner": [],
        }
        for fold in range(folds)
    ]
    groups = _chains([people[k] for k in listed])
    check_splits(Cohort(tuple(map(str, listed)), (), (), groups=groups), splits)
    return PairFolds(tuple(listed), groups, splits, len(people) - len(listed))


def _chains(people: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """For each pair the name of the first person to whom it is linked, also through other pairs."""
    names = [name for pair in people for name in pair]
    pair_numbers = [str(k) for k in range(len(people)) for _ in range(2)]
    return join_persons(names, pair_numbers)[::2]


def cross_validate(options: CrossValidate) -> int:
    """Run the command and return its exit code."""
    pairs = read_pairs(options.pairs)
    without = [f"{pair.moving.name} and {pair.fixed.name}" for pair in pairs if not pair.has_labels]
    if without:
        raise ValueError(f"every pair needs moving_labels and fixed_labels, got none for {first_few(without)}")
    found = folds_by_person([_people(pair) for pair in pairs], folds=options.folds, seed=options.seed)
    units = [_name(pairs[place], place) for place in found.listed]
    grid = _grid(options)
    metrics = {options.objective: _METRICS[options.objective], **_METRICS}
    flow: MeasuredFlow = {
        "listed": len(pairs),
        "analysed": len(units),
        "groups": len({name for place in found.listed for name in _people(pairs[place])}),
        "excluded": [f"{found.left_out} pairs: their two people are in different folds"] if found.left_out else [],
    }
    settings = {f.name: getattr(options, f.name) for f in fields(RegistrationSettings)}
    files = sorted({file for place in found.listed for file in _files(pairs[place])})
    study = MeasuredStudy(
        cohort=Cohort(tuple(units), (), (), groups=found.groups),
        splits=found.splits,
        spec={
            "factory": "registration-methods",
            "arguments": {
                "pairs": str(options.pairs.resolve()),
                "settings": settings,
                "weights": None if options.weights is None else str(options.weights.resolve()),
                "cache": str((options.cache or options.output / ".affine").resolve()),
                "device": options.device,
                "listed": list(found.listed),
            },
        },
        grid=grid,
        options={"space": options.space, "weights": None if options.weights is None else options.weights.name},
        data="".join(sha256(file)[:16] for file in files),
        title=options.title or "Registration: cross-validation on held-out pairs",
        description=_description(settings),
        unit="pair",
        group="person",
        metrics=metrics,
        models={name: _TEXTS[name] for name in grid},
        flow=flow,
        audit=_audit([pairs[place] for place in found.listed], found, options.weights),
        limits=_limits(found, options.weights),
        seed=options.seed,
    )
    run_measured(options.output, study, options)
    return DONE


def _people(pair: Pair) -> tuple[str, str]:
    return pair.subject, pair.fixed_subject or pair.subject


def _name(pair: Pair, place: int) -> str:
    a, b = _people(pair)
    return f"{place + 1}: {a}" if a == b else f"{place + 1}: {a} to {b}"


def _files(pair: Pair) -> list[Path]:
    return [file for file in (pair.moving, pair.fixed, pair.moving_labels, pair.fixed_labels) if file is not None]


def _grid(options: CrossValidate) -> Grid:
    """The methods and their settings."""
    space: dict[str, list[Any]] = {"similarity": ["auto", "mind"], "effort": ["fast", "standard"]}
    if options.weights is not None:
        space["network"] = [False, True]
    if options.space is not None:
        space = dict(options.space)
    unknown = [name for name in space if name not in _CHOICES]
    if unknown or not space:
        raise ValueError(f"space must name some of {', '.join(_CHOICES)}, got {', '.join(unknown) or 'none'}")
    if True in space.get("network", []) and options.weights is None:
        raise ValueError("space: network true needs --weights")
    grid: dict[str, list[Settings]] = {REGISTER: settings_grid(space)}
    if options.baseline:
        grid[SYN] = [{}]
    return {**grid, AFFINE: [{}], UNALIGNED: [{}]}


def _description(settings: dict[str, Any]) -> list[str]:
    fixed = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    return [
        "Each pair was registered under every choice of settings, and the labels of the moving scan were warped onto "
        "those of the fixed scan. Dice and the 95 % Hausdorff distance (HD95) are means over the labels that both maps "
        "have.",
        f"Settings that were not searched: {fixed}.",
    ]


def _audit(pairs: Sequence[Pair], found: PairFolds, weights: Path | None) -> list[AuditRow]:
    scans: dict[str, set[str]] = {}
    for pair, group in zip(pairs, found.groups, strict=True):
        for file in (pair.moving, pair.fixed):
            if file.is_file():
                scans.setdefault(sha256(file), set()).add(group)
    shared = sum(len(groups) > 1 for groups in scans.values())
    check = "no scan on both sides under another name"
    rows: list[AuditRow] = [{"check": check, "outcome": "ok", "detail": f"{len(scans)} scans"}]
    if shared:
        detail = f"{shared} scans belong to several people, such as an atlas; nothing was fitted to them"
        rows = [{"check": check, "outcome": "warning", "detail": detail}]
    if weights is not None:
        check = "weights not trained on these people"
        rows.append({"check": check, "outcome": "not checked", "detail": "the training data are unknown"})
    return rows


def _limits(found: PairFolds, weights: Path | None) -> list[str]:
    limits = ["One partition of the people.", "Dice measures the overlap of labels, not what lies within them."]
    if found.left_out:
        limits.append("Pairs whose people are in different folds were left out, which makes the study smaller.")
    if weights is not None:
        limits.append("The network was trained before; if it saw these people, its figures are too optimistic.")
    return limits
