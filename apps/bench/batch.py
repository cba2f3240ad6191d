"""`voxelwave batch benchmark`: one run over many series, compared with one process per series and with killed runs."""

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import generate_uid

from ...runs.json_files import write_json
from ...runs.record import hardware, package_versions
from ...volumes import read_volume
from ..batch.find import find_cases
from ..batch.manifest import MANIFEST, STATE, read_manifest
from .options import SERIES, BatchBenchmark

_TIMES = ("started", "seconds", "versions")  # keys of a manifest line that differ between runs
_EPOCH = "1700000000"  # a fixed date for all results, so that their bytes can be compared
_POLL_S = 0.05


def benchmark(options: BatchBenchmark) -> None:
    """Run the command."""
    folder = options.output / SERIES
    make_series(options.data, folder, count=options.series, broken=options.broken, slices=options.slices)
    words = ["--weights", str(options.weights), "--threads", str(options.threads), "--device", "cpu"]
    run = _command(folder, options.output / "undisturbed", *words, "--jobs", str(options.jobs))
    figures: dict[str, Any] = {
        "series": options.series,
        "broken": options.broken,
        "slices": options.slices,
        "jobs": options.jobs,
        "threads": options.threads,
    }
    first = measure(run, allowed=(0, 3))
    figures |= {"batch": first.figures()}
    counts = [entry["status"] for entry in read_manifest(options.output / "undisturbed").values()]
    figures |= {"done": counts.count("done"), "failed": counts.count("failed")}
    print(f"one run: {first}; {counts.count('done')} done, {counts.count('failed')} failed", flush=True)
    if options.part in ("all", "cost"):
        again = measure(run, allowed=(0, 3))
        print(f"the same again, all found done or failing again: {again}", flush=True)
        figures |= {"batch again": again.figures()}
        figures |= {"one process per series": _one_by_one(folder, options.output / "single", words)}
    if options.part in ("all", "kills"):
        figures |= {
            "kills": _killed(
                folder,
                options.output,
                [*words, "--jobs", str(options.jobs)],
                options.kills,
                options.seed,
                first.seconds,
            )
        }
    figures |= {"seed": options.seed, "hardware": hardware(), "versions": package_versions()}
    write_json(options.output / "benchmark-batch.json", figures)
    print(f"wrote {options.output}/benchmark-batch.json")


@dataclass(frozen=True)
class Cost:
    """Time and memory of a command.

    Args:
        seconds: wall time.
        cpu_seconds: CPU time of the command and its children, which depends little on other load on the machine.
        peak_mib: peak memory of the command and all its children together.
        code: exit code of the command.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float
    code: int

    def figures(self) -> dict[str, float]:
        """The figures for a record."""
        return {
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu_seconds, 1),
            "peak_mib": round(self.peak_mib),
        }

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, {self.cpu_seconds:.1f} CPU s, {self.peak_mib:.0f} MiB"


def measure(command: list[str], *, allowed: tuple[int, ...]) -> Cost:
    """Run a command, and measure its time and peak memory, including its children.

    Raises:
        OSError: the command ended with an exit code that is not in `allowed`.
    """
    started, before = time.perf_counter(), _cpu_of_children()
    process = _start(command)
    peak = [0.0]

    def watch() -> None:
        while process.poll() is None:
            peak[0] = max(peak[0], tree_memory_mib(process.pid))
            time.sleep(_POLL_S)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    errors = process.communicate()[1].decode(errors="replace")
    seconds = time.perf_counter() - started
    watcher.join()
    if process.returncode not in allowed:
        raise OSError(f"{' '.join(command)} ended with code {process.returncode}: {errors.strip()[-300:]}")
    return Cost(seconds, _cpu_of_children() - before, peak[0], process.returncode)


def _cpu_of_children() -> float:
    """CPU seconds of all finished child processes."""
    times = os.times()
    return times.children_user + times.children_system


def tree_memory_mib(pid: int) -> float:
    """Proportional set size of a process and all its descendants, MiB; 0 if /proc does not report it."""
    total = 0.0
    for one in _tree(pid):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return total


def contents(output: Path) -> dict[str, str]:
    """File name -> hash for a folder of results, without the page and without the times in the manifest."""
    found = {}
    for path in sorted(p for p in output.rglob("*") if p.is_file() and STATE not in p.parts):
        data = path.read_bytes()
        if path.name == MANIFEST:
            lines = [json.loads(line) for line in data.splitlines()]
            data = json.dumps([{k: v for k, v in line.items() if k not in _TIMES} for line in lines]).encode()
        if path.suffix != ".html":
            found[path.relative_to(output).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def make_series(data: Path, folder: Path, *, count: int, broken: int, slices: int) -> None:
    """Write series of neighbouring images from real series, as new patients, studies and series in nested folders.

    Raises:
        ValueError: `data` holds no series that can be used.
    """

    pieces = list(_pieces(data, slices))
    if not pieces:
        raise ValueError(f"{data} must hold DICOM series of at least {slices} single images, got none")
    damages: list[Callable[[list[Path]], None]] = [_empty, _cut, _without_slice, _without_place, _tilted]
    for number in range(count):
        patient, study = number % 17, number % 3
        place = folder / f"PAT{patient:02d}" / f"ST{study}" / f"SE{number:03d}"
        place.mkdir(parents=True)
        written = []
        for index, path in enumerate(pieces[number % len(pieces)]):
            image = pydicom.dcmread(path)
            image.PatientID, image.PatientName = f"P{patient:02d}", f"Name^{patient:02d}"
            image.StudyInstanceUID = generate_uid(entropy_srcs=["study", str(patient), str(study)])
            image.SeriesInstanceUID = generate_uid(entropy_srcs=["series", str(number)])
            image.SOPInstanceUID = generate_uid(entropy_srcs=["image", str(number), str(index)])
            image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
            written.append(place / f"IM{index:04d}")
            image.save_as(written[-1], enforce_file_format=True)
        if number % (count // broken if broken else count + 1) == 1 and number // (count // broken) < broken:
            damages[number // (count // broken) % len(damages)](written)


def _pieces(data: Path, slices: int) -> Iterator[list[Path]]:
    """Runs of neighbouring images from the readable real series."""

    cases = [case for case in find_cases(data, ("dicom",)).cases if case.reason is None]
    for case in sorted(cases, key=lambda case: str(case.inputs[0])):
        if len({path.parent for path in case.inputs}) > 1:
            continue
        images = [pydicom.dcmread(path, stop_before_pixels=True) for path in case.inputs]
        if len(images) < slices or any("NumberOfFrames" in image for image in images):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if read_volume(case.inputs[0].parent).array.ndim != 3:
                    continue
        except (ValueError, OSError):
            continue
        normal = _normal(images[0])
        heights = [sum(a * float(b) for a, b in zip(normal, i.ImagePositionPatient, strict=True)) for i in images]
        ordered = [path for _, path in sorted(zip(heights, case.inputs, strict=True))]
        for start in range(0, len(ordered) - slices + 1, slices):
            yield ordered[start : start + slices]


def _normal(image: Any) -> list[float]:

    row, column = np.array([float(v) for v in image.ImageOrientationPatient]).reshape(2, 3)
    return list(np.cross(row, column))


def _empty(paths: list[Path]) -> None:
    target = paths[-1].with_suffix(".dcm")
    paths[-1].rename(target)
    target.write_bytes(b"")


def _cut(paths: list[Path]) -> None:
    paths[0].write_bytes(paths[0].read_bytes()[:-5000])


def _without_slice(paths: list[Path]) -> None:
    """Move the last slice elsewhere, so that a slice is missing."""
    _change(paths[-1], lambda image: _shift(image, by=2.7))


def _without_place(paths: list[Path]) -> None:
    def change(image: Any) -> None:
        del image.ImagePositionPatient

    _change(paths[0], change)


def _tilted(paths: list[Path]) -> None:
    def change(image: Any) -> None:
        image.ImagePositionPatient[1] = float(image.ImagePositionPatient[1]) + 3.0
        image.ImagePositionPatient[0] = float(image.ImagePositionPatient[0]) + 3.0

    _change(paths[-1], change)


def _shift(image: Any, *, by: float) -> None:
    moved = [float(v) + by * n for v, n in zip(image.ImagePositionPatient, _normal(image), strict=True)]
    image.ImagePositionPatient = [f"{value:.6g}" for value in moved]


def _change(path: Path, change: Callable[[Any], None]) -> None:

    image = pydicom.dcmread(path)
    change(image)
    image.save_as(path, enforce_file_format=True)


def _one_by_one(folder: Path, output: Path, options: list[str]) -> dict[str, Any]:
    """Run one process per series; returns the sum of the times and the largest memory."""
    sum_of, failed = Cost(0.0, 0.0, 0.0, 0), 0
    for number, place in enumerate(sorted(p for p in folder.rglob("SE*") if p.is_dir())):
        cost = measure(_command(place, output / f"{number:03d}", *options), allowed=(0, 1, 3, 4))
        peak = max(sum_of.peak_mib, cost.peak_mib)
        sum_of = Cost(sum_of.seconds + cost.seconds, sum_of.cpu_seconds + cost.cpu_seconds, peak, 0)
        failed += cost.code != 0
    print(f"one process per series: {sum_of}; {failed} failed", flush=True)
    return {**sum_of.figures(), "failed": failed}


def _killed(
    folder: Path, output: Path, options: list[str], kills: int, seed: int, undisturbed_s: float
) -> dict[str, Any]:
    """Kill a run repeatedly, each time within half the time of a full run; then finish it and compare the results."""
    chance, target = random.Random(seed), output / "killed"
    command = _command(folder, target, *options)
    done: list[int] = []
    while len(done) < kills:
        process = _start(command)
        try:
            process.wait(chance.uniform(0.0, undisturbed_s / 2))
            process.communicate()
            print(f"the run finished before kill {len(done) + 1}; the results of some cases are removed", flush=True)
            for name in chance.sample(sorted(read_manifest(target)), 5):
                (target / name / "case.json").unlink(missing_ok=True)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            done.append(len(read_manifest(target)))
    end = measure(command, allowed=(0, 3))
    one, other = contents(output / "undisturbed"), contents(target)
    different = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    left = [path.name for path in (target / STATE).glob("run-*")]
    words = "byte-equal" if not different else f"{len(different)} files differ: {', '.join(different[:3])}"
    print(f"killed {len(done)} times ({done} lines by then), ended in {end}: {len(one)} files {words}", flush=True)
    return {"lines": done, "files": len(one), "different": different, "left behind": left}


def _command(source: Path, target: Path, *options: str) -> list[str]:
    words = ["restoration", "restore", "-i", str(source), "-o", str(target), *options]
    return [sys.executable, "-m", "voxelwave.apps.cli", *words]


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": _EPOCH}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def _tree(pid: int) -> list[int]:
    """The process and all its descendants."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found
