"""`voxelwave attention tasks`: small models on tasks whose solution is known."""

from pathlib import Path

import torch
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from ...runs.files import atomic_path
from ...runs.json_files import write_json
from ...runs.record import hardware, package_versions
from ...runs.tables import print_rows
from .options import Tasks
from .task_parts import PARTS, Part

PAGE, RECORD = "tasks.html", "tasks.json"
_TEMPLATE = Path(__file__).parent / "template"
_STYLE = Path(__file__).parents[1] / "page" / "report.css"


def tasks(options: Tasks) -> None:
    """Run the command."""
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads or before)
    chosen = PARTS if options.part == "all" else {options.part: PARTS[options.part]}
    parts: dict[str, Part] = {}
    try:
        for name, run in chosen.items():
            parts[name] = run(
                quick=options.quick,
                seeds=options.seeds,
                seed=options.seed,
                tell=lambda line: print(line, flush=True),
            )
            for rows in parts[name].tables:
                print_rows(parts[name].title, rows)
    finally:
        torch.set_num_threads(before)
    about = {"hardware": hardware(), "threads": options.threads, "seed": options.seed, "quick": options.quick}
    write_json(
        options.output / RECORD,
        {**about, "versions": package_versions(), **{name: part.record for name, part in parts.items()}},
    )
    _write_page(options.output / PAGE, list(parts.values()), about)
    print(f"wrote {options.output}/: {PAGE}, {RECORD}")


def _write_page(path: Path, parts: list[Part], about: dict[str, object]) -> None:
    environment = Environment(loader=FileSystemLoader(_TEMPLATE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = environment.get_template("tasks.html.jinja").render(
        style=Markup(_STYLE.read_text()), parts=parts, safe=Markup, torch=torch.__version__, **about
    )
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
