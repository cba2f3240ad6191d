"""The items of TRIPOD+AI (Collins et al. 2024, BMJ 385: e078378): those a run can answer, and those left to people."""

from typing import Any

_ASKED_OF_PEOPLE = "Not known to the program: to be written by the authors."


def tripod_items(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The checklist with what the results say to each item.

    Returns:
        {"item", "number", "text", "answered"} for each, in the order of the checklist.
    """
    flow, splits, options, headline = (results[name] for name in ("flow", "splits", "options", "headline"))
    negative, positive = results["classes"]
    classes = flow.get("per_class", {})
    counts = ", ".join(f"{row['subjects']} {name}" for name, row in classes.items())
    names = ", ".join(dict.fromkeys(model["name"] for model in results["models"]))
    low, high = headline["interval"]
    excluded = flow.get("excluded", [])
    spread = [row["balanced_accuracy"] for row in results["models"][0]["per_fold"]]
    searched = "; ".join(f"{k}: {v}" for k, v in options.items() if k in ("trials", "objective", "protocol", "epochs"))
    design = f"{splits['outer']} outer folds, {splits['inner']} inner folds, {splits['repeats']} repeat(s)"
    answers: list[tuple[str, str, str | None]] = [
        ("1", "Title", results["title"]),
        ("2", "Abstract", None),
        ("3a", "Health-care context and reason for the model", None),
        ("3b", "Target population and intended use", None),
        ("3c", "Known inequalities between groups", None),
        ("4", "Objectives", f"Development and internal validation of a model that tells {positive} from {negative}."),
        ("5a", "Source of the data", None),
        ("5b", "Dates of the data", None),
        ("6a", "Setting and number of centres", None),
        ("6b", "Eligibility", None),
        ("6c", "Treatments received", None),
        (
            "7",
            "Data preparation",
            _words(options, ("windows", "seconds", "overlap", "sfreq", "band", "reference", "scaling")),
        ),
        (
            "8a",
            "Outcome and how it was assessed",
            f"Class {positive} against {negative}, as given in the study's table.",
        ),
        ("8b", "Assessors of the outcome", None),
        ("8c", "Blinding of the outcome's assessment", None),
        ("9a", "Choice of predictors", "Whole windows of the signal; nothing was selected outside the folds."),
        ("9b", "Definition and measurement of predictors", None),
        ("9c", "Assessors of predictors", None),
        (
            "10",
            "Sample size",
            f"All {flow.get('analysed')} subjects that could be read ({counts}); no calculation was made.",
        ),
        (
            "11",
            "Missing data",
            f"{len(excluded)} of {flow.get('listed')} listed subjects were left out; reasons are in the flow.",
        ),
        (
            "12a",
            "Use of the data and partitions",
            f"Nested cross-validation by subject: {design}, stratified by class.",
        ),
        (
            "12b",
            "Handling of predictors",
            "Everything that is fitted was fitted on training subjects of its fold only.",
        ),
        (
            "12c",
            "Type of model, building, tuning, internal validation",
            f"Models: {names}. Search inside each fold ({searched}).",
        ),
        ("12d", "Differences between clusters", None),
        (
            "12e",
            "Measures of performance",
            "Balanced accuracy first; sensitivity, specificity, accuracy, F1, MCC, AUC, Brier score, calibration.",
        ),
        ("12f", "Updating of the model", "None."),
        (
            "12g",
            "How predictions were computed",
            "Mean probability of a subject's windows; once per repeat, by a model that never saw the subject.",
        ),
        ("13", "Class imbalance", f"{counts}; balanced accuracy weighs both classes alike."),
        ("14", "Fairness", None),
        (
            "15",
            "Output of the model and threshold",
            f"Probability of {positive}; the threshold is chosen in the inner folds.",
        ),
        ("16", "Differences between training and evaluation data", "Same source; folds differ by subject."),
        ("17", "Ethical approval", None),
        ("18a", "Funding", None),
        ("18b", "Conflicts of interest", None),
        ("18c", "Protocol", "plan.json was written before the first fit: options, splits, seeds, hash of the data."),
        ("18d", "Registration", None),
        ("18e", "Availability of the data", None),
        (
            "18f",
            "Availability of the code",
            f"{results['command']} (voxelwave {results['versions'].get('voxelwave', '')})",
        ),
        ("19", "Involvement of patients and the public", None),
        (
            "20a",
            "Flow of participants",
            f"{flow.get('listed')} listed, {flow.get('read')} read, {flow.get('analysed')} analysed.",
        ),
        (
            "20b",
            "Characteristics of participants",
            f"{counts}; windows and seconds of each are in the table of subjects.",
        ),
        ("20c", "Comparison of development and evaluation data", None),
        (
            "21",
            "Participants and events in each analysis",
            f"{len(splits['folds'])} outer folds; sizes and classes of each are listed.",
        ),
        ("22", "Specification of the whole model", "Weights of each outer fit are in cells/*-final."),
        (
            "23a",
            "Performance with intervals",
            f"{headline['model']}: balanced accuracy {headline['mean']:.3f} ({low:.3f} to {high:.3f}).",
        ),
        (
            "23b",
            "Heterogeneity of performance",
            f"Balanced accuracy over folds from {min(spread):.3f} to {max(spread):.3f}.",
        ),
        ("24", "Results of updating", "None."),
        ("25", "Interpretation", None),
        ("26", "Limitations", " ".join(results["limits"]) or None),
        ("27a", "Poor or missing input at use", None),
        ("27b", "Interaction of users with the model", None),
        ("27c", "Next steps of research", None),
    ]
    return [
        {"number": number, "item": item, "text": text or _ASKED_OF_PEOPLE, "answered": bool(text)}
        for number, item, text in answers
    ]


def _words(options: dict[str, Any], names: tuple[str, ...]) -> str | None:
    told = []
    for name in names:
        value = options.get(name)
        if isinstance(value, dict):
            told.append(_words(value, tuple(value)))
        elif value is not None:
            told.append(f"{name}: {', '.join(map(str, value)) if isinstance(value, list | tuple) else value}")
    return "; ".join(text for text in told if text) or None
