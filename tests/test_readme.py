"""The commands in README exist and accept the options that README gives them."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from voxelwave.apps import cli
from voxelwave.apps.arguments import parse_arguments

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("*/shipped/*.md"))]


def _commands() -> list[str]:
    """The commands that a document shows on a separate line or between backticks, without comments."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text().replace("\\\n", "")  # a command may take several lines
        indented = re.findall(r"^    (?:pip install[^\n]*&& )?(voxelwave [a-z][^\n#]*)", text, re.M)
        fenced = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S))
        lines = indented + re.findall(r"^(?:pip install[^\n]*&& )?(voxelwave [a-z][^\n#]*)", fenced, re.M)
        found += [line.strip() for line in lines + re.findall(r"`(voxelwave [a-z][^`\n]*? -[^`\n]*)`", text)]
    return sorted(set(found))


@pytest.mark.parametrize("command", _commands())
def test_commands_of_the_documents_parse(command, monkeypatch):
    monkeypatch.chdir(ROOT)  # paths of configurations are relative to it
    words = shlex.split(command)[1:]
    verb = cli.TOP_LEVEL.get(words[0]) or cli.COMMANDS[words[0]][words[1]]
    rest = words[1 if words[0] in cli.TOP_LEVEL else 2 :]
    if "--help" in rest or "..." in command:
        return
    module, _, name = verb.options.partition(":")
    options = getattr(importlib.import_module(f"voxelwave.apps.{module}"), name)
    assert options(**parse_arguments(options, rest, prog=f"voxelwave {words[0]}"))  # configurations by name


def test_the_documents_show_commands_of_every_field():
    assert {command.split()[1] for command in _commands()} >= {*cli.COMMANDS} - {"batch"}
