"""The items of TRIPOD+AI (Collins et al. 2024, BMJ 385: e078378): answered from the results, or left to the authors."""

from collections.abc import Mapping
from typing import Any

from .records import Results, TripodItem
from .report_text import span

_LEFT_TO_AUTHORS = "Unknown to the program; the authors must answer this item."
_SEARCH_OPTIONS = ("trials", "objective", "protocol")
# number, item, answer; names in braces are the facts of `_facts`
_ITEMS: tuple[tuple[str, str, str | None], ...] = (
    ("1", "Title", "{title}"),
    ("2", "Abstract", None),
    ("3a", "Health-care context and reason for the model", None),
    ("3b", "Target population and intended use", None),
    ("3c", "Known inequalities between groups", None),
    ("4", "Objectives", "Development and internal validation of a model that separates {positive} from {negative}."),
    ("5a", "Source of the data", None),
    ("5b", "Dates of the data", None),
    ("6a", "Setting and number of centres", None),
    ("6b", "Eligibility", None),
    ("6c", "Treatments received", None),
    ("7", "Data preparation", "{preparation}"),
    ("8a", "Outcome and its assessment", "Class {positive} against {negative}, as given in the table of the study."),
    ("8b", "Assessors of the outcome", None),
    ("8c", "Blinding of the outcome assessment", None),
    ("9a", "Choice of predictors", "Whole windows of the signal; no predictor was selected outside the folds."),
    ("9b", "Definition and measurement of predictors", None),
    ("9c", "Assessors of predictors", None),
    (
        "10",
        "Sample size",
        "All {analysed} subjects with readable data ({counts}); no sample size was calculated in advance.{precision}",
    ),
    (
        "11",
        "Missing data",
        "{excluded} of {listed} listed subjects were excluded; the flow lists the reasons.",
    ),
    ("12a", "Use of the data and partitions", "Nested cross-validation by subject: {design}, stratified by class."),
    ("12b", "Handling of predictors", "All transformations were fitted on the training subjects of each fold only."),
    (
        "12c",
        "Type of model, building, tuning, internal validation",
        "Models: {models}. Search per fold ({search}).",
    ),
    ("12d", "Differences between clusters", None),
    (
        "12e",
        "Measures of performance",
        "Primary: balanced accuracy; also sensitivity, specificity, accuracy, F1, MCC, AUC, Brier score, calibration.",
    ),
    ("12f", "Updating of the model", "None."),
    (
        "12g",
        "Calculation of predictions",
        "Mean probability of the windows of a subject, once per repeat, by a model that was not fitted on the subject.",
    ),
    ("13", "Class imbalance", "{counts}; balanced accuracy gives both classes equal weight."),
    ("14", "Fairness", None),
    ("15", "Output of the model and threshold", "Probability of {positive}; the inner folds determine the threshold."),
    ("16", "Differences between training and evaluation data", "Same source; folds have different subjects."),
    ("17", "Ethical approval", None),
    ("18a", "Funding", None),
    ("18b", "Conflicts of interest", None),
    ("18c", "Protocol", "plan.json was written before the first fit: options, splits, seeds, hash of the data."),
    ("18d", "Registration", None),
    ("18e", "Availability of the data", None),
    ("18f", "Availability of the code", "{command} (voxelwave {version})"),
    ("19", "Involvement of patients and the public", None),
    ("20a", "Flow of participants", "{listed} listed, {read} read, {analysed} analysed."),
    ("20b", "Characteristics of participants", "{counts}; the table of subjects lists windows and seconds of each."),
    ("20c", "Comparison of development and evaluation data", None),
    (
        "21",
        "Participants and events in each analysis",
        "{folds} outer folds; the report lists their sizes and classes.",
    ),
    ("22", "Specification of the whole model", "cells/*-final hold the weights of the outer fits."),
    ("23a", "Performance with intervals", "{headline_model}: balanced accuracy {mean:.3f} ({interval})."),
    ("23b", "Heterogeneity of performance", "Balanced accuracy over folds from {worst:.3f} to {best:.3f}."),
    ("24", "Results of updating", "None."),
    ("25", "Interpretation", None),
    ("26", "Limitations", "{limits}"),
    ("27a", "Poor or missing input at use", None),
    ("27b", "Interaction of users with the model", None),
    ("27c", "Next steps of research", None),
)


def tripod_items(results: Results) -> list[TripodItem]:
    """The checklist with the answers that follow from the results, in the order of the checklist."""
    facts = _facts(results)
    answers = [(number, item, answer and answer.format(**facts)) for number, item, answer in _ITEMS]
    return [
        {"number": number, "item": item, "text": text or _LEFT_TO_AUTHORS, "answered": bool(text)}
        for number, item, text in answers
    ]


def _facts(results: Results) -> dict[str, Any]:
    """The facts that the answers quote."""
    flow, splits, options, headline = (results["flow"], results["splits"], results["options"], results["headline"])
    negative, positive = results["classes"]
    over_folds = [row["balanced_accuracy"] for row in results["models"][0]["per_fold"]]
    return {
        "title": results["title"],
        "command": results["command"],
        "version": results["versions"]["voxelwave"],
        "negative": negative,
        "positive": positive,
        "listed": flow["listed"],
        "read": flow["read"],
        "analysed": flow["analysed"],
        "excluded": len(flow["excluded"]),
        "counts": ", ".join(f"{row['subjects']} {name}" for name, row in flow["per_class"].items()),
        "preparation": _listed(options["windows"], tuple(options["windows"])) if "windows" in options else "",
        "search": _listed(options, _SEARCH_OPTIONS),
        "design": f"{splits['outer']} outer folds, {splits['inner']} inner folds, {splits['repeats']} repeat(s)",
        "folds": len(splits["folds"]),
        "models": ", ".join(dict.fromkeys(model["name"] for model in results["models"])),
        "headline_model": headline["model"],
        "mean": headline["mean"],
        "interval": span(headline["interval"]),
        "worst": min(over_folds),
        "best": max(over_folds),
        "limits": " ".join(results["limits"]),
        "precision": f" {results['sample_size']['text']}" if "sample_size" in results else "",
    }


def _listed(options: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Name and value of the options that are set."""
    given = {name: options[name] for name in names if options[name] is not None}
    return "; ".join(
        f"{name}: {', '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for name, value in given.items()
    )
