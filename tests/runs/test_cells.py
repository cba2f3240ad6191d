"""Cells are complete or absent, are done once, and give the same results wherever they run."""

import json
import os
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelwave.runs.cells import run_cell
from voxelwave.runs.drive import drive, remove_unfinished
from voxelwave.runs.workers import InProcess, LocalProcesses, open_pool


@pytest.fixture(autouse=True)
def _workers_find_the_toys(monkeypatch):
    here = str(Path(__file__).parent)
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))  # for Slurm's jobs


@pytest.fixture
def cell(tmp_path):
    def make(number: int, function: str = "double", **more) -> dict:
        content = {"id": f"c{number}", "function": f"toy_cells:{function}", "threads": 1, "number": number}
        return {**content, "log": str(tmp_path / "log.txt"), **more}

    return make


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "cells"
    path.mkdir()
    return path


class Shuffled:
    """A pool that finishes its cells in random order."""

    pause, shared = 0.0, False

    def __init__(self, slots: int, seed: int):
        self.slots, self._generator = slots, np.random.default_rng(seed)
        self._waiting: list[tuple[Future, Path, dict]] = []

    def submit(self, folder, cells):
        futures = [_Late(self) for _ in cells]
        self._waiting += zip(futures, [folder] * len(cells), cells, strict=True)
        return futures

    def end_one(self):
        future, folder, cell = self._waiting.pop(self._generator.integers(len(self._waiting)))
        future.value = run_cell(str(folder), cell)

    def result(self, future):
        return future.value

    def close(self, *, now):
        pass


class _Late:
    def __init__(self, pool):
        self.pool, self.value = pool, None

    def done(self):
        if self.value is None:
            self.pool.end_one()
        return self.value is not None


def adding(make, start: int, rounds: int):
    """A group that yields two cells at a time; new cells depend on the last two results."""
    number, seen = start, []
    for step in range(rounds):
        results = yield [make(number + k, id=f"{start}-{step}-{k}") for k in (0, 1)]
        seen += [result["value"] for result in results]
        number = seen[-1] % 7
    return seen


def test_a_finished_cell_is_complete_and_does_not_run_again(cell, folder):
    first = run_cell(str(folder), cell(3))
    assert first["value"] == 6
    path = folder / "c3"
    assert sorted(p.name for p in path.iterdir()) == ["cell.json", "note.txt", "result.json"]
    assert json.loads((path / "result.json").read_text()) == first
    assert run_cell(str(folder), cell(3)) == first
    assert Path(cell(3)["log"]).read_text() == "c3\n"
    with pytest.raises(ValueError, match="holds a cell with other content"):
        run_cell(str(folder), cell(4, id="c3"))


def test_a_failed_cell_leaves_nothing_and_is_named(cell, folder):
    def group():
        yield [cell(1, "fail")]

    with pytest.raises(ValueError, match="cell c1: the number must be even"):
        drive([group()], InProcess(), folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_result_that_is_no_number_is_named_and_leaves_no_cell(cell, folder, value):
    with pytest.raises(ValueError, match=f"value is {value}: a number that is not finite is no result"):
        run_cell(str(folder), cell(1, "undefined", value=value))
    assert list(folder.iterdir()) == []


def test_the_remains_of_a_killed_cell_are_no_result(cell, folder):
    (folder / ".c1.abcd").mkdir()
    (folder / ".c1.abcd" / "cell.json").write_text(json.dumps(cell(1)))
    assert run_cell(str(folder), cell(1))["value"] == 2
    remove_unfinished(folder)
    assert [p.name for p in folder.iterdir()] == ["c1"]


@settings(max_examples=12, deadline=None)
@given(rounds=st.lists(st.integers(0, 3), min_size=1, max_size=4), slots=st.integers(1, 5), seed=st.integers(0, 999))
def test_outcomes_do_not_depend_on_the_order_in_which_cells_finish(tmp_path_factory, rounds, slots, seed):
    folders = [tmp_path_factory.mktemp("cells") for _ in range(2)]

    def make(number, **more):
        content = {"function": "toy_cells:double", "threads": 1, "number": number}
        return {**content, "log": str(folders[0].parent / "log.txt"), **more}

    def groups():
        return [adding(make, start, count) for start, count in enumerate(rounds)]

    plain = drive(groups(), InProcess(), folders[0])
    assert drive(groups(), Shuffled(slots, seed), folders[1]) == plain
    assert [len(seen) for seen in plain] == [2 * count for count in rounds]


def test_local_processes_give_the_same_results_and_report_finished_cells(cell, folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    pool = LocalProcesses(2)
    try:
        outcomes = drive([adding(cell, 1, 2), adding(cell, 5, 2)], pool, folder)
    finally:
        pool.close(now=False)
    assert outcomes == drive([adding(cell, 1, 2), adding(cell, 5, 2)], InProcess(), other)
    told = []
    drive([adding(cell, 1, 3)], InProcess(), folder, lambda cell, result, found: told.append((cell["id"], found)))
    assert told == [(f"1-{step}-{k}", step < 2) for step in range(3) for k in (0, 1)]


def test_the_error_of_a_dead_worker_says_how_to_continue(cell, folder):
    def group():
        yield [cell(1, "die")]

    pool = LocalProcesses(2)
    try:
        with pytest.raises(OSError, match=r"cell c1: a worker process ended abruptly .* run the same command again"):
            drive([group()], pool, folder)
    finally:
        pool.close(now=True)


def test_threads_are_those_of_the_cell(cell, folder):
    assert run_cell(str(folder), cell(1, "where", threads=3))["threads"] == "3"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"cluster": "kubernetes"}, 'must be "dask://host:port", "slurm" or "slurm-local"'),
        ({"cluster": "slurm-local", "slurm": {"nonsense": 1}}, "--slurm takes submitit's parameters"),
    ],
)
def test_impossible_pools_are_refused_in_one_line(folder, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        open_pool(folder, **options)


def test_slurm_without_its_programs_is_refused_in_one_line(folder, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(OSError, match="needs sbatch"):
        open_pool(folder, cluster="slurm")


def test_two_runs_on_one_dask_cluster_keep_their_results_apart(cell, folder, tmp_path):
    """The cells of the two runs have the same names."""
    distributed = pytest.importorskip("distributed")
    other = tmp_path / "other"
    other.mkdir()
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp"
    ) as cluster:
        address = cluster.scheduler_address.replace("tcp://", "dask://")
        pools = [open_pool(path, cluster=address) for path in (folder, other)]
        futures = [
            pool.submit(path, [cell(number, id="same")])[0]
            for pool, path, number in zip(pools, (folder, other), (2, 5), strict=True)
        ]
        results = [pool.result(future)["value"] for pool, future in zip(pools, futures, strict=True)]
        for pool in pools:
            pool.close(now=False)
    assert results == [4, 10]
    assert (other / "same" / "result.json").is_file()
