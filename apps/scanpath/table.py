"""Figures of models of scanpaths as tables on the screen, a picture, CSV and JSON."""

import csv
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Shown

from ...runs.files import atomic_path
from ...scanpath.evaluation import FIGURES, Row, Table

_SHOWN = (  # tables that fit a terminal of 80 columns; the files hold all figures
    ("nll_per_token", "sequence_score", "multimatch", "scanmatch"),
    ("nss", "auc", "sim", "cc"),
    ("edit_distance", "delta", "correct", "length"),
)
_HEADINGS = {
    "nll_per_token": "nats/token",
    "sequence_score": "sequence",
    "multimatch": "MultiMatch",
    "scanmatch": "ScanMatch",
    "edit_distance": "edits",
    **{name: name.upper() for name in _SHOWN[1]},
}


def write_figures(output: Path, rows: list[Row], table: Table) -> None:
    """Write trials.csv, a row per model and trial, and results.csv, a row per model and figure."""
    with atomic_path(output / "trials.csv") as temporary, temporary.open("w", newline="") as stream:
        trials = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)))
        trials.writeheader()
        trials.writerows({k: "" if v is None or v != v else v for k, v in row.items()} for row in rows)
    with atomic_path(output / "results.csv") as temporary, temporary.open("w", newline="") as stream:
        results = csv.writer(stream)
        results.writerow(("model", "figure", "value", "low", "high", "trials"))
        results.writerows(
            (model, figure, *found) for model, figures in table.items() for figure, found in figures.items()
        )


def plain(figures: dict[str, Any]) -> dict[str, dict[str, float | str]]:
    """Figures as JSON values; an infinite figure, such as from a likelihood of 0, becomes the text "inf"."""

    def finite(value: float) -> float | str:
        return value if abs(value) < float("inf") else str(value)

    return {name: {key: finite(value) for key, value in found._asdict().items()} for name, found in figures.items()}


def show_figures(table: Table, title: str) -> None:
    """Print the figures of all models as tables."""
    console = Console()
    console.print(title, highlight=False)
    for names in _SHOWN:
        shown = Shown(box=SIMPLE_HEAD, padding=(0, 1))
        shown.add_column("model", overflow="fold")
        for name in names:
            mark = {1: " ↑", -1: " ↓", 0: ""}[FIGURES[name]]
            shown.add_column(_HEADINGS.get(name, name) + mark, justify="right", no_wrap=True)
        for model, figures in table.items():
            shown.add_row(model, *(_cell(figures.get(name)) for name in names))
        console.print(shown)
    print("±: half the 95 % bootstrap interval over layouts, if it can be estimated. ↑ higher is better, ↓ lower.")


def _cell(found: Any) -> str:
    if found is None:
        return "–"
    digits = 3 if abs(found.value) < 10 else 1
    spread = "" if found.high == found.low else f"±{(found.high - found.low) / 2:.{digits}f}"
    return f"{found.value:.{digits}f}{spread}"


def draw_figures(file: Path, table: Table, *, title: str) -> None:
    """Draw the first four figures of all models as points with their intervals."""
    fig = Figure(figsize=(12, 1.2 + 0.32 * len(table)), layout="constrained")
    axes = fig.subplots(1, len(_SHOWN[0]), sharey=True)
    models = list(table)[::-1]
    for axis, name in zip(axes, _SHOWN[0], strict=True):
        for place, model in enumerate(models):
            found = table[model].get(name)
            if found is not None and abs(found.high) < float("inf"):
                axis.plot([found.low, found.high], [place, place], color="0.6", linewidth=2)
                axis.plot(found.value, place, "o", color="C0")
        axis.set_title(_HEADINGS.get(name, name), fontsize=10)
        axis.grid(axis="x", color="0.9")
    axes[0].set_yticks(range(len(models)), models)
    fig.suptitle(title, fontsize=10)
    with atomic_path(file) as temporary:
        fig.savefig(temporary, dpi=120)
