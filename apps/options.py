"""Options that several commands share, each described once.

A command consists of a frozen dataclass of options, whose module loads nothing heavy, and a function that takes it. The
class is in the `options.py` of its field; the module of the function is imported when the work begins (see `cli`).
Fields become flags, and fields declared with `field(kw_only=False)` become positional arguments.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from ..runs.archives import archives_named, is_archive, unpacked
from ..runs.checks import check_resume
from ..runs.exit import UsageError

PLAN = "plan.json"  # of a nested run or a cross-validation, in its folder


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a command; `output`, where a command has it, is what `output_is` names.

    Args:
        quiet: show only notes and errors.
        verbose: show the messages of libraries, and the traceback of an error.
        log_file: a file to which all lines are added, with the time of each.
        json: print the result as one JSON object on standard output, and all other lines on standard error.
    """

    output_is: ClassVar[Literal["folder", "file", "either"]] = "folder"
    archives: ClassVar[tuple[str, ...]] = ()  # the options that may name a .zip or .tar file in place of a folder

    quiet: bool = False
    verbose: bool = False
    log_file: Path | None = None
    json: bool = False

    @property
    def opening(self) -> str:
        """A line to show before the work is loaded, which can take seconds; "" for none."""
        return ""

    def check(self) -> None:
        """Refuse wrong usage, missing inputs and an output that cannot be written, before anything heavy is imported.

        Raises:
            UsageError: options that do not go together, or a number out of range.
            FileNotFoundError: an input is missing.
            ValueError: the output cannot be written.
        """
        output = getattr(self, "output", None)
        if output is not None:
            must_be_writable(output, self.output_is)
        if self.log_file is not None:
            must_be_writable(self.log_file, "file")

    def check_earlier(self) -> None:
        """Refuse to replace the result of an earlier run unasked; only a command that writes one has such a check."""


@dataclass(frozen=True, kw_only=True)
class OutputOptions(Options):
    """Options of a command that replaces the result of an earlier run only with `overwrite`.

    A folder may be empty or hold other files: `writes` are the files that the command writes into it.

    Args:
        overwrite: replace the result of an earlier run; without this option, the command stops before any work if it
            would replace one. Other files in the folder do not matter, and are kept.
    """

    writes: ClassVar[tuple[str, ...]] = ()  # names in the folder OUTPUT, or patterns of names

    overwrite: bool = False

    def check(self) -> None:
        super().check()
        output: Path | None = getattr(self, "output", None)
        if output is None or not output.is_file():
            return
        for name in (option.name for option in fields(self) if option.name != "output"):
            value = getattr(self, name)
            for path in value if isinstance(value, tuple) else (value,):
                if isinstance(path, Path) and path.resolve() == output.resolve():
                    raise UsageError(f"--output must be another path than the inputs, got {output}")

    def earlier(self) -> list[Path]:
        """The files and folders of an earlier result which the command would replace."""
        output: Path | None = getattr(self, "output", None)
        if output is None:
            return []
        if output.is_dir():
            return [path for name in self.writes for path in sorted(output.glob(name))]
        return existing(output)

    def replaced(self) -> list[str]:
        """The names of the files of an earlier result in the folder OUTPUT, which go when the new result is there."""
        output: Path = self.output  # type: ignore[attr-defined]  # of commands that write a folder
        return [path.relative_to(output).as_posix() for path in self.earlier() if path.is_file()]

    def check_earlier(self) -> None:
        if self.overwrite or not (earlier := self.earlier()):
            return
        path, output = earlier[0], getattr(self, "output", None)
        if output is not None and output in path.parents:
            raise UsageError(
                f"{output} holds the result of an earlier run ({path.relative_to(output)}): give --overwrite to"
                " replace it, or choose another --output"
            )
        raise UsageError(f"{path} exists already: give --overwrite to replace it, or choose another place")


Given = TypeVar("Given", bound=Options)


@contextmanager
def without_archives(options: Given) -> Iterator[Given]:
    """The options, with the unpacked content in place of each archive.

    Raises:
        ValueError: an archive is damaged or unsafe.
    """
    with ExitStack() as stack:
        given = {name: getattr(options, name) for name in options.archives}
        paths = [path for value in given.values() for path in _paths(value) if is_archive(path)]
        inside = {path: stack.enter_context(unpacked(path)) for path in dict.fromkeys(paths)}
        for name, value in given.items():
            there = tuple(inside.get(path, path) for path in _paths(value))
            object.__setattr__(options, name, there if isinstance(value, tuple) else (*there, None)[0])
        if inside:
            stack.enter_context(archives_named())
        try:
            yield options
        finally:
            for name, value in given.items():
                object.__setattr__(options, name, value)


def _paths(value: Path | tuple[Path, ...] | None) -> tuple[Path, ...]:
    return value if isinstance(value, tuple) else () if value is None else (value,)


@dataclass(frozen=True, kw_only=True)
class ThreadOptions(Options):
    """Options of commands that compute on the CPU.

    Args:
        threads: CPU threads; all by default.
    """

    threads: int | None = None

    def check(self) -> None:
        super().check()
        at_least(1, threads=self.threads)


@dataclass(frozen=True, kw_only=True)
class WorkerOptions(ThreadOptions):
    """Options of a command that runs many fits, and continues the run in its output folder.

    Args:
        jobs: processes on this machine, or fits running at once on a cluster.
        cluster: run on a cluster: dask://HOST:PORT, slurm, or slurm-local to try Slurm jobs on this machine.
        slurm: parameters of submitit, such as slurm_partition, mem_gb, timeout_min.
        threads: CPU threads per fit.
    """

    jobs: int | None = None
    cluster: str | None = None
    slurm: dict[str, Any] | None = None
    threads: int = 1

    def check(self) -> None:
        super().check()
        at_least(1, jobs=self.jobs)
        must_be_run_or_new(self.output)  # type: ignore[attr-defined]  # each of them has one


@dataclass(frozen=True, kw_only=True)
class ResumeOptions(OutputOptions):
    """Options of a training, which has a checkpoint in its output folder.

    Args:
        resume: continue from the last checkpoint in OUTPUT.
        overwrite: begin anew in the folder of an earlier training, whose checkpoint is removed.
    """

    checkpoint: ClassVar[Path] = Path("last.ckpt")  # within OUTPUT

    resume: bool = False

    def check(self) -> None:
        super().check()
        resume_or_overwrite(resume=self.resume, overwrite=self.overwrite)
        if not self.overwrite:
            check_resume(self._checkpoint, self.resume)

    def earlier(self) -> list[Path]:
        return [] if self.resume else super().earlier()

    @property
    def _checkpoint(self) -> Path:
        output: Path = self.output  # type: ignore[attr-defined]  # each training has one
        return output / self.checkpoint

    @contextmanager
    def earlier_set_aside(self) -> Iterator[None]:
        """Set the checkpoint of an earlier training aside, with `overwrite`; it is back if no new one is written.

        Use it only while the output is locked.
        """
        aside = self._checkpoint.with_name(f"{self._checkpoint.name}.earlier")
        if self.overwrite and self._checkpoint.exists():
            os.replace(self._checkpoint, aside)
        try:
            yield
        finally:
            if aside.exists():
                if self._checkpoint.exists():
                    aside.unlink()
                else:
                    os.replace(aside, self._checkpoint)


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    """Options of commands that can use a GPU.

    Args:
        device: where the network runs; auto takes a GPU if there is one.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True, kw_only=True)
class InputOptions(Options):
    """Options of a command whose input is its first word, or is given by --input.

    A class with this base has a positional field, named by `first_word`.

    Args:
        input: the same as the first word.
    """

    first_word: ClassVar[str]

    input: Path = field(default=None)  # type: ignore[assignment]  # `check` refuses None

    def __post_init__(self) -> None:
        given = getattr(self, self.first_word)
        if self.input is not None and given is not None and self.input != given:
            raise UsageError(f"{self.first_word.upper()} and --input are the same: give one, got {given}, {self.input}")
        object.__setattr__(self, "input", given if self.input is None else self.input)

    def check(self) -> None:
        super().check()
        if self.input is None:
            raise UsageError(f"{self.first_word.upper()} (or --input) must be given")


@dataclass(frozen=True, kw_only=True)
class OnnxOptions(ThreadOptions, OutputOptions):
    """Options of a command that writes a network as an ONNX file.

    Args:
        output: the .onnx file to write.
    """

    output_is = "file"

    output: Path

    def check(self) -> None:
        super().check()
        if self.output.suffix != ".onnx":
            raise UsageError(f"--output must end in .onnx, got {self.output}")
        must_have_onnx()


def must_have_onnx() -> None:
    """Refuse to write an ONNX file without the packages for it.

    Raises:
        ImportError: one is missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ImportError(f'an ONNX file needs {" and ".join(missing)}: pip install "voxelwave[export]"')


def at_least(least: int, **values: int | None) -> None:
    """Refuse an option below `least`; None is left alone.

    Raises:
        UsageError: a value is below `least`; the message names the option.

    Example:
        >>> at_least(1, jobs=2, threads=None)
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def must_exist(path: Path | None, what: str) -> None:
    """Refuse a missing input; None is left alone.

    Args:
        path: a file or folder.
        what: a noun for the input in the error, such as "scan" or "study".

    Raises:
        FileNotFoundError: there is nothing at `path`.
    """
    if path is not None and not path.exists():
        raise FileNotFoundError(f"no {what} at {path}")


def existing(*paths: Path | None) -> list[Path]:
    """The paths at which there is a file or folder."""
    return [path for path in paths if path is not None and path.exists()]


def resume_or_overwrite(*, resume: bool, overwrite: bool) -> None:
    """Refuse both options together.

    Raises:
        UsageError: both are set.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite do not go together: give only one")


def earlier_measurements(output: Path, part: str, parts: Sequence[str]) -> list[Path]:
    """The records of a benchmark in a folder: of one of its parts, or with "all" of all parts."""
    return existing(*(output / f"benchmark-{name}.json" for name in (parts if part == "all" else [part])))


def must_be_run_or_new(output: Path) -> None:
    """Refuse a folder in which a nested run or a cross-validation can neither continue nor begin.

    Raises:
        UsageError: the folder holds files, but no plan of a run.
    """
    if output.is_dir() and not (output / PLAN).exists() and any(not p.name.startswith(".") for p in output.iterdir()):
        raise UsageError(f"{output} is not empty and holds no {PLAN}; choose a new folder for --output")


def must_be_writable(output: Path, kind: Literal["folder", "file", "either"]) -> None:
    """Refuse a place where no output can be written.

    Args:
        output: the file or folder to write.
        kind: which of the two it is.

    Raises:
        ValueError: there is a file where a folder is needed, or the reverse, or nothing may be written there.
    """
    if kind == "folder" and output.exists() and not output.is_dir():
        raise ValueError(f"{output} must be a folder for the results, got a file")
    if kind == "file" and output.is_dir():
        raise ValueError(f"{output} must be a file to write, got a folder")
    existing = output.absolute() if output.is_dir() else output.absolute().parent
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"{output} cannot be written: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{output} cannot be written: nothing may be written in {existing}")
