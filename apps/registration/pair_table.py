"""Pairs registered one by one, and their figures as a table, a CSV and a JSON file."""

import csv
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...registration.data import load_fixed
from ...registration.pairs import Pair, read_pairs
from ...registration.register import Method, register
from ...runs.files import atomic_path
from ...runs.record import write_record
from ...runs.tables import print_rows
from ...volumes import read_volume, resample
from .overlap import overlap
from .scans import network_options, read_labels

__all__ = ["Method", "measure_pairs", "print_rows", "print_summary", "write_evaluation"]

FIGURES = (
    "dice_before",
    "dice_after",
    "hd95_mm_after",
    "nmi_before",
    "nmi_after",
    "sdlogj",
    "non_positive_jacobian_percent",
    "seconds",
)


def measure_pairs(
    pairs: Path, methods: Sequence[Method], *, weights: Path | None, split: str = "all", **options: Any
) -> list[dict[str, Any]]:
    """A row of figures per pair and method; a row with "error" for a pair that failed.

    Args:
        pairs: the list, see `voxelwave.registration.data.read_pairs`.
        methods: in the order to run.
        weights: of the network, for "nestedmorph".
        split: "all", or only the pairs of one split.
        options: of `voxelwave.registration.register.register`.
    """
    chosen = [pair for pair in read_pairs(pairs) if split in ("all", pair.split)]
    if not chosen:
        raise ValueError(f"{pairs} must name a pair of split {split!r}, got none")
    trained = network_options(weights)
    rows = []
    for number, pair in enumerate(chosen, start=1):
        for method in methods:
            extra = trained if method == "nestedmorph" else {}
            row = _measure(pair, method, **extra, **options)
            rows.append(row)
            print(f"{number}/{len(chosen)} {pair.subject} {method}: {row['error'] or _short(row)}", flush=True)
    return rows


def _measure(pair: Pair, method: Method, **options: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"subject": pair.subject, "moving": pair.moving, "fixed": pair.fixed, "method": method}
    row |= dict.fromkeys(FIGURES) | {"error": ""}
    try:
        moving, fixed = read_volume(pair.moving, ndim=3), load_fixed(pair)
        started = time.perf_counter()
        result = register(moving, fixed, method=method, **options)
        row |= result.metrics | {"seconds": time.perf_counter() - started}
        moving_labels, fixed_labels = read_labels(pair.moving_labels), read_labels(pair.fixed_labels)
        if moving_labels is not None and fixed_labels is not None:
            before = resample(moving_labels, fixed, order="nearest")
            after = resample(moving_labels, fixed, result.forward, order="nearest")
            row |= overlap(before, fixed_labels, "before") | overlap(after, fixed_labels, "after")
    except (ValueError, OSError, MemoryError) as error:
        row["error"] = " ".join(str(error).split()) or type(error).__name__
    return row


def _short(row: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {row[name]:.4g}" for name in ("dice_after", "nmi_after", "seconds") if row[name] is not None
    )


def print_summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Print mean and standard deviation over the pairs for each method, and give them back: method -> figure -> ..."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        good = [row for row in rows if row["method"] == method and not row["error"]]
        summary[method] = {}
        for name in FIGURES:
            values = [row[name] for row in good if row[name] is not None]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                summary[method][name] = {"mean": statistics.fmean(values), "sd": spread, "n": len(values)}
    shown = [
        {"figure": name} | {m: f"{s[name]['mean']:.4g} ± {s[name]['sd']:.2g}" for m, s in summary.items() if name in s}
        for name in FIGURES
        if any(name in figures for figures in summary.values())
    ]
    print_rows("mean ± standard deviation over the pairs", shown)
    return summary


def write_evaluation(
    folder: Path, rows: Sequence[dict[str, Any]], summary: Any, *, inputs: dict[str, Path | None], options: Any
) -> None:
    """Write evaluation.csv and evaluation.json."""
    with atomic_path(folder / "evaluation.csv") as temporary, temporary.open("w", newline="") as stream:
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(rows)
    write_record(folder / "evaluation.json", inputs=inputs, options=options, summary=summary)
