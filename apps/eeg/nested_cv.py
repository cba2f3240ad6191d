"""`voxelwave eeg nested-cv`: the accuracy of networks and simple models on unseen subjects."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from ...eeg.audit import SELECTION, audit, check_run
from ...eeg.check import Check
from ...eeg.search_spaces import DEFAULT_NAMES, NAMES, NETWORK_NAMES
from ...eeg.split_file import read_splits
from ...eeg.study import Study
from ...eeg.windows import WindowOptions, Windows, load_windows
from ...runs.exit import DONE, REFUSED
from ...runs.tables import show_table
from ..nested_cv.plan import PLAN, Design, WindowUnits, make_plan, open_plan, read_plan
from ..nested_cv.progress import CLOCK, Clock, run_with_progress
from ..nested_cv.records import AuditRow, EstimatorSpec, Plan, Results
from ..nested_cv.refits import count_refits, refits_after, without_refits
from ..nested_cv.report import write_report
from ..nested_cv.report_text import span
from ..nested_cv.results import write_predictions, write_results
from ..nested_cv.search import count_cells, has_search
from .cohort import cohort_of, facts_of
from .evidence import evidence_of, wanted_refits
from .explain import explain_run
from .guard import may_train, read_study_of
from .nested_options import NestedCV

CACHE = ".windows"
BY_ACCURACY = "validation_accuracy"  # the figure by which the published code selects its epoch


def nested_cv(options: NestedCV) -> int:
    """Run the command and return its exit code."""
    chosen = options.models or _default_models(options.output)
    _check_models(chosen, options.model_options or {}, NAMES)
    study = read_study_of(options)
    windows = WindowOptions.of(options.windows)
    cache = options.cache or options.output / CACHE
    data = load_windows(study, windows, cache)
    for note in data.notes:
        print(f"note: {note}")
    plan = _plan(options, study, data, chosen, windows, cache)
    plan = open_plan(options.output, plan)
    wanted = wanted_refits(plan, data, chosen[0], stress=options.stress, learning_curve=options.learning_curve)
    searching = {model: has_search(plan["models"][model]) for model in chosen}
    total = sum(count_cells(plan, searching).values()) + count_refits(plan, wanted.refits)
    counts = ", ".join(f"{sum(data.labels == k)} {name}" for k, name in enumerate(data.classes))
    print(f"{len(data.subjects)} subjects ({counts}), {len(data.x)} windows; {len(chosen)} models, up to {total} fits")
    clock = Clock(options.output / CLOCK)
    checks = [] if options.no_audit else _audit(study, windows, options.output, cache, options.seed)
    if not may_train([c for c in checks if options.protocol != "published" or c.check != SELECTION], options):
        return REFUSED
    outcomes = run_with_progress(
        options.output,
        plan,
        options,
        total=total,
        then=refits_after(plan, wanted.refits),
        fitted=clock.tick,
    )
    outcomes, again = without_refits(outcomes)
    tables = write_predictions(options.output, plan, outcomes)
    checks = _with_run(checks, study, windows, options.output, cache)
    rows: list[AuditRow] = [{"check": c.check, "outcome": c.outcome, "detail": c.detail} for c in checks]
    facts = facts_of(study, data, plan, rows, clock.seconds, options.title)
    evidence = evidence_of(options.output, plan, tables, again, wanted)
    results = write_results(options.output, plan, outcomes, tables, facts, evidence)
    if not options.no_explanation:
        write_report(options.output)
        print(f"wrote {options.output}/report.html; the explanation of the networks follows", flush=True)
        explain_run(options.output, threads=options.threads * (1 if options.cluster else options.jobs or 1))
    write_report(options.output)
    _print(results)
    print(f"wrote {options.output}/: report.html, results.json, results.csv, predictions.csv")
    return DONE


def _default_models(output: Path) -> list[str]:
    """The models of the run in the folder, which another version may have begun; or those of a new run."""
    path = output / PLAN
    return list(read_plan(path)["models"]) if path.is_file() else list(DEFAULT_NAMES)


def _plan(
    options: NestedCV, study: Study, data: Windows, chosen: list[str], windows: WindowOptions, cache: Path
) -> Plan:
    """The plan of the run: cohort, models, design, splits and settings."""

    def spec(model: str, *, more_options: dict[str, Any] | None = None, **more: Any) -> EstimatorSpec:
        arguments = {
            "study": str(options.study.resolve()),
            "name": model,
            "windows": asdict(windows),
            "options": {**(options.model_options or {}).get(model, {}), **(more_options or {})},
            "positive": data.classes[1],
            "cache": str(cache.resolve()),
            **({} if options.label_column is None else {"label_column": options.label_column}),
            **more,
        }
        return {"factory": "eeg-models", "arguments": arguments}

    published = (options.published_models or chosen[:1]) if options.protocol != "nested" else []
    design = Design(
        outer=options.outer,
        inner=options.inner,
        repeats=options.repeats,
        trials=options.trials,
        objective=options.objective,
        protocol=options.protocol,
        published=tuple(published),
        seed=options.seed,
        threads=options.threads,
    )
    return make_plan(
        cohort_of(study, data),
        {model: spec(model) for model in chosen},
        design,
        options={"windows": asdict(windows), "models": options.model_options or {}},
        data=data.digest,
        windows=_window_units(data, {model: spec(model, by_window=True) for model in published}),
        published={m: spec(m, more_options={"monitor": BY_ACCURACY}) for m in published if m in NETWORK_NAMES},
    )


def _check_models(chosen: list[str], options: dict[str, Any], known: tuple[str, ...]) -> None:
    for name, where in (*((m, "models") for m in chosen), *((m, "model_options") for m in options)):
        if name not in known:
            raise ValueError(f"{where} must be among {', '.join(known)}, got {name!r}")
    if not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"models must be named once each, got {', '.join(chosen) or 'none'}")


def _window_units(data: Windows, estimators: dict[str, EstimatorSpec]) -> WindowUnits | None:
    return WindowUnits(tuple(data.subject.tolist()), estimators) if estimators else None


def _audit(study: Study, options: WindowOptions, output: Path, cache: Path, seed: int) -> list[Check]:
    """The audit of study and plan, before the first fit."""
    return audit(study, options=options, splits=read_splits(output), cache=cache, seed=seed, finished=False)


def _with_run(checks: list[Check], study: Study, options: WindowOptions, output: Path, cache: Path) -> list[Check]:
    """The audit, including the checks of finished fits and predictions, which are placed before the confounds."""
    if not checks:
        return []
    found = check_run(read_splits(output), load_windows(study, replace(options, scaling="window"), cache))
    first = next((k for k, check in enumerate(checks) if check.check.startswith("confound: ")), len(checks))
    return [*checks[:first], *found, *checks[first:]]


def _print(results: Results) -> None:
    table = Table("model", "protocol", "balanced accuracy", "AUC", "sensitivity", "specificity", "p")
    for model in results["models"]:
        found = [model["metrics"][m] for m in ("balanced_accuracy", "auc")]
        figures = [f"{m['mean']:.3f} ({span(m['interval_nb'], 2)})" for m in found]
        figures += [f"{model['metrics'][m]['mean']:.2f}" for m in ("sensitivity", "specificity")]
        table.add_row(model["name"], model["protocol"], *figures, f"{model['permutation']['p']:.4f}")
    show_table(table)
    print("Mean over outer folds with the 95 % interval by Nadeau and Bengio; p by permutation of subjects.")
