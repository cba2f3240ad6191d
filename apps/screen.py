"""What a command writes to the screen: --quiet, --verbose, --log-file and --json."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from ..runs.json_files import json_text, null_where_undefined
from ..runs.outcome import collected_outcome
from .options import Options


class Copies:
    """A text stream that writes to a stream of the process, or to none, and to a log with the time of each line.

    Args:
        shown: the stream of the process; None to show nothing.
        log: the log; None for none.
    """

    def __init__(self, shown: TextIO | None, log: TextIO | None) -> None:
        self.shown, self.log, self.line = shown, log, ""
        self.encoding = getattr(shown, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        if self.shown is not None:
            self.shown.write(text)
        if self.log is not None:
            *whole, self.line = (self.line + text).split("\n")
            self.log.writelines(f"{datetime.now().isoformat(timespec='seconds')} {line}\n" for line in whole)
        return len(text)

    def flush(self) -> None:
        for stream in (self.shown, self.log):
            if stream is not None:
                stream.flush()

    def isatty(self) -> bool:
        return self.shown is not None and self.shown.isatty()

    def fileno(self) -> int:
        if self.shown is None:
            raise OSError("nothing is shown")
        return self.shown.fileno()


def run_on_screen(command: str, options: Options, work: Callable[[], tuple[int, str | None]]) -> int:
    """Run a command with the streams that its options ask for, and return its exit code.

    Args:
        command: the name of the command, for --json.
        options: the options.
        work: the command, which returns its exit code and, if it failed, the error in one line.
    """
    started = time.perf_counter()
    with collected_outcome() as outcome, _streams(options):
        code, error = work()
    if options.json:
        content = {
            "command": command,
            "exit_code": code,
            "error": error,
            "output": getattr(options, "output", None),
            "seconds": round(time.perf_counter() - started, 3),
            "result": outcome,
        }
        print(json_text(null_where_undefined(content), default=_plain))
    return code


@contextmanager
def _streams(options: Options) -> Iterator[None]:
    """The streams of the process within the block."""
    with ExitStack() as stack:
        log = None
        if options.log_file is not None:
            options.log_file.parent.mkdir(parents=True, exist_ok=True)
            log = stack.enter_context(options.log_file.open("a", encoding="utf-8"))
        if options.verbose:
            logging.basicConfig(level=logging.INFO, force=True)
        if options.quiet or options.json or log is not None:
            out = None if options.quiet else sys.stderr if options.json else sys.stdout
            stack.enter_context(redirect_stdout(_as_text(Copies(out, log))))
        if log is not None:
            stack.enter_context(redirect_stderr(_as_text(Copies(sys.stderr, log))))
        yield


def _as_text(copies: Copies) -> Any:
    return copies


def _plain(value: Any) -> Any:
    """A value that JSON cannot hold, as one that it can."""
    if isinstance(value, Path):
        return str(value)
    return value.tolist() if hasattr(value, "tolist") else str(value)
