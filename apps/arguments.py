"""The command line of a verb, built from the class of its options: flags, types, help texts and `--config`."""

import builtins
import inspect
import math
import re
from argparse import Action
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from ..runs.exit import UsageError
from ..runs.words import one_line

_SHORT = {"output": "-o", "input": "-i", "quiet": "-q", "verbose": "-v"}
_LONG = {"-q": "--quiet", "-v": "--verbose"}  # flags take a value, which a short option cannot
_FLAG = ""  # the metavar of a boolean
_CONFIGS = Path(__file__).parent / "configs"


def parse_arguments(options: Callable[..., Any], argv: list[str], *, prog: str) -> dict[str, Any]:
    """Read the keyword arguments for a class of options from the command line.

    A parameter becomes a flag (`moving_labels` becomes --moving-labels, `output` also -o), or a positional argument if
    it is not keyword-only. A boolean is a flag without a value. `--config file.yaml` can set any of them; the command
    line takes precedence.

    Args:
        options: a dataclass of options; its docstring and those of its bases describe the fields under "Args:".
        argv: the words after the verb.
        prog: the command, for usage lines.

    Raises:
        UsageError: the words do not fit the options.
        SystemExit: after `--help` and `--print_config`.
    """
    parser = build_parser(options, prog=prog)
    try:
        words = [_with_hyphens(_LONG.get(word, word)) for word in argv]
        words = _words_first(_with_brackets(_with_configurations(words, prog), _lists(options)), options)
        arguments = parser.parse_args(_with_values(words, _flags(options)))
    except Exception as error:  # jsonargparse raises several types, all about the arguments
        raise UsageError(f"{_explained(error, options, argv)}; see {prog} --help") from error
    names = inspect.signature(options).parameters
    found = {name: value for name, value in arguments.as_dict().items() if name in names}
    for name, value in found.items():
        _check_numbers(f"--{name.replace('_', '-')}", value)
    return found


def _check_numbers(name: str, value: Any) -> None:
    """Refuse NaN and infinity in an option, also inside a list or a mapping."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{name} must be a finite number, got {value}")
    if isinstance(value, dict):
        for key, part in value.items():
            _check_numbers(f"{name}: {key}", part)
    elif isinstance(value, list | tuple):
        for part in value:
            _check_numbers(name, part)


def build_parser(options: Callable[..., Any], *, prog: str) -> ArgumentParser:
    """The parser of a command, see `parse_arguments`."""
    parser = ArgumentParser(
        prog=prog,
        description=_summary(options),
        allow_abbrev=False,
        exit_on_error=False,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--config", action="config", help="a YAML file with any of these options")
    texts = _help_texts(options)
    for parameter in _own_first(options):
        _add(parser, parameter, texts.get(parameter.name, ""))
    return parser


class _HelpFormatter(DefaultHelpFormatter):
    """Shows the text of the docstring and the default, without Python types."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        default = action.default
        hidden = default is None or default is False or default == "==SUPPRESS==" or not action.option_strings
        return text if hidden or action.dest == "help" else f"{text} (default: %(default)s)"

    def _format_args(self, action: Action, default_metavar: str) -> str:
        return "" if action.metavar == _FLAG else super()._format_args(action, default_metavar)

    def _format_action_invocation(self, action: Action) -> str:
        return re.sub(r" +(,|$)", r"\1", super()._format_action_invocation(action))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = (super(_HelpFormatter, self)._fill_text(part, width, indent) for part in text.split("\n\n"))
        return "\n\n".join(paragraphs)


def _add(parser: ArgumentParser, parameter: inspect.Parameter, text: str) -> None:
    name, required = parameter.name, parameter.default is parameter.empty
    default = None if required else parameter.default
    if parameter.kind is not parameter.KEYWORD_ONLY:
        kind, several = _element(parameter.annotation)
        positional: dict[str, Any] = {} if required else {"nargs": "*" if several else "?", "default": default}
        parser.add_argument(name, type=kind, metavar=name.upper(), help=text, **positional)
        return
    flags = [*([_SHORT[name]] if name in _SHORT else []), f"--{name.replace('_', '-')}"]
    parser.add_argument(
        *flags,
        dest=name,
        type=parameter.annotation,
        default=default,
        required=required,
        metavar=_FLAG if parameter.annotation is bool else _choices(parameter.annotation) or name.upper(),
        help=text,
    )


def _element(annotation: Any) -> tuple[Any, bool]:
    """The type of each word of a positional argument, and whether it takes several words: of tuple[Path, ...], Path."""
    parts = get_args(annotation)
    return (parts[0], True) if get_origin(annotation) is tuple and Ellipsis in parts else (annotation, False)


def _words_first(words: list[str], options: Callable[..., Any]) -> list[str]:
    """Move the words of a positional argument that takes several before the options, between which they may stand."""
    parameters = inspect.signature(options).parameters.values()
    if not any(_element(p.annotation)[1] for p in parameters if p.kind is not p.KEYWORD_ONLY):
        return words
    flags, first, rest = _flags(options), [], []
    remaining = iter(words)
    for word in remaining:
        if not word.startswith("-") or word == "-":
            first.append(word)
            continue
        rest.append(word)
        if "=" not in word and word not in (*flags, "-h", "--help", "--"):
            rest += [value for value in [next(remaining, None)] if value is not None]
    return first + rest


def choices_of(annotation: Any) -> list[str]:
    """The choices of a Literal, also of one that may be None; empty for another type."""
    parts = get_args(annotation) if get_origin(annotation) in (UnionType, Union) else (annotation,)
    return [str(choice) for part in parts if get_origin(part) is Literal for choice in get_args(part)]


def _choices(annotation: Any) -> str | None:
    choices = choices_of(annotation)
    return "{" + ",".join(choices) + "}" if choices else None


def _own_first(options: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters: first those of the class itself, then the inherited ones."""
    own = inspect.get_annotations(options) if inspect.isclass(options) else {}
    return sorted(inspect.signature(options).parameters.values(), key=lambda p: p.name not in own)


def _help_texts(options: Callable[..., Any]) -> dict[str, str]:
    """Parameter -> its text under "Args:" in the docstring of the class, or of the nearest base that has one."""
    texts: dict[str, str] = {}
    for described in options.__mro__ if inspect.isclass(options) else (options,):
        for found in parse_docstring(inspect.getdoc(described) or "").params:
            texts.setdefault(found.arg_name, " ".join((found.description or "").split()).replace("%", "%%"))
    return texts


def _summary(options: Callable[..., Any]) -> str:
    return (inspect.getdoc(options) or "").split("\n\nArgs:")[0]


def _with_hyphens(word: str) -> str:
    """An option with its hyphens, since --moving_labels is accepted too; keys after a dot stay as they are."""
    found = re.match(r"--[A-Za-z][\w-]*", word)
    if found is None or found[0].startswith("--print_config"):
        return word
    return found[0].replace("_", "-") + word[found.end() :]


def _flags(options: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(options).parameters
    return {f"--{name.replace('_', '-')}" for name, p in parameters.items() if p.annotation is bool}


def _lists(options: Callable[..., Any]) -> set[str]:
    """The options that take a list or a tuple, and no plain text."""
    found = set()
    for name, parameter in inspect.signature(options).parameters.items():
        annotation = parameter.annotation
        parts = get_args(annotation) if get_origin(annotation) in (UnionType, Union) else (annotation,)
        if any(get_origin(part) in (list, tuple) for part in parts) and not {str, Path} & set(parts):
            found.add(f"--{name.replace('_', '-')}")
    return found


def _with_brackets(words: list[str], lists: set[str]) -> list[str]:
    """Accept 32,32,32 for the list [32,32,32]."""
    found = []
    for before, word in zip(["", *words], words, strict=False):
        option, equals, value = word.partition("=")
        if before in lists and re.fullmatch(r"[^\[\]{}]*,[^\[\]{}]*", word):
            word = f"[{word}]"
        elif equals and option in lists and re.fullmatch(r"[^\[\]{}]*,[^\[\]{}]*", value):
            word = f"{option}=[{value}]"
        found.append(word)
    return found


def _with_configurations(words: list[str], prog: str) -> list[str]:
    """Replace the name of a supplied configuration by its file."""
    return [
        f"--config={_configuration(word.partition('=')[2], prog)}"
        if word.startswith("--config=")
        else _configuration(word, prog)
        if before == "--config"
        else word
        for before, word in zip(["", *words], words, strict=False)
    ]


def _configuration(name: str, prog: str) -> str:
    """The file of a configuration: the path itself if there is a file, else the supplied one of this name.

    Raises:
        UsageError: there is neither.
    """
    field = prog.split()[1] if len(prog.split()) > 1 else ""
    if Path(name).exists() or Path(name).name != name or not (_CONFIGS / field).is_dir():
        return name
    supplied = {file.stem: str(file) for file in sorted((_CONFIGS / field).glob("*.yaml"))}
    stem = name.removesuffix(".yaml")
    if stem not in supplied:
        near = get_close_matches(stem, supplied, n=1)
        raise UsageError(
            f"--config must be a YAML file or one of {', '.join(supplied)}; file does not exist: {name}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    return supplied[stem]


def _with_values(words: list[str], flags: set[str]) -> list[str]:
    """Add the value true to each flag that is given without one."""
    following = [*words[1:], ""][: len(words)]
    bare = [w in flags and f not in ("true", "false") for w, f in zip(words, following, strict=True)]
    return [f"{word}=true" if alone else word for word, alone in zip(words, bare, strict=True)]


def _explained(error: Exception, options: Callable[..., Any], argv: list[str]) -> str:
    """The parser's error message in plain words, with the name of the option as the user types it."""
    text, parameters = one_line(error), inspect.signature(options).parameters
    known = [_shown(p) for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
    if found := re.match(r'Parser key "(\w+)[^"]*"?: *(.*)$', text):
        if found[1] == "config":
            return f"--config must be a YAML file; {found[2][:1].lower()}{found[2][1:]}"
        if found[1] in parameters:
            parameter = parameters[found[1]]
            given = _given(found[2])
            mend = "; Apple's mps is not supported: use cpu" if (found[1], given) == ("device", "mps") else ""
            return f"{_shown(parameter)} must be {_wanted(parameter.annotation)}, got {given}{mend}"
    if found := re.search(r"arguments are required: (.*)$", text):
        names = [name.strip().replace("-", "_") for name in found[1].split(",")]
        shown = [_shown(parameters[name]) if name in parameters else name for name in names]
        mend = " (`voxelwave weights` lists those that come with the package)" if "weights" in names else ""
        return f"{', '.join(shown)} must be given{mend}"
    if found := re.search(r"[Uu]nrecognized arguments: (--[\w-]+)", text):
        return f"there is no option {found[1]}{_suggestion(found[1], known)}"
    if found := re.search(r"[Uu]nrecognized arguments: (.*)$", text):
        return f"there are more words than the command takes: {found[1]}"
    if found := re.match(r"Option '(.*)' is not accepted", text):
        near = _suggestion(f"--{found[1].replace('_', '-')}", known).replace("-", "_").replace("__", "")
        return f"{_config(argv)} gives {found[1]}, an option that this command does not have{near}"
    if found := re.match(r"Problems parsing config: (.*)$", text):
        problem = re.sub(r',? *in "<unicode string>",? *', ", ", found[1])
        return f"{_config(argv)} is not a YAML file of options: {problem}"
    return text


def _suggestion(word: str, known: list[str]) -> str:
    bare = {name.lstrip("-"): name for name in known}  # the dashes, which all share, would make any two words alike
    near: list[str] = get_close_matches(word.lstrip("-"), bare, n=1)
    return f"; did you mean {bare[near[0]]}?" if near else ""


def _config(argv: list[str]) -> str:
    """The config file that is named last, as the subject of a sentence."""
    for word, following in reversed(list(zip(argv, [*argv[1:], ""], strict=True))):
        if word == "--config" or word.startswith("--config="):
            return f"--config {word.partition('=')[2] or following}"
    return "--config"


_TYPES = {"dict": "a mapping", "list": "a list", "int": "a number", "float": "a number", "bool": "true or false"}


def _given(reason: str) -> str:
    """The value in an error of jsonargparse, shortened; a description of it if the error lacks it."""
    if found := re.search(r"not (\w+)(?: - .*)?$", reason.partition(" Given value type")[0]):
        described = _TYPES.get(found[1], found[1])
    else:
        described = "nothing"
    values = re.findall(r"(?:Given value|Got value): ?(.*?)(?= Given value type|$)", reason)
    value: str = values[-1].strip() if values else described
    return (value if len(value) <= 80 else f"{value[:77]}...") or "nothing"


def _shown(parameter: inspect.Parameter) -> str:
    name = parameter.name
    return f"--{name.replace('_', '-')}" if parameter.kind is parameter.KEYWORD_ONLY else name.upper()


def _wanted(annotation: Any) -> str:
    """A description of the valid values of this type."""
    if choices := _choices(annotation):
        return "one of " + choices.strip("{}").replace(",", ", ")
    parts = get_args(annotation) if get_origin(annotation) in (UnionType, Union) else (annotation,)
    return " or ".join(_wanted_one(part) for part in parts if part is not NoneType)


_IN_LISTS = {"whole numbers": "1,2", "numbers": "1,0.5", "mappings": "{name: value}"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts", Path: "paths"}


def _wanted_one(kind: Any) -> str:
    parts = get_args(kind)
    match get_origin(kind) or kind:
        case builtins.tuple if Ellipsis not in parts:
            return f"{len(parts)} values, such as [{','.join('1' * len(parts))}]"
        case builtins.tuple | builtins.list:
            inside = _PLURALS.get(parts[0], "mappings") if parts else "values"
            return f"a list of {inside}, such as [{_IN_LISTS.get(inside, 'a,b')}]"
        case builtins.dict:
            inside = f" of names to {_PLURALS[parts[1]]}" if parts and parts[1] in _PLURALS else ""
            return f"a mapping{inside}, such as {{name: value}}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return words.get(kind) or kind.__name__
