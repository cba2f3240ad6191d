"""Reads every damaged or odd input in one process, under limits: `python read_all.py FOLDER [TABLE.md]`.

FOLDER receives the inputs, results.jsonl (what became of each, with time and memory), and what a batch over all of
them wrote; TABLE.md is written anew from what happened.
"""

import contextlib
import faulthandler
import json
import os
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dicom_inputs
import eeg_inputs
import folder_inputs
import nifti_inputs
import numpy as np
import picture_inputs
from damages import DAMAGES, Damage, Truth

SECONDS = 10  # of the processor, for each input
WAITING_S = 60  # for each input, whatever else the machine does
MEMORY_MIB = 128  # above what the process had, for each input
ADDRESS_MIB = 1024  # above what the process had when it began to read
SOURCES = (dicom_inputs, nifti_inputs, picture_inputs, eeg_inputs, folder_inputs)  # loaded in the order of the table
RESULTS, BATCH, TABLE = "results.jsonl", "batch.json", "damaged_inputs.md"
KINDS = ("DICOM", "NIfTI", "picture", "EEG", "folder")
NOBODY = 65534


def read(kind: str, path: Path) -> dict[str, Any]:
    """Read an input of a kind and return the result."""
    if kind == "folder":
        from voxelwave.apps.batch.find import find_cases

        found = find_cases(path, ("dicom", "nifti", "image", "eeg"), suffixes={"image": (".png",), "eeg": (".edf",)})
        return {"cases": sorted([len(case.inputs), case.reason is None] for case in found.cases)}
    if kind == "EEG":
        from voxelwave.eeg.recording import read_recording

        recording = read_recording(path)
        for note in recording.notes:
            warnings.warn(note.text, UserWarning, stacklevel=2)
        return {"array": recording.signal}
    if kind == "picture":
        from voxelwave.restoration.images import read_image

        return {"array": read_image(path).stack}
    from voxelwave.volumes import read_volume

    volume = read_volume(path)
    return {"array": volume.array, "affine": volume.affine}


def alike(found: dict[str, Any], truth: Truth) -> bool:
    """Whether reading gave the expected result."""
    if truth is None or found.keys() != truth.keys():
        return False
    return all(
        found[key] == truth[key] if key == "cases" else _near(np.asarray(found[key]), np.asarray(truth[key]))
        for key in truth
    )


def _near(found: np.ndarray, truth: np.ndarray) -> bool:
    # 1e-4: positions are written with that many digits; EEG is read into float32
    return found.shape == truth.shape and bool(np.allclose(found, truth, rtol=1e-5, atol=1e-4))


def report(damage: Damage, path: Path, truth: Truth) -> dict[str, Any]:
    """The outcome of one input."""
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    memory, used = _peak_mib(), time.process_time()
    _limit_time(SECONDS, WAITING_S)
    result: dict[str, Any] = {"kind": damage.kind, "what": damage.what, "error": "", "said": "", "equal": None}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with _as_nobody(damage.as_nobody):
                found = read(damage.kind, path)
            notes = [str(w.message) for w in caught if damage.kind == "EEG" or w.category.__name__ == "VolumeWarning"]
            outcome = "read, with a note" if notes else "read"
            result |= {"outcome": outcome, "said": "; ".join(notes), "equal": alike(found, truth)}
        except Exception as error:  # the test decides which kinds are right
            result |= {"outcome": "refused", "error": type(error).__name__, "said": str(error)}
    faulthandler.cancel_dump_traceback_later()
    return result | {"seconds": round(time.process_time() - used, 2), "mib": round(_peak_mib() - memory)}


def _limit_time(seconds: int, waiting_s: int) -> None:
    """End this process when it has used the processor, or has waited, for longer than the limit."""
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + seconds, resource.RLIM_INFINITY))
    faulthandler.dump_traceback_later(waiting_s, exit=True)


def _peak_mib() -> float:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


@contextlib.contextmanager
def _as_nobody(wanted: bool) -> Iterator[None]:
    """Change to another user for a while, since root may read every file."""
    if not (wanted and os.geteuid() == 0):
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


class Reading:
    """Work of a batch that only reads."""

    def __call__(self, case: Any, folder: Path) -> dict[str, Any]:
        kind = "picture" if case.kind == "image" else "volume"
        return {"metrics": {"values": int(read(kind, case.inputs[0])["array"].size)}}


def batch(folder: Path, output: Path) -> dict[str, Any]:
    """Run all inputs as one batch; return its exit code and the lines about its cases."""
    from voxelwave.apps.batch.find import find_cases
    from voxelwave.apps.batch.manifest import read_manifest
    from voxelwave.apps.batch.options import FolderOptions
    from voxelwave.apps.batch.run import FolderRun, run_batch
    from voxelwave.runs.workers import InProcess

    _limit_time(60, 300)
    suffixes = {"image": (".png", ".tif", ".bmp", ".jpg")}
    cases = find_cases(folder, ("dicom", "nifti", "image"), suffixes=suffixes).cases
    run = FolderRun(work={"factory": "read_all:Reading", "arguments": {}}, output=output, root=folder, options={})
    code = run_batch(cases, run, FolderOptions(), open_workers=InProcess)
    faulthandler.cancel_dump_traceback_later()
    entries = [*read_manifest(output).values()]
    places = {case.identifier: case.inputs[0].relative_to(folder).parts[0] for case in cases}
    return {"code": code, "entries": [{**one, "place": places[one["case"]]} for one in entries]}


def table(results: list[dict[str, Any]]) -> str:
    """Write the table of outcomes."""
    lines = [
        "# Damaged and unusual inputs",
        "",
        f"This page lists the outcomes of reading {len(results)} inputs that are damaged or unusual. A test reads all"
        " of them and compares the outcomes with this page, which is written by"
        " `python tests/apps/batch/damaged/read_all.py FOLDER docs/damaged_inputs.md`.",
        "",
        f"Reading one input takes at most {SECONDS} s of CPU time and {MEMORY_MIB} MiB of memory beyond that of the"
        f" process, even for a decompression bomb; the process may reserve {ADDRESS_MIB} MiB of additional address"
        " space. A refused input gives an error of one line, a part of which is shown. An input that is read has the"
        " same voxels and geometry as the undamaged original, or consists of its undamaged part.",
    ]
    said = {(damage.kind, damage.what): damage.said for damage in DAMAGES}
    for kind in KINDS:
        some = [one for one in results if one["kind"] == kind]
        lines += [
            "",
            f"## {kind} ({len(some)})",
            "",
            "| input | outcome | part of the message |",
            "| --- | --- | --- |",
        ]
        lines += [f"| {one['what']} | {one['outcome']} | {said[kind, one['what']]} |" for one in some]
    return "\n".join(lines) + "\n"


def main(folder: Path, page: Path | None) -> None:
    inputs, made = folder / "inputs", []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, damage in enumerate(DAMAGES):
            place = inputs / f"{number:03d}"
            place.mkdir(parents=True)
            given = damage.make(place)
            made.append(given if isinstance(given, tuple) else (given, None))
    for kind in KINDS:  # packages that are loaded once must not count for any input
        first = next(n for n, damage in enumerate(DAMAGES) if damage.kind == kind)
        read(kind, made[first][0])
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + (ADDRESS_MIB << 20), resource.RLIM_INFINITY))
    results = []
    with (folder / RESULTS).open("w") as stream:
        for damage, (path, truth) in zip(DAMAGES, made, strict=True):
            results.append(report(damage, path, truth))
            print(json.dumps(results[-1]), file=stream, flush=True)
    (folder / BATCH).write_text(json.dumps(batch(inputs, folder / "output")))
    for path, _ in made:
        if not path.is_relative_to(folder):  # the input for another user
            shutil.rmtree(path if path.is_dir() else path.parent)
    if page is not None:
        page.write_text(table(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
