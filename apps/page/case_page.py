"""The page of one case, beside its results: pictures, figures with their meaning, files, inputs and options."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from ...runs.json_files import read_json
from ..batch.names import shown_name
from ..batch.page_words import GLOSSARY

_STYLE = Path(__file__).parent / "report.css"


def write_case_page(
    path: Path,
    record: Path,
    *,
    title: str,
    figures: str,
    picture: str,
    caption: str,
    files: Mapping[str, str],
    lines: Sequence[str] = (),
) -> None:
    """Write the page from the record of a case; it needs no network.

    Args:
        path: the .html file.
        record: the .json file that `write_record` wrote, beside the page.
        title: what was done.
        figures: the key of the record that holds the figures.
        picture: the address of the picture, a name beside the page or a data URI.
        caption: what the picture shows.
        files: name of a file beside the page -> its meaning.
        lines: sentences for the top of the page.
    """
    content = read_json(record)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "template"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("case.html.jinja").render(
        title=title,
        version=content["versions"].get("voxelwave", ""),
        lines=lines,
        notes=content.get("notes") or [],
        picture=picture,
        caption=caption,
        figures=[(k.replace("_", " "), _plain(v), GLOSSARY.get(k, "")) for k, v in content[figures].items()],
        files={**files, record.name: "inputs with their hashes, options, versions, figures and times"},
        facts=_facts(content),
        style=Markup(_STYLE.read_text()),
    )
    path.write_text(html, encoding="utf-8")


def _facts(content: dict[str, Any]) -> dict[str, str]:
    """Inputs and options, without those that are not set."""
    inputs = {
        name: f"{shown_name(Path(one['path']).name)}, SHA-256 {one['sha256'][:12]}…"
        for name, one in content["inputs"].items()
        if one
    }
    given = {name: value for name, value in content["options"].items() if value is not None and value is not False}
    options = {name: _plain(value) for name, value in given.items()}
    return {name.replace("_", " "): value for name, value in {**inputs, **options}.items()}


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
