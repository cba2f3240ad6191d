"""Register pairs one by one, and write their figures as a table, a CSV and a JSON file."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...registration.acquisition import facts_of
from ...registration.choices import Method
from ...registration.network_files import RegistrationNetwork, read_network
from ...registration.pairs import Pair, read_pairs
from ...registration.register import register
from ...registration.series import load_fixed
from ...registration.settings import RegistrationSettings
from ...runs.files import outputs_together
from ...runs.record import write_measurement
from ...runs.tables import print_rows, write_table
from ...runs.words import one_line
from ...volumes import read_volume, resample
from .overlap import overlap
from .scans import read_labels, read_mask

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

Summary = dict[str, dict[str, dict[str, float]]]  # method -> figure -> "mean", "sd", "n"


@dataclass(frozen=True)
class PairResult:
    """The registration of one pair by one method.

    Args:
        pair: the files.
        method: the method.
        figures: name -> value, for the names in `FIGURES` and others. Empty for a pair that failed.
        error: the reason why the pair failed, on one line; empty if it did not fail.
    """

    pair: Pair
    method: Method
    figures: dict[str, float] = field(default_factory=dict)
    error: str = ""

    def row(self) -> dict[str, Any]:
        """The row of a table."""
        files = {"subject": self.pair.subject, "moving": self.pair.moving, "fixed": self.pair.fixed}
        return {**files, "method": self.method, **dict.fromkeys(FIGURES), "error": self.error, **self.figures}


def measure_pairs(
    pairs: Path,
    methods: Sequence[Method],
    settings: RegistrationSettings,
    *,
    weights: Path | None,
    split: str = "all",
    device: str = "auto",
    cache: Path | None = None,
) -> list[PairResult]:
    """Register pairs by each method and print a line about each; a pair that fails has an error in its result.

    Args:
        pairs: the list, see `voxelwave.registration.pairs.read_pairs`.
        methods: the methods, in the order in which they run.
        settings: the other settings of `voxelwave.registration.register.register`.
        weights: the network for "nestedmorph" or "tissues".
        split: "all", or only the pairs of one split.
        device: where networks and refinement run.
        cache: folder in which affine alignments are kept.

    Raises:
        ValueError: the list holds no pair of this split.
    """
    chosen = [pair for pair in read_pairs(pairs) if split in ("all", pair.split)]
    if not chosen:
        raise ValueError(f"{pairs} must name a pair of split {split!r}, got none")
    network = None if weights is None else read_network(weights)
    results = []
    for number, pair in enumerate(chosen, start=1):
        for method in methods:
            used = network if method in ("nestedmorph", "tissues") else None
            try:
                figures = measure_pair(pair, replace(settings, method=method), used, device, cache)
                result = PairResult(pair, method, figures)
            except (ValueError, OSError, MemoryError) as error:
                result = PairResult(pair, method, error=one_line(error))
            results.append(result)
            print(f"{number}/{len(chosen)} {pair.subject} {method}: {result.error or _short(result)}", flush=True)
    return results


def measure_pair(
    pair: Pair, settings: RegistrationSettings, network: RegistrationNetwork | None, device: str, cache: Path | None
) -> dict[str, float]:
    """Register one pair, and return the measurements, with those of its labels if it has them."""
    moving, fixed = read_volume(pair.moving, ndim=3), load_fixed(pair)
    facts = facts_of(pair, series=(False, pair.contrast != "image"))
    started = time.perf_counter()
    result = register(
        moving,
        fixed,
        settings,
        network=network,
        facts=facts,
        moving_mask=read_mask(pair.moving_mask, moving),
        fixed_mask=read_mask(pair.fixed_mask, fixed),
        device=device,
        cache_dir=cache,
    )
    figures = result.metrics | {"seconds": time.perf_counter() - started}
    moving_labels, fixed_labels = read_labels(pair.moving_labels), read_labels(pair.fixed_labels)
    if moving_labels is not None and fixed_labels is not None:
        before = resample(moving_labels, fixed, order="nearest")
        after = resample(moving_labels, fixed, result.forward, order="nearest")
        figures |= overlap(before, fixed_labels, "before") | overlap(after, fixed_labels, "after")
    return figures


def unaligned_overlap(pair: Pair) -> dict[str, float]:
    """The overlap of the labels of a pair that has both maps, where the headers of the scans put them."""
    moving_labels, fixed_labels = read_labels(pair.moving_labels), read_labels(pair.fixed_labels)
    assert moving_labels is not None
    assert fixed_labels is not None
    return overlap(resample(moving_labels, load_fixed(pair), order="nearest"), fixed_labels, "before")


def _short(result: PairResult) -> str:
    names = ("dice_after", "nmi_after", "seconds")
    return ", ".join(f"{name} {result.figures[name]:.4g}" for name in names if name in result.figures)


def print_summary(results: Sequence[PairResult]) -> Summary:
    """Print mean and standard deviation over the pairs for each method, and return them."""
    summary: Summary = {}
    for method in dict.fromkeys(result.method for result in results):
        good = [result.figures for result in results if result.method == method and not result.error]
        summary[method] = {}
        for name in FIGURES:
            values = [figures[name] for figures in good if name in figures]
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
    folder: Path,
    results: Sequence[PairResult],
    summary: Summary,
    *,
    inputs: dict[str, Path | None],
    options: dict[str, Any],
) -> None:
    """Write evaluation.csv and evaluation.json."""
    with outputs_together(folder) as together:
        write_table(together / "evaluation.csv", [result.row() for result in results])
        write_measurement(together / "evaluation.json", inputs=inputs, options=options, summary=summary)
