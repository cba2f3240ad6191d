"""Outputs of a run appear together or not at all, and only one run at a time writes them."""

import os
import subprocess
import sys

import pytest

from voxelwave.runs import files
from voxelwave.runs.files import output_lock, outputs_beside, outputs_together


def _write(folder, words, names=("a.txt", "b/c.txt")):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(words)


def _read(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_files_appear_together_and_others_stay(tmp_path):
    output = tmp_path / "new" / "out"
    with outputs_together(output) as folder:
        _write(folder, "first")
        assert not output.exists()
    assert _read(output) == {"a.txt": "first", "b/c.txt": "first"}
    (output / "notes.txt").write_text("mine")
    with outputs_together(output, replaces=["b/c.txt"]) as folder:
        _write(folder, "second", ["a.txt"])
    assert _read(output) == {"a.txt": "second", "notes.txt": "mine"}
    assert os.listdir(output.parent) == ["out"]


def test_a_run_that_fails_leaves_what_was_there(tmp_path):
    with outputs_together(tmp_path / "out") as folder:
        _write(folder, "first")

    def fail(output):
        with outputs_together(output) as folder:
            _write(folder, "second")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "out")
    assert _read(tmp_path / "out") == {"a.txt": "first", "b/c.txt": "first"}
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "none")
    assert os.listdir(tmp_path) == ["out"]


def test_all_or_nothing_also_where_a_move_fails(tmp_path, monkeypatch):
    output = tmp_path / "out"
    with outputs_together(output) as folder:
        _write(folder, "first")
    replace = os.replace

    def full(source, target):
        if str(target).endswith("out/b/c.txt") and not str(source).endswith("old.part/b/c.txt"):
            raise OSError("no space left")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="no space left"), outputs_together(output) as folder:
        _write(folder, "second")
    assert _read(output) == {"a.txt": "first", "b/c.txt": "first"}


def test_a_second_run_is_refused_while_the_first_one_writes(tmp_path):
    program = "import sys; from voxelwave.runs.files import outputs_together\nwith outputs_together(sys.argv[1]): pass"
    program = program.replace("sys.argv[1]", "__import__('pathlib').Path(sys.argv[1])")
    with outputs_together(tmp_path / "out"):
        other = subprocess.run([sys.executable, "-c", program, tmp_path / "out"], capture_output=True, text=True)
    assert "another run is writing to" in other.stderr
    assert subprocess.run([sys.executable, "-c", program, tmp_path / "out"]).returncode == 0
    with output_lock(tmp_path / "a.png"), output_lock(tmp_path / "b.png"):
        pass


def test_a_file_is_no_folder_of_results(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="must be a folder"), outputs_together(tmp_path / "out"):
        pass


def test_what_a_killed_run_left_is_removed(tmp_path):
    (tmp_path / ".out.1234.part").mkdir()
    with outputs_together(tmp_path / "out") as folder:
        _write(folder, "new")
    assert os.listdir(tmp_path) == ["out"]


def test_an_output_and_its_report_appear_together_or_not_at_all(tmp_path):
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "a.json").mkdir()  # so that the report cannot be moved there
    with pytest.raises(OSError, match=r"a\.json"), outputs_beside(tmp_path / "a.txt") as together:
        _write_names(together, "a.txt", "a.json")
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.txt"]
    assert (tmp_path / "a.txt").read_text() == "first"


def _write_names(folder, *names):
    for name in names:
        (folder / name).write_text("second")
