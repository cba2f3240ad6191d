"""The `voxelwave` command, see the table in `commands`.

`--help` and wrong usage load only the options; a missing input is reported before torch or another heavy package loads.

Exit codes: 0 done, 1 error, 2 wrong usage, 3 some cases failed, 4 refused by a safety check, 130 interrupted (Ctrl-C),
143 terminated by SIGTERM.
"""

import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import version
from typing import Any, TextIO

from ..runs.exit import DONE, ERROR, INTERRUPTED, USAGE, UsageError
from ..runs.extras import in_words, must_have
from ..runs.words import one_line
from .arguments import parse_arguments
from .commands import COMMANDS, TOP_LEVEL, Verb
from .options import Options, without_archives
from .screen import run_on_screen


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; this is also the `voxelwave` script."""
    argv = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch then asks Linux for huge pages for its large tensors
    with warnings.catch_warnings():
        if not {"-v", "--verbose"} & set(argv):
            warnings.showwarning = _show_warning
        return _run_safely(argv)


def _run_safely(argv: list[str]) -> int:
    """Run one command; an error becomes one line on standard error and an exit code."""
    return _in_words(lambda: _dispatch(argv))[0]


def _in_words(work: Callable[[], int], *, verbose: bool = False) -> tuple[int, str | None]:
    """Do the work; an error becomes one line on standard error, which is returned with the exit code."""
    try:
        return work(), None
    except UsageError as error:
        print(f"voxelwave: usage: {one_line(error)}", file=sys.stderr)
        return USAGE, one_line(error)
    except KeyboardInterrupt:
        print("voxelwave: interrupted", file=sys.stderr)
        return INTERRUPTED, "interrupted"
    except BrokenPipeError:  # the reader of our output, such as head or less, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE, None
    except (ValueError, OSError, ImportError, MemoryError) as error:
        if verbose or os.environ.get("VOXELWAVE_DEBUG"):
            traceback.print_exc()
        text = one_line(in_words(error) if isinstance(error, ImportError) else error)
        print(f"voxelwave: error: {text}", file=sys.stderr)
        return ERROR, text


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
        raise UsageError(f"{_no_such(field, [*COMMANDS, *TOP_LEVEL])}; see voxelwave --help")
    verbs = COMMANDS[field]
    if not rest or rest[0] in ("-h", "--help"):
        print(_verbs(field))
        return DONE if rest else USAGE
    if rest[0] not in verbs:
        raise UsageError(f"{_no_such(rest[0], list(verbs))} after {field}")
    return _run(f"voxelwave {field} {rest[0]}", verbs[rest[0]], rest[1:])


def _no_such(word: str, known: list[str]) -> str:
    near = get_close_matches(word, known, n=1)
    return f"expected one of {', '.join(known)}, got {word!r}" + (f" (did you mean {near[0]}?)" if near else "")


def _run(prog: str, verb: Verb, argv: list[str]) -> int:
    options_class = _load(verb.options)
    options: Options = options_class(**parse_arguments(options_class, argv, prog=prog))
    return run_on_screen(
        prog, options, lambda: _in_words(lambda: _checked(prog, verb, options), verbose=options.verbose)
    )


def _checked(prog: str, verb: Verb, options: Options) -> int:
    """Check the options and the packages, do the work and return the exit code."""
    with without_archives(options) as unpacked:
        unpacked.check()
        unpacked.check_earlier()
        must_have(prog, *verb.extras)
        if unpacked.opening:
            print(unpacked.opening, flush=True)
        code = _load(verb.work)(unpacked)
    return DONE if code is None else int(code)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), name)


def _overview() -> str:
    lines = ["usage: voxelwave FIELD VERB ...   (voxelwave FIELD VERB --help lists the options)", ""]
    for field, verbs in COMMANDS.items():
        lines.append(field)
        lines += [f"  {verb:<16}{entry.summary}" for verb, entry in verbs.items()]
    lines += ["", *(f"{name:<18}{entry.summary}" for name, entry in TOP_LEVEL.items())]
    lines += ["", f"{'--version':<18}show the version"]
    return "\n".join(lines)


def _verbs(field: str) -> str:
    return "\n".join(
        [
            f"usage: voxelwave {field} VERB ...",
            "",
            *(f"  {v:<16}{entry.summary}" for v, entry in COMMANDS[field].items()),
        ]
    )


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show our own warnings as notes, and hide the warnings of libraries."""
    if issubclass(category, UserWarning) and "voxelwave" in category.__module__:
        print(f"voxelwave: note: {one_line(message)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
