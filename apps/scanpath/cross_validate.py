"""`voxelwave scanpath cross-validate`: what OAT is worth on layouts, people or targets it has not seen."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ...runs.cells import Cell, Result
    from ...runs.drive import Group
    from ...scanpath.evaluation import Row
    from ...scanpath.scene import Dataset
    from ..nested_cv.search import Outcome

# torch and its friends load in the functions, so that --help answers at once


def cross_validate(
    data: Path,
    *,
    output: Path,
    split: Literal["layout", "person", "target"] = "layout",
    folds: int = 5,
    inner: int = 2,
    trials: int = 1,
    target_position: Literal["hidden", "given", "both"] = "both",
    appearance: Literal["none", "features", "cnn"] = "none",
    network: dict[str, Any] | None = None,
    space: dict[str, list[Any]] | None = None,
    epochs: int = 60,
    patience: int = 10,
    samples: int = 10,
    long_trials: Literal["keep", "drop"] = "keep",
    duplicates: Literal["error", "drop"] = "error",
    resamples: int = 1000,
    jobs: int | None = None,
    cluster: str | None = None,
    slurm: dict[str, Any] | None = None,
    threads: int = 1,
    seed: int = 0,
) -> None:
    """Train and test OAT on the scanpaths of DATA by nested cross-validation, beside simpler models and people.

    Each layout (or person, or target) is tested once. Settings and the number of epochs are chosen by the likelihood of
    inner folds within the training part; then the network is trained once on all of it and asked about the test part.
    Simpler models are fitted on the same training parts; people are compared with each other. OUTPUT receives
    results.csv, results.json, trials.csv (a row per model and scanpath), results.png, plan.json and cells/ with every
    single fit and the weights of each fold. A run that was killed goes on when the same command is given again.

    Args:
        data: scanpaths: a .json file of our own or of Search Target Inference, a folder with three .csv tables, or one
            with COCO boxes and COCO-Search18 fixations.
        output: the folder to write into.
        split: what no fold has in both training and test.
        folds: of which each is tested once.
        inner: folds within each training part.
        trials: settings tried in each fold, where there is a space to search.
        target_position: whether the network is told where the target is; both trains one of each.
        appearance: what is known of how objects look: nothing, the feature vectors of the file, or crops of its images.
        network: settings that are the same in all fits: those of the network (d_appearance, d_position, heads, layers,
            feed_forward, dropout, attention_dropout, sigma and so on), lr, weight_decay, ema_decay, batch, mirror,
            alike.
        space: setting -> values to search.
        epochs: at most.
        patience: epochs without better validation until a fit stops.
        samples: scanpaths that each model draws for a scene.
        long_trials: drop leaves out trials longer than the mean plus three standard deviations, as published for OAT.
        duplicates: what to do with trials that are copies of each other: an error, or drop them.
        resamples: of the bootstrap over layouts.
        jobs: processes on this machine; on a cluster how many fits may be under way at once.
        cluster: dask://host:port, slurm, or slurm-local to try the latter out.
        slurm: submitit's parameters, such as slurm_partition, mem_gb, timeout_min.
        threads: of each fit.
        seed: all others follow from it.
    """
    from rich.progress import Progress

    from ...runs.record import sha256
    from ...runs.workers import open_pool
    from ...scanpath.estimators import Options, read_dataset
    from ..nested_cv.plan import Design, make_plan, open_plan
    from ..nested_cv.search import count_cells, has_search, run_plan

    options: dict[str, Any] = {"network": network or {}, "space": space or {}, "epochs": epochs, "patience": patience}
    options |= {"appearance": appearance, "samples": samples}
    Options(**options)
    reading = {"data": str(data.resolve()), "long_trials": long_trials, "duplicates": duplicates}
    dataset = read_dataset(data, long_trials=long_trials, duplicates=duplicates)
    for note in dataset.notes:
        print(f"note: {note}")
    modes = ("hidden", "given") if target_position == "both" else (target_position,)
    if "given" in modes and all(scene.target is None for scene in dataset.scenes.values()):
        if target_position == "given":
            raise ValueError("target_position given needs a target in some scene, no scene of these data has one")
        print("note: no scene has a target, so there is none to give")
        modes = ("hidden",)
    models = {
        f"oat-{mode}": {
            "factory": "scanpath-models",
            "arguments": {**reading, "name": TITLES[mode], "target_position": mode, "options": options},
        }
        for mode in modes
    }
    design = Design(outer=folds, inner=inner, trials=trials, objective="likelihood", seed=seed, threads=threads)
    plan = make_plan(
        _cohort(dataset, split),
        models,
        design,
        options={**options, **reading, "split": split},
        data=sha256(data),
        splits=_splits(dataset, split, folds, inner, seed),
    )
    open_plan(output, plan)
    total = sum(count_cells(plan, {name: has_search(spec) for name, spec in models.items()}).values()) + folds
    print(f"{len(dataset)} scanpaths, {folds} folds by {split}; {len(models)} networks, up to {total} fits")
    pool = open_pool(output, jobs=jobs, cluster=cluster, slurm=slurm)
    finished = False
    try:
        with Progress() as progress:
            bar = progress.add_task("fits", total=total)

            def tell(cell: "Cell", result: "Result", was_there: bool) -> None:
                progress.update(bar, advance=1, description=f"{cell['model']} fold {cell['fold'] + 1}")

            baselines = [_baselines(plan, k, reading, modes[-1], samples) for k in range(folds)]
            outcomes = run_plan(output, plan, pool, tell, baselines)
            progress.update(bar, total=1, completed=1, description="fits")
        finished = True
    finally:
        pool.close(now=not finished)
    _report(output, dataset, plan, outcomes, resamples=resamples, seed=seed)


TITLES = {"hidden": "OAT, target hidden", "given": "OAT, target given"}


def _cohort(dataset: "Dataset", by: Any) -> Any:
    """Trials as what is predicted, what the split keeps apart as their groups; nothing is classified."""
    from ...scanpath.splits import groups_of
    from ..nested_cv.splits import Cohort

    names = tuple(f"{k} {trial.scene} {trial.person}" for k, trial in enumerate(dataset.trials))
    return Cohort(names, (), (), groups=tuple(str(g) for g in groups_of(dataset, by)))


def _splits(dataset: "Dataset", by: Any, folds: int, inner: int, seed: int) -> list[dict[str, Any]]:
    from ...scanpath.splits import split as split_trials
    from ..nested_cv.seeds import derive_seed

    found = []
    for fold, (train, test) in enumerate(split_trials(dataset, by, folds=folds, seed=seed)):
        inside = split_trials(dataset, by, folds=inner, seed=derive_seed(seed, "inner", fold), trials=train)
        parts = [{"train": a.tolist(), "validation": b.tolist()} for a, b in inside]
        found.append({"repeat": 0, "fold": fold, "train": train.tolist(), "test": test.tolist(), "inner": parts})
    return found


def _baselines(
    plan: dict[str, Any], fold: int, reading: dict[str, str], mode: str, samples: int
) -> "Group[list[Outcome]]":
    """One cell in which all simpler models are fitted and tested."""
    split = plan["splits"][fold]
    yield [
        {
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
    ]
    return []


def baseline_cell(cell: "Cell", folder: Path) -> "Result":
    """Fit the simpler models and write their rows and those of people: the work of a cell."""
    from ...scanpath.estimators import ROWS, baseline_rows, read_dataset, write_rows

    dataset = read_dataset(cell["data"], long_trials=cell["long_trials"], duplicates=cell["duplicates"])
    dataset = dataset.with_target_position(cell["target_position"])
    write_rows(folder / ROWS, baseline_rows(dataset, cell["train"], cell["predict"], samples=cell["samples"]))
    return {}


def _rows(output: Path, plan: dict[str, Any], outcomes: "list[Outcome]") -> "list[Row]":
    from ...scanpath.estimators import ROWS, read_rows
    from ..nested_cv.plan import CELLS

    cells = [(o.fold, o.cell) for o in outcomes]
    cells += [(split["fold"], f"baselines-r0-f{split['fold']}") for split in plan["splits"]]
    return [{"fold": fold, **row} for fold, cell in cells for row in read_rows(output / CELLS / cell / ROWS)]


def _report(
    output: Path, dataset: "Dataset", plan: dict[str, Any], outcomes: "list[Outcome]", *, resamples: int, seed: int
) -> None:
    from dataclasses import asdict

    import numpy as np

    from ...runs.record import command_line, hardware, write_record
    from ...scanpath.evaluation import compare, summarise
    from ...scanpath.splits import shared
    from .table import draw_figures, plain, show_figures, write_figures

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
    write_record(
        output / "results.json",
        inputs={"data": Path(plan["options"]["data"])},
        options={**plan["design"], **plan["options"]},
        notes=list(dataset.notes),
        command=command_line(),
        hardware=hardware(),
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
            f"{other} {float(d['value']):+.3f} ({float(d['low']):+.3f} to {float(d['high']):+.3f})"
            for other, d in found.items()
        )
        print(f"{name}, nats per token less those of a simpler model on the same scanpaths: {words}")
    print(f"wrote {output}/: results.csv, results.json, trials.csv, results.png")
