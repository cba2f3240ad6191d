"""The reference of all commands as Markdown, from their classes of options; the documentation site shows it."""

import importlib
import inspect
from collections.abc import Iterator

from docstring_parser import parse as parse_docstring

from ..arguments import choices_of
from ..commands import COMMANDS, TOP_LEVEL, Verb


def command_reference() -> str:
    """A heading for each command, with its description and a table of its options.

    Example:
        >>> "## voxelwave registration register" in command_reference()
        True
    """
    below = {f"{field} {verb}": entry for field, verbs in COMMANDS.items() for verb, entry in verbs.items()}
    parts = ["# Commands", "All options can also be set in a YAML file given by `--config`."]
    for name, verb in {**below, **TOP_LEVEL}.items():
        parts += [f"## voxelwave {name}", *_described(verb)]
    return "\n\n".join(parts) + "\n"


def _described(verb: Verb) -> Iterator[str]:
    module, _, name = verb.options.partition(":")
    options = getattr(importlib.import_module(f"..{module}", __package__), name)
    texts: dict[str, str] = {}
    for described in options.__mro__:
        for found in parse_docstring(inspect.getdoc(described) or "").params:
            texts.setdefault(found.arg_name, " ".join((found.description or "").split()))
    yield (inspect.getdoc(options) or "").split("\n\nArgs:")[0]
    rows = ["| option | choices | default | meaning |", "| --- | --- | --- | --- |"]
    for parameter in inspect.signature(options).parameters.values():
        word = parameter.name.upper() if parameter.kind is not parameter.KEYWORD_ONLY else _flag(parameter.name)
        required = parameter.default is parameter.empty
        hidden = parameter.default in (None, False, ()) or required
        default = "required" if required else "" if hidden else f"`{parameter.default}`"
        cells = [f"`{word}`", ", ".join(choices_of(parameter.annotation)), default, texts.get(parameter.name, "")]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    yield "\n".join(rows)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
