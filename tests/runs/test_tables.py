"""Tables on the screen: no cell is cut."""

import pytest
from rich.table import Table

from voxelwave.runs.tables import print_rows, show_table

LONG = "a long name of a model, with many words after it, " * 5


def test_a_table_in_a_pipe_is_whole(capsys):
    table = Table("model", "interval")
    table.add_row(LONG, "0.500 (not estimable)")
    show_table(table)
    print_rows("title", [{"name": LONG}, {"name": "b"}])
    assert capsys.readouterr().out.count(LONG.strip()) == 2


def test_a_table_on_a_narrow_terminal_is_folded_and_not_cut(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    table = Table("model", "interval")
    table.add_row("adhdeepnet", "0.500 (not estimable)")
    show_table(table)
    assert "…" not in capsys.readouterr().out


@pytest.mark.parametrize("rows", [[], [{"a": 1}]])
def test_no_row_and_one_row_are_no_table(rows, capsys):
    print_rows("title", rows)
    assert capsys.readouterr().out.count("\n") == 2 * len(rows)
