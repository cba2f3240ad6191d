"""The reference of commands names every command and option, with its meaning."""

import inspect
import re
from pathlib import Path

import yaml

from voxelwave.apps import cli
from voxelwave.apps.tools.reference import command_reference

ROOT = Path(__file__).resolve().parents[3]


def test_every_option_of_every_command_has_a_meaning():
    text = command_reference()
    for field, verbs in {**cli.COMMANDS, "": cli.TOP_LEVEL}.items():
        for verb, entry in verbs.items():
            part = text.partition(f"## voxelwave {f'{field} {verb}'.strip()}\n")[2].partition("\n## ")[0]
            rows = dict(re.findall(r"^\| `(?:--)?([\w-]+)` \|.*\| (.*) \|$", part, re.M))
            names = inspect.signature(cli._load(entry.options)).parameters
            found = {name.lower().replace("-", "_") for name in rows}
            assert found == set(names), (field, verb)
            assert [name for name, meaning in rows.items() if not meaning.strip()] == [], (field, verb)


def test_every_page_of_the_site_is_there():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    pages = re.findall(r"[\w/-]+\.md", str(site["nav"]))
    cards = {f"cards/{card.name}" for card in ROOT.glob("*/shipped/*.md")}
    assert {page for page in pages if page.startswith("cards/")} == cards
    here = {page for page in pages if not page.startswith("cards/") and page != "commands.md"}
    assert here == {path.name for path in (ROOT / "docs").glob("*.md")}
