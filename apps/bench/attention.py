"""`voxelwave bench attention`: what every attention mechanism costs, and what it can do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from ...attention_analysis.benchmark_scores import Scores
from ...attention_analysis.benchmark_tasks import all_tasks
from ...attention_analysis.benchmark_training import FULL, QUICK, run_all
from ...kernels.attention.benchmark import CHANNELS, HEADS, LENGTHS, PASSES, cost_rows, fit_rows, measure_all
from ...kernels.attention.benchmark_streaming import STREAMS, TOKENS, stream_costs
from ...runs.files import atomic_path
from ...runs.json_files import write_json
from ...runs.record import hardware, package_versions
from ...runs.tables import print_rows
from .attention_data import task_data
from .attention_sections import Section, cost_section, fit_section, streaming_section, task_sections
from .options import Attention

PAGE, RECORD = "attention.html", "attention.json"
_TEMPLATE = Path(__file__).parent / "template"
_STYLE = Path(__file__).parents[1] / "page" / "report.css"
_AT = 16384  # number of tokens for which the goals are defined
_MOST_QUICK_TOKENS, _MOST_QUICK_STREAM = 4096, 10_000


def attention(options: Attention) -> None:
    """Run the command."""
    sections: list[Section] = []
    record: dict[str, Any] = {}
    for part, measure in _PARTS.items():
        if options.part in ("all", part) or (part == "cost" and options.part in PASSES):
            found, numbers = measure(options, _tell)
            for section in found:
                for table in section.tables:
                    print_rows(table.title, table.records())
            sections += found
            record |= numbers
    about = {"hardware": hardware(), "threads": options.threads, "seed": options.seed}
    write_json(options.output / RECORD, {**about, "quick": options.quick, "versions": package_versions(), **record})
    _write_page(options.output / PAGE, sections, {**about, "quick": options.quick})
    print(f"wrote {options.output}/: {PAGE}, {RECORD}")


def _tell(line: str) -> None:
    print(line, flush=True)


def _cost(options: Attention, tell: Callable[[str], None]) -> tuple[list[Section], dict[str, Any]]:
    lengths = [length for length in LENGTHS if not options.quick or length <= _MOST_QUICK_TOKENS]
    passes = [each for each in PASSES if options.part in ("all", "cost", each)]
    measured = measure_all(lengths, passes=passes, threads=options.threads, seed=options.seed, tell=tell)
    sections, record = [], {}
    for each, costs in measured.items():
        rows, fits = cost_rows(costs, at=_AT), fit_rows(costs)
        sections += [cost_section(each, rows, costs), fit_section(each, fits)]
        record[each] = {
            "rows": [row._asdict() for row in rows],
            "fits": [
                {**fit._asdict(), **{n: f and f._asdict() for n, f in (("time", fit.time), ("memory", fit.memory))}}
                for fit in fits
            ],
            "costs": [
                {"method": name, "pattern": pattern, **cost._asdict()}
                for (name, pattern), own in costs.items()
                for cost in own
            ],
        }
    return sections, record


def _streaming(options: Attention, tell: Callable[[str], None]) -> tuple[list[Section], dict[str, Any]]:
    torch.set_num_threads(1)
    tokens = [n for n in TOKENS if not options.quick or n <= _MOST_QUICK_STREAM]
    costs = []
    for name in STREAMS:
        costs += stream_costs(name, tokens, seed=options.seed)
        tell(f"{name}, streaming: {costs[-1].state_bytes:,} bytes after {costs[-1].tokens:,} tokens")
    return [streaming_section(costs)], {"streaming": [cost._asdict() for cost in costs]}


def _tasks(options: Attention, tell: Callable[[str], None]) -> tuple[list[Section], dict[str, Any]]:
    data = task_data(options.seed)
    effort = QUICK if options.quick else FULL
    trials = run_all(data, effort=effort, workers=options.threads, first_seed=options.seed, tell=tell)
    scores = Scores(trials, {task.name: task.pattern.value for task in all_tasks(data)})
    numbers = {
        "trials": [trial._asdict() for trial in trials],
        "composite index": {pattern: scores.index(pattern) for pattern in dict.fromkeys(scores.patterns.values())},
    }
    return task_sections(scores), {"tasks": numbers}


_PARTS = {"cost": _cost, "streaming": _streaming, "tasks": _tasks}


def _write_page(path: Path, sections: list[Section], about: dict[str, Any]) -> None:
    environment = Environment(loader=FileSystemLoader(_TEMPLATE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = environment.get_template("attention.html.jinja").render(
        style=Markup(_STYLE.read_text()),
        sections=sections,
        torch=torch.__version__,
        heads=HEADS,
        channels=CHANNELS,
        **about,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
