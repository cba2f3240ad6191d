"""The reference of commands names every command and option, with its meaning; the site lists every page."""

import dataclasses
import inspect
import re
from pathlib import Path

import yaml

from voxelwave.apps import cli
from voxelwave.apps.options import Options
from voxelwave.apps.tools.reference import OTHER, command_pages

ROOT = Path(__file__).resolve().parents[3]


def test_every_option_of_every_command_has_a_meaning():
    pages = command_pages()
    screen = {field.name for field in dataclasses.fields(Options)}
    for field, verbs in {**cli.COMMANDS, OTHER: cli.TOP_LEVEL}.items():
        for verb, entry in verbs.items():
            name = verb if field == OTHER else f"{field} {verb}"
            part = pages[field].partition(f"## voxelwave {name}\n")[2].partition("\n## ")[0]
            rows = dict(re.findall(r"^\| `(?:--)?([\w-]+)` \|.*\| (.*) \|$", part, re.M))
            names = inspect.signature(cli._load(entry.options)).parameters
            found = {row.lower().replace("-", "_") for row in rows}
            assert found == set(names) - screen, (field, verb)
            assert [row for row, meaning in rows.items() if not meaning.strip()] == [], (field, verb)


def test_every_page_of_the_site_is_in_its_navigation():
    nav = re.search(r"^nav:.*", (ROOT / "mkdocs.yml").read_text(), re.M | re.S)
    assert nav is not None
    pages = set(re.findall(r"[\w/-]+\.md", str(yaml.safe_load(nav[0]))))
    cards = {f"cards/{card.name}" for card in ROOT.glob("*/shipped/*.md")}
    notebooks = {f"notebooks/{script.stem}.md" for script in (ROOT / "docs" / "notebooks").glob("*.py")}
    commands = {f"commands/{field}.md" for field in command_pages()}
    made = {page for page in pages if page.split("/")[0] in ("cards", "notebooks", "commands", "api")}
    assert made == cards | notebooks | commands | {page for page in pages if page.startswith("api/")}
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages - made == written
