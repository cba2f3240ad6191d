"""`voxelwave attention tasks` writes a page and a record."""

import json

import pytest

from voxelwave.apps.attention import tasks as command
from voxelwave.apps.attention.task_parts import PARTS, Part
from voxelwave.apps.cli import main


def test_the_page_shows_tables_and_pictures_of_the_chosen_part(tmp_path, monkeypatch, capsys):
    def stub(**options):
        options["tell"]("working")
        return Part("A <title>", ["One & two"], [[{"a": "1 < 2"}]], [("<svg id='x'></svg>", "caption")], {"n": 1})

    monkeypatch.setitem(command.PARTS, "shortcut", stub)
    assert main(["attention", "tasks", "--part", "shortcut", "--output", str(tmp_path / "out"), "--quick"]) == 0
    page = (tmp_path / "out" / "tasks.html").read_text()
    assert "A &lt;title&gt;" in page
    assert "1 &lt; 2" in page
    assert "<svg id='x'></svg>" in page
    assert "quick run" in page
    record = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert record["shortcut"] == {"n": 1}
    assert "working" in capsys.readouterr().out


def test_wrong_options_are_usage_errors(tmp_path):
    assert main(["attention", "tasks", "--part", "all", "--seeds", "0", "--output", str(tmp_path)]) == 2
    assert main(["attention", "tasks", "--part", "other", "--output", str(tmp_path)]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("part", list(PARTS))
def test_every_part_runs(part, tmp_path):
    assert main(["attention", "tasks", "--part", part, "-o", str(tmp_path), "--quick", "--seeds", "1"]) == 0
    record = json.loads((tmp_path / "tasks.json").read_text())
    assert record[part]
    assert "dea after arXiv" in (tmp_path / "tasks.html").read_text()
