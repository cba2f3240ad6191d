"""`voxelwave report`: a finished run as one HTML file, which needs no other file and can be printed.

The page is built from the files of the run: results.json (every figure), predictions.csv (the repeats in which each
subject was classified correctly), cells/ (learning curves of the inner folds) and explain/explanation.json with its
images. These files are read strictly: a missing key is an error that names it.
"""

import base64
import csv
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import numpy as np

from ...runs.auc import auc
from ...runs.files import atomic_path
from ...runs.json_types import read_record
from . import report_figures as figures
from .plan import CELLS, NESTED, PREDICTIONS, PUBLISHED, RESULTS
from .records import (
    CurveRow,
    Explanation,
    MetricName,
    ModelResults,
    Results,
    SubjectRow,
)
from .report_text import SELECTED_ON_TEST, environment, fixed, name_of, plain, words
from .results import read_curve

REPORT = "report.html"
EXPLANATION = "explain/explanation.json"
BOTH_SIDES = {"random-windows": "the same subjects on both sides"}
ABSTAIN = 0.1  # within this of the threshold there is no decision, the default of `eeg diagnose`
SUSPICIOUS = 0.95  # a balanced accuracy above this is more often leakage than skill
IMAGE_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
SCALING = {
    "window": "Each channel of each window was scaled to mean 0 and standard deviation 1, which removes its amplitude.",
    "recording": "Each channel of a recording was scaled to mean 0 and standard deviation 1 over the recording.",
    "fold": "Channels were scaled by mean and standard deviation of the training subjects of each fold.",
    "none": "Amplitudes were not scaled.",
}
_ONLY_PUBLISHED = ["Settings and number of epochs were selected on the test fold, to demonstrate optimism."]
MAIN_METRICS: tuple[MetricName, ...] = ("balanced_accuracy", "sensitivity", "specificity", "auc", "brier")


@dataclass(frozen=True)
class Subject:
    """A subject in the list of the page.

    Args:
        row: the subject's row in results.json.
        class_number: 0 or 1.
        margins: for each repeat, the score of the model of the headline minus its threshold.
    """

    row: SubjectRow
    class_number: int
    margins: list[float]

    @property
    def right(self) -> list[bool]:
        """For each repeat, whether the model classified the subject correctly."""
        return [(margin >= 0) == (self.class_number == 1) for margin in self.margins]

    @property
    def decision(self) -> int | None:
        """The class, by the mean margin over repeats; None within the band without a decision."""
        mean = fmean(self.margins)
        return None if abs(mean) < ABSTAIN else int(mean >= 0)


@dataclass(frozen=True)
class Shown:
    """The explanation as shown on the page.

    Args:
        content: explanation.json.
        images: name -> the picture as a data: URL.
        missing: names of pictures whose file is missing.
    """

    content: Explanation
    images: dict[str, str]
    missing: list[str]


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of the run in `folder` and return its path.

    Args:
        folder: holds results.json; predictions.csv, cells/ and explain/ are used if present.
        output: the HTML file; by default report.html in `folder`.

    Raises:
        OSError: `folder` holds no results.json.
        ValueError: a file differs from what a run writes; the message names the place.
    """
    folder = Path(folder)
    results = read_results(folder)
    page = environment().get_template("report.html.jinja").render(_context(results, folder))
    output = folder / REPORT if output is None else Path(output)
    with atomic_path(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output


# reading


def read_results(folder: Path) -> Results:
    """Read results.json of a run, see `write_report`."""
    path = folder / RESULTS
    if not path.is_file():
        raise FileNotFoundError(f"expected the folder of a finished run, with {RESULTS} in it; {path} does not exist")
    return cast(Results, read_record(path, Results))


def _read_margins(folder: Path) -> dict[tuple[str, str], list[float]]:
    """(model, subject) -> score minus threshold, once per repeat of the nested protocol."""
    path = folder / PREDICTIONS
    if not path.is_file():
        return {}
    found: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                if row["protocol"] == NESTED:
                    window = float(row["probability"]), float(row["threshold"])
                    found[row["model"], row["subject"], row["repeat"]].append(window)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must be the table of predictions that a run writes: {error!r}") from error
    margins = defaultdict(list)
    for (model, subject, _), windows in found.items():
        score, threshold = (fmean(column) for column in zip(*windows, strict=True))
        margins[model, subject].append(score - threshold)
    return margins


def _final_curves(model: ModelResults) -> list[list[CurveRow]]:
    """The learning curve of each outer fit; a model without epochs has none."""
    return [fold["curve"] for fold in model["per_fold"] if fold["curve"]]


def _inner_curves(folder: Path, model: ModelResults, inner: int) -> list[list[CurveRow]]:
    """The learning curve of each inner fit under the chosen settings, if the cells of the run are present."""
    curves = []
    for fold in model["per_fold"]:
        name = f"{model['name']}-r{fold['repeat']}-f{fold['fold']}-{NESTED}"
        # repeated settings were fitted once, by the first trial
        trial = [trial["settings"] for trial in fold["trials"]].index(fold["settings"])
        for number in range(inner):
            path = folder / CELLS / f"{name}-t{trial}-i{number}" / "curve.csv"
            try:
                curves.append(read_curve(path) if path.is_file() else [])
            except ValueError as error:
                raise ValueError(f"{path} must be the learning curve that a run writes: {error}") from error
    return [curve for curve in curves if curve]


def _read_explanation(folder: Path) -> Shown | None:
    """explanation.json with its images, or None."""
    path = folder / EXPLANATION
    if not path.is_file():
        return None
    content = cast(Explanation, read_record(path, Explanation))
    images = {}
    for name, file in content["images"].items():
        picture = path.parent / file
        if picture.suffix.lower() in IMAGE_TYPES and picture.is_file():
            encoded = base64.b64encode(picture.read_bytes()).decode()
            images[name] = f"data:{IMAGE_TYPES[picture.suffix.lower()]};base64,{encoded}"
    return Shown(content, images, sorted(set(content["images"]) - set(images)))


# content of the page


def _context(results: Results, folder: Path) -> dict[str, Any]:
    """The variables of the template."""
    models = [model for model in results["models"] if model["protocol"] != PUBLISHED]
    models.sort(key=lambda model: -_mean(model))
    main = _main_model(results)
    subjects = _subjects(results, main, _read_margins(folder))
    inner = {model["name"]: _inner_curves(folder, model, results["splits"]["inner"]) for model in models}
    curves = [
        (m, figures.learning_curves(inner[m["name"]] or _final_curves(m), title=f"Loss of {name_of(m)}"))
        for m in models
    ]
    return {
        "results": results,
        "classes": results["classes"],
        "unit": results["unit"],
        "repeats": results["splits"]["repeats"],
        "models": models,
        "main": main,
        "others": [model for model in models if model is not main],
        "excluded": Counter(entry["reason"] for entry in results["flow"]["excluded"]),
        "sentences": _what_was_done(results),
        "question": _question(results),
        "meaning": _meaning(results, main, models),
        "decisions": _decisions(subjects, results["unit"]),
        "simpler": _simpler_explanations(results, main, models),
        "curves": [(model, drawn) for model, drawn in curves if drawn],
        "has_inner_curves": any(inner.values()),
        "metrics_shown": _metrics_shown(models),
        "subjects": subjects,
        "has_calls": any(subject.margins for subject in subjects),
        "abstain": ABSTAIN,
        "score_models": sorted(models, key=lambda model: model is not main),
        "score_rows": _score_rows(subjects, main),
        "stress": results.get("stress"),
        "steady": [model for model in models if "stability" in model],
        "learning": results.get("learning"),
        "explanation": _read_explanation(folder),
        "title_of": _titles(results),
        "main_metrics": MAIN_METRICS,
        "selected_on_test": SELECTED_ON_TEST,
        "warning_of": lambda protocol: None if protocol == NESTED else BOTH_SIDES.get(protocol, SELECTED_ON_TEST),
    }


def _main_model(results: Results) -> ModelResults:
    """The model of the headline."""
    key = results["headline"]["model"], results["headline"]["protocol"]
    return next(model for model in results["models"] if (model["name"], model["protocol"]) == key)


def _mean(model: ModelResults, metric: MetricName = "balanced_accuracy") -> float:
    return model["metrics"][metric]["mean"]


def _metrics_shown(models: Sequence[ModelResults]) -> list[str]:
    """All metrics, the main ones first."""
    named = list(dict.fromkeys(metric for model in models for metric in model["metrics"]))
    return [m for m in MAIN_METRICS if m in named] + [m for m in named if m not in MAIN_METRICS]


def _what_was_done(results: Results) -> list[str]:
    """A description of the run in sentences: the data, the windows, and the protocol."""
    splits, options = results["splits"], results["options"]
    times = splits["repeats"]
    again = f", {times} times with different partitions" if times > 1 else ""
    return [
        *results["description"],
        *(_windowing(options["windows"]) if "windows" in options else ()),
        f"The subjects were divided into {splits['outer']} outer folds, stratified by class{again}. All windows of "
        "a subject are in one fold. Each fold was held out once and predicted by models that had seen none of its "
        "subjects.",
        *(_ONLY_PUBLISHED if options["protocol"] == PUBLISHED else _nested_search(results)),
        "The score of a subject is the mean probability of its windows; every figure is per subject unless marked "
        "as per window.",
        "Seeds: " + ", ".join(str(seed) for seed in splits["seeds"]) + ".",
    ]


def _nested_search(results: Results) -> list[str]:
    """A description of the search of the nested protocol in sentences."""
    inner, options = results["splits"]["inner"], results["options"]
    return [
        f"Settings, number of epochs and decision threshold were chosen by {inner} inner folds within the training "
        "subjects of each outer fold; the outer fold was predicted once, at the end.",
        f"Settings tried in each outer fold for every model with a search: {options['trials']}; the settings with the "
        f"best {words(options['objective'])} over the inner folds were chosen.",
    ]


def _windowing(options: dict[str, Any]) -> list[str]:
    """Sampling rate, filter, reference and scaling of the windows, from the window options of an EEG run."""
    overlap, band, reference = options["overlap"], options["band"], options["reference"]
    shared = f", each sharing {100 * overlap:.0f} % with the next" if overlap else ", which do not overlap"
    rate = f" at {options['sfreq']:g} Hz" if options["sfreq"] else ""
    sentences = [f"Recordings{rate} were cut into windows of {options['seconds']:g} s{shared}."]
    if band:
        sentences.append(f"They were filtered to {plain(band[0])} to {plain(band[1])} Hz.")
    if reference:
        sentences.append(f"Reference: {plain(reference)}.")
    return [*sentences, SCALING[options["scaling"]]]


def _meaning(results: Results, main: ModelResults, models: Sequence[ModelResults]) -> list[tuple[str, bool]]:
    """Explain the headline in sentences; True marks an important one."""
    mean, (low, high) = results["headline"]["mean"], results["headline"]["interval"]
    negative, positive = results["classes"]
    sensitivity, specificity = _mean(main, "sensitivity"), _mean(main, "specificity")
    sentences = [
        ("0.5 means guessing, 1 means no errors (the mean of sensitivity and specificity).", False),
        (
            f"Of 100 {positive} subjects about {100 * sensitivity:.0f} were classified as {positive}; "
            f"of 100 {negative} subjects about {100 * (1 - specificity):.0f} were wrongly classified as {positive}.",
            False,
        ),
    ]
    if low == high:
        sentences.append(
            ("All folds give the same figure, so no interval can be estimated: its precision is unknown.", True)
        )
    elif low > 0.5:
        sentences.append(("The interval lies above 0.5.", False))
    elif high < 0.5:
        sentences.append(
            ("The interval lies below 0.5: the model is worse than guessing. Check the labels and the folds.", True)
        )
    else:
        sentences.append(
            ("The interval includes 0.5: these data do not show that the model is better than guessing.", True)
        )
    others = [model for model in models if model is not main]
    as_good = [model for model in others if _mean(model) >= mean]
    if as_good:
        named = ", ".join(f"{name_of(model)} ({fixed(_mean(model))})" for model in as_good)
        sentences.append((f"At least as high on the same folds: {named}.", True))
    elif others:
        sentences.append((f"Next best on the same folds: {name_of(others[0])} ({fixed(_mean(others[0]))}).", False))
    if mean >= SUSPICIOUS:
        sentences.append(
            ("A result this close to 1 is more often caused by leakage than by skill; read the audit first.", True)
        )
    return sentences


def _simpler_explanations(results: Results, main: ModelResults, models: Sequence[ModelResults]) -> list[str]:
    """Models as good as the one in the headline, and how well the recording length alone separates the classes."""
    low = results["headline"]["interval"][0]
    sentences = list(results["caveats"])
    rivals = [model for model in models if model is not main and _mean(model) >= low]
    if rivals:
        named = ", ".join(f"{name_of(model)} {fixed(_mean(model))}" for model in rivals)
        sentences.append(
            f"Not below the interval of {name_of(main)} ({fixed(_mean(main))}): {named}. "
            "The features of these models may explain its score; only the comparisons separate the models."
        )
    separation = _length_separation(results)
    if separation is not None:
        sentences.append(
            f"The length of a subject's recording alone separates the classes with an AUC of {fixed(separation)} "
            "(all subjects, no model; 0.5 is no separation)."
        )
    return sentences


def _length_separation(results: Results) -> float | None:
    """AUC of the recording length for the class with longer recordings; None if all lengths are equal."""
    seconds = np.array([subject["seconds"] for subject in results["subjects"]])
    labels = np.array([results["classes"].index(subject["label"]) for subject in results["subjects"]])
    if len(set(seconds)) < 2:
        return None
    area = float(auc(seconds, labels))
    return max(area, 1 - area)


def _subjects(results: Results, main: ModelResults, margins: dict[tuple[str, str], list[float]]) -> list[Subject]:
    return [
        Subject(row, results["classes"].index(row["label"]), margins.get((main["name"], row["subject"]), []))
        for row in results["subjects"]
    ]


def _decisions(subjects: Sequence[Subject], unit: str) -> str:
    """How many subjects would get no decision, and how many of the others are classified correctly."""
    known = [subject for subject in subjects if subject.margins]
    if not known:
        return ""
    decided = [subject for subject in known if subject.decision is not None]
    right = sum(subject.decision == subject.class_number for subject in decided)
    left = f"With no decision within {ABSTAIN:g} of the threshold, {len(known) - len(decided)} of {len(known)} {unit}s"
    if not decided:
        return f"{left} are left undecided."
    return f"{left} are left undecided; of the other {len(decided)}, {right} are classified correctly."


def _question(results: Results) -> str:
    """What is predicted, in words."""
    negative, positive = results["classes"]
    flow, unit = results["flow"], results["unit"]
    seconds = float(np.median([subject["seconds"] for subject in results["subjects"]]))
    counts = " and ".join(f"{flow['per_class'][name]['subjects']} {name}" for name in (positive, negative))
    return (
        f"Question: can a model tell {positive} from {negative} for a {unit} whom it has not seen? {counts}, "
        f"recordings of {seconds:.0f} s (median). The model gives a probability of {positive}; at a threshold it "
        "becomes a decision."
    )


def _score_rows(subjects: Sequence[Subject], main: ModelResults) -> list[tuple[str, int, float]]:
    """Subject, class and score under the model of the headline; none if it ran under the published protocol alone."""
    if main["protocol"] == PUBLISHED:
        return []
    return [(s.row["subject"], s.class_number, s.row["score"][main["name"]]) for s in subjects]


def _titles(results: Results) -> Callable[[str], str]:
    """From the name of a model to its title."""
    titles = {model["name"]: model["title"] for model in results["models"]}
    return lambda name: titles[name]
