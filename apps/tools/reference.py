"""The reference of all commands as Markdown, from their classes of options; the documentation site shows it."""

import dataclasses
import importlib
import inspect
from collections.abc import Iterator

from docstring_parser import parse as parse_docstring

from ..arguments import choices_of
from ..commands import COMMANDS, TOP_LEVEL, Verb
from ..options import Options

OTHER = "other"  # the page of the commands without a field


def command_pages() -> dict[str, str]:
    """A page for each field, and one for the commands without a field: the description and options of each command.

    Example:
        >>> "## voxelwave registration register" in command_pages()["registration"]
        True
    """
    pages = {}
    for field, verbs in {**COMMANDS, OTHER: TOP_LEVEL}.items():
        name = "" if field == OTHER else f" {field}"
        lines = [
            f"- [`{verb}`](#voxelwave{name.replace(' ', '-')}-{verb}): {entry.summary}" for verb, entry in verbs.items()
        ]
        parts = [f"# voxelwave{name or ': other commands'}", "\n".join(lines)]
        parts += [
            "Every command also takes [the options of the screen](../command_line.md), and `--config FILE`, a YAML"
            " file in which any of its options can be set."
        ]
        for verb, entry in verbs.items():
            parts += [f"## voxelwave{name} {verb}", *_described(entry)]
        pages[field] = "\n\n".join(parts) + "\n"
    return pages


def option_table(options: type[Options], names: list[str]) -> str:
    """A table of some options of a command.

    Args:
        options: the class of options.
        names: the options to list, in this order.
    """
    texts: dict[str, str] = {}
    for described in options.__mro__:
        for found in parse_docstring(inspect.getdoc(described) or "").params:
            texts.setdefault(found.arg_name, " ".join((found.description or "").split()))
    rows = ["| option | choices | default | meaning |", "| --- | --- | --- | --- |"]
    fields = {field.name: field for field in dataclasses.fields(options)}
    for name in names:
        parameter = inspect.signature(options).parameters[name]
        word = name.upper() if parameter.kind is not parameter.KEYWORD_ONLY else _flag(name)
        cells = [f"`{word}`", ", ".join(choices_of(parameter.annotation)), _default(fields[name]), texts.get(name, "")]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _described(verb: Verb) -> Iterator[str]:
    module, _, name = verb.options.partition(":")
    options = getattr(importlib.import_module(f"..{module}", __package__), name)
    yield (inspect.getdoc(options) or "").split("\n\nArgs:")[0]
    if verb.extras:
        yield f'Needs `pip install "voxelwave[{",".join(verb.extras)}]"`.'
    shared = {field.name for field in dataclasses.fields(Options)}
    if own := [name for name in inspect.signature(options).parameters if name not in shared]:
        yield option_table(options, own)


def _default(field: "dataclasses.Field[object]") -> str:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is dataclasses.MISSING:
        return "required"
    else:
        value = field.default
    return "" if value in (None, False, ()) else f"`{value}`"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
