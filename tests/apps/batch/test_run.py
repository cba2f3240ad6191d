"""Batches: each case is complete or absent, is done once, and is never lost, even if a run is interrupted."""

import errno
import hashlib
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from voxelwave.apps.batch import run as batch
from voxelwave.apps.batch.case import Case
from voxelwave.apps.batch.manifest import MANIFEST, STATE, append_line, compact, read_manifest
from voxelwave.apps.batch.options import FolderOptions
from voxelwave.apps.batch.run import FolderRun, choose_part, run_batch
from voxelwave.apps.batch.task import Batch, Task
from voxelwave.apps.bench.batch import contents, make_series
from voxelwave.runs.exit import DONE, ERROR, INTERRUPTED, SOME_FAILED, TERMINATED
from voxelwave.runs.workers import InProcess, LocalProcesses


@pytest.fixture(autouse=True)
def _workers_find_the_toys(monkeypatch):
    here = str(Path(__file__).parent)
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
def inputs(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        (folder / f"scan{number}.txt").write_text(f"content {number}")
    return folder


def cases_of(folder: Path) -> list[Case]:
    return [Case(path.stem, (path,), "image", "text", size=path.stat().st_size) for path in sorted(folder.iterdir())]


def run(
    folder: Path,
    output: Path,
    *,
    seconds: float = 0.0,
    log: Path | None = None,
    options=None,
    weights: Path | None = None,
    open_workers=InProcess,
    **how,
) -> int:
    arguments = {"seconds": seconds, "log": None if log is None else str(log)}
    order = FolderRun(
        work={"factory": "toy_batch:make", "arguments": arguments},
        output=output,
        root=folder,
        options=options or {"strength": 1},
        weights=weights,
    )
    return run_batch(cases_of(folder), order, FolderOptions(input=folder, **how), open_workers=open_workers)


def unfinished(output: Path) -> list[Path]:
    return list((output / STATE).glob("run-*"))


def test_every_case_gets_a_folder_and_a_line(inputs, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(inputs, output) == DONE
    entries = read_manifest(output)
    assert list(entries) == [f"scan{number}" for number in range(6)]
    entry = entries["scan2"]
    assert entry["inputs"] == [
        {"path": "scan2.txt", "sha256": hashlib.sha256((inputs / "scan2.txt").read_bytes()).hexdigest()}
    ]
    assert entry["outputs"] == ["scan2/0.txt", "scan2/1.txt", "scan2/2.txt"]
    assert entry["metrics"] == {"bytes": 9}
    assert (entry["status"], entry["error"]) == ("done", None)
    assert {"started", "seconds", "versions", "options_sha256", "weights_sha256", "options"} <= set(entry)
    assert unfinished(output) == []
    assert "6 of 6 done" in capsys.readouterr().out


def test_a_broken_case_is_recorded_in_a_line_and_the_others_go_on(inputs, tmp_path, capsys):
    (inputs / "scan1.txt").write_text("broken")
    (inputs / "scan3.txt").write_text("odd")
    output = tmp_path / "out"
    assert run(inputs, output) == SOME_FAILED
    entries = read_manifest(output)
    assert entries["scan1"]["error"] == "scan1.txt is broken"
    assert entries["scan3"]["error"] == "KeyError: 'no such thing'"
    assert [name for name, entry in entries.items() if entry["status"] == "done"] == [
        "scan0",
        "scan2",
        "scan4",
        "scan5",
    ]
    assert not (output / "scan1").exists()
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "scan1.txt is broken" in errors[0]


def test_what_is_done_and_unchanged_is_not_done_again(inputs, tmp_path):
    output, log, weights = tmp_path / "out", tmp_path / "log.txt", tmp_path / "weights"
    weights.write_text("one")

    def done_now(**more) -> list[str]:
        log.write_text("")
        assert run(inputs, output, log=log, weights=weights, **more) == DONE
        return sorted({line.split()[0] for line in log.read_text().splitlines()})

    everything = [f"scan{number}" for number in range(6)]
    assert done_now() == everything
    before = contents(output)
    assert done_now() == []
    assert contents(output) == before
    (inputs / "scan4.txt").write_text("changed")
    assert done_now() == ["scan4"]
    assert done_now() == []
    assert done_now(options={"strength": 2}) == everything
    weights.write_text("two")
    assert done_now(options={"strength": 2}) == everything
    (output / "scan0" / "1.txt").unlink()
    (output / "scan2" / "2.txt").write_text("cut")
    assert done_now(options={"strength": 2}) == ["scan0", "scan2"]
    (output / MANIFEST).unlink()
    assert done_now(options={"strength": 2}) == []
    assert sorted(read_manifest(output)) == everything  # the table is rebuilt from the folders


def test_a_run_that_finds_everything_done_starts_no_worker(inputs, tmp_path, capsys):
    output = tmp_path / "out"
    run(inputs, output)
    capsys.readouterr()

    def no_workers():
        raise AssertionError("a worker was started")

    assert run(inputs, output, open_workers=no_workers) == DONE
    assert "0 of 6 done, 6 done before and unchanged" in capsys.readouterr().out
    (output / "scan3" / "case.json").unlink()
    with pytest.raises(AssertionError, match="a worker was started"):
        run(inputs, output, open_workers=no_workers)


def test_a_failed_case_is_tried_again_and_keeps_an_older_result_apart(inputs, tmp_path):
    output = tmp_path / "out"
    assert run(inputs, output) == DONE
    (inputs / "scan1.txt").write_text("broken")
    assert run(inputs, output) == SOME_FAILED
    assert read_manifest(output)["scan1"]["status"] == "failed"
    assert read_manifest(output)["scan1"]["outputs"] == []
    (inputs / "scan1.txt").write_text("content 1")
    assert run(inputs, output) == DONE
    assert read_manifest(output)["scan1"]["status"] == "done"


def test_out_of_memory_makes_the_work_smaller_and_tries_again(inputs, tmp_path):
    (inputs / "scan2.txt").write_text("large")
    output, log = tmp_path / "out", tmp_path / "log.txt"
    assert run(inputs, output, log=log) == DONE
    tried = [line for line in log.read_text().splitlines() if line.startswith("scan2")]
    assert tried == ["scan2 size 8", "scan2 size 4", "scan2 size 2"]
    assert "scan3 size 8" in log.read_text()  # the next case has all the memory again
    assert read_manifest(output)["scan2"]["warnings"][:2] == [
        "memory ran out; tried again with size 4",
        "memory ran out; tried again with size 2",
    ]


def test_a_full_disk_is_an_error_that_loses_nothing(inputs, tmp_path, capsys):
    output = tmp_path / "out"
    (inputs / "scan3.txt").write_text("full")
    assert run(inputs, output) == ERROR
    error = capsys.readouterr().err
    assert "no space left for results" in error
    assert "3 of 6 done" in error
    assert sorted(read_manifest(output)) == ["scan0", "scan1", "scan2"]
    assert unfinished(output) == []
    (inputs / "scan3.txt").write_text("content 3")
    assert run(inputs, output) == DONE
    assert len(read_manifest(output)) == 6


@pytest.mark.parametrize("place", ["write", "fsync", "replace"])
def test_a_disk_that_is_full_for_the_record_loses_no_line(inputs, tmp_path, monkeypatch, place):
    """The incomplete line is removed, results are kept, and the next run continues from them."""
    output = tmp_path / "out"
    assert run(inputs, output) == DONE
    before = (output / MANIFEST).read_bytes()
    (inputs / "scan9.txt").write_text("content 9")
    calls = []

    def full(*words, **options):
        calls.append(words)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if place == "write":
            patch.setattr(Path, "open", _full_for(MANIFEST, Path.open))
        else:
            patch.setattr(batch.os, place, full)
        assert run(inputs, output) == ERROR
    assert (output / MANIFEST).read_bytes() == before
    assert run(inputs, output) == DONE
    assert len(read_manifest(output)) == 7


def _full_for(name: str, real):
    class Full:
        def __init__(self, stream):
            self._stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self._stream.close()

        def __getattr__(self, attribute):
            return getattr(self._stream, attribute)

        def write(self, data):
            self._stream.write(data[:20])  # some of it still had room on the disk
            self._stream.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    def opened(self, mode="r", *rest, **options):
        stream = real(self, mode, *rest, **options)
        return Full(stream) if self.name == name and "a" in mode else stream

    return opened


def test_parts_of_an_array_make_the_whole(inputs, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(inputs, whole) == DONE
    for number in (2, 1, 4, 3):
        assert run(inputs, parts, part=f"{number}/4") == DONE
    assert contents(parts) == contents(whole)
    chosen = [case.identifier for n in range(1, 5) for case in choose_part(cases_of(inputs), f"{n}/4")]
    assert sorted(chosen) == [f"scan{number}" for number in range(6)]
    for wrong in ("0/3", "4/3", "x", "1/", "-1/2"):
        with pytest.raises(ValueError, match="part must be i/n"):
            run(inputs, parts, part=wrong)


@pytest.mark.slow
def test_local_processes_give_the_same_as_one(inputs, tmp_path):
    (inputs / "scan1.txt").write_text("broken")
    outputs = [tmp_path / "one", tmp_path / "two"]
    assert run(inputs, outputs[0]) == SOME_FAILED
    assert run(inputs, outputs[1], open_workers=None, jobs=2, threads=1) == SOME_FAILED
    assert contents(outputs[0]) == contents(outputs[1])


@pytest.mark.slow
def test_a_worker_that_dies_costs_one_case(inputs, tmp_path):
    (inputs / "scan2.txt").write_text("die")
    output = tmp_path / "out"
    assert run(inputs, output, open_workers=lambda: LocalProcesses(2)) == SOME_FAILED
    entries = read_manifest(output)
    assert [name for name, entry in entries.items() if entry["status"] == "failed"] == ["scan2"]
    assert "ended abruptly" in entries["scan2"]["error"]
    assert len(entries) == 6


def test_work_that_cannot_be_built_is_one_error_and_no_failed_cases(inputs, tmp_path):
    spec = {"factory": "toy_batch:cannot_be_made", "arguments": {}}
    order = FolderRun(work=spec, output=tmp_path / "out", root=inputs, options={})
    with pytest.raises(ValueError, match="the weights are damaged"):
        run_batch(cases_of(inputs), order, FolderOptions(), open_workers=InProcess)
    assert read_manifest(tmp_path / "out") == {}


def test_dry_run_shows_the_plan_and_touches_nothing(inputs, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(inputs, output, dry_run=True) == DONE
    assert not output.exists()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[:6]] == [[f"scan{n}", "to", "do"] for n in range(6)]
    run(inputs, output)
    capsys.readouterr()
    assert run(inputs, output, dry_run=True) == DONE
    assert capsys.readouterr().out.count("done before") == 6


def test_killed_at_random_twenty_times_it_ends_like_an_undisturbed_run(inputs, tmp_path):
    """Each kill is a SIGKILL during the work, sent to a process that has already loaded all packages."""
    (inputs / "scan1.txt").write_text("broken")
    quiet, output = tmp_path / "quiet", tmp_path / "out"
    assert run(inputs, quiet) == SOME_FAILED
    rng = np.random.default_rng(7)
    kills = 0
    for number in range(60):
        if kills == 20:
            break
        if number % 5 == 4:  # and now and then a case that must be repeated
            (output / f"scan{number % 6}" / "0.txt").unlink(missing_ok=True)
        process = get_context("fork").Process(target=run, args=(inputs, output), kwargs={"seconds": 0.01})
        process.start()
        process.join(float(rng.uniform(0.002, 0.15)))
        kills += process.is_alive()
        process.kill()
        process.join()
    assert kills >= 10
    assert run(inputs, output, seconds=0.01) == SOME_FAILED
    assert contents(output) == contents(quiet)
    assert unfinished(output) == []


def test_two_runs_on_one_folder_do_not_damage_each_other(inputs, tmp_path):
    quiet, output, log = tmp_path / "quiet", tmp_path / "out", tmp_path / "log.txt"
    assert run(inputs, quiet) == DONE
    context = get_context("fork")
    runs = [context.Process(target=run, args=(inputs, output), kwargs={"seconds": 0.02, "log": log}) for _ in range(3)]
    for process in runs:
        process.start()
    for process in runs:
        process.join(60)
    assert [process.exitcode for process in runs] == [0, 0, 0]
    assert contents(output) == contents(quiet)
    assert sorted(line.split()[0] for line in log.read_text().splitlines()) == [f"scan{n}" for n in range(6)]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, TERMINATED), (signal.SIGINT, INTERRUPTED)])
def test_signals_end_a_run_cleanly_and_it_goes_on(inputs, tmp_path, number, code):
    quiet, output = tmp_path / "quiet", tmp_path / "out"
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom test_run import run\n"
        "if __name__ == '__main__':\n"
        f"    sys.exit(run(Path({str(inputs)!r}), Path({str(output)!r}), seconds=0.3, open_workers=None, jobs=2))\n"
    )
    # a shell that starts the tests in the background passes on an ignored SIGINT
    before = signal.signal(number, signal.SIG_DFL)
    try:
        process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(number, before)
    end = time.monotonic() + 60
    while not read_manifest(output) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "run the same command again to continue" in errors
    assert "Traceback" not in errors
    assert unfinished(output) == []
    assert 0 < len(read_manifest(output)) < 6
    assert run(inputs, output) == run(inputs, quiet) == DONE
    assert contents(output) == contents(quiet)


def test_a_line_that_was_cut_off_does_not_hurt(tmp_path):
    append_line(tmp_path, {"case": "a", "status": "done"})
    with (tmp_path / MANIFEST).open("ab") as stream:
        stream.write(b'{"case": "b", "sta')
    append_line(tmp_path, {"case": "c", "status": "done"})
    append_line(tmp_path, {"case": "a", "status": "failed"})
    assert {name: entry["status"] for name, entry in read_manifest(tmp_path).items()} == {"a": "failed", "c": "done"}
    compact(tmp_path)
    assert len((tmp_path / MANIFEST).read_text().splitlines()) == 2


def test_messages_say_no_names_unless_asked(tmp_path, capsys):
    folder = tmp_path / "in" / "Doe^Jane_19570204"
    folder.mkdir(parents=True)
    (folder / "brain of Jane Doe.txt").write_text("broken")
    case = Case("image-1234", tuple(folder.iterdir()), "image", "text")
    spec = {"factory": "toy_batch:make", "arguments": {}}
    for keep in (False, True):
        output = tmp_path / f"out{keep}"
        order = FolderRun(work=spec, output=output, root=tmp_path / "in", options={})
        how = FolderOptions(keep_identifiers=keep)
        assert run_batch([case], order, how, open_workers=InProcess) == SOME_FAILED
        told = capsys.readouterr()
        everything = told.out + told.err + (output / MANIFEST).read_text()
        everything += "".join(str(path) for path in output.rglob("*"))
        for word in ("Doe", "Jane", "19570204"):
            assert (word in everything) == keep


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_that_must_not_be_written_is_an_error(inputs, tmp_path):
    output = tmp_path / "out"
    output.mkdir(mode=0o500)
    with pytest.raises(OSError, match="denied"):
        run(inputs, output)


def test_units_run_on_a_dask_cluster_too(inputs, tmp_path):
    distributed = pytest.importorskip("distributed")
    quiet, output = tmp_path / "quiet", tmp_path / "out"
    assert run(inputs, quiet) == DONE
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, protocol="tcp"
    ) as cluster:
        address = cluster.scheduler_address.replace("tcp://", "dask://")
        assert run(inputs, output, open_workers=None, cluster=address) == DONE
    assert contents(output) == contents(quiet)


@pytest.mark.slow
def test_units_run_as_jobs_of_slurm_too(inputs, tmp_path):
    pytest.importorskip("submitit")
    for path in sorted(inputs.iterdir())[2:]:
        path.unlink()
    quiet, output = tmp_path / "quiet", tmp_path / "out"
    assert run(inputs, quiet) == DONE
    assert run(inputs, output, open_workers=None, cluster="slurm-local") == DONE
    assert contents(output) == contents(quiet)


@pytest.mark.slow
def test_units_run_on_a_real_slurm_too(inputs, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    slurm = importlib.import_module("slurm")
    if slurm.missing():
        pytest.skip(slurm.missing())
    pytest.importorskip("submitit")
    for path in sorted(inputs.iterdir())[2:]:
        path.unlink()
    quiet, output = tmp_path / "quiet", tmp_path / "out"
    assert run(inputs, quiet) == DONE
    with tempfile.TemporaryDirectory(prefix="slurm") as folder, slurm.OneNode(Path(folder)) as node:
        for name, value in node.environment.items():
            monkeypatch.setenv(name, value)
        assert run(inputs, output, open_workers=None, cluster="slurm") == DONE
    assert contents(output) == contents(quiet)


def test_series_for_the_benchmark_are_real_ones_and_some_are_broken(shared_data, tmp_path):
    from voxelwave.apps.batch.find import find_cases
    from voxelwave.volumes import read_volume

    make_series(shared_data / "dicom" / "siemens_t1_sag_35slices", tmp_path / "in", count=12, broken=5, slices=3)
    cases = find_cases(tmp_path / "in", ("dicom",)).cases
    good = [case for case in cases if _reads(read_volume, case)]
    assert (len(cases), len(good)) == (12, 7)
    assert all(len(case.inputs) == 3 for case in good)


def _reads(read_volume, case) -> bool:
    try:
        return case.reason is None and read_volume(case.inputs[0].parent).array.shape[2] == 3
    except ValueError:
        return False


def _redacted(text: str, root: Path, name: str) -> str:
    path = root / name
    case = Case("case", (path,), "image", "text")
    batch = Batch({}, Path("/results"), root, {})
    return Task(case, batch, ("", None), Path("/scratch")).redacted(text)


def test_ordinary_words_of_a_path_are_redacted_beside_a_separator_only():
    shown = _redacted("cut off.png is damaged or cut off: see cut off/x", Path("/in"), "cut off/cut off.png")
    assert "is damaged or cut off: see [...]/x" in shown


def test_only_whole_words_of_a_name_are_redacted():
    shown = _redacted("Smith_tilt.dcm: the stack is tilted; Smith_tilt has no tilt", Path("/in"), "Smith_tilt.dcm")
    assert "Smith" not in shown
    assert "is tilted" in shown


@pytest.mark.parametrize("root", [".", "a", "in"])
def test_a_relative_input_folder_changes_no_words_of_a_message(root):
    shown = _redacted("a slice is cut off in the file. Get a new one", Path(root), "image-1.png")
    assert shown == "a slice is cut off in the file. Get a new one"


def test_paths_of_this_machine_do_not_stay_in_a_message():
    shown = _redacted("cannot read /in/Smith.png, nor /in/other.png", Path("/in"), "Smith.png")
    assert "Smith" not in shown
    assert "/in/" not in shown
