"""`voxelwave eeg nested-cv`: what a network is worth on people it has not seen, beside simple models."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ...eeg.study import Study
    from ...eeg.windows import Windows
from ...eeg.windows import digest_of
from .cohort import cohort_of, facts_of

CACHE, CLOCK = ".windows", "time.json"
BY_ACCURACY = "validation_accuracy"  # by which the published code keeps an epoch
# mne, torch and their friends load in the functions, so that --help answers at once


def nested_cv(
    study: Path,
    *,
    output: Path,
    positive: str | None = None,
    models: list[str] | None = None,
    model_options: dict[str, dict[str, Any]] | None = None,
    windows: dict[str, Any] | None = None,
    protocol: Literal["nested", "published", "both"] = "nested",
    published_models: list[str] | None = None,
    outer: int = 5,
    inner: int = 4,
    repeats: int = 1,
    trials: int = 20,
    objective: Literal["auc", "balanced_accuracy", "brier"] = "auc",
    person_column: str | None = None,
    jobs: int | None = None,
    cluster: str | None = None,
    slurm: dict[str, Any] | None = None,
    threads: int = 1,
    cache: Path | None = None,
    no_audit: bool = False,
    no_explanation: bool = False,
    title: str | None = None,
    seed: int = 0,
) -> None:
    """Evaluate models on the subjects of STUDY by nested cross-validation and write a report.

    Outer folds hold each subject out once, classes (and sites, where the table has a column "site") in equal shares.
    Settings, number of epochs and threshold are chosen by inner folds within the training part; the outer part is
    predicted once, at the end. A subject's score is the mean probability of its windows. OUTPUT receives report.html,
    results.json, results.csv, predictions.csv, explain/, plan.json and cells/ with every single fit. A run that was
    killed goes on when the same command is given again, and ends with the same figures.

    Args:
        study: subjects.tsv or its folder, a BIDS folder, or a folder with one sub-folder or .zip per class.
        output: the folder to write into.
        positive: the class that is diagnosed; default the one not called control, healthy or normal.
        models: which, the one in question first; default adhdeepnet, eegnet, shallow, bandpower, amplitude, length and
            majority.
        model_options: model -> its options: space (setting -> values to search, or "published", "reduced", "none"),
            settings (fixed ones), epochs (at most), patience, reduce_patience, batch, norm_momentum.
        windows: how recordings are cut: seconds, overlap, sfreq, band, reference, channels, scaling and so on.
        protocol: nested; published, which chooses settings and epoch on the test fold as the paper's code does, to show
            by how much that flatters; or both, for a table of the two.
        published_models: which run under the published protocol; default the first.
        outer: folds of which each is tested once.
        inner: folds within each outer training part.
        repeats: how often all is split anew.
        trials: settings tried for each model and outer fold.
        objective: of that search.
        person_column: column of the table with the person, where one has several rows; they stay together.
        jobs: processes on this machine; on a cluster how many fits may be under way at once.
        cluster: dask://host:port, slurm, or slurm-local to try the latter out.
        slurm: submitit's parameters, such as slurm_partition, mem_gb, timeout_min.
        threads: of each fit.
        cache: a folder for cut windows, which the workers of a cluster must see; default one within the output folder.
        no_audit: leave out the check of study and folds for leakage and confounds.
        no_explanation: leave out what the first network looks at, asked on the outer test subjects of each fold.
        title: of the report.
        seed: all others follow from it.
    """
    from rich.progress import Progress

    from ...eeg.estimators import NAMES, NETWORK_NAMES
    from ...eeg.study import read_study
    from ...eeg.windows import WindowOptions, load_windows
    from ...runs.cells import Cell, Result
    from ...runs.workers import open_pool
    from ..nested_cv.plan import Design, make_plan, open_plan
    from ..nested_cv.report import write_report
    from ..nested_cv.results import write_predictions, write_results
    from ..nested_cv.search import count_cells, has_search, run_plan
    from .explain import explain_run

    chosen = list(NAMES) if models is None else models
    _check_models(chosen, model_options or {}, NAMES)
    found = read_study(study, positive)
    options = WindowOptions.of(windows)
    cache = cache or output / CACHE
    data = load_windows(found, options, cache)
    for note in data.notes:
        print(f"note: {note}")
    cohort = cohort_of(found, data, person_column)

    def spec(model: str, *, more_options: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        arguments = {
            "study": str(study.resolve()),
            "name": model,
            "windows": asdict(options),
            "options": {**(model_options or {}).get(model, {}), **(more_options or {})},
            "positive": data.classes[1],
            "cache": str(cache.resolve()),
            **more,
        }
        return {"factory": "eeg-models", "arguments": arguments}

    published = (published_models or chosen[:1]) if protocol != "nested" else []
    design = Design(
        outer=outer,
        inner=inner,
        repeats=repeats,
        trials=trials,
        objective=objective,
        protocol=protocol,
        published=tuple(published),
        seed=seed,
        threads=threads,
    )
    plan = make_plan(
        cohort,
        {model: spec(model) for model in chosen},
        design,
        options={"windows": asdict(options), "models": model_options or {}},
        data=digest_of(data),
        windows=_window_units(data, {model: spec(model, by_window=True) for model in published}),
        published={m: spec(m, more_options={"monitor": BY_ACCURACY}) for m in published if m in NETWORK_NAMES},
    )
    open_plan(output, plan)
    searching = {model: has_search(plan["models"][model]) for model in chosen}
    total = sum(count_cells(plan, searching).values())
    counts = ", ".join(f"{sum(data.labels == k)} {name}" for k, name in enumerate(data.classes))
    print(f"{len(data.subjects)} subjects ({counts}), {len(data.x)} windows; {len(chosen)} models, up to {total} fits")
    clock = Clock(output / CLOCK)
    pool = open_pool(output, jobs=jobs, cluster=cluster, slurm=slurm)
    finished = False
    try:
        with Progress() as progress:
            bar = progress.add_task("fits", total=total)

            def tell(cell: Cell, result: Result, was_there: bool) -> None:
                progress.update(bar, advance=1, description=f"{cell['model']} fold {cell['fold'] + 1}")
                clock.tick()

            outcomes = run_plan(output, plan, pool, tell)
            progress.update(bar, total=1, completed=1, description="fits")
        finished = True
    finally:
        pool.close(now=not finished)
    tables = write_predictions(output, plan, outcomes)
    checks = [] if no_audit else _audit(found, options, output, cache, seed)
    facts = facts_of(found, data, plan, checks, clock.seconds, title)
    results = write_results(output, plan, outcomes, tables, facts)
    if not no_explanation:
        explain_run(output, threads=threads if cluster else threads * (jobs or 1))
    write_report(output)
    _print(results)
    print(f"wrote {output}/: report.html, results.json, results.csv, predictions.csv")


class Clock:
    """Wall time of a run over all its parts, kept on disk so that a kill loses no more than the last fit."""

    def __init__(self, path: Path):
        self._path = path
        self._before = json.loads(path.read_text())["seconds"] if path.is_file() else 0.0
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Until now."""
        return self._before + time.perf_counter() - self._started

    def tick(self) -> None:
        """Write the time down."""
        from ...runs.files import atomic_path

        with atomic_path(self._path) as temporary:
            temporary.write_text(json.dumps({"seconds": round(self.seconds, 1)}) + "\n")


def _check_models(chosen: list[str], options: dict[str, Any], known: tuple[str, ...]) -> None:
    for name, where in (*((m, "models") for m in chosen), *((m, "model_options") for m in options)):
        if name not in known:
            raise ValueError(f"{where} must be among {', '.join(known)}, got {name!r}")
    if not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"models must be named once each, got {', '.join(chosen) or 'none'}")


def _window_units(data: "Windows", estimators: dict[str, Any]) -> Any:
    from ..nested_cv.plan import WindowUnits

    return WindowUnits(tuple(data.subject.tolist()), estimators) if estimators else None


def _audit(study: "Study", options: Any, output: Path, cache: Path, seed: int) -> list[dict[str, str]]:
    from ...eeg.audit import audit
    from ...eeg.split_file import read_splits

    checks = audit(study, options=options, splits=read_splits(output), cache=cache, seed=seed)
    return [check.as_dict() for check in checks]


def _print(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "protocol", "balanced accuracy", "AUC", "sensitivity", "specificity", "p")
    for model in results["models"]:
        found = [model["metrics"][m] for m in ("balanced_accuracy", "auc")]
        figures = [f"{m['mean']:.3f} ({m['interval_nb'][0]:.2f} to {m['interval_nb'][1]:.2f})" for m in found]
        figures += [f"{model['metrics'][m]['mean']:.2f}" for m in ("sensitivity", "specificity")]
        table.add_row(model["name"], model["protocol"], *figures, f"{model['permutation']['p']:.4f}")
    Console().print(table)
    print("Mean over outer folds with the 95 % interval by Nadeau and Bengio; p by permutation of subjects.")
