"""Nested cross-validation of any estimator: search inside, one look at each outer test part.

An estimator gives subjects the probability of a class, or says how likely what was measured of them is.

For each outer fold and model the inner folds choose the settings (Optuna), the number of epochs (median of the inner
optima) and the threshold; then the model is fitted once on the whole outer training part and predicts the outer test
part once. The published way, which chooses on the test fold, is there for comparison and carries its name.

The work is cut into cells (see `cells`): what a group of cells asks for next follows from seeds and results alone, so
the number of processes, their order and kills in between leave the figures as they are.
"""

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from sklearn.model_selection import StratifiedKFold

from ...runs.cells import Cell, Result
from ...runs.drive import Group, drive, remove_unfinished
from ...runs.workers import Pool
from .seeds import derive_seed
from .splits import Split
from .statistics import OBJECTIVES, choose_threshold

if TYPE_CHECKING:
    import optuna
from .fit import build_estimator
from .plan import (
    CELLS,
    LIKELIHOOD,
    NESTED,
    PUBLISHED,
    RANDOM_WINDOWS,
    TEST_EPOCH,
    EstimatorSpec,
    Settings,
    check_plan,
    random_windows,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """What one model did on one outer test part; the folder of `cell` holds its predictions."""

    protocol: str
    model: str
    repeat: int
    fold: int
    cell: str
    settings: Settings
    epochs: int
    threshold: float
    trials: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Trial:
    number: int
    settings: Settings
    score: float | None  # None: failed
    results: list[Result]


def run_plan(
    folder: Path,
    plan: dict[str, Any],
    pool: Pool,
    tell: Callable[[Cell, Result, bool], None] | None = None,
    more: Sequence[Group[list[Outcome]]] = (),
) -> list[Outcome]:
    """Run what is missing of a plan and give the outcomes of all, in the order of the plan.

    Args:
        folder: of the run; one run at a time works in it.
        plan: as `open_plan` accepted it.
        pool: where cells run.
        tell: called with each cell, its result, and whether it was found rather than run.
        more: groups of cells that run beside those of the plan.

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
            found = drive([*groups, *more], pool, cells, tell)
    except Timeout as error:
        raise OSError(f"another run works in {folder}; wait for it, or choose another --output") from error
    order = {NESTED: 0, TEST_EPOCH: 1, PUBLISHED: 2, RANDOM_WINDOWS: 3}
    return sorted((o for group in found for o in group), key=lambda outcome: order[outcome.protocol])


def count_cells(plan: dict[str, Any], searching: dict[str, bool]) -> dict[str, int]:
    """The most cells that each model may need.

    Args:
        plan: the plan.
        searching: model -> whether it has settings to search.
    """
    design, counts = plan["design"], {}
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
    """Whether the estimator suggests anything."""
    trial = _study(0, 1).ask()
    build_estimator(spec).suggest(trial)
    return bool(trial.distributions)


def _fold(plan: dict[str, Any], model: str, split: Split) -> Group[list[Outcome]]:
    """Everything about one model and one outer fold."""
    design, outcomes = plan["design"], []
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


def _nested(plan: dict[str, Any], model: str, split: Split) -> Group[Outcome]:
    labels = np.array(plan["cohort"]["labels"])
    objective = plan["design"]["objective"]
    inner = split["inner"]

    def cells(trial: int, settings: Settings) -> list[Cell]:
        return [
            _cell(
                plan, model, split, f"{NESTED}-t{trial}-i{i}", settings, part=part, trial=trial, seed_words=("inner", i)
            )
            for i, part in enumerate(inner)
        ]

    def score(results: list[Result]) -> float:
        if objective == LIKELIHOOD:
            found: float = -sum(result["nats"] for result in results) / sum(result["tokens"] for result in results)
            return found
        return float(np.mean([OBJECTIVES[objective](*_subject_scores(labels, [result])) for result in results]))

    best, trials = yield from _search(plan, model, split, NESTED, cells, score)
    threshold = np.nan if objective == LIKELIHOOD else choose_threshold(*_subject_scores(labels, best.results))
    epochs = max(1, round(float(np.median([result["epochs"] for result in best.results]))))
    part = {"train": split["train"], "predict": split["test"]}
    final = _cell(plan, model, split, f"{NESTED}-final", best.settings, part=part, epochs=epochs, keep=True)
    results = yield [final]
    _refuse_failed(final, results[0])
    return Outcome(NESTED, model, split["repeat"], split["fold"], final["id"], best.settings, epochs, threshold, trials)


def _published(plan: dict[str, Any], model: str, split: Split) -> Group[Outcome]:
    """Settings and epoch by the share of test windows that come out right, as published; threshold 0.5."""
    labels = plan["cohort"]["labels"]
    part = {"train": split["train"], "validation": split["test"]}

    def cells(trial: int, settings: Settings) -> list[Cell]:
        cell = _cell(plan, model, split, f"{PUBLISHED}-t{trial}", settings, part=part, trial=trial)
        return [{**cell, "estimator": plan["published_models"].get(model, cell["estimator"])}]

    def score(results: list[Result]) -> float:
        rows = results[0]["subjects"]
        right = sum(r["above"] if labels[r["subject"]] else r["windows"] - r["above"] for r in rows)
        result: float = right / sum(r["windows"] for r in rows)
        return result

    best, trials = yield from _search(plan, model, split, PUBLISHED, cells, score)
    name = cells(best.number, best.settings)[0]["id"]
    epochs = best.results[0]["epochs"]
    return Outcome(PUBLISHED, model, split["repeat"], split["fold"], name, best.settings, epochs, 0.5, trials)


def _test_epoch(plan: dict[str, Any], nested: Outcome, split: Split) -> Group[Outcome]:
    part = {"train": split["train"], "validation": split["test"]}
    cell = _cell(plan, nested.model, split, TEST_EPOCH, nested.settings, part=part)
    result = (yield [cell])[0]
    _refuse_failed(cell, result)
    return Outcome(
        TEST_EPOCH, nested.model, nested.repeat, nested.fold, cell["id"], nested.settings, result["epochs"], 0.5
    )


def _window_split(plan: dict[str, Any], nested: Outcome, split: Split) -> Group[Outcome]:
    """The nested run's settings and epochs for this fold; only the split is another one."""

    labels = np.array(plan["cohort"]["labels"])[plan["windows"]["subject"]]
    seed = derive_seed(plan["design"]["seed"], RANDOM_WINDOWS)
    folds = StratifiedKFold(plan["design"]["outer"], shuffle=True, random_state=seed).split(labels, labels)
    train, test = list(folds)[split["fold"]]
    part = {"train": train.tolist(), "predict": test.tolist()}
    cell = _cell(plan, nested.model, split, RANDOM_WINDOWS, nested.settings, part=part, epochs=nested.epochs)
    cell["estimator"] = plan["windows"]["estimators"][nested.model]
    _refuse_failed(cell, (yield [cell])[0])
    return Outcome(
        RANDOM_WINDOWS, nested.model, nested.repeat, nested.fold, cell["id"], nested.settings, nested.epochs, 0.5
    )


def _search(
    plan: dict[str, Any],
    model: str,
    split: Split,
    protocol: str,
    cells: Callable[[int, Settings], list[Cell]],
    score: Callable[[list[Result]], float],
) -> Generator[list[Cell], list[Result], tuple[_Trial, list[dict[str, Any]]]]:
    """Ask Optuna in batches of fixed size, run the trials' cells, tell it the scores; the best trial and all of them.

    The first of equally good trials is taken. Settings that come up again are not run again: seeds do not depend on
    the trial, so they would give the same.
    """
    import optuna

    design, estimator = plan["design"], build_estimator(plan["models"][model])
    study = _study(
        derive_seed(design["seed"], "search", protocol, model, split["repeat"], split["fold"]), design["trials"]
    )
    count = design["trials"]
    trials: list[_Trial] = []
    known: dict[str, _Trial] = {}
    while len(trials) < count:
        asked = [study.ask() for _ in range(min(design["batch"], count - len(trials)))]
        settings = [estimator.suggest(trial) for trial in asked]
        if not asked[0].distributions:
            count, asked, settings = 1, asked[:1], settings[:1]
        wanted: dict[str, list[Cell]] = {}
        for number, chosen in enumerate(settings, start=len(trials)):
            key = json.dumps(chosen, sort_keys=True)
            if key not in known:
                wanted.setdefault(key, cells(number, chosen))
        results = iter((yield [cell for some in wanted.values() for cell in some]))
        for key, some in wanted.items():
            own = [next(results) for _ in some]
            failed = any("failed" in result for result in own)
            known[key] = _Trial(some[0]["trial"], some[0]["settings"], None if failed else score(own), own)
        for trial, chosen in zip(asked, settings, strict=True):
            tried = known[json.dumps(chosen, sort_keys=True)]
            if tried.score is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, tried.score)
            trials.append(tried)
    good = [trial for trial in trials if trial.score is not None]
    if not good:
        reason = trials[0].results[0].get("failed", "")
        raise ValueError(f"{model}, repeat {split['repeat']}, fold {split['fold']}: every trial failed ({reason})")
    table = [
        {"settings": t.settings, "score": t.score, "epochs": [result["epochs"] for result in t.results]} for t in trials
    ]
    return max(good, key=lambda trial: (trial.score, -trial.number)), table


def _study(seed: int, trials: int) -> "optuna.Study":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # the sampler begins with random settings: ten, or half of a smaller budget
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(1, min(10, trials // 2)))
    return optuna.create_study(direction="maximize", sampler=sampler)


def _cell(
    plan: dict[str, Any],
    model: str,
    split: Split,
    name: str,
    settings: Settings,
    *,
    part: dict[str, list[int]],
    trial: int | None = None,
    epochs: int | None = None,
    keep: bool = False,
    seed_words: tuple[str | int, ...] = ("outer",),
) -> Cell:
    """A fit as plain values: with part["validation"], which is then predicted, or for so many epochs."""
    design = plan["design"]
    return {
        "id": f"{model}-r{split['repeat']}-f{split['fold']}-{name}",
        "function": "likelihood" if design["objective"] == LIKELIHOOD else "fit",
        "estimator": plan["models"][model],
        "model": model,
        "repeat": split["repeat"],
        "fold": split["fold"],
        "trial": trial,
        "train": part["train"],
        "validation": part.get("validation"),
        "predict": part.get("predict", part.get("validation")),
        "settings": settings,
        "seed": derive_seed(design["seed"], "model", split["repeat"], split["fold"], *seed_words),
        "epochs": epochs,
        "keep": keep,
        "threads": design["threads"],
    }


def _subject_scores(labels: np.ndarray, results: list[Result]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and mean probabilities of the subjects of some results."""
    rows = [row for result in results for row in result["subjects"]]
    return labels[[row["subject"] for row in rows]], np.array([row["probability"] for row in rows])


def _refuse_failed(cell: Cell, result: Result) -> None:
    if "failed" in result:
        raise ValueError(f"cell {cell['id']} gave {result['failed']}")
