"""`voxelwave bench attention`: the cost of every attention mechanism against PyTorch's fused attention."""

import io
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from ...kernels.attention.benchmark import CHANNELS, HEADS, LENGTHS, PEER, Cost, Row, cost_rows, measure_all
from ...runs.files import atomic_path
from ...runs.json_files import write_json
from ...runs.record import hardware, package_versions
from ...runs.tables import print_rows
from .options import Attention

PAGE, RECORD = "attention.html", "attention.json"
_TEMPLATE = Path(__file__).parent / "template"
_STYLE = Path(__file__).parents[1] / "page" / "report.css"
_AT = 16384  # number of tokens for which the goals are defined
_COLUMNS = (
    "method",
    "pattern",
    "tokens",
    "ms",
    "ratio",
    "goal",
    "exponent",
    "goal",
    "peak MiB",
    "efficiency length",
    "met",
)
_PARTS = {"forward": "Forward", "backward": "Forward and backward"}


def attention(options: Attention) -> None:
    """Run the command."""
    lengths = [length for length in LENGTHS if not options.quick or length <= 4096]
    parts, record = [], {}
    for part, title in _PARTS.items():
        if options.part not in ("all", part):
            continue
        costs = measure_all(
            lengths,
            backward=part == "backward",
            threads=options.threads,
            seed=options.seed,
            tell=lambda line: print(line, flush=True),
        )
        rows = cost_rows(costs, at=min(_AT, lengths[-1]))
        print_rows(title, [dict(zip(_shown_columns(), _cells(row), strict=True)) for row in rows])
        parts.append({"title": title, "rows": [_cells(row) for row in rows], "picture": Markup(_curves(costs))})
        record[part] = {
            "rows": [row._asdict() for row in rows],
            "costs": [
                {"method": name, "pattern": pattern, **cost._asdict()}
                for (name, pattern), found in costs.items()
                for cost in found
            ],
        }
    about = {"hardware": hardware(), "threads": options.threads, "seed": options.seed}
    write_json(options.output / RECORD, {**about, "versions": package_versions(), **record})
    _write_page(options.output / PAGE, parts, about)
    print(f"wrote {options.output}/: {PAGE}, {RECORD}")


def _shown_columns() -> list[str]:
    """The column names, made unique."""
    return [*_COLUMNS[:7], "goal of exponent", *_COLUMNS[8:]]


def _cells(row: Row) -> list[str]:
    return [
        row.method,
        row.pattern,
        f"{row.length:,}",
        f"{1000 * row.seconds:.3g}",
        _number(row.ratio),
        "–" if row.goal is None else f"≥ {row.goal:g}",
        _number(row.exponent),
        "–" if row.most_exponent is None else f"≤ {row.most_exponent:g}",
        f"{row.peak_mib:.0f}",
        "–" if row.efficiency_length is None else f"{row.efficiency_length:,}",
        {None: "–", True: "yes", False: "no"}[row.met],
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _curves(costs: dict[tuple[str, str], list[Cost]]) -> str:
    """A plot of time against length for all methods, as SVG."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    for number, ((name, pattern), found) in enumerate(costs.items()):
        style = "--" if name == PEER else "-"
        label = f"{name} ({pattern})" if name == PEER else name
        colour = "black" if name == PEER else f"C{number % 10}"
        marker = "s" if pattern == "NS" else "o"
        axis.loglog(
            [c.length for c in found], [c.seconds for c in found], style, color=colour, marker=marker, label=label
        )
    axis.set_xlabel("tokens")
    axis.set_ylabel("seconds")
    axis.grid(color="0.9")
    axis.legend(fontsize=8, ncols=2)
    stream = io.StringIO()
    figure.savefig(stream, format="svg")
    return stream.getvalue()[stream.getvalue().index("<svg") :]


def _write_page(path: Path, parts: list[dict[str, Any]], about: dict[str, Any]) -> None:
    environment = Environment(loader=FileSystemLoader(_TEMPLATE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = environment.get_template("attention.html.jinja").render(
        style=Markup(_STYLE.read_text()),
        parts=parts,
        columns=_COLUMNS,
        torch=torch.__version__,
        heads=HEADS,
        channels=CHANNELS,
        **about,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
