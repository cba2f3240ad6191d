"""`voxelwave scanpath evaluate`: models of scanpaths beside simpler ones and beside people."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ...scanpath.evaluation import Row
    from ...scanpath.scene import Dataset
    from ...scanpath.splits import Split
    from ...scanpath.weights import NetworkModel


def evaluate(
    data: Path,
    *,
    output: Path,
    weights: str | None = None,
    target_position: Literal["hidden", "given"] = "hidden",
    split: Literal["layout", "person", "target"] = "layout",
    folds: int = 5,
    samples: int = 10,
    long_trials: Literal["keep", "drop"] = "keep",
    duplicates: Literal["error", "drop"] = "error",
    only_unseen: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    threads: int | None = None,
) -> int:
    """Compare trained weights, and simpler models fitted on the training part of each fold, with people's scanpaths.

    OUTPUT receives results.csv (each figure of each model with its bootstrap interval over layouts), results.json (the
    same, differences between models, options and versions), trials.csv (a row per model and trial) and results.png.

    Args:
        data: scanpaths: a .json file of our own or of Search Target Inference, a folder with three .csv tables, or one
            with COCO boxes and COCO-Search18 fixations.
        output: the folder to write to.
        weights: a trained network (.safetensors), or the name of weights that come with the package.
        target_position: whether models are told where the target is. A search is only one if it is hidden.
        split: what no fold has in both training and test.
        folds: how many.
        samples: scanpaths that each model draws for a scene.
        long_trials: drop leaves out trials longer than the mean plus three standard deviations, as published for OAT.
        duplicates: what to do with trials that are copies of each other: an error, or drop them.
        only_unseen: test only on layouts that the weights have not been trained on.
        resamples: of the bootstrap.
        seed: of folds, drawn scanpaths and bootstrap.
        threads: of the CPU; default all.
    """
    import numpy as np

    from ...runs.checks import use_threads
    from ...runs.record import write_record
    from ...scanpath.evaluation import compare, summarise
    from ...scanpath.readers import read_scanpaths
    from ...scanpath.splits import shared
    from ...scanpath.splits import split as split_trials
    from .table import draw_figures, plain, show_figures, write_figures

    _check(only_unseen=only_unseen, weights=weights, samples=samples, resamples=resamples)
    use_threads(threads)
    dataset = read_scanpaths(data, duplicates=duplicates).with_target_position(target_position)
    if long_trials == "drop":
        dataset = dataset.without_long_trials()
    for note in dataset.notes:
        print(note)
    network = None if weights is None else _network(weights, dataset)
    parts = split_trials(dataset, split, folds=folds, seed=seed)
    told = None if network is None else _seen(dataset, network)
    if network is not None and only_unseen:
        parts = _unseen(dataset, parts, network)
    output.mkdir(parents=True, exist_ok=True)  # a name that cannot be a folder is known before the work
    rows = _measure(dataset, parts, network, samples=samples, seed=seed)
    table = summarise(rows, resamples=resamples, seed=seed)
    ours = network.name if network is not None else [m for m in table if "nll_per_token" in table[m]][-1]
    differences = {name: compare(rows, ours, name, resamples=resamples, seed=seed) for name in table if name != ours}
    tested = sum(len(test) for _, test in parts)
    both_sides = [shared(dataset, train, test) for train, test in parts]
    options: dict[str, Any] = {"target_position": target_position, "split": split, "folds": folds, "samples": samples}
    options |= {"long_trials": long_trials, "only_unseen": only_unseen, "resamples": resamples, "seed": seed}
    write_figures(output, rows, table)
    write_record(
        output / "results.json",
        inputs={"data": data, "weights": Path(weights) if weights and Path(weights).is_file() else None},
        options={**options, "weights": weights},
        notes=list(dataset.notes),
        test_trials=tested,
        test_trials_seen_in_training_of_their_fold={
            key: float(np.mean([part[key] for part in both_sides])) for key in both_sides[0]
        },
        weights_trained_on_tested=told,
        results={model: plain(figures) for model, figures in table.items()},
        differences={ours: {other: plain(figures) for other, figures in differences.items()}},
    )
    title = f"{tested} trials, folds by {split}, target's place {target_position}"
    draw_figures(output / "results.png", table, title=title)
    show_figures(table, title)
    if told is not None:
        for name, found in differences.items():
            if "nll_per_token" in found:
                value, low, high, _ = found["nll_per_token"]
                print(f"{ours}: nats per token {value:+.3f} beside {name}, [{low:+.3f}, {high:+.3f}]")
        print(f"{ours}: {told['message']}")
    print(f"wrote {output}/results.csv, results.json, trials.csv and results.png")
    return 0


def _check(*, only_unseen: bool, weights: str | None, samples: int, resamples: int) -> None:
    if only_unseen and weights is None:
        raise ValueError("--only-unseen needs --weights, whose training it asks about")
    for name, value in (("samples", samples), ("resamples", resamples)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _network(weights: str, dataset: "Dataset") -> "NetworkModel":
    from ...scanpath.weights import load_model

    model = load_model(weights)
    if model.info.target_position == "given" and dataset.target_position == "hidden":
        raise ValueError(
            f"{weights} must be told where the target is, which --target-position hidden keeps from them:"
            " say --target-position given, or give weights that were trained with it hidden"
        )
    for trial in dataset.trials:
        model.check(dataset.scenes[trial.scene])
    model.name = f"{model.name} ({Path(weights).stem})"
    return model


def _seen(dataset: "Dataset", network: "NetworkModel") -> dict[str, Any]:
    """Whether the weights were trained on what they are tested on, in numbers and in words."""
    trained_on = set(network.info.trained_on)
    layouts = {dataset.scene_of(k).layout for k in range(len(dataset))}
    seen = layouts & trained_on
    if not trained_on:
        message = "the weights do not say what they were trained on; these trials may be among it"
    elif seen:
        message = (
            f"the weights were trained on {len(seen)} of these {len(layouts)} layouts, where their figures are no test"
            " (--only-unseen leaves these layouts out)"
        )
    else:
        message = f"the weights were trained on none of these {len(layouts)} layouts"
    return {"layouts": len(layouts), "seen_in_training": sorted(seen), "known": bool(trained_on), "message": message}


def _unseen(dataset: "Dataset", parts: list["Split"], network: "NetworkModel") -> list["Split"]:
    import numpy as np

    seen = set(network.info.trained_on)
    if not seen:
        raise ValueError("--only-unseen needs weights that say what they were trained on; these do not")
    fresh = np.array([dataset.scene_of(k).layout not in seen for k in range(len(dataset))])
    kept = [(train, test[fresh[test]]) for train, test in parts]
    if not fresh.any():
        raise ValueError("--only-unseen leaves no trial: the weights were trained on every layout of the data")
    return [(train, test) for train, test in kept if len(test)]


def _measure(
    dataset: "Dataset", parts: list["Split"], network: "NetworkModel | None", *, samples: int, seed: int
) -> list["Row"]:
    from ...scanpath.baselines import ScanpathModel, fit_baselines
    from ...scanpath.evaluation import evaluate_fold

    rows = []
    for number, (train, test) in enumerate(parts, start=1):
        models: dict[str, ScanpathModel] = {} if network is None else {network.name: network}
        models |= fit_baselines(dataset, train)
        longest = int(dataset.lengths[train].max())
        found = evaluate_fold(models, dataset, test, samples=samples, seed=seed, max_length=longest)
        for row in found:
            layout_seen = row["layout"] in network.info.trained_on if network and row["model"] == network.name else None
            rows.append({"fold": number, **row, "seen_in_training": layout_seen})
        print(f"fold {number} of {len(parts)}: {len(train)} training trials, {len(test)} test trials", flush=True)
    return rows
