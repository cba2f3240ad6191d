"""Nested cross-validation of any estimator: search inside, one look at each outer test part.

An estimator gives subjects the probability of a class, or says how likely what was measured of them is.

For each outer fold and model the inner folds choose the settings (Optuna), the number of epochs (median of the inner
optima) and the threshold; then the model is fitted once on the whole outer training part and predicts the outer test
part once. The published way, which chooses on the test fold, is there for comparison and carries its name.

The work is cut into cells (see `cells`): what a group of cells asks for next follows from seeds and results alone, so
the number of processes, their order and kills in between leave the figures as they are.
"""

import csv
import functools
import json
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast

import numpy as np

from ..volumes.files import atomic_path
from .cells import Cell, Group, Pool, Result, drive, limited_threads, load_object, remove_unfinished
from .record import package_versions
from .splits import Cohort, Split, check_splits, derive_seed, make_splits
from .statistics import OBJECTIVES, choose_threshold

if TYPE_CHECKING:
    import optuna

T = TypeVar("T")
Settings = dict[str, int | float | str | bool]
EstimatorSpec = dict[str, Any]  # {"factory": "module:function", "arguments": {...}}, plain values

NESTED = "nested"
PUBLISHED = "published"  # test-fold selection, for demonstrating optimism
TEST_EPOCH = "test-epoch"  # settings from the inner folds, the epoch chosen on the test fold
RANDOM_WINDOWS = "random-windows"  # windows of one subject on both sides
LIKELIHOOD = "likelihood"  # the objective of estimators that give no class
PLAN, CELLS, PREDICTIONS, RESULTS = "plan.json", "cells", "predictions.csv", "results.json"


class PlanWarning(UserWarning):
    """Something about a run that its reader should know."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Rows of predicted windows.

    Args:
        subject: (n,) index of the subject.
        window: (n,) first sample of the window, or any number that names it.
        probability: (n,) of the positive class.
    """

    subject: np.ndarray
    window: np.ndarray
    probability: np.ndarray


class Fit(Protocol):
    """A fitted model. `epochs` is the best epoch where it was stopped early; `curve` has one entry for each epoch."""

    epochs: int
    curve: list[dict[str, float]]

    def predict(self, subjects: Sequence[int]) -> Predictions:
        """Probabilities of all windows of the subjects."""


class LikelihoodFit(Protocol):
    """A fitted model that says how likely measurements are, where nothing is classified."""

    epochs: int
    curve: list[dict[str, float]]

    def evaluate(self, units: Sequence[int], folder: Path | None) -> Result:
        """ "nats", the negative log-likelihood, and "tokens", what it is the sum of; more goes into `folder`."""


class Estimator(Protocol):
    """What can be evaluated. In a worker it is built anew from its `EstimatorSpec`."""

    name: str

    def suggest(self, trial: "optuna.Trial") -> Settings:
        """Settings to try; {} where there is nothing to search."""

    def fit(
        self,
        train: Sequence[int],
        validation: Sequence[int] | None,
        settings: Settings,
        seed: int,
        epochs: int | None,
        folder: Path | None,
    ) -> Fit | LikelihoodFit:
        """Fit on subjects: with `validation` stopped early on it, with `epochs` for exactly so many.

        Weights go into `folder` where it is given.
        """


@dataclass(frozen=True)
class Design:
    """How much is run.

    Args:
        outer: folds of which each is tested once.
        inner: folds within each outer training part.
        repeats: how often all is split anew.
        trials: settings tried for each model and outer fold.
        batch: settings asked for at once; more of them keep more workers busy and teach the sampler less.
        objective: of the search, mean over inner folds at subject level: "auc", "balanced_accuracy" or "brier"; or
            "likelihood" for estimators that give a `LikelihoodFit`: the mean per token.
        protocol: "nested", "published" (test-fold selection, for demonstrating optimism) or "both".
        published: the models that run under the published protocol.
        seed: all others follow from it.
        threads: of each fit.
    """

    outer: int = 5
    inner: int = 2
    repeats: int = 1
    trials: int = 4
    batch: int = 1
    objective: Literal["auc", "balanced_accuracy", "brier", "likelihood"] = "auc"
    protocol: Literal["nested", "published", "both"] = "nested"
    published: tuple[str, ...] = ()
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("trials", "batch", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.objective not in (*OBJECTIVES, LIKELIHOOD):
            raise ValueError(f"objective must be one of {', '.join((*OBJECTIVES, LIKELIHOOD))}, got {self.objective!r}")
        if self.protocol not in (NESTED, PUBLISHED, "both"):
            raise ValueError(f'protocol must be "nested", "published" or "both", got {self.protocol!r}')


@dataclass(frozen=True)
class WindowUnits:
    """Windows as if each were a subject of its own, for the row of the optimism table that splits windows at random.

    Args:
        subject: index of the real subject of each window.
        estimators: model -> estimator whose subjects are these windows.
    """

    subject: tuple[int, ...]
    estimators: dict[str, EstimatorSpec]


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


def make_plan(
    cohort: Cohort,
    models: dict[str, EstimatorSpec],
    design: Design,
    *,
    options: dict[str, Any] | None = None,
    data: str = "",
    windows: WindowUnits | None = None,
    published: dict[str, EstimatorSpec] | None = None,
    splits: list[Split] | None = None,
) -> dict[str, Any]:
    """All that is decided before anything is fitted, as plain values.

    Args:
        cohort: who takes part.
        models: name -> how a worker builds it; the first is the one that the headline is about.
        design: how much is run.
        options: of the program that asks, kept for the report.
        data: a hash of the data.
        windows: for the random split of windows, which runs beside the published protocol.
        published: how a worker builds those models that are built otherwise under the published protocol.
        splits: where the folds were made elsewhere; by default those of `make_splits`.

    Raises:
        ValueError: for folds that cannot have both classes, or a published model that is not among the models.
    """
    unknown = set(design.published) - set(models)
    if unknown:
        raise ValueError(f"published must be among the models ({', '.join(models)}), got {', '.join(sorted(unknown))}")
    if design.protocol != NESTED and not design.published:
        raise ValueError(f"protocol {design.protocol!r} needs published: the models that it runs")
    if splits is None:
        splits = make_splits(cohort, outer=design.outer, inner=design.inner, repeats=design.repeats, seed=design.seed)
    plan = {
        "design": asdict(design),
        "cohort": asdict(cohort),
        "models": models,
        "splits": splits,
        "seeds": [derive_seed(design.seed, "outer", repeat) for repeat in range(design.repeats)],
        "windows": None if windows is None or design.protocol == NESTED else asdict(windows),
        "published_models": published or {},
        "options": options or {},
        "data": data,
        "versions": package_versions(),
    }
    return json.loads(json.dumps(plan, default=str))


def check_plan(plan: dict[str, Any]) -> None:
    """What `check_splits` checks, on a plan from a file."""
    check_splits(cohort_of(plan), plan["splits"])


def open_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Write the plan into a new folder, or see that the folder's plan is the same. Splits are checked in both cases.

    Raises:
        ValueError: the folder holds a run that was planned otherwise; the line says what differs.
        LeakError: someone is on both sides of a split.
    """
    check_plan(plan)
    path = folder / PLAN
    if not path.exists():
        if folder.exists() and any(p for p in folder.iterdir() if not p.name.startswith(".")):
            raise ValueError(f"{folder} is not empty and holds no {PLAN}; choose a new folder for --output")
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(plan, indent=1) + "\n")
        return
    before = json.loads(path.read_text())
    check_plan(before)
    differences = [text for part in ("design", "options") for text in _differences(before.get(part, {}), plan[part])]
    parts = ("cohort", "models", "published_models", "splits", "windows", "data")
    differences += [part for part in parts if before.get(part) != plan[part]]
    if differences:
        raise ValueError(
            f"{folder} holds a run planned otherwise ({'; '.join(differences[:4])});"
            " choose another --output, or go on with the same options and data"
        )
    if before["versions"] != plan["versions"]:
        changed = "; ".join(_differences(before["versions"], plan["versions"]))
        warnings.warn(
            f"this run began with other versions ({changed}): last digits may differ", PlanWarning, stacklevel=2
        )


def cohort_of(plan: dict[str, Any]) -> Cohort:
    """The cohort of a plan."""
    return Cohort(**{name: tuple(value) for name, value in plan["cohort"].items()})


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
    from filelock import FileLock, Timeout

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
        if _random_windows(plan, model):
            counts[model] += design["outer"]
    return counts


def has_search(spec: EstimatorSpec) -> bool:
    """Whether the estimator suggests anything."""
    trial = _study(0, 1).ask()
    build_estimator(spec).suggest(trial)
    return bool(trial.distributions)


def build_estimator(spec: EstimatorSpec) -> Estimator:
    """The estimator of a spec; the latest ones are kept, since they hold the data."""
    return _built(json.dumps(spec, sort_keys=True))


@functools.lru_cache(maxsize=16)
def _built(spec: str) -> Estimator:
    content = json.loads(spec)
    return load_object(content["factory"])(**content["arguments"])


def fit_cell(cell: Cell, folder: Path) -> Result:
    """Fit and predict once: the work of a cell.

    Returns:
        "epochs", "curve" and "subjects": index, mean probability, number of windows, how many are above 0.5; or
        "failed" with the reason where the probabilities are no numbers.

    Raises:
        ValueError: fitted subjects are to be predicted, or the model left some out.
    """
    estimator = _estimator_of(cell)
    with limited_threads(cell["threads"]):  # torch may have been loaded just now
        fit = cast(Fit, _fit(estimator, cell, folder))
        predictions = fit.predict(cell["predict"])
    probability = np.asarray(predictions.probability, dtype=float)
    _write_rows(
        folder / "predictions.csv",
        ("subject", "window", "probability"),
        zip(predictions.subject.tolist(), predictions.window.tolist(), probability.tolist(), strict=True),
    )
    _write_curve(folder, fit.curve)
    if not np.isfinite(probability).all():
        return {"failed": "probabilities that are no numbers", "epochs": int(fit.epochs)}
    missing = set(cell["predict"]) - set(predictions.subject.tolist())
    if missing or probability.min() < 0 or probability.max() > 1:
        raise ValueError(f"model {cell['model']} must predict a probability in [0, 1] for each subject")
    subjects = []
    for index in cell["predict"]:
        own = probability[predictions.subject == index]
        row = {
            "subject": index,
            "probability": float(own.mean()),
            "windows": len(own),
            "above": int((own >= 0.5).sum()),
        }
        subjects.append(row)
    return {"epochs": int(fit.epochs), "subjects": subjects}


def fit_likelihood_cell(cell: Cell, folder: Path) -> Result:
    """Fit, and say how likely what was held out is: the work of a cell whose estimator gives no class.

    Returns:
        "epochs" and what `LikelihoodFit.evaluate` gives; or "failed" where the likelihood is no number.

    Raises:
        ValueError: what is fitted is to be predicted.
    """
    estimator = _estimator_of(cell)
    with limited_threads(cell["threads"]):
        fit = cast(LikelihoodFit, _fit(estimator, cell, folder))
        figures = fit.evaluate(cell["predict"], folder if cell["keep"] else None)
    _write_curve(folder, fit.curve)
    if not np.isfinite(figures["nats"]):
        return {"failed": "a likelihood that is no number", "epochs": int(fit.epochs)}
    return {"epochs": int(fit.epochs), **figures}


def _estimator_of(cell: Cell) -> Estimator:
    both = set(cell["train"]) & set(cell["predict"] + (cell["validation"] or []))
    if both:
        raise ValueError(f"subjects {sorted(both)[:3]} would be fitted and predicted")
    return build_estimator(cell["estimator"])


def _fit(estimator: Estimator, cell: Cell, folder: Path) -> Fit | LikelihoodFit:
    weights = folder if cell["keep"] else None
    return estimator.fit(cell["train"], cell["validation"], cell["settings"], cell["seed"], cell["epochs"], weights)


def _fold(plan: dict[str, Any], model: str, split: Split) -> Group[list[Outcome]]:
    """Everything about one model and one outer fold."""
    design, outcomes = plan["design"], []
    published = model in design["published"] and design["protocol"] != NESTED
    if design["protocol"] != PUBLISHED:
        outcomes.append((yield from _nested(plan, model, split)))
        if published:
            outcomes.append((yield from _test_epoch(plan, outcomes[0], split)))
        if _random_windows(plan, model) and split["repeat"] == 0:
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
            return -sum(result["nats"] for result in results) / sum(result["tokens"] for result in results)
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
        return right / sum(r["windows"] for r in rows)

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
    from sklearn.model_selection import StratifiedKFold

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
        "function": f"{__name__}:{'fit_likelihood_cell' if design['objective'] == LIKELIHOOD else 'fit_cell'}",
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


def _random_windows(plan: dict[str, Any], model: str) -> bool:
    return plan["design"]["protocol"] == "both" and model in (plan["windows"] or {"estimators": {}})["estimators"]


def _subject_scores(labels: np.ndarray, results: list[Result]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and mean probabilities of the subjects of some results."""
    rows = [row for result in results for row in result["subjects"]]
    return labels[[row["subject"] for row in rows]], np.array([row["probability"] for row in rows])


def _refuse_failed(cell: Cell, result: Result) -> None:
    if "failed" in result:
        raise ValueError(f"cell {cell['id']} gave {result['failed']}")


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{name} was {before.get(name)}, now {now.get(name)}" for name in names]


def _write_curve(folder: Path, curve: list[dict[str, float]]) -> None:
    names = list(dict.fromkeys(name for row in curve for name in row))
    _write_rows(folder / "curve.csv", names, ([row.get(name, "") for name in names] for row in curve))


def _write_rows(path: Path, header: Sequence[str], rows) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
