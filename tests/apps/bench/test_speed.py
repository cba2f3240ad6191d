"""The tables of speed: ratios, goals and the page."""

import importlib

import pytest

from voxelwave.apps.bench import speed
from voxelwave.apps.bench.options import Speed
from voxelwave.apps.bench.rows.row import Row, cpu_seconds


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        ({}, None),
        ({"most": 2.0}, True),
        ({"most": 1.9}, False),
        ({"least": 2.0}, True),
        ({"least": 2.1}, False),
        ({"peer": "other", "theirs": 5.0, "most_of_peer": 0.4}, True),
        ({"peer": "other", "theirs": 4.9, "most_of_peer": 0.4}, False),
        ({"most": 2.0, "peer": "other", "theirs": 4.0, "most_of_peer": 0.4}, False),
        ({"most_of_peer": 0.4}, False),  # the peer is missing
    ],
)
def test_a_goal_is_met_if_each_of_its_parts_is(goal, met):
    assert Row(what="a call", unit="CPU s", ours=2.0, **goal).met is met


def test_a_row_in_words_names_both_figures_their_ratio_and_the_goal():
    row = Row(what="a call", unit="ms", ours=2.0, peer="other", theirs=8.0, most=3, most_of_peer=0.5)
    assert row.record() == {
        "what": "a call",
        "ours": "2 ms",
        "peer": "other",
        "its figure": "8 ms",
        "ratio": "0.25",
        "goal": "≤ 3 ms, ratio ≤ 0.5",
        "met": "yes",
    }


def test_the_clock_calls_the_work_as_often_as_it_says():
    calls = []
    assert cpu_seconds(lambda: calls.append(1), 3, warm=2) >= 0
    assert len(calls) == 5


def test_every_field_has_rows_and_the_page_shows_its_tables(tmp_path, monkeypatch, capsys):
    row = Row(what="a call", unit="ms", ours=2.0, peer="other", theirs=8.0, most_of_peer=0.5)
    modules = {f"voxelwave.apps.bench.rows.{field}" for field in speed.FIELDS}
    seen = set()

    def found(name):
        seen.add(name)
        return type("Rows", (), {"rows": staticmethod(lambda quick: [row, row])})

    monkeypatch.setattr(speed.importlib, "import_module", found)
    speed.everything(Speed(output=tmp_path / "performance.md", quick=True))
    assert seen == modules
    page = (tmp_path / "performance.md").read_text()
    assert page.count("| a call | 2 ms | other | 8 ms | 0.25 | ratio ≤ 0.5 | yes |") == 2 * len(speed.FIELDS)
    assert all(f"## {field}" in page for field in speed.FIELDS)
    assert "ratio ≤ 0.5" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("field", ["start", "kernels"])
def test_the_rows_of_a_field_are_measured(field):
    rows = importlib.import_module(f"voxelwave.apps.bench.rows.{field}").rows(quick=True)
    assert len(rows) >= 2
    assert all(row.ours > 0 for row in rows)
