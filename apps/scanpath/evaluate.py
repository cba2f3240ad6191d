"""`voxelwave scanpath evaluate`: compare models of scanpaths with simpler ones and with people."""

from pathlib import Path
from typing import Any

import numpy as np

from ...runs.compute import use_threads
from ...runs.files import outputs_together
from ...runs.record import write_measurement
from ...scanpath.baselines import ScanpathModel, fit_baselines
from ...scanpath.estimators import read_dataset
from ...scanpath.evaluation import Row, Table, compare, evaluate_fold, summarise
from ...scanpath.scene import Dataset
from ...scanpath.splits import Split, shared
from ...scanpath.splits import split as split_trials
from ...scanpath.weights import NetworkModel, load_model
from .options import Evaluate
from .table import draw_figures, plain, show_figures, write_figures


def evaluate(options: Evaluate) -> None:
    """Run the command."""
    use_threads(options.threads)
    dataset = read_dataset(options.data, long_trials=options.long_trials, duplicates=options.duplicates)
    dataset = dataset.with_target_position(options.target_position)
    for note in dataset.notes:
        print(note)
    network = None if options.weights is None else _network(options.weights, dataset)
    parts = split_trials(dataset, options.split, folds=options.folds, seed=options.seed)
    overlap = None if network is None else _seen(dataset, network)
    if network is not None and options.only_unseen:
        parts = _unseen(dataset, parts, network)
    with outputs_together(options.output) as together:  # first, so that an error appears before the slow part
        _evaluate(options, together, dataset, parts, network, overlap)
    print(f"wrote {options.output}/results.csv, results.json, trials.csv and results.png")


def _evaluate(
    options: Evaluate,
    output: Path,
    dataset: Dataset,
    parts: list[Split],
    network: NetworkModel | None,
    overlap: dict[str, Any] | None,
) -> None:
    """Measure, write and print the figures."""
    rows = _measure(dataset, parts, network, samples=options.samples, seed=options.seed)
    table = summarise(rows, resamples=options.resamples, seed=options.seed)
    ours = network.name if network is not None else [m for m in table if "nll_per_token" in table[m]][-1]
    differences = {
        name: compare(rows, ours, name, resamples=options.resamples, seed=options.seed)
        for name in table
        if name != ours
    }
    title = f"{sum(len(test) for _, test in parts)} trials, folds by {options.split}, target {options.target_position}"
    write_figures(output, rows, table)
    _write_results(output / "results.json", options, dataset, parts, table, {ours: differences}, overlap)
    draw_figures(output / "results.png", table, title=title)
    show_figures(table, title)
    if overlap is not None:
        for name, found in differences.items():
            if "nll_per_token" in found:
                value, low, high, _ = found["nll_per_token"]
                print(f"{ours}: nats per token {value:+.3f} against {name}, [{low:+.3f}, {high:+.3f}]")
        print(f"{ours}: {overlap['message']}")


def _write_results(
    path: Path,
    options: Evaluate,
    dataset: Dataset,
    parts: list[Split],
    table: Table,
    differences: dict[str, Any],
    overlap: dict[str, Any] | None,
) -> None:
    """results.json: options, overlap of training and test, figures and differences."""
    recorded = ("target_position", "split", "folds", "samples", "long_trials", "only_unseen", "resamples", "seed")
    both_sides = [shared(dataset, train, test) for train, test in parts]
    weights = Path(options.weights) if options.weights and Path(options.weights).is_file() else None
    write_measurement(
        path,
        inputs={"data": options.data, "weights": weights},
        options={**{name: getattr(options, name) for name in recorded}, "weights": options.weights},
        notes=list(dataset.notes),
        test_trials=sum(len(test) for _, test in parts),
        test_trials_seen_in_training_of_their_fold={
            key: float(np.mean([part[key] for part in both_sides])) for key in both_sides[0]
        },
        weights_trained_on_tested=overlap,
        results={model: plain(figures) for model, figures in table.items()},
        differences={
            ours: {other: plain(figures) for other, figures in found.items()} for ours, found in differences.items()
        },
    )


def _network(weights: str, dataset: Dataset) -> NetworkModel:
    model = load_model(weights)
    if model.info.target_position == "given" and dataset.target_position == "hidden":
        raise ValueError(
            f"{weights} needs the position of the target, but --target-position is hidden: use"
            " --target-position given, or weights that were trained with the position hidden"
        )
    for trial in dataset.trials:
        model.check(dataset.scenes[trial.scene])
    model.name = f"{model.name} ({Path(weights).stem})"
    return model


def _seen(dataset: Dataset, network: NetworkModel) -> dict[str, Any]:
    """The number of tested layouts that the weights were trained on, as numbers and as text."""
    trained_on = set(network.info.trained_on)
    layouts = {dataset.scene_of(k).layout for k in range(len(dataset))}
    seen = layouts & trained_on
    if not trained_on:
        message = "the weights do not record their training data, which may include these trials"
    elif seen:
        message = (
            f"the weights were trained on {len(seen)} of these {len(layouts)} layouts, for which the figures are"
            " optimistic (--only-unseen leaves these layouts out)"
        )
    else:
        message = f"the weights were trained on none of these {len(layouts)} layouts"
    return {"layouts": len(layouts), "seen_in_training": sorted(seen), "known": bool(trained_on), "message": message}


def _unseen(dataset: Dataset, parts: list[Split], network: NetworkModel) -> list[Split]:
    seen = set(network.info.trained_on)
    if not seen:
        raise ValueError("--only-unseen needs weights that record their training layouts; these do not")
    fresh = np.array([dataset.scene_of(k).layout not in seen for k in range(len(dataset))])
    kept = [(train, test[fresh[test]]) for train, test in parts]
    if not fresh.any():
        raise ValueError("--only-unseen leaves no trial: the weights were trained on every layout of the data")
    return [(train, test) for train, test in kept if len(test)]


def _measure(
    dataset: Dataset, parts: list[Split], network: NetworkModel | None, *, samples: int, seed: int
) -> list[Row]:
    rows = []
    for number, (train, test) in enumerate(parts, start=1):
        print(f"fold {number} of {len(parts)}: {len(train)} training trials, {len(test)} test trials", flush=True)
        models: dict[str, ScanpathModel] = {} if network is None else {network.name: network}
        models |= fit_baselines(dataset, train)
        longest = int(dataset.lengths[train].max())
        found = evaluate_fold(models, dataset, test, samples=samples, seed=seed, max_length=longest)
        for row in found:
            layout_seen = row["layout"] in network.info.trained_on if network and row["model"] == network.name else None
            rows.append({"fold": number, **row, "seen_in_training": layout_seen})
    return rows
