"""The page and the tables of cross-validation where nothing is fitted."""

import csv
from pathlib import Path
from typing import Any, cast

from ...runs.files import atomic_path
from ...runs.json_files import read_json, write_json
from ...runs.json_types import read_record
from . import report_figures as figures
from .measured_records import MeasuredModel, MeasuredResults
from .plan import RESULTS
from .report_text import environment, fixed

REPORT, UNITS = "report.html", "units.csv"


def write_measured_results(folder: Path, results: MeasuredResults) -> None:
    """Write results.json, units.csv (a row per unit and method) and report.html into the folder of the run."""
    write_json(folder / RESULTS, results)
    with atomic_path(folder / UNITS) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("unit", "group", "fold", "method", *results["metrics"], "failed"))
        for row in results["units"]:
            for model in results["models"]:
                own = row["figures"].get(model["name"], {})
                values = [own.get(metric, "") for metric in results["metrics"]]
                reason = row["failed"].get(model["name"], "")
                writer.writerow((row["unit"], row["group"], row["fold"], model["name"], *values, reason))
    write_measured_report(folder)


def is_measured(folder: Path) -> bool:
    """Whether results.json in the folder is that of a run where nothing is fitted."""
    path = folder / RESULTS
    if not path.is_file():
        return False
    content = read_json(path)
    return isinstance(content, dict) and content.get("kind") == "measured"


def write_measured_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of the run in `folder` and return its path; see `report.write_report`."""
    path = folder / RESULTS
    results = cast(MeasuredResults, read_record(path, MeasuredResults))
    page = environment().get_template("measured.html.jinja").render(_context(results))
    output = folder / REPORT if output is None else output
    with atomic_path(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output


def _context(results: MeasuredResults) -> dict[str, Any]:
    objective = results["objective"]

    def points(model: MeasuredModel) -> list[float]:
        return [fold["figures"][objective] for fold in model["per_fold"]]

    ends = [v for m in results["models"] for v in (m["metrics"][objective]["mean"], *points(m))]
    return {
        "results": results,
        "meaning": _meaning(results),
        "digits": {name: 2 if text["unit"] else 3 for name, text in results["metrics"].items()},
        "scale": figures.rounded_scale(ends),
        "points": points,
        "title_of": {model["name"]: model["title"] for model in results["models"]},
        "plural": lambda word: "people" if word == "person" else f"{word}s",
    }


def _meaning(results: MeasuredResults) -> list[tuple[str, bool]]:
    """The headline in sentences; True marks an important one."""
    objective = results["objective"]
    text, (first, *others) = results["metrics"][objective], results["models"]
    digits = 2 if text["unit"] else 3
    sign = 1 if text["higher"] else -1
    sentences: list[tuple[str, bool]] = []
    failed = sum(fold["failed"] for fold in first["per_fold"])
    if failed:
        sentences.append(
            (f"{first['title']} failed on {failed} held-out {results['unit']}s, which do not count.", True)
        )
    for row in (row for row in results["comparisons"] if row["metric"] == objective):
        other = next(model for model in others if model["name"] == row["b"])
        low, high = sorted(sign * end for end in row["interval"])
        amount = f"{fixed(abs(row['difference']), digits)} {text['unit']}".strip()
        better = "better" if sign * row["difference"] > 0 else "worse"
        sure = low > 0 or high < 0
        chance = "" if sure else "; this may be due to chance"
        against = f"{other['title']} ({fixed(other['metrics'][objective]['mean'], digits)})"
        sentences.append((f"{amount} {better} than {against}{chance}.", sure and better == "worse"))
    return sentences
