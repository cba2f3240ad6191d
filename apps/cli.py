"""The `voxelwave` command: a table of verbs, each a class of options and a function that is imported when it is called.

`--help` and wrong usage load the options only; a missing input is reported before torch or another heavy package loads.

Exit codes: 0 done, 1 error, 2 wrong usage, 3 some cases failed, 4 refused by a guard, 130 interrupted (Ctrl-C), 143
ended by SIGTERM.
"""

import importlib
import inspect
import itertools
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib.metadata import version
from types import UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from ..runs.exit import DONE, ERROR, INTERRUPTED, USAGE, UsageError


class Verb(NamedTuple):
    """One verb: "module:class" of its options and "module:function" of its work, below this folder; and a summary."""

    options: str
    work: str
    summary: str


COMMANDS: dict[str, dict[str, Verb]] = {
    "registration": {
        "register": Verb(
            "registration.options:Register", "registration.register:register", "align one scan to another"
        ),
        "apply": Verb(
            "registration.options:Apply",
            "registration.apply:apply",
            "move an image or a label map by a transform that was written before",
        ),
        "train": Verb("registration.train:train", "", "train NestedMorph on pairs of scans"),
        "evaluate": Verb("registration.evaluate:evaluate", "", "register a list of pairs and measure each"),
        "benchmark": Verb("registration.benchmark:benchmark", "", "ours beside ANTs SyN: accuracy, time, memory"),
    },
    "restoration": {
        "restore": Verb(
            "restoration.restore:restore", "", "denoise, super-resolve, deblur: images, volumes, DICOM series"
        ),
        "train": Verb("restoration.train:train", "", "train a network on a folder of images or on real pairs"),
        "evaluate": Verb("restoration.evaluate:evaluate", "", "PSNR and SSIM beside classical methods"),
        "export": Verb("restoration.export:export", "", "weights to use, from a checkpoint of a training"),
        "benchmark": Verb("restoration.benchmark:benchmark", "", "time, memory and PSNR beside simpler methods"),
        "images": Verb("restoration.images:images", "", "gather openly licensed images to train on"),
    },
    "eeg": {
        "train": Verb("eeg.train:train", "", "train one network on the recordings of a study"),
        "diagnose": Verb("eeg.diagnose:diagnose", "", "probability per subject and per window by trained weights"),
        "explain": Verb("eeg.explain:explain", "", "channels, bands, filters and features that a network goes by"),
        "nested-cv": Verb(
            "eeg.nested_cv:nested_cv", "", "nested cross-validation of networks beside simple models, with a report"
        ),
        "audit": Verb("eeg.audit:audit", "", "look for leakage and confounds in a study and in a split of it"),
        "benchmark": Verb(
            "eeg.benchmark:benchmark", "", "training windows per second of ADHDeepNet beside other networks"
        ),
        "planted": Verb(
            "eeg.planted:planted", "", "a nested run on synthetic subjects, where it is known what to find"
        ),
    },
    "scanpath": {
        "train": Verb("scanpath.train:train", "", "train OAT on scanpaths"),
        "predict": Verb("scanpath.predict:predict", "", "in which order people will look at the objects of a scene"),
        "evaluate": Verb(
            "scanpath.evaluate:evaluate", "", "a network beside simpler models and people, by many metrics"
        ),
        "cross-validate": Verb(
            "scanpath.cross_validate:cross_validate",
            "",
            "train and test on layouts, people or targets that were not seen",
        ),
        "benchmark": Verb(
            "scanpath.benchmark:benchmark", "", "decoding with and without a cache; learning an observer that is known"
        ),
    },
    "batch": {
        "page": Verb("batch.page:page", "", "make the page of a folder of results again, from its manifest"),
        "benchmark": Verb(
            "bench.batch:benchmark", "", "many series in one run beside one process each, and killed and started again"
        ),
    },
    "bench": {
        "kernels": Verb("bench.kernels:kernels", "", "speed and accuracy of the selective scan beside its peers"),
    },
}
TOP_LEVEL: dict[str, Verb] = {
    "demo": Verb(
        "demo.demo:demo",
        "",
        "align two real brain scans, denoise a slice and predict a scanpath, from data that come with the package",
    ),
    "report": Verb("make_report:report", "", "make the report of a finished run again, as one HTML file"),
}
_SHORT = {"--output": "-o", "--input": "-i"}


def main(argv: list[str] | None = None) -> int:
    """Run one command and give its exit code. Also the `voxelwave` script."""
    argv = list(sys.argv[1:] if argv is None else argv)
    warnings.showwarning = _show_warning
    try:
        return _dispatch(argv)
    except UsageError as error:
        print(f"voxelwave: usage: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("voxelwave: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output (head, less) went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (ValueError, OSError, ImportError, MemoryError) as error:
        if os.environ.get("VOXELWAVE_DEBUG"):
            traceback.print_exc()
        print(f"voxelwave: error: {_one_line(error)}", file=sys.stderr)
        return ERROR


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return DONE if argv else USAGE
    if argv[0] == "--version":
        print(f"voxelwave {version('voxelwave')}")
        return DONE
    field, *rest = argv
    if field in TOP_LEVEL:
        return _run(f"voxelwave {field}", TOP_LEVEL[field], rest)
    if field not in COMMANDS:
        raise UsageError(f"expected one of {', '.join([*COMMANDS, *TOP_LEVEL])}, got {field!r}; see voxelwave --help")
    verbs = COMMANDS[field]
    if not rest or rest[0] in ("-h", "--help"):
        print(_verbs(field))
        return DONE if rest else USAGE
    if rest[0] not in verbs:
        raise UsageError(f"expected one of {', '.join(verbs)} after {field}, got {rest[0]!r}")
    return _run(f"voxelwave {field} {rest[0]}", verbs[rest[0]], rest[1:])


def _run(prog: str, verb: Verb, argv: list[str]) -> int:
    options_class = _load(verb.options)
    arguments = parse_arguments(options_class, argv, prog=prog)
    if not verb.work:
        code = options_class(**arguments)
    else:
        options = options_class(**arguments)
        options.check()
        code = _load(verb.work)(options)
    return DONE if code is None else int(code)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), name)


def parse_arguments(function: Callable, argv: list[str], *, prog: str) -> dict:
    """The keyword arguments for `function` from the words of the command line.

    Parameters become positional (those with a default may be left out), unless they are keyword-only; a parameter
    `output` is also `-o`, `input` is `-i`; a boolean is a plain flag. `--config file.yaml` gives any of them; the
    command line wins.

    Raises:
        UsageError: for words that do not fit.
        SystemExit: after `--help` and `--print_config`.
    """
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class HelpFormatter(DefaultHelpFormatter):
        """The docstring's words and the default; types in Python's notation tell a user of the command nothing."""

        def _get_help_string(self, action) -> str:
            text = action.help or ""
            shown = action.option_strings and action.default not in (None, False, "==SUPPRESS==")
            return f"{text} (default: %(default)s)" if shown and action.dest != "help" else text

        def _format_args(self, action, default_metavar) -> str:
            return "" if f"--{action.dest}" in flags else super()._format_args(action, default_metavar)

    parameters = inspect.signature(function).parameters
    options = {n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    positional = set(parameters) - options
    flags = {f"--{n}" for n in options if parameters[n].annotation is bool}
    parser = ArgumentParser(
        prog=prog,
        description=_summary(function),
        allow_abbrev=False,
        exit_on_error=False,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--config", action="config", help="a YAML file with any of these options")
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip=set(options))
    parser.add_function_arguments(function, as_group=False, as_positional=False, skip=set(positional))
    for action in parser._actions:
        _rename(action, parser, parameters)
    _own_options_first(parser, function)
    try:
        arguments = parser.parse_args(_with_values(argv, flags))
    except Exception as error:  # jsonargparse raises several kinds, all about the words it was given
        raise UsageError(f"{_one_line(error)}; see {prog} --help") from error
    return {name: value for name, value in arguments.as_dict().items() if name in parameters}


def _own_options_first(parser, function: Callable) -> None:
    """Show the options of the class itself before those that it inherits."""
    own = set(getattr(function, "__dict__", {}).get("__annotations__", ()))
    for group in parser._action_groups:
        group._group_actions.sort(key=lambda a: a.dest not in (*own, "help", "config", "print_config"))


def _rename(action, parser, parameters) -> None:
    """Show an option as a person types it: --moving-labels, -o; and a positional in capitals."""
    parameter = parameters.get(action.dest)
    if parameter is None:
        return
    if parameter.kind is not parameter.KEYWORD_ONLY and action.option_strings:  # a positional that may be left out
        for name in action.option_strings:
            del parser._option_string_actions[name]
        action.option_strings, action.nargs = [], "?"
    if not action.option_strings:
        action.metavar = action.dest.upper()
        return
    names = [name.replace("_", "-") for name in action.option_strings]
    names = [_SHORT[name] for name in names if name in _SHORT] + names
    parser._option_string_actions |= dict.fromkeys(names, action)
    action.option_strings = names
    if get_origin(parameter.annotation) is UnionType:  # Literal | None hides its choices
        literals = [part for part in get_args(parameter.annotation) if get_origin(part) is Literal]
        choices = [choice for part in literals for choice in get_args(part)]
        action.metavar = "{" + ",".join(choices) + "}" if choices else None


def _with_values(argv: list[str], flags: set[str]) -> list[str]:
    """Options with underscores, and every flag that stands alone with the value that the parser wants."""
    words = []
    for word, following in itertools.zip_longest(argv, argv[1:]):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            word = name.replace("-", "_").replace("__", "--", 1) + equals + value
        words.append(f"{word}=true" if word in flags and following not in ("true", "false") else word)
    return words


def _summary(function: Callable) -> str:
    text = inspect.getdoc(function) or ""
    return text.split("\n\nArgs:")[0]


def _overview() -> str:
    lines = ["usage: voxelwave FIELD VERB ...   (voxelwave FIELD VERB --help tells the options)", ""]
    for field, verbs in COMMANDS.items():
        lines.append(field)
        lines += [f"  {verb:<16}{text}" for verb, (_, _, text) in verbs.items()]
    lines += ["", *(f"{name:<18}{text}" for name, (_, _, text) in TOP_LEVEL.items())]
    return "\n".join(lines)


def _verbs(field: str) -> str:
    return "\n".join(
        [f"usage: voxelwave {field} VERB ...", "", *(f"  {v:<16}{text}" for v, (_, _, text) in COMMANDS[field].items())]
    )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        text = f"not enough memory: {text or 'the image is too large for this machine'}"
    return text or type(error).__name__


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Our own warnings are notes for the user; those of libraries about their own insides are not."""
    if issubclass(category, UserWarning) and "voxelwave" in category.__module__:
        print(f"voxelwave: note: {_one_line(message)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
