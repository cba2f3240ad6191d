"""The template of a report: its environment, and the filters and functions that turn figures into text."""

from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from . import report_figures as figures
from .evidence_records import StressRow
from .plan import PUBLISHED
from .records import FoldRow, Importance, ModelResults, OptimismRow, SubjectRow
from .report_figures import is_number

TEMPLATE = Path(__file__).parent / "template"
PAGE = Path(__file__).parents[1] / "page"  # shared with the page of a batch
SELECTED_ON_TEST = "selected on the test fold"
NONE = "\N{EN DASH}"
METRIC_WORDS = {
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "brier": "Brier score",
    "f1": "F1",
    "mcc": "Matthews correlation",
    "balanced_accuracy_at_0.5": "balanced accuracy at threshold 0.5",
}


def name_of(model: ModelResults) -> str:
    """The title of a model; a model selected on its test fold is always marked."""
    return f"{model['title']} ({SELECTED_ON_TEST})" if model["protocol"] == PUBLISHED else model["title"]


def fixed(value: object, digits: int = 3) -> str:
    """A number with a fixed number of digits, or a dash for None."""
    if not is_number(value):
        return NONE
    text = f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else text.lstrip("-")


def span(interval: object, digits: int = 3) -> str:
    """An interval as "low to high", or a dash.

    An interval of no width, such as that of equal folds, says nothing about the spread.

    Example:
        >>> span([0.4, 0.6]), span([0.5, 0.5])
        ('0.400 to 0.600', 'not estimable')
    """
    if not isinstance(interval, list | tuple) or len(interval) != 2 or not all(is_number(end) for end in interval):
        return NONE
    if interval[0] == interval[1]:
        return "not estimable"
    return f"{fixed(interval[0], digits)} to {fixed(interval[1], digits)}"


def _p_value(p: object) -> str:
    return "< 0.001" if is_number(p) and p < 0.001 else fixed(p)


def _p_sign(p: object) -> str:
    return _p_value(p) if is_number(p) and p < 0.001 else f"= {_p_value(p)}"


def _whole(value: object) -> str:
    return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}") if is_number(value) else NONE


def plain(value: object) -> str:
    """A setting or an option as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return NONE
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(entry) for entry in value) or NONE
    if isinstance(value, dict):
        return "; ".join(f"{key} {plain(entry)}" for key, entry in value.items()) or NONE
    return str(value)


def words(name: object) -> str:
    """The name of a metric or an option in words."""
    return METRIC_WORDS.get(str(name), str(name).replace("_", " "))


def _duration(seconds: object) -> str:
    if not is_number(seconds):
        return NONE
    whole = round(float(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _setting_names(folds: Iterable[FoldRow]) -> list[str]:
    return list(dict.fromkeys(name for fold in folds for name in fold["settings"]))


def _of_folds(model: ModelResults) -> list[float]:
    return [fold["balanced_accuracy"] for fold in model["per_fold"]]


def _score_scale(models: Iterable[ModelResults]) -> figures.Span:
    """A common scale for the balanced accuracies of all models, their intervals and folds."""
    found = [(m["metrics"]["balanced_accuracy"], _of_folds(m)) for m in models]
    values = [v for metric, folds in found for v in (metric["mean"], *metric["interval_nb"], *folds)]
    return figures.scale_of([min(max(v, 0), 1) for v in values], include=(0.4, 0.8))


def _optimism_scale(rows: Iterable[OptimismRow]) -> figures.Span:
    return figures.scale_of([v for r in rows for v in (r["balanced_accuracy"], *r["interval"])], include=(0.4, 1))


def _difference_scale(rows: Iterable[StressRow]) -> figures.Span:
    """A common scale for the differences of all stress tests that were run."""
    ran = [row["figures"] for row in rows if row["figures"] is not None]
    ends = [end for found in ran for end in (found["difference"], *found["difference_interval"])]
    return figures.scale_of([min(max(end, -1), 1) for end in ends], include=(-0.2, 0.1))


def _importance_scale(rows: Iterable[Importance]) -> figures.Span:
    ends = [0.0]
    for row in rows:
        spread = row["sd"] or 0.0
        ends += [row["importance"] - spread, row["importance"] + spread]
    return figures.rounded_scale(ends)


def _thresholds(model: ModelResults) -> str:
    found = [fold["threshold"] for fold in model["per_fold"]]
    return fixed(found[0]) if max(found) == min(found) else f"{fixed(min(found))} to {fixed(max(found))} over folds"


def _inner_score(fold: FoldRow) -> float | None:
    """The score of the chosen settings in the inner folds."""
    return next(trial["score"] for trial in fold["trials"] if trial["settings"] == fold["settings"])


def _extra_names(subjects: Iterable[SubjectRow]) -> list[str]:
    """Names of the further columns; a subject may lack some."""
    return list(dict.fromkeys(name for subject in subjects for name in subject["extra"]))


def _tally(count: object) -> str:
    """A count, or a mean count over repetitions with one digit."""
    return _whole(count) if is_number(count) and float(count) == round(float(count)) else fixed(count, 1)


def _text_file(name: str) -> Markup:
    """A style sheet or script, without escaping."""
    return Markup((PAGE / name).read_text(encoding="utf-8"))


def environment() -> Environment:
    """The environment of the templates, with all filters and functions."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "fixed": fixed,
        "span": span,
        "p": _p_value,
        "p_sign": _p_sign,
        "whole": _whole,
        "plain": plain,
        "words": words,
        "duration": _duration,
        "tally": _tally,
        "size": lambda part: _whole(len(part)),
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
    }
    made.globals |= {
        "figures": figures,
        "name_of": name_of,
        "text_file": _text_file,
        "setting_names": _setting_names,
        "of_folds": _of_folds,
        "score_scale": _score_scale,
        "optimism_scale": _optimism_scale,
        "importance_scale": _importance_scale,
        "thresholds": _thresholds,
        "extra_names": _extra_names,
        "inner_score": _inner_score,
        "is_number": is_number,
        "difference_scale": _difference_scale,
    }
    return made
