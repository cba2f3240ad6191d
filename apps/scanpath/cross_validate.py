"""`voxelwave scanpath cross-validate`: the performance of OAT on unseen layouts, people or targets."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from ...runs.cells import Cell, Result
from ...runs.drive import Group
from ...runs.record import sha256, write_measurement
from ...scanpath.estimators import ROWS, Options, baseline_rows, read_dataset, read_rows, write_rows
from ...scanpath.evaluation import Row, compare, summarise
from ...scanpath.scene import Dataset, TargetPosition
from ...scanpath.splits import By, groups_of, shared
from ...scanpath.splits import split as split_trials
from ..nested_cv.plan import CELLS, Design, make_plan, open_plan
from ..nested_cv.progress import run_with_progress
from ..nested_cv.records import EstimatorSpec, InnerSplit, Plan, Split
from ..nested_cv.search import Outcome, count_cells, has_search
from ..nested_cv.seeds import derive_seed
from ..nested_cv.splits import Cohort
from .options import CrossValidate
from .table import draw_figures, plain, show_figures, write_figures

TITLES = {"hidden": "OAT, target hidden", "given": "OAT, target given"}


class Reading(TypedDict):
    """Arguments of `read_dataset`."""

    data: str
    long_trials: Literal["keep", "drop"]
    duplicates: Literal["error", "drop"]


class BaselineCell(Cell, Reading):
    """The cell of `baseline_cell`."""

    model: str
    fold: int
    target_position: TargetPosition
    train: list[int]
    predict: list[int]
    samples: int


def cross_validate(options: CrossValidate) -> None:
    """Run the command."""
    fitting: dict[str, Any] = {
        "network": options.network or {},
        "space": options.space or {},
        "epochs": options.epochs,
        "patience": options.patience,
        "appearance": options.appearance,
        "samples": options.samples,
    }
    Options(**fitting)
    reading: Reading = {
        "data": str(options.data.resolve()),
        "long_trials": options.long_trials,
        "duplicates": options.duplicates,
    }
    dataset = read_dataset(options.data, long_trials=options.long_trials, duplicates=options.duplicates)
    for note in dataset.notes:
        print(f"note: {note}")
    modes = _modes(options, dataset)
    models: dict[str, EstimatorSpec] = {
        f"oat-{mode}": {
            "factory": "scanpath-models",
            "arguments": {**reading, "name": TITLES[mode], "target_position": mode, "options": fitting},
        }
        for mode in modes
    }
    design = Design(
        outer=options.folds,
        inner=options.inner,
        trials=options.trials,
        objective="likelihood",
        seed=options.seed,
        threads=options.threads,
    )
    plan = make_plan(
        _cohort(dataset, options.split),
        models,
        design,
        options={**fitting, **reading, "split": options.split},
        data=sha256(options.data),
        splits=_splits(dataset, options.split, options.folds, options.inner, options.seed),
    )
    plan = open_plan(options.output, plan)
    total = sum(count_cells(plan, {name: has_search(spec) for name, spec in models.items()}).values()) + options.folds
    fits = f"{len(models)} networks, up to {total} fits"
    print(f"{len(dataset)} scanpaths, {options.folds} folds by {options.split}; {fits}")
    baselines = [_baselines(plan, k, reading, modes[-1], options.samples) for k in range(options.folds)]
    outcomes = run_with_progress(
        options.output,
        plan,
        options,
        total=total,
        more=baselines,
    )
    _report(options.output, dataset, plan, outcomes, resamples=options.resamples, seed=options.seed)


def _modes(options: CrossValidate, dataset: Dataset) -> tuple[TargetPosition, ...]:
    """Whether to train with the position of the target hidden, given, or both."""
    modes: tuple[TargetPosition, ...] = (
        ("hidden", "given") if options.target_position == "both" else (options.target_position,)
    )
    if "given" in modes and all(scene.target is None for scene in dataset.scenes.values()):
        if options.target_position == "given":
            raise ValueError("--target-position given needs scenes with a target; no scene of these data has one")
        print("note: no scene has a target, so its position cannot be given")
        return ("hidden",)
    return modes


def _cohort(dataset: Dataset, by: By) -> Cohort:
    """The cohort of a plan, without classes: subjects are trials, grouped by layout, person or target."""
    names = tuple(f"{k} {trial.scene} {trial.person}" for k, trial in enumerate(dataset.trials))
    return Cohort(names, (), (), groups=tuple(str(g) for g in groups_of(dataset, by)))


def _splits(dataset: Dataset, by: By, folds: int, inner: int, seed: int) -> list[Split]:
    found: list[Split] = []
    for fold, (train, test) in enumerate(split_trials(dataset, by, folds=folds, seed=seed)):
        inside = split_trials(dataset, by, folds=inner, seed=derive_seed(seed, "inner", fold), trials=train)
        parts: list[InnerSplit] = [{"train": a.tolist(), "validation": b.tolist()} for a, b in inside]
        found.append({"repeat": 0, "fold": fold, "train": train.tolist(), "test": test.tolist(), "inner": parts})
    return found


def _baselines(plan: Plan, fold: int, reading: Reading, mode: TargetPosition, samples: int) -> Group[list[Outcome]]:
    """One cell that fits and tests all simpler models."""
    split = plan["splits"][fold]
    cell: BaselineCell = {
        "id": f"baselines-r0-f{fold}",
        "function": "baselines",
        "model": "baselines",
        "fold": fold,
        **reading,
        "target_position": mode,
        "train": split["train"],
        "predict": split["test"],
        "samples": samples,
        "threads": plan["design"]["threads"],
    }
    yield [cell]
    return []


def baseline_cell(cell: BaselineCell, folder: Path) -> Result:
    """Fit the simpler models, and write their rows and those of people; this is the function of a cell."""
    dataset = read_dataset(cell["data"], long_trials=cell["long_trials"], duplicates=cell["duplicates"])
    dataset = dataset.with_target_position(cell["target_position"])
    write_rows(folder / ROWS, baseline_rows(dataset, cell["train"], cell["predict"], samples=cell["samples"]))
    return {}


def _rows(output: Path, plan: Plan, outcomes: list[Outcome]) -> list[Row]:
    cells = [(o.fold, o.cell) for o in outcomes]
    cells += [(split["fold"], f"baselines-r0-f{split['fold']}") for split in plan["splits"]]
    return [{"fold": fold, **row} for fold, cell in cells for row in read_rows(output / CELLS / cell / ROWS)]


def _report(output: Path, dataset: Dataset, plan: Plan, outcomes: list[Outcome], *, resamples: int, seed: int) -> None:
    rows = _rows(output, plan, outcomes)
    table = summarise(rows, resamples=resamples, seed=seed)
    ours = list(dict.fromkeys(TITLES[o.model.removeprefix("oat-")] for o in outcomes))
    others = [name for name in table if name not in ours and "nll_per_token" in table[name]]
    differences = {
        name: {other: plain(compare(rows, name, other, resamples=resamples, seed=seed)) for other in others}
        for name in ours
    }
    both_sides = [shared(dataset, np.array(s["train"]), np.array(s["test"])) for s in plan["splits"]]
    split, trials = plan["options"]["split"], len(dataset)
    write_figures(output, rows, table)
    write_measurement(
        output / "results.json",
        inputs={"data": Path(plan["options"]["data"])},
        options={**plan["design"], **plan["options"]},
        notes=list(dataset.notes),
        test_trials_seen_in_training_of_their_fold={
            key: float(np.mean([part[key] for part in both_sides])) for key in both_sides[0]
        },
        folds=[{k: v for k, v in asdict(o).items() if k not in ("protocol", "repeat", "threshold")} for o in outcomes],
        results={name: plain(figures) for name, figures in table.items()},
        differences=differences,
    )
    title = f"{trials} scanpaths, {plan['design']['outer']} folds by {split}"
    draw_figures(output / "results.png", table, title=title)
    show_figures(table, title)
    for name in ours:
        found = {other: differences[name][other]["nll_per_token"] for other in others}
        words = "; ".join(
            f"{other} {float(d['value']):+.3f} ({_span(float(d['low']), float(d['high']))})"
            for other, d in found.items()
        )
        print(f"{name}, difference in nats per token to simpler models on the same scanpaths: {words}")
    print(f"wrote {output}/: results.csv, results.json, trials.csv, results.png")


def _span(low: float, high: float) -> str:
    """An interval of a difference; one of no width, such as that of a single layout, is no estimate."""
    return "not estimable" if low == high else f"{low:+.3f} to {high:+.3f}"
