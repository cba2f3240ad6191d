"""The page of the demo: its pictures, a sentence for each, and the command that does the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from ...runs.files import atomic_path

INDEX = "index.html"
_STYLE = Path(__file__).parents[1] / "page" / "report.css"


@dataclass(frozen=True)
class Shown:
    """What the page shows of one part.

    Args:
        sentence: what the picture shows.
        picture: path of the picture in the folder of the demo.
        command: the command that does the same.
        links: title -> path in the folder of the demo, of further results.
    """

    sentence: str
    picture: str
    command: str
    links: dict[str, str]


def write_page(output: Path, parts: Sequence[tuple[str, Shown]]) -> None:
    """Write index.html, which works offline.

    Args:
        output: the folder of the demo.
        parts: the title and the results of each part.
    """
    folder = Path(__file__).parent / "template"
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = environment.get_template("index.html.jinja").render(parts=parts, style=Markup(_STYLE.read_text()))
    with atomic_path(output / INDEX) as temporary:
        temporary.write_text(html, encoding="utf-8")
