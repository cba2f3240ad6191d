"""`voxelwave eeg test`: one look at the final model of a nested run, on a study that it never saw."""

import csv
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.table import Table

from ...eeg.overlap import Overlap, find_overlap
from ...eeg.saved_models import SAVED, model_files, predict_saved
from ...eeg.study import Study, read_study, study_digest
from ...eeg.windows import WindowOptions, Windows, load_windows
from ...runs.compute import use_threads
from ...runs.exit import DONE, REFUSED
from ...runs.files import outputs_together
from ...runs.json_files import write_json
from ...runs.record import command_line, hardware, package_versions, sha256
from ...runs.tables import show_table
from ...runs.words import first_few
from ..nested_cv.locked_test import LockedTestFacts, LockedTestResults, locked_test_results, write_test_page
from ..nested_cv.plan import CELLS, NESTED, PLAN, read_plan
from ..nested_cv.records import FoldRow, ModelResults, Plan, Results
from ..nested_cv.report import read_results
from ..nested_cv.report_text import span
from ..nested_cv.seal import close_look, open_look, read_seal
from ..nested_cv.statistics import Scores
from .guard import persons_of
from .nested_options import LockedTest

RESULT, PAGE, SUBJECTS = "test.json", "test.html", "subjects.csv"


def locked_test(options: LockedTest) -> int:
    """Run the command and return its exit code."""
    use_threads(options.threads)
    plan, results = read_plan(options.run / PLAN), read_results(options.run)
    model = _model(results, options.model)
    folders = [_folder(options.run, model["name"], fold) for fold in model["per_fold"]]
    trained, fresh, window_options = _both_studies(plan, model["name"], options)
    (_, seen), (study, data) = trained, fresh
    if reason := _refusal(find_overlap(trained, fresh, window_options), options):
        print(reason)
        return REFUSED
    digest = _model_digest(model, folders)
    look = open_look(
        options.run,
        model=model["name"],
        model_sha256=digest,
        study=options.study,
        study_sha256=study_digest(study),
        output=options.output,
        subjects=len(data.subjects),
    )
    print(
        f"look {look['look']} at a locked test of this run: {len(seen.subjects)} subjects in training, "
        f"{len(data.subjects)} in the test"
    )
    scores = _scores(study, data, model, folders)
    looks = read_seal(options.run)["looks"]
    facts = LockedTestFacts(
        title=options.title or f"{data.classes[1]} from EEG: locked test of {model['title']}",
        command=command_line(),
        hardware=hardware(),
        versions=package_versions(),
        run=str(options.run.resolve()),
        models=len(folders),
        trained=len(seen.subjects),
        notes=[*study.notes, *data.notes, *_left_out(data)],
        classes=data.classes,
    )
    found = locked_test_results(results, model, scores, look, looks, facts)
    _write(options.output, found, data, scores)
    close_look(options.run, look, found["metrics"]["auc"]["value"])
    _print(found, options.output)
    return DONE


def _model(results: Results, name: str | None) -> ModelResults:
    """The nested model to test: that of the headline, or the one named."""
    nested = [model for model in results["models"] if model["protocol"] == NESTED]
    name = name or results["headline"]["model"]
    found = next((model for model in nested if model["name"] == name), None)
    if found is None:
        known = ", ".join(model["name"] for model in nested) or "none"
        raise ValueError(f"--model must be a model of the nested protocol of the run ({known}), got {name}")
    if name not in SAVED:
        raise ValueError(f"model {name} saves nothing to test; give --model with one of {', '.join(SAVED)}")
    return found


def _folder(run: Path, name: str, fold: FoldRow) -> Path:
    """The folder of the final fit of an outer fold."""
    return run / CELLS / f"{name}-r{fold['repeat']}-f{fold['fold']}-{NESTED}-final"


def _both_studies(
    plan: Plan, name: str, options: LockedTest
) -> tuple[tuple[Study, Windows], tuple[Study, Windows], WindowOptions]:
    """The study of the run and the new one, each with windows cut in the same way, and the way."""
    arguments = plan["models"][name]["arguments"]
    cut = WindowOptions(**arguments["windows"])
    column, positive = arguments.get("label_column"), arguments["positive"]
    try:
        study = read_study(arguments["study"], positive, label_column=column)
        windows = load_windows(study, cut, arguments["cache"])
    except OSError as error:
        raise ValueError(f"the study of the run is needed, to see what both studies share: {error}") from error
    if windows.digest != plan["data"]:
        raise ValueError(f"the recordings in {arguments['study']} differ from those of the run in {options.run}")
    same = replace(cut, channels=cut.channels or windows.channels, sfreq=cut.sfreq or windows.sfreq)
    given = read_study(
        options.study, positive, label_column=options.label_column or column, person_column=options.person_column
    )
    if given.classes != windows.classes:
        raise ValueError(
            f"the classes of {options.study} must be {' and '.join(windows.classes)} as in the run, "
            f"got {' and '.join(given.classes)}"
        )
    new = load_windows(given, same)
    if cut.scaling in ("none", "fold") and new.unit != windows.unit:
        raise ValueError(f"recordings must be in {windows.unit} as in the run, got {new.unit}")
    return (study, windows), (given, new), same


def _refusal(overlap: Overlap, options: LockedTest) -> str:
    """The reason why the test is refused; empty if it is not."""
    if overlap.recordings:
        pairs = first_few([f"{a} of the run and {b}" for a, b in overlap.recordings])
        return f"refused: the two studies share EEG ({pairs}); a locked test needs people whom the run never saw"
    if overlap.people and not options.other_people:
        names = first_few(list(overlap.people))
        return (
            f"refused: people of the same name are in both studies ({names}); leave them out, or give --other-people "
            "if only their names are the same"
        )
    return ""


def _model_digest(model: ModelResults, folders: list[Path]) -> str:
    """SHA-256 of the final model: what its fits have learnt, and their thresholds."""
    digest = hashlib.sha256()
    for fold, folder in zip(model["per_fold"], folders, strict=True):
        files = model_files(folder)
        if not files:
            raise FileNotFoundError(f"{folder} must hold the model of an outer fold; finish the run first")
        for file in files:
            digest.update(
                f"{fold['repeat']} {fold['fold']} {fold['threshold']!r} {file.name} {sha256(file)}\n".encode()
            )
    return digest.hexdigest()


def _scores(study: Study, data: Windows, model: ModelResults, folders: list[Path]) -> Scores:
    """The mean probability of each subject over its windows and over the fits of all outer folds."""
    by_window = np.mean([predict_saved(model["name"], folder, data) for folder in folders], axis=0)
    windows = np.bincount(data.subject, minlength=len(data.subjects))
    score = np.bincount(data.subject, by_window, minlength=len(data.subjects)) / windows
    threshold = float(np.mean([fold["threshold"] for fold in model["per_fold"]]))
    persons = persons_of(study, data)
    numbers = {person: k for k, person in enumerate(dict.fromkeys(persons))}
    shape = (1, len(score))
    return Scores(
        data.labels,
        score[None],
        np.full(shape, threshold),
        np.zeros(shape, int),
        np.array([numbers[person] for person in persons]),
    )


def _left_out(data: Windows) -> list[str]:
    return [f"{name} was left out: {reason}" for name, reason in data.excluded]


def _write(output: Path, found: LockedTestResults, data: Windows, scores: Scores) -> None:
    with outputs_together(output) as folder:
        write_json(folder / RESULT, found)
        with (folder / SUBJECTS).open("w", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("subject", "label", "probability", "threshold", "decision"))
            decisions = [data.classes[int(said)] for said in scores.decision[0]]
            labels = [data.classes[label] for label in data.labels]
            columns = (data.subjects, labels, scores.score[0].tolist(), scores.threshold[0].tolist(), decisions)
            writer.writerows(zip(*columns, strict=True))
        write_test_page(found, folder / PAGE)


def _print(found: LockedTestResults, output: Path) -> None:
    table = Table("metric", "locked test", "nested cross-validation", "difference")
    for name, row in found["metrics"].items():
        figures = [(row["value"], row["interval"]), (row["nested"], row["nested_interval"])]
        figures.append((row["difference"], row["difference_interval"]))
        table.add_row(name.replace("_", " "), *(f"{value:.3f} ({span(interval, 2)})" for value, interval in figures))
    show_table(table)
    for sentence in found["sentences"]:
        print(sentence)
    print(f"wrote {output}/: {PAGE}, {RESULT}, {SUBJECTS}")
