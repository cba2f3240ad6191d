"""`voxelwave report`: a finished run as one HTML file, which loads nothing else and prints well.

What is known about the field stands in the run's own files: results.json (every figure), predictions.csv (how often
each subject was called right), cells/ (learning curves of the inner folds) and explain/explanation.json with its
images. So runs of any field get the same report.
"""

import base64
import csv
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from markupsafe import Markup
from sklearn.metrics import roc_auc_score

from ...runs.files import atomic_path
from . import report_figures as figures
from .report_figures import is_number

RESULTS, PREDICTIONS, CELLS, REPORT = "results.json", "predictions.csv", "cells", "report.html"
EXPLANATION = "explain/explanation.json"
TEMPLATE = Path(__file__).parent / "template"
PAGE = Path(__file__).parents[1] / "page"  # shared with the page of a batch
NESTED, PUBLISHED = "nested", "published"
SELECTED_ON_TEST = "selected on the test fold"
BOTH_SIDES = {"random-windows": "the same subjects on both sides"}
NONE = "\N{EN DASH}"
SUSPICIOUS = 0.95  # a balanced accuracy from here on is more often leakage than skill
IMAGE_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
SCALING = {
    "window": "Each channel of each window was scaled to mean 0 and standard deviation 1, so amplitude is not seen.",
    "recording": "Each channel of a recording was scaled to mean 0 and standard deviation 1 over the recording.",
    "fold": "Channels were scaled by mean and standard deviation of the training subjects of each fold.",
    "none": "Amplitudes were left as they are.",
}
METRIC_WORDS = {
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "brier": "Brier score",
    "f1": "F1",
    "mcc": "Matthews correlation",
    "balanced_accuracy_at_0.5": "balanced accuracy at threshold 0.5",
}
MAIN_METRICS = ("balanced_accuracy", "sensitivity", "specificity", "auc", "brier")
# what results.json must be made of where it says something
_PARTS = {
    "classes": list,
    "flow": dict,
    "splits": dict,
    "headline": dict,
    "models": list,
    "comparisons": list,
    "optimism": list,
    "subjects": list,
    "audit": list,
    "limits": list,
    "tripod": list,
    "options": dict,
    "versions": dict,
}


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of the run in `folder` and give its path.

    Args:
        folder: holds results.json, perhaps predictions.csv and explain/explanation.json with its images.
        output: the HTML file; default report.html in `folder`.

    Raises:
        OSError: if `folder` holds no results.json.
        ValueError: if a file in it is not what a run writes.
    """
    folder = Path(folder)
    results = read_results(folder)
    page = _environment().get_template("report.html.jinja").render(_context(results, folder))
    output = folder / REPORT if output is None else Path(output)
    with atomic_path(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output


# reading


def read_results(folder: Path) -> dict[str, Any]:
    path = folder / RESULTS
    if not path.is_file():
        raise FileNotFoundError(f"expected the folder of a finished run, with {RESULTS} in it; {path} is not there")
    results = _read_json(path)
    if "models" not in results:
        raise ValueError(f"{path} must name the models of a run, got only {', '.join(results) or 'an empty object'}")
    for part, kind in _PARTS.items():
        if results.get(part) is None:
            results.pop(part, None)
        elif not isinstance(results[part], kind):
            raise ValueError(f"{path}: {part} must be a {kind.__name__}, got a {type(results[part]).__name__}")
    for part in ("models", "comparisons", "optimism", "subjects", "audit", "tripod"):
        if not all(isinstance(entry, dict) for entry in results.get(part, [])):
            raise ValueError(f"{path}: every entry of {part} must be an object")
    return results


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(content).__name__}")
    return content


def _read_calls(folder: Path, classes: Sequence[str]) -> dict[tuple[str, str], list[bool]]:
    """(model, subject) -> whether it was called right, once per repetition of the nested protocol."""
    path = folder / PREDICTIONS
    if not path.is_file():
        return {}
    positive = ("1", *map(str, classes[1:]))
    found: dict[tuple[str, str, str], list[tuple[float, float, float]]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                if row["protocol"] == NESTED:
                    window = float(row["probability"]), float(row["threshold"]), float(row["label"] in positive)
                    found[row["model"], row["subject"], row["repeat"]].append(window)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must be the table of predictions that a run writes: {error!r}") from error
    calls = defaultdict(list)
    for (model, subject, _), windows in found.items():
        score, threshold, label = (fmean(column) for column in zip(*windows, strict=True))
        calls[model, subject].append((score >= threshold) == (label == 1))
    return calls


def _final_curves(model: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """A row per epoch of each outer fit."""
    return [fold["curve"] for fold in model.get("per_fold") or [] if fold.get("curve")]


def _inner_curves(folder: Path, model: dict[str, Any], results: dict[str, Any]) -> list[list[dict[str, float]]]:
    """A row per epoch of each inner fit under the settings that were chosen, where the run's cells are there."""
    curves = []
    for fold in model.get("per_fold") or []:
        tried = [trial.get("settings") for trial in fold.get("trials") or []]
        if fold.get("settings") not in tried:
            continue
        place = f"{model.get('name')}-r{fold.get('repeat')}-f{fold.get('fold')}-{NESTED}"
        trial = tried.index(fold["settings"])  # settings that came up again were not fitted again
        for number in range(results.get("splits", {}).get("inner") or 0):
            path = folder / CELLS / f"{place}-t{trial}-i{number}" / "curve.csv"
            curves.append(_read_curve(path) if path.is_file() else [])
    return [curve for curve in curves if curve]


def _read_curve(path: Path) -> list[dict[str, float]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]
    except ValueError as error:
        raise ValueError(f"{path} must be the learning curve that a run writes: {error}") from error


def _read_explanation(folder: Path) -> dict[str, Any] | None:
    """explanation.json with each image as a data: address, or None."""
    path = folder / EXPLANATION
    if not path.is_file():
        return None
    explanation = _read_json(path)
    images = {}
    for name, file in (explanation.get("images") or {}).items():
        picture = path.parent / file
        if picture.suffix.lower() in IMAGE_TYPES and picture.is_file():
            content = base64.b64encode(picture.read_bytes()).decode()
            images[name] = f"data:{IMAGE_TYPES[picture.suffix.lower()]};base64,{content}"
    return {**explanation, "images": images, "missing": sorted(set(explanation.get("images") or {}) - set(images))}


# what the page shows


def _context(results: dict[str, Any], folder: Path) -> dict[str, Any]:
    models = [model for model in results["models"] if model.get("protocol") != PUBLISHED]
    models.sort(key=lambda m: -_mean(m) if is_number(_mean(m)) else math.inf)
    main = _main_model(results)
    calls = _read_calls(folder, results.get("classes") or [])
    subjects = _subject_rows(results, main, calls)
    inner = {m.get("name"): _inner_curves(folder, m, results) for m in models}
    curves = [
        (m, figures.learning_curves(inner[m.get("name")] or _final_curves(m), title=f"Loss of {name_of(m)}"))
        for m in models
    ]
    scored = {name for subject in subjects for name in subject["score"]}
    return {
        "results": results,
        "classes": results.get("classes") or ["negative", "positive"],
        "unit": results.get("unit") or "subject",
        "models": models,
        "main": main,
        "others": [model for model in models if model is not main],
        "only_published": bool(results["models"]) and not models,
        "excluded": Counter(str(e.get("reason", "")) for e in results.get("flow", {}).get("excluded") or []),
        "sentences": _what_was_done(results),
        "meaning": _meaning(results, main, models),
        "simpler": _simpler_explanations(results, main, models),
        "unfinished": _unfinished(results, models),
        "has_folds": any(model.get("per_fold") for model in models),
        "curves": [(model, drawn) for model, drawn in curves if drawn],
        "has_inner_curves": any(inner.values()),
        "metrics_shown": _metrics_shown(models),
        "subjects": subjects,
        "has_calls": any(row["right"] for row in subjects),
        "score_models": sorted((m for m in models if m.get("name") in scored), key=lambda m: m is not main),
        "score_rows": _score_rows(subjects, main),
        "explanation": _read_explanation(folder),
        "title_of": _titles(results),
        "main_metrics": MAIN_METRICS,
        "selected_on_test": SELECTED_ON_TEST,
        "warning_of": lambda protocol: None if protocol == NESTED else BOTH_SIDES.get(protocol, SELECTED_ON_TEST),
    }


def _main_model(results: dict[str, Any]) -> dict[str, Any] | None:
    """The model of the headline; of two protocols the nested one."""
    name = results.get("headline", {}).get("model")
    found = [model for model in results["models"] if model.get("name") == name]
    return min(found, key=lambda model: model.get("protocol") == PUBLISHED, default=None)


def _mean(model: dict[str, Any], metric: str = "balanced_accuracy") -> Any:
    return ((model.get("metrics") or {}).get(metric) or {}).get("mean")


def _metrics_shown(models: Sequence[dict[str, Any]]) -> list[str]:
    named = {metric: None for model in models for metric in model.get("metrics") or {}}
    return [m for m in MAIN_METRICS if m in named] + [m for m in named if m not in MAIN_METRICS]


def _what_was_done(results: dict[str, Any]) -> list[str]:
    """The run in sentences: its own description, how signals were cut, and the protocol."""
    splits, flow, options = results.get("splits", {}), results.get("flow", {}), results.get("options", {})
    told = [str(sentence) for sentence in results.get("description") or []] + _how_signals_were_cut(options)
    if splits.get("outer"):
        times = splits.get("repeats") or 1
        again = f", {times} times with different partitions" if times > 1 else ""
        told.append(
            f"The subjects were divided into {splits['outer']} outer folds, stratified by class{again}. All windows of "
            "a subject are in one fold. Each fold was held out once and predicted by models that had seen none of its "
            "subjects."
        )
    if splits.get("inner"):
        told.append(
            f"Settings, number of epochs and decision threshold were chosen by {splits['inner']} inner folds within "
            "the training subjects of each outer fold; the outer fold was predicted once, at the end."
        )
    if options.get("trials") and options.get("objective"):
        told.append(
            f"Settings tried in each outer fold for every model that has any: {options['trials']}; those with the best "
            f"{_words(options['objective'])} over the inner folds were taken."
        )
    if flow.get("windows"):
        told.append(
            "A subject's score is the mean probability of its windows; every figure is per subject unless it says "
            "window."
        )
    if splits.get("seeds"):
        told.append("Seeds: " + ", ".join(str(seed) for seed in splits["seeds"]) + ".")
    return told


def _how_signals_were_cut(options: dict[str, Any]) -> list[str]:
    """Sampling, filter, windows and scaling, as far as the options name them."""
    options = {**options, **(options["windows"] if isinstance(options.get("windows"), dict) else {})}
    told = []
    if is_number(options.get("seconds")):
        overlap = options.get("overlap") or 0
        rate = f" at {options['sfreq']:g} Hz" if is_number(options.get("sfreq")) else ""
        shared = f", each sharing {100 * overlap:.0f} % with the next" if overlap else ", which do not overlap"
        told.append(f"Recordings{rate} were cut into windows of {options['seconds']:g} s{shared}.")
    if options.get("band"):
        low, high = (_plain(end) for end in options["band"])
        told.append(f"They were filtered to {low} to {high} Hz.")
    if options.get("reference"):
        told.append(f"Reference: {_plain(options['reference'])}.")
    if options.get("scaling") in SCALING:
        told.append(SCALING[options["scaling"]])
    return told


def _meaning(
    results: dict[str, Any], main: dict[str, Any] | None, models: Sequence[dict[str, Any]]
) -> list[tuple[str, bool]]:
    """What the headline says in plain words; True marks what a reader must not miss."""
    headline = results.get("headline", {})
    mean, interval = headline.get("mean"), headline.get("interval") or []
    negative, positive = results.get("classes", ["negative", "positive"])
    if headline.get("metric") != "balanced_accuracy" or not is_number(mean):
        return []
    told = [("Balanced accuracy is the mean of sensitivity and specificity: 0.5 is guessing, 1 is no error.", False)]
    sensitivity, specificity = (_mean(main or {}, metric) for metric in ("sensitivity", "specificity"))
    if is_number(sensitivity) and is_number(specificity):
        told.append(
            (
                f"Of 100 {positive} subjects about {100 * sensitivity:.0f} were called {positive}; "
                f"of 100 {negative} subjects about {100 * (1 - specificity):.0f} were called {positive} wrongly.",
                False,
            )
        )
    if len(interval) == 2 and all(is_number(end) for end in interval):
        if interval[0] <= 0.5 <= interval[1]:
            told.append(
                ("The interval includes 0.5: these data do not show that the model does better than guessing.", True)
            )
        elif interval[0] > 0.5:
            told.append(("The interval lies above 0.5.", False))
        else:
            told.append(
                (
                    "The interval lies below 0.5: worse than guessing, which asks for a look at the labels and folds.",
                    True,
                )
            )
    others = [m for m in models if m is not main and is_number(_mean(m))]
    as_good = [m for m in others if _mean(m) >= mean]
    if as_good:
        named = ", ".join(f"{name_of(m)} ({_fixed(_mean(m))})" for m in as_good)
        told.append((f"At least as high on the same folds: {named}.", True))
    elif others:
        told.append((f"Next best on the same folds: {name_of(others[0])} ({_fixed(_mean(others[0]))}).", False))
    if mean >= SUSPICIOUS:
        told.append(("A figure this close to 1 is more often leakage than skill; read the audit first.", True))
    return told


def _simpler_explanations(
    results: dict[str, Any], main: dict[str, Any] | None, models: Sequence[dict[str, Any]]
) -> list[str]:
    """Models that do as well as the headline's, and whether the amount of data of a subject gives its class away."""
    told = [str(sentence) for sentence in results.get("caveats") or []]
    low = (results.get("headline", {}).get("interval") or [None])[0]
    rivals = [m for m in models if m is not main and is_number(_mean(m)) and is_number(low) and _mean(m) >= low]
    if main is not None and rivals:
        named = ", ".join(f"{name_of(m)} {_fixed(_mean(m))}" for m in rivals)
        told.append(
            f"Not below the interval of {name_of(main)} ({_fixed(_mean(main))}) lie also: {named}. "
            "What these models use may explain its score; only the comparisons tell them apart."
        )
    separation = _length_separation(results)
    if separation is not None:
        told.append(
            f"The length of a subject's recording alone separates the classes with an AUC of {_fixed(separation)} "
            "(all subjects, no model; 0.5 is none)."
        )
    return told


def _length_separation(results: dict[str, Any]) -> float | None:
    """AUC of the recording length for the class it is longer in, over all subjects with a known length."""

    classes = results.get("classes", [])
    rows = [(s.get("label"), s.get("seconds")) for s in results.get("subjects", []) if is_number(s.get("seconds"))]
    labels = [_class_number(label, classes) for label, _ in rows]
    if set(labels) != {0, 1} or len({seconds for _, seconds in rows}) < 2:
        return None
    auc = float(roc_auc_score(labels, [seconds for _, seconds in rows]))
    return max(auc, 1 - auc)


def _class_number(label: object, classes: Sequence[object]) -> int | None:
    if label in classes:
        return classes.index(label)
    return int(label) if label in (0, 1) else None


def _unfinished(results: dict[str, Any], models: Sequence[dict[str, Any]]) -> list[str]:
    """One line per model that has fewer folds than were planned."""
    splits = results.get("splits", {})
    planned = (splits.get("outer") or 0) * (splits.get("repeats") or 1)
    done = [(model, sum("error" not in fold for fold in model.get("per_fold") or [])) for model in models]
    return [
        f"{name_of(model)}: {count} of {planned} outer folds finished; its figures are of these alone."
        for model, count in done
        if count < planned
    ]


def _subject_rows(
    results: dict[str, Any], main: dict[str, Any] | None, calls: dict[tuple[str, str], list[bool]]
) -> list[dict[str, Any]]:
    name = (main or {}).get("name")
    classes = results.get("classes", [])
    rows = []
    for subject in results.get("subjects", []):
        number = _class_number(subject.get("label"), classes)
        rows.append(
            {
                **subject,
                "class": number,
                "label": classes[number] if number is not None and classes else subject.get("label"),
                "score": subject.get("score") or {},
                "extra": subject.get("extra") or {},
                "right": calls.get((str(name), str(subject.get("subject"))), []),
            }
        )
    return rows


def _score_rows(subjects: Sequence[dict[str, Any]], main: dict[str, Any] | None) -> list[tuple[str, int, float]]:
    """Subject, class and score under the headline's model, of those that have them."""
    scores = [(row, row["score"].get((main or {}).get("name"))) for row in subjects if row["class"] is not None]
    return [(str(row.get("subject")), row["class"], float(score)) for row, score in scores if is_number(score)]


def _titles(results: dict[str, Any]) -> Callable[[object], str]:
    """From a model's name to what the page calls it."""
    titles = {model.get("name"): name_of(model) for model in results["models"] if model.get("protocol") != PUBLISHED}
    return lambda name: titles.get(name, str(name))


# words and numbers of the template


def name_of(model: dict[str, Any]) -> str:
    """A model's name; one that was chosen on its test fold never stands without saying so."""
    name = str(model.get("title") or model.get("name") or "?")
    return f"{name} ({SELECTED_ON_TEST})" if model.get("protocol") == PUBLISHED else name


def _fixed(value: object, digits: int = 3) -> str:
    """A number with so many digits, or a dash where there is none."""
    if not is_number(value):
        return NONE
    text = f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else text.lstrip("-")


def _span(interval: object, digits: int = 3) -> str:
    if not isinstance(interval, list | tuple) or len(interval) != 2 or not all(is_number(end) for end in interval):
        return NONE
    return f"{_fixed(interval[0], digits)} to {_fixed(interval[1], digits)}"


def _p_value(p: object) -> str:
    return "< 0.001" if is_number(p) and p < 0.001 else _fixed(p)


def _p_sign(p: object) -> str:
    return _p_value(p) if is_number(p) and p < 0.001 else f"= {_p_value(p)}"


def _whole(value: object) -> str:
    return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}") if is_number(value) else NONE


def _plain(value: object) -> str:
    """A setting or option as a person would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return NONE
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(entry) for entry in value) or NONE
    if isinstance(value, dict):
        return "; ".join(f"{key} {_plain(entry)}" for key, entry in value.items()) or NONE
    return str(value)


def _words(name: object) -> str:
    return METRIC_WORDS.get(str(name), str(name).replace("_", " "))


def _duration(seconds: object) -> str:
    if not is_number(seconds):
        return NONE
    whole = round(float(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _setting_names(folds: Iterable[dict[str, Any]]) -> list[str]:
    return list({name: None for fold in folds for name in fold.get("settings") or {}})


def _of_folds(model: dict[str, Any], metric: str = "balanced_accuracy") -> list[Any]:
    return [fold.get(metric) for fold in model.get("per_fold") or []]


def _interval_of(model: dict[str, Any], metric: str = "balanced_accuracy") -> list[Any]:
    return ((model.get("metrics") or {}).get(metric) or {}).get("interval_nb") or []


def _score_scale(models: Iterable[dict[str, Any]]) -> figures.Span:
    """One scale for all models' balanced accuracies, their intervals and folds."""
    values = [v for m in models for v in (_mean(m), *_interval_of(m), *_of_folds(m))]
    return figures.scale_of([min(max(v, 0), 1) for v in values if is_number(v)], include=(0.4, 0.8))


def _optimism_scale(rows: Iterable[dict[str, Any]]) -> figures.Span:
    return figures.scale_of(
        [v for r in rows for v in (r.get("balanced_accuracy"), *(r.get("interval") or []))], include=(0.4, 1)
    )


def _importance_scale(rows: Iterable[dict[str, Any]]) -> figures.Span:
    ends = [0.0]
    for row in rows:
        value, spread = row.get("importance"), row.get("sd")
        if is_number(value):
            ends += [value - spread, value + spread] if is_number(spread) else [value]
    return figures.rounded_scale(ends)


def _observed(model: dict[str, Any]) -> Any:
    """The score that the permutation test looked at: balanced accuracy of all test subjects pooled."""
    given = (model.get("permutation") or {}).get("observed")
    pooled = ((model.get("metrics") or {}).get("balanced_accuracy") or {}).get("pooled")
    return next((v for v in (given, pooled, _mean(model)) if is_number(v)), None)


def _thresholds(model: dict[str, Any]) -> str:
    found = [fold["threshold"] for fold in model.get("per_fold") or [] if is_number(fold.get("threshold"))]
    if not found:
        return "not told"
    return _fixed(found[0]) if max(found) == min(found) else f"{_fixed(min(found))} to {_fixed(max(found))} over folds"


def _inner_score(fold: dict[str, Any]) -> Any:
    """What the chosen settings reached in the inner folds."""
    tried = [trial for trial in fold.get("trials") or [] if trial.get("settings") == fold.get("settings")]
    return tried[0].get("score") if tried else None


def _extra_names(subjects: Iterable[dict[str, Any]]) -> list[str]:
    return list({name: None for subject in subjects for name in subject.get("extra") or {}})


def _tally(count: object) -> str:
    """A count; with one digit where it is a mean over repetitions and not whole."""
    return _whole(count) if is_number(count) and float(count) == round(float(count)) else _fixed(count, 1)


def _text_file(name: str) -> Markup:
    """A style sheet or script of ours, as it is."""
    return Markup((PAGE / name).read_text(encoding="utf-8"))


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fixed": _fixed,
        "span": _span,
        "p": _p_value,
        "p_sign": _p_sign,
        "whole": _whole,
        "plain": _plain,
        "words": _words,
        "duration": _duration,
        "tally": _tally,
        "size": lambda part: _whole(len(part) if isinstance(part, list) else part),
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
    }
    environment.globals |= {
        "figures": figures,
        "name_of": name_of,
        "text_file": _text_file,
        "setting_names": _setting_names,
        "of_folds": _of_folds,
        "interval_of": _interval_of,
        "score_scale": _score_scale,
        "optimism_scale": _optimism_scale,
        "importance_scale": _importance_scale,
        "observed": _observed,
        "thresholds": _thresholds,
        "extra_names": _extra_names,
        "inner_score": _inner_score,
        "is_number": is_number,
    }
    return environment
