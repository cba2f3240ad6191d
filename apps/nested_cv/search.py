"""Nested cross-validation of any estimator: settings are searched in inner folds; outer test parts are predicted once.

An estimator predicts the probability of a class for each subject, or the likelihood of measurements.

For each outer fold and model the inner folds choose the settings (Optuna), the number of epochs (median of the inner
optima) and the threshold; then the model is fitted once on the whole outer training part and predicts the outer test
part once. The published protocol, which selects on the test fold, is available for comparison and is marked as such.

The work is divided into cells (see `runs.cells`). The next cells of a group depend only on seeds and results, so the
results are the same for any number of processes, for any order of cells, and after a kill.
"""

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from filelock import FileLock, Timeout
from sklearn.model_selection import StratifiedKFold

from ...runs.cells import Cell, Result
from ...runs.drive import Group, drive, remove_unfinished
from ...runs.workers import Pool
from .fit import Estimator, build_estimator
from .plan import CELLS, LIKELIHOOD, NESTED, PUBLISHED, RANDOM_WINDOWS, TEST_EPOCH, check_plan, random_windows
from .records import EstimatorSpec, FitCell, FitResult, Plan, PredictedSubject, Settings, Split, TrialRow
from .seeds import derive_seed
from .statistics import OBJECTIVES, choose_threshold

if TYPE_CHECKING:  # optional package
    import optuna


_ATTEMPTS = 25  # settings drawn in search of others than those tried before


@dataclass(frozen=True)
class Outcome:
    """Result of one model on one outer test part; the folder of `cell` holds its predictions.

    Args:
        protocol: "nested", "published", "test-epoch", "random-windows", or "refit-" and the name of a refit.
        model: name of the model.
        repeat: number of the partition.
        fold: number of the outer fold.
        cell: name of the folder of the fit.
        settings: chosen settings.
        epochs: chosen number of epochs.
        threshold: chosen threshold; NaN without classes.
        trials: all trials of the search.
    """

    protocol: str
    model: str
    repeat: int
    fold: int
    cell: str
    settings: Settings
    epochs: int
    threshold: float
    trials: list[TrialRow] = field(default_factory=list)


@dataclass(frozen=True)
class _Trial:
    number: int
    settings: Settings
    score: float | None  # None: failed
    results: list[FitResult]


def run_plan(
    folder: Path,
    plan: Plan,
    pool: Pool,
    tell: Callable[[Cell, Result, bool], None] | None = None,
    more: Sequence[Group[list[Outcome]]] = (),
    then: Callable[[list[Outcome]], Sequence[Group[list[Outcome]]]] | None = None,
) -> list[Outcome]:
    """Run the unfinished cells of a plan and return all outcomes, in the order of the plan.

    Args:
        folder: the folder of the run, in which only one run can work at a time.
        plan: a plan that `open_plan` accepted.
        pool: runs the cells.
        tell: called with each cell, its result, and True if the cell was finished before.
        more: further groups of cells to run along with those of the plan.
        then: from the outcomes to the groups of cells that run after them; their outcomes come last.

    Raises:
        ValueError, OSError: a cell failed, or another run works in the folder.
    """
    check_plan(plan)
    try:
        with FileLock(folder / ".lock", timeout=0):
            cells = folder / CELLS
            cells.mkdir(exist_ok=True)
            if not pool.shared:
                remove_unfinished(cells)
            groups = [_fold(plan, model, split) for model in plan["models"] for split in plan["splits"]]
            order = {NESTED: 0, TEST_EPOCH: 1, PUBLISHED: 2, RANDOM_WINDOWS: 3}
            found = [o for group in drive([*groups, *more], pool, cells, tell) for o in group]
            found.sort(key=lambda outcome: order[outcome.protocol])
            if then is not None:
                found += [o for group in drive(then(found), pool, cells, tell) for o in group]
    except Timeout as error:
        raise OSError(f"another run works in {folder}; wait for it, or choose another --output") from error
    return found


def count_cells(plan: Plan, searching: dict[str, bool]) -> dict[str, int]:
    """The largest number of cells that each model may need.

    Args:
        plan: the plan.
        searching: model -> whether it has settings to search.
    """
    design, counts = plan["design"], dict[str, int]()
    for model in plan["models"]:
        trials = design["trials"] if searching[model] else 1
        cells = trials * design["inner"] + 1 if design["protocol"] != PUBLISHED else 0
        if model in design["published"] and design["protocol"] != NESTED:
            cells += trials + (design["protocol"] == "both")
        counts[model] = cells * len(plan["splits"])
        if random_windows(plan, model):
            counts[model] += design["outer"]
    return counts


def has_search(spec: EstimatorSpec) -> bool:
    """Whether the estimator has settings to search."""
    trial = _study(0, 1, 1).ask()
    build_estimator(spec).suggest(trial)
    return bool(trial.distributions)


def _fold(plan: Plan, model: str, split: Split) -> Group[list[Outcome]]:
    """All fits of one model and one outer fold."""
    design, outcomes = plan["design"], list[Outcome]()
    published = model in design["published"] and design["protocol"] != NESTED
    if design["protocol"] != PUBLISHED:
        outcomes.append((yield from _nested(plan, model, split)))
        if published:
            outcomes.append((yield from _test_epoch(plan, outcomes[0], split)))
        if random_windows(plan, model) and split["repeat"] == 0:
            outcomes.append((yield from _window_split(plan, outcomes[0], split)))
    if published:
        outcomes.append((yield from _published(plan, model, split)))
    return outcomes


def _nested(plan: Plan, model: str, split: Split) -> Group[Outcome]:
    labels = np.array(plan["cohort"]["labels"])
    objective = plan["design"]["objective"]
    inner = split["inner"]

    def cells(trial: int, settings: Settings) -> list[FitCell]:
        return [
            make_cell(
                plan,
                model,
                split,
                f"{NESTED}-t{trial}-i{i}",
                settings,
                train=part["train"],
                validation=part["validation"],
                trial=trial,
                seed_words=("inner", i),
            )
            for i, part in enumerate(inner)
        ]

    def score(results: list[FitResult]) -> float:
        if objective == LIKELIHOOD:
            return -sum(result["nats"] for result in results) / sum(result["tokens"] for result in results)
        return float(np.mean([OBJECTIVES[objective](*_subject_scores(labels, [result])) for result in results]))

    best, trials = yield from _search(plan, model, split, NESTED, cells, score)
    threshold = np.nan if objective == LIKELIHOOD else choose_threshold(*_subject_scores(labels, best.results))
    epochs = max(1, round(float(np.median([result["epochs"] for result in best.results]))))
    final = make_cell(
        plan,
        model,
        split,
        f"{NESTED}-final",
        best.settings,
        train=split["train"],
        predict=split["test"],
        epochs=epochs,
        keep=True,
    )
    _refuse_failed(final, fit_results((yield [final]))[0])
    return Outcome(NESTED, model, split["repeat"], split["fold"], final["id"], best.settings, epochs, threshold, trials)


def _published(plan: Plan, model: str, split: Split) -> Group[Outcome]:
    """Settings and epoch with the largest share of correct test windows, as published; threshold 0.5."""
    labels = plan["cohort"]["labels"]

    def cells(trial: int, settings: Settings) -> list[FitCell]:
        name, train, test = f"{PUBLISHED}-t{trial}", split["train"], split["test"]
        cell = make_cell(plan, model, split, name, settings, train=train, validation=test, trial=trial)
        cell["estimator"] = plan["published_models"].get(model, cell["estimator"])
        return [cell]

    def score(results: list[FitResult]) -> float:
        rows = results[0]["subjects"]
        right = sum(r["above"] if labels[r["subject"]] else r["windows"] - r["above"] for r in rows)
        return right / sum(r["windows"] for r in rows)

    best, trials = yield from _search(plan, model, split, PUBLISHED, cells, score)
    name = cells(best.number, best.settings)[0]["id"]
    epochs = best.results[0]["epochs"]
    return Outcome(PUBLISHED, model, split["repeat"], split["fold"], name, best.settings, epochs, 0.5, trials)


def _test_epoch(plan: Plan, nested: Outcome, split: Split) -> Group[Outcome]:
    """The settings of the nested run, with the epoch chosen on the test fold."""
    train, test = split["train"], split["test"]
    cell = make_cell(plan, nested.model, split, TEST_EPOCH, nested.settings, train=train, validation=test)
    result = fit_results((yield [cell]))[0]
    _refuse_failed(cell, result)
    return Outcome(
        TEST_EPOCH, nested.model, nested.repeat, nested.fold, cell["id"], nested.settings, result["epochs"], 0.5
    )


def _window_split(plan: Plan, nested: Outcome, split: Split) -> Group[Outcome]:
    """The settings and epochs of the nested run for this fold, on a split of windows instead of subjects."""
    windows = plan["windows"]
    assert windows is not None  # `random_windows`
    labels = np.array(plan["cohort"]["labels"])[windows["subject"]]
    seed = derive_seed(plan["design"]["seed"], RANDOM_WINDOWS)
    folds = StratifiedKFold(plan["design"]["outer"], shuffle=True, random_state=seed).split(labels, labels)
    train, test = list(folds)[split["fold"]]
    cell = make_cell(
        plan,
        nested.model,
        split,
        RANDOM_WINDOWS,
        nested.settings,
        train=train.tolist(),
        predict=test.tolist(),
        epochs=nested.epochs,
    )
    cell["estimator"] = windows["estimators"][nested.model]
    _refuse_failed(cell, fit_results((yield [cell]))[0])
    return Outcome(
        RANDOM_WINDOWS, nested.model, nested.repeat, nested.fold, cell["id"], nested.settings, nested.epochs, 0.5
    )


def _search(
    plan: Plan,
    model: str,
    split: Split,
    protocol: str,
    cells: Callable[[int, Settings], list[FitCell]],
    score: Callable[[list[FitResult]], float],
) -> Generator[Sequence[Cell], list[Result], tuple[_Trial, list[TrialRow]]]:
    """Search settings with Optuna, in batches of fixed size.

    Repeated settings are not run again: seeds do not depend on the trial, so the results would be the same.

    Returns:
        The best trial, the first of equally good ones; and all trials.
    """
    import optuna  # optional package, only for a search

    design, estimator = plan["design"], build_estimator(plan["models"][model])
    seed = derive_seed(design["seed"], "search", protocol, model, split["repeat"], split["fold"])
    study = _study(seed, design["trials"], design.get("startup"))
    count = design["trials"]
    trials: list[_Trial] = []
    known: dict[str, _Trial] = {}
    while len(trials) < count:
        asked, settings = _ask(
            study, estimator, min(design["batch"], count - len(trials)), {*known} if "startup" in design else None
        )
        if not asked[0].distributions:
            count, asked, settings = 1, asked[:1], settings[:1]
        wanted: dict[str, list[FitCell]] = {}
        for number, chosen in enumerate(settings, start=len(trials)):
            key = _key(chosen)
            if key not in known:
                wanted.setdefault(key, cells(number, chosen))
        results = iter(fit_results((yield [cell for some in wanted.values() for cell in some])))
        for key, some in wanted.items():
            own = [next(results) for _ in some]
            failed = any("failed" in result for result in own)
            first = some[0]["trial"]
            assert first is not None  # the cells of a search have one
            known[key] = _Trial(first, some[0]["settings"], None if failed else score(own), own)
        for trial, chosen in zip(asked, settings, strict=True):
            tried = known[_key(chosen)]
            if tried.score is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, tried.score)
            trials.append(tried)
    good = [(trial.score, -trial.number, trial) for trial in trials if trial.score is not None]
    if not good:
        reason = next(result["failed"] for result in trials[0].results if "failed" in result)
        raise ValueError(f"{model}, repeat {split['repeat']}, fold {split['fold']}: every trial failed ({reason})")
    table: list[TrialRow] = [
        {"settings": t.settings, "score": t.score, "epochs": [result["epochs"] for result in t.results]} for t in trials
    ]
    return max(good, key=lambda row: row[:2])[2], table


def _ask(
    study: "optuna.Study", estimator: Estimator, count: int, tried: set[str] | None
) -> tuple[list["optuna.Trial"], list[Settings]]:
    """The next `count` trials and their settings, which differ from each other and from those in `tried`.

    If there seem to be no other settings, some are repeated; None does not look for others.
    """
    import optuna  # optional package, only for a search

    asked, settings = list["optuna.Trial"](), list[Settings]()
    for _ in range(count):
        for attempt in range(_ATTEMPTS):
            trial = study.ask()
            chosen = estimator.suggest(trial)
            if tried is None or _key(chosen) not in tried or not trial.distributions or attempt == _ATTEMPTS - 1:
                break
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        asked.append(trial)
        settings.append(chosen)
        if tried is not None:
            tried.add(_key(chosen))
    return asked, settings


def _key(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True)


def _study(seed: int, trials: int, startup: int | None) -> "optuna.Study":
    import optuna  # optional package, only for a search

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # without `startup`, as in earlier versions: ten random settings, or half of a smaller budget
    random = max(1, min(10, trials // 2)) if startup is None else min(startup, trials)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=random)
    return optuna.create_study(direction="maximize", sampler=sampler)


def make_cell(
    plan: Plan,
    model: str,
    split: Split,
    name: str,
    settings: Settings,
    *,
    train: list[int],
    validation: list[int] | None = None,
    predict: list[int] | None = None,
    trial: int | None = None,
    epochs: int | None = None,
    keep: bool = False,
    seed_words: tuple[str | int, ...] = ("outer",),
) -> FitCell:
    """One fit as plain values: with early stopping on `validation`, which it predicts, or for a number of epochs."""
    design = plan["design"]
    return {
        "id": f"{model}-r{split['repeat']}-f{split['fold']}-{name}",
        "function": "likelihood" if design["objective"] == LIKELIHOOD else "fit",
        "estimator": plan["models"][model],
        "model": model,
        "repeat": split["repeat"],
        "fold": split["fold"],
        "trial": trial,
        "train": train,
        "validation": validation,
        "predict": predict or validation or [],
        "settings": settings,
        "seed": derive_seed(design["seed"], "model", split["repeat"], split["fold"], *seed_words),
        "epochs": epochs,
        "keep": keep,
        "threads": design["threads"],
    }


def fit_results(results: list[Result]) -> list[FitResult]:
    """Results of cells that are fits."""
    return cast(list[FitResult], results)


def _subject_scores(labels: np.ndarray, results: list[FitResult]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and mean probabilities of the subjects of some results."""
    rows: list[PredictedSubject] = [row for result in results for row in result["subjects"]]
    return labels[[row["subject"] for row in rows]], np.array([row["probability"] for row in rows])


def _refuse_failed(cell: FitCell, result: FitResult) -> None:
    if "failed" in result:
        raise ValueError(f"cell {cell['id']} failed: {result['failed']}")
