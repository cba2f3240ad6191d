"""`voxelwave scanpath evaluate`: models of scanpaths beside simpler ones and beside people."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ..scanpath.evaluation import Row, Table
    from ..scanpath.scene import Dataset
    from ..scanpath.splits import Split
    from ..scanpath.weights import NetworkModel

_SHOWN = (  # tables that fit a terminal of 80 columns; the files hold all figures
    ("nll_per_token", "sequence_score", "multimatch", "scanmatch"),
    ("nss", "auc", "sim", "cc"),
    ("edit_distance", "delta", "correct", "length"),
)
_HEADINGS = {
    "nll_per_token": "nats/token",
    "sequence_score": "sequence",
    "multimatch": "MultiMatch",
    "scanmatch": "ScanMatch",
    "edit_distance": "edits",
    **{name: name.upper() for name in _SHOWN[1]},
}


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
    """
    import numpy as np

    from ..scanpath.evaluation import compare, summarise
    from ..scanpath.readers import read_scanpaths
    from ..scanpath.splits import shared
    from ..scanpath.splits import split as split_trials

    _check(only_unseen=only_unseen, weights=weights, samples=samples, resamples=resamples)
    dataset = read_scanpaths(data, duplicates=duplicates).with_target_position(target_position)
    if long_trials == "drop":
        dataset = dataset.without_long_trials()
    for note in dataset.notes:
        print(note)
    network = None if weights is None else _network(weights, target_position)
    parts = split_trials(dataset, split, folds=folds, seed=seed)
    told = _seen(dataset, network) if network is not None else {}
    if network is not None and only_unseen:
        parts = _unseen(dataset, parts, network)
    rows = _measure(dataset, parts, network, samples=samples, seed=seed)
    if network is not None:
        told["message"] = f"{network.name}: {told['message']}"
    table = summarise(rows, resamples=resamples, seed=seed)
    names = [name for name in table if table[name].get("nll_per_token")]
    ours = names[0] if network is not None else names[-1]
    others = [name for name in names if name != ours]
    differences = {name: compare(rows, ours, name, resamples=resamples, seed=seed) for name in others}
    both_sides = [shared(dataset, train, test) for train, test in parts]
    seen_share = {key: float(np.mean([part[key] for part in both_sides])) for key in both_sides[0]}
    _write(output, rows, table)
    options: dict[str, Any] = {"target_position": target_position, "split": split, "folds": folds, "samples": samples}
    options |= {"long_trials": long_trials, "only_unseen": only_unseen, "resamples": resamples, "seed": seed}
    _write_json(output, data, weights, options, dataset, table, {ours: differences}, seen_share, told)
    _draw(output / "results.png", table, title=f"{len(dataset)} trials, folds by {split}, target {target_position}")
    _show(table, f"{sum(len(test) for _, test in parts)} trials, folds by {split}, target's place {target_position}")
    if told:
        print(told["message"])
    print(f"wrote {output}/results.csv, results.json, trials.csv and results.png")
    return 0


def _check(*, only_unseen: bool, weights: str | None, samples: int, resamples: int) -> None:
    if only_unseen and weights is None:
        raise ValueError("--only-unseen needs --weights, whose training it asks about")
    for name, value in (("samples", samples), ("resamples", resamples)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _network(weights: str, target_position: str) -> "NetworkModel":
    from ..scanpath.weights import load_model

    model = load_model(weights)
    if model.info.target_position == "given" and target_position == "hidden":
        raise ValueError(
            f"{weights} must be told where the target is, which --target-position hidden keeps from them:"
            " say --target-position given, or give weights that were trained with it hidden"
        )
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
    from ..scanpath.baselines import ScanpathModel, fit_baselines
    from ..scanpath.evaluation import evaluate_fold

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


def _write(output: Path, rows: list["Row"], table: "Table") -> None:
    import csv

    from ..volumes.files import atomic_path

    with atomic_path(output / "trials.csv") as temporary, temporary.open("w", newline="") as stream:
        trials = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)))
        trials.writeheader()
        trials.writerows({k: "" if v is None or v != v else v for k, v in row.items()} for row in rows)
    with atomic_path(output / "results.csv") as temporary, temporary.open("w", newline="") as stream:
        results = csv.writer(stream)
        results.writerow(("model", "figure", "value", "low", "high", "trials"))
        results.writerows(
            (model, figure, *found) for model, figures in table.items() for figure, found in figures.items()
        )


def _write_json(
    output: Path,
    data: Path,
    weights: str | None,
    options: dict[str, Any],
    dataset: "Dataset",
    table: "Table",
    differences: dict[str, dict[str, Any]],
    seen_share: dict[str, float],
    told: dict[str, Any],
) -> None:
    from .record import write_record

    file = Path(weights) if weights is not None and Path(weights).is_file() else None
    write_record(
        output / "results.json",
        inputs={"data": data, "weights": file},
        options={**options, "weights": weights},
        notes=list(dataset.notes),
        trials=len(dataset),
        test_trials_seen_in_training_of_their_fold=seen_share,
        weights_trained_on_tested=told or None,
        results={model: _plain(figures) for model, figures in table.items()},
        differences={
            model: {other: _plain(figures) for other, figures in to.items()} for model, to in differences.items()
        },
    )


def _plain(figures: dict[str, Any]) -> dict[str, dict[str, float | str]]:
    """JSON knows no infinity: a likelihood of 0 gives "inf"."""

    def told(value: float) -> float | str:
        return value if abs(value) < float("inf") else str(value)

    return {name: {key: told(value) for key, value in found._asdict().items()} for name, found in figures.items()}


def _show(table: "Table", title: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as Shown

    from ..scanpath.evaluation import FIGURES

    console = Console()
    console.print(title, highlight=False)
    for names in _SHOWN:
        shown = Shown(box=SIMPLE_HEAD, padding=(0, 1))
        shown.add_column("model", overflow="fold")
        for name in names:
            mark = {1: " ↑", -1: " ↓", 0: ""}[FIGURES[name]]
            shown.add_column(_HEADINGS.get(name, name) + mark, justify="right", no_wrap=True)
        for model, figures in table.items():
            shown.add_row(model, *(_cell(figures.get(name)) for name in names))
        console.print(shown)
    print("±: half the 95 % bootstrap interval over layouts. ↑ more is better, ↓ less.")


def _cell(found: Any) -> str:
    if found is None:
        return "–"
    digits = 3 if abs(found.value) < 10 else 1
    return f"{found.value:.{digits}f}±{(found.high - found.low) / 2:.{digits}f}"


def _draw(file: Path, table: "Table", *, title: str) -> None:
    """The first four figures of all models, points with their intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from ..volumes.files import atomic_path

    fig, axes = plt.subplots(
        1, len(_SHOWN[0]), figsize=(12, 1.2 + 0.32 * len(table)), sharey=True, layout="constrained"
    )
    models = list(table)[::-1]
    for axis, name in zip(axes, _SHOWN[0], strict=True):
        for place, model in enumerate(models):
            found = table[model].get(name)
            if found is not None and abs(found.high) < float("inf"):
                axis.plot([found.low, found.high], [place, place], color="0.6", linewidth=2)
                axis.plot(found.value, place, "o", color="C0")
        axis.set_title(_HEADINGS.get(name, name), fontsize=10)
        axis.grid(axis="x", color="0.9")
    axes[0].set_yticks(range(len(models)), models)
    fig.suptitle(title, fontsize=10)
    with atomic_path(file) as temporary:
        fig.savefig(temporary, dpi=120)
    plt.close(fig)
