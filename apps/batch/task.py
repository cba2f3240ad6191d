"""One case: run the work in a temporary folder, record the outcome, and publish the complete result or nothing."""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypedDict, runtime_checkable

from filelock import FileLock, Timeout

from ...runs.cells import Cell, Result
from ...runs.files import publish
from ...runs.functions import load_function
from ...runs.json_files import null_where_undefined, write_json
from ...runs.record import sha256
from ...runs.threads import limited_threads
from .case import Case
from .manifest import CASE, STATE, Entry, append_line, finished_case, is_recorded, manifest_entry, read_manifest
from .names import printable, relative, shown_name, shown_path


class WorkSpec(TypedDict):
    """The specification by which a worker builds the work, in plain values.

    Args:
        factory: name of the function that builds it, see `runs.functions`.
        arguments: the function's arguments.
    """

    factory: str
    arguments: dict[str, Any]


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IDENTIFYING = (
    *("PatientName", "PatientID", "PatientBirthDate", "OtherPatientNames", "OtherPatientIDs", "PatientComments"),
    *("PatientAddress", "PatientTelephoneNumbers", "AccessionNumber", "InstitutionName", "ReferringPhysicianName"),
    *("PerformingPhysicianName", "OperatorsName", "StudyDescription", "SeriesDescription", "ProtocolName"),
)


class CaseRefused(ValueError):
    """Raised if the work does not apply to a case; its result would look plausible but be wrong."""


class Work(Protocol):
    """A function that processes one case."""

    def __call__(self, case: Case, folder: Path) -> dict[str, Any]:
        """Process a case and write its results into a folder.

        Args:
            case: the case, in which a DICOM series is one folder that holds nothing else.
            folder: an empty folder.

        Returns:
            "metrics": plain values; "warnings": lines, if any.

        Raises:
            CaseRefused, ValueError, OSError, MemoryError: one line with the reason why the case failed.
        """


@runtime_checkable
class ShrinkableWork(Work, Protocol):
    """A work that can be repeated with less memory."""

    @property
    def size_in_words(self) -> str:
        """The size of the units of processing, for a note, such as "tiles of 100 pixels"."""
        ...

    def smaller(self) -> "ShrinkableWork | None":
        """The same work with less memory, or None if the work cannot be split any further."""
        ...


@dataclass(frozen=True)
class Batch:
    """The work of a run and its folders, which are the same for all cases.

    Args:
        work: the specification of the work.
        output: the folder of results.
        root: the folder to which shown paths are relative.
        options: all other options on which the results depend.
        threads: CPU threads of a case.
        keep_identifiers: whether names of files and patients may be shown and written.
        again: whether cases are done that were done before and are unchanged.
    """

    work: WorkSpec
    output: Path
    root: Path
    options: dict[str, Any]
    threads: int = 1
    keep_identifiers: bool = False
    again: bool = False

    @property
    def state(self) -> Path:
        """The folder of locks and unfinished work."""
        return self.output / STATE


class DiskFullError(OSError):
    """The disk is full."""


class CaseCell(Cell):
    """The cell of a case: the case and the batch as plain values."""

    case: dict[str, Any]
    batch: dict[str, Any]
    recorded: bool
    hashes: list[Any]
    wait: bool


def run_case(cell: CaseCell, folder: Path) -> Result:
    """Process one case in a worker; this is the function of a cell.

    Returns:
        "status": "done", "found" (done before and unchanged), "failed", "refused", "busy" (another run processes it),
        "full" (the disk is full), "unusable" (the work cannot be built); "error": the reason.
    """

    case = Case.from_dict(cell["case"])
    places: dict[str, Any] = {k: Path(cell["batch"][k]) for k in ("output", "root")}
    batch = Batch(**{**cell["batch"], **places})
    lock = FileLock(batch.state / "locks" / f"{case.identifier}.lock")
    try:
        with lock.acquire(timeout=-1 if cell["wait"] else 0):
            return Task(case, batch, tuple(cell["hashes"]), folder).run(recorded=cell["recorded"])
    except Timeout:
        return {"status": "busy"}
    except OSError as error:
        if is_full(error):
            return {"status": "full", "error": full_words(batch.output)}
        raise


@lru_cache(maxsize=2)
def _built(spec: str) -> Work:
    content = json.loads(spec)
    result: Work = load_function(content["factory"])(**content["arguments"])
    return result


class _Unusable(ValueError):
    """The work cannot be built, for any case."""


@dataclass
class Task:
    """Runs one case while its lock is held."""

    case: Case
    batch: Batch
    hashes: tuple[str, str | None]
    scratch: Path
    notes: list[str] = field(default_factory=list)

    def run(self, *, recorded: bool) -> Result:
        """Skip or process the case and record the outcome; `recorded` is true if the manifest lists it as done."""
        started, clock = datetime.now(UTC), time.perf_counter()
        entry = self._first_entry()
        status, error = "done", None
        try:
            entry["inputs"] = self._inputs()
            before = self._finished(entry)
            if before is not None:
                # an earlier run may have been killed between writing the results and their line
                if not recorded and not is_recorded(read_manifest(self.batch.output), self.case, self.hashes):
                    append_line(self.batch.output, manifest_entry(before, "done", None, started, None))
                return {"status": "found"}
            entry |= self._work(entry)
        except _Unusable as problem:
            return {"status": "unusable", "error": str(problem), "refused": isinstance(problem.__cause__, CaseRefused)}
        except Exception as problem:  # libraries fail in many ways on damaged data
            if is_full(problem):
                return {"status": "full", "error": full_words(self.batch.output)}
            if os.environ.get("VOXELWAVE_DEBUG"):
                traceback.print_exc()
            status = "refused" if isinstance(problem, CaseRefused) else "failed"
            error = self.redacted(_in_words(problem))
            entry |= self._nothing()
        seconds = round(time.perf_counter() - clock, 3)
        words = f"refused: {error}" if status == "refused" else error
        line = manifest_entry(entry, "done" if error is None else "failed", words, started, seconds)
        append_line(self.batch.output, line)
        return {"status": status, "error": error, "took": seconds}

    def is_done(self) -> bool:
        """Whether the case was done before with the same inputs, options and weights; False if that cannot be read."""
        try:
            return self._finished(self._first_entry() | {"inputs": self._inputs()}) is not None
        except Exception:  # a worker meets the same error and records it
            return False

    def _finished(self, entry: Entry) -> Entry | None:
        """The content of case.json, if it agrees with `entry`, which names the inputs, and all its results exist."""
        if self.batch.again:
            return None
        before = finished_case(self.batch.output, self.case.identifier)
        return before if before is not None and all(before.get(k) == entry[k] for k in entry) else None

    def record_failure(self, reason: str) -> str:
        """Record a case that no worker could process; returns the reason as it may be shown."""
        shown = self.redacted(reason)
        entry = self._first_entry() | self._nothing()
        append_line(self.batch.output, manifest_entry(entry, "failed", shown, datetime.now(UTC), 0.0))
        return shown

    def _nothing(self) -> Entry:
        """The result fields of a case without results."""
        return {"outputs": [], "bytes": [], "metrics": {}, "warnings": self._warnings()}

    def _first_entry(self) -> Entry:
        """The part of the entry that is known before the inputs are read."""
        return {
            "case": self.case.identifier,
            "kind": self.case.kind,
            "inputs": [],
            "options": json.loads(json.dumps(self.batch.options)),
            "options_sha256": self.hashes[0],
            "weights_sha256": self.hashes[1],
        }

    def _inputs(self) -> list[dict[str, Any]]:
        """Path and hash of each input; a DICOM series is one entry."""
        paths = [*self.case.inputs, *_sidecars(self.case)]
        shown = [shown_path(p, self.batch.root, keep_identifiers=self.batch.keep_identifiers) for p in paths]
        hashes = [sha256(path) for path in paths]
        if self.case.kind == "dicom":
            place = shown[0].rpartition("/")[0] or "."
            both = hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()
            return [{"path": place, "files": len(paths), "sha256": both}]
        roles = self.case.roles or (None,)
        lines = [{"path": place, "sha256": value} for place, value in zip(shown, hashes, strict=True)]
        for line, role in zip(lines, roles, strict=False):
            if role:
                line["role"] = role
        return lines

    def _work(self, entry: Entry) -> Entry:
        """Run the work, again with less memory if memory ran out, and move the results into place."""

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            work = self._build()
            staged = self._staged()
            while True:
                results = self.scratch / "results"
                shutil.rmtree(results, ignore_errors=True)
                results.mkdir()
                try:
                    with limited_threads(self.batch.threads):  # torch may have been loaded just now
                        outcome = work(staged, results)
                    break
                except Exception as error:
                    if not _is_out_of_memory(error):
                        raise
                    work = self._smaller(work, error)
                finally:
                    ours = (w for w in caught if "voxelwave" in getattr(w.category, "__module__", ""))
                    self.notes += [str(w.message) for w in ours]
                    caught.clear()
        from .preview import write_preview  # the readers of images take a second to load: only if a case is done

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the notes about the input were already collected
            self.notes += [*outcome.get("warnings", []), *write_preview(staged, results)]
        files = sorted(p for p in results.rglob("*") if p.is_file())
        result: Entry = {
            "outputs": [f"{self.case.identifier}/{p.relative_to(results).as_posix()}" for p in files],
            "bytes": [p.stat().st_size for p in files],
            "metrics": null_where_undefined(json.loads(json.dumps(outcome.get("metrics", {}), default=_plain))),
            "warnings": self._warnings(),
        }
        if "choice" in outcome:
            result["choice"] = null_where_undefined(json.loads(json.dumps(outcome["choice"], default=_plain)))
        write_json(results / CASE, {**entry, **result})
        publish(results, self.batch.output / self.case.identifier)
        return result

    def _build(self) -> Work:
        try:
            with limited_threads(self.batch.threads):
                return _built(json.dumps(self.batch.work, sort_keys=True))
        except Exception as error:
            raise _Unusable(_in_words(error)) from error

    def _staged(self) -> Case:
        """A case whose DICOM series is a separate folder, in which the file names are numbers."""
        if self.case.kind != "dicom":
            return self.case
        folder = self.scratch / "series"
        folder.mkdir()
        for number, path in enumerate(self.case.inputs, start=1):
            _link(path.absolute(), folder / _staged_name(number))
        return replace(self.case, inputs=(folder,))

    def _smaller(self, work: Work, error: Exception) -> Work:
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        smaller = work.smaller() if isinstance(work, ShrinkableWork) else None
        if smaller is None:
            raise MemoryError("not enough memory, and the work cannot be split any further") from error
        self.notes.append(f"memory ran out; tried again with {smaller.size_in_words}")
        return smaller

    def _warnings(self) -> list[str]:
        return list(dict.fromkeys(self.redacted(note) for note in (*self.case.warnings, *self.notes)))

    def redacted(self, text: str) -> str:
        """A message on one line, without paths of this machine and, unless they may be shown, names.

        Only whole words and whole parts of paths are replaced.
        """
        batch, keep = self.batch, self.batch.keep_identifiers
        place = shown_path(self.case.inputs[0].parent, batch.root, keep_identifiers=keep)
        swaps = [(str(self.scratch / "series"), place), (str(self.scratch / "results"), self.case.identifier)]
        for path in self.case.inputs:
            shown = shown_path(path, batch.root, keep_identifiers=keep)
            swaps += [(str(path.absolute()), shown), (str(path), shown)]
        swaps += [(str(self.scratch), ""), (str(batch.output), "OUTPUT"), (str(batch.root), "INPUT")]
        swaps = [(old, new) for old, new in swaps if old not in ("", ".")]
        if self.case.kind == "dicom":
            swaps += [
                (_staged_name(number), shown_name(path.name, keep_identifiers=keep))
                for number, path in enumerate(self.case.inputs, start=1)
            ]
        text = " ".join(text.split())
        for old, new in sorted(swaps, key=lambda pair: -len(pair[0])):
            # a relative path of one part, such as "a", may be an ordinary word unless a separator follows it
            end = r"(?![\w-])" if os.sep in old or "." in old else f"(?={re.escape(os.sep)})"
            text = re.sub(rf"(?<![\w./\\-]){re.escape(old)}{end}", _constant(new), text)
        if not keep:
            of_person = _header_words(self.case.inputs[0]) if self.case.kind == "dicom" else set()
            names = {word for word in self._path_names() | of_person if len(word) > 2}
            for word in sorted(names, key=len, reverse=True):
                whole = rf"(?<!\w){re.escape(word)}(?!\w)"
                if (
                    _is_ordinary(word) and word not in of_person
                ):  # it may be a word of the message, unless a separator stands beside it
                    whole = rf"(?<=[/\\]){re.escape(word)}(?!\w)|(?<!\w){re.escape(word)}(?=[/\\])"
                text = re.sub(whole, "[...]", text)
        return printable(text)

    def _path_names(self) -> set[str]:
        """The parts of paths that may identify the person."""
        words = set()
        for path in self.case.inputs:
            for part in relative(path, self.batch.root).split("/"):
                if shown_name(part) != part:
                    words |= {part, part.split(".")[0]}
        return words


@contextmanager
def full_disk_is_an_error(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise DiskFullError(full_words(output)) from error
        raise


def _is_ordinary(name: str) -> bool:
    """Whether a part of a path consists of small letters only, such as "cut off" or "tilt"."""
    return re.fullmatch(r"[a-z]+(?:[ _-][a-z]+)*", name) is not None


def _constant(text: str) -> Callable[[re.Match[str]], str]:
    """A replacement for `re.sub` in which backslashes are literal."""
    return lambda _: text


def _sidecars(case: Case) -> list[Path]:
    """Files next to the inputs on which the result also depends."""
    endings = {".nii": (".bval", ".bvec"), ".vhdr": (".eeg", ".vmrk", ".dat"), ".set": (".fdt",)}
    found = []
    for path in case.inputs:
        plain = path.with_name(path.name.removesuffix(".gz"))
        beside = endings.get(plain.suffix.lower(), ()) if case.kind in ("pair", "eeg") else ()
        found += [file for ending in beside if (file := plain.with_suffix(ending)).is_file()]
    return found


def _staged_name(number: int) -> str:
    return f"{number:05d}.dcm"


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source)
    except OSError as error:  # a file system without links
        if is_full(error):
            raise
        shutil.copyfile(source, target)


def _header_words(path: Path) -> set[str]:
    """Header values that may identify a person or place, each whole and split into words."""
    import pydicom

    words: set[str] = set()
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_IDENTIFYING), force=True)
        for keyword in _IDENTIFYING:
            value = str(header.get(keyword) or "")
            words |= {value, *value.replace("^", " ").split()}
    except Exception:  # a damaged header
        return words
    return words


def _plain(value: Any) -> Any:
    """Convert NumPy numbers to Python numbers."""
    return value.item() if hasattr(value, "item") else str(value)


def _in_words(error: BaseException) -> str:
    text = " ".join(str(error).split())[:500]
    if _is_out_of_memory(error):
        return text if text.startswith("not enough memory") else "not enough memory"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, (ValueError, OSError, ImportError)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def is_full(error: BaseException) -> bool:
    return any(isinstance(one, OSError) and one.errno in _FULL for one in _chain(error))


def full_words(output: Path) -> str:
    return f"no space left for results in {output}"


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("not enough memory", "can't allocate memory", "CUDA out of memory")
    )
