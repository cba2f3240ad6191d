"""--quiet, --verbose, --log-file and --json."""

import json
import sys
import warnings
from pathlib import Path

import pytest

from voxelwave.apps import cli
from voxelwave.apps.options import Options
from voxelwave.apps.screen import run_on_screen
from voxelwave.runs.exit import DONE, ERROR
from voxelwave.runs.outcome import add_outcome


def work() -> tuple[int, None]:
    print("a line")
    print("a note", file=sys.stderr)
    add_outcome(value=1.5, undefined=float("nan"), place=Path("x"))
    return DONE, None


def test_json_is_all_that_standard_output_holds(capsys):
    assert run_on_screen("voxelwave sample", Options(json=True), work) == DONE
    shown = capsys.readouterr()
    content = json.loads(shown.out)
    assert content["result"] == {"value": 1.5, "undefined": None, "place": "x"}
    assert (content["command"], content["exit_code"], content["error"]) == ("voxelwave sample", 0, None)
    assert shown.err.splitlines() == ["a line", "a note"]


def test_quiet_shows_notes_only(capsys):
    run_on_screen("voxelwave sample", Options(quiet=True), work)
    assert capsys.readouterr() == ("", "a note\n")


def test_the_log_file_has_each_line_with_its_time_and_grows(tmp_path, capsys):
    options = Options(log_file=tmp_path / "new" / "a.log", quiet=True)
    for _ in range(2):
        run_on_screen("voxelwave sample", options, work)
    lines = (tmp_path / "new" / "a.log").read_text().splitlines()
    assert [line[20:] for line in lines] == ["a line", "a note"] * 2
    assert all(line[4] == "-" and line[13] == ":" for line in lines)


def test_an_error_is_in_the_json_and_in_the_log(tmp_path, capsys):
    log = tmp_path / "a.log"
    words = ["info", str(tmp_path / "missing"), "--json", "--log-file", str(log)]
    assert cli.main(words) == ERROR
    content = json.loads(capsys.readouterr().out)
    assert content["exit_code"] == ERROR
    assert "no file or folder at" in content["error"]
    assert "no file or folder at" in log.read_text()


def test_a_log_file_below_a_file_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert cli.main(["weights", "--log-file", str(tmp_path / "file" / "a.log")]) == ERROR
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(("words", "shown"), [([], False), (["-v"], True)])
def test_verbose_shows_the_traceback(words, shown, tmp_path, capsys):
    assert cli.main(["info", str(tmp_path / "missing"), *words]) == ERROR
    assert ("Traceback" in capsys.readouterr().err) == shown


def test_streams_and_warnings_are_as_before_after_a_command(capsys):
    before = sys.stdout, sys.stderr, warnings.showwarning
    cli.main(["weights", "-q", "--json"])
    assert (sys.stdout, sys.stderr, warnings.showwarning) == before
