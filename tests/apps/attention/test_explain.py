"""`voxelwave attention explain` describes scenes and recordings, and says only what its figures show."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import voxelwave
from voxelwave.apps.attention.explain import in_words
from voxelwave.apps.attention.heads import HeadRow, Removal, describe_heads, removal, removal_counts
from voxelwave.apps.attention.recordings import look_at_recordings
from voxelwave.apps.attention.subject import Case, Subject
from voxelwave.apps.attention.where import Reliance, Where, compared
from voxelwave.apps.cli import main
from voxelwave.attention_analysis.handmade import TwoStreamModel, planted_classifier
from voxelwave.attention_analysis.importance import Interval
from voxelwave.attention_analysis.trace import Head
from voxelwave.eeg.networks import ModelCard, build_network, save_network

from ..html import PROGRAM, html_faults


def planted_subject(generator):
    """A classifier of which head 1 carries all, with two inputs."""
    model, _ = planted_classifier(torch.tensor([0.0, 3.0, 0.0]))
    x = torch.randn(2, 7, 18, generator=generator, dtype=torch.float64)
    x[..., :3] = 0
    cases = [Case(f"input {i}", lambda i=i: model(x[i : i + 1]).softmax(1)) for i in range(2)]
    return Subject("Planted", "recording", "class", model, ["the only layer"], cases, [], ())


def test_only_the_planted_head_matters(generator):
    subject = planted_subject(generator)
    rows = describe_heads(subject)
    assert [row.head for row in rows if row.importance.mean > 1e-12] == [Head(0, 1)]
    assert all(0.5 < row.entropy.mean <= 1 for row in rows)
    assert all(row.map.shape == (24, 24) for row in rows)
    found = removal(subject, rows)
    assert len(found.random) == len(removal_counts(3)) == 4
    assert found.largest_first[0].mean == found.smallest_first[0].mean == 1
    assert found.smallest_first[2].mean == 1  # the planted head is removed last


def test_hidden_evidence_changes_a_network_that_reads_it(generator):
    model = TwoStreamModel(evidence=8.0)
    image, text = torch.randn(2, 1, 12, 4, generator=generator, dtype=torch.float64)
    evidence = torch.arange(12)[None] == 5
    x = model.embed(3 * image, text, evidence)
    case = Case("one", lambda: model(x).softmax(1))
    subject = Subject("Streams", "recording", "class", model, ["a", "b"], [case] * 2, [], ())
    most, random = look_at_recordings(subject).reliance
    assert most.effect.mean > random.effect.mean >= 0


def certain(value):
    return Interval(value, value, value)


ROW = HeadRow(
    Head(0, 0), Interval(0.2, 0.1, 0.3), certain(0.4), certain(0.5), certain(0.5), certain(0.1), "", None, None
)
SAME = Removal([certain(1)], [certain(1)], [certain(1)], [])


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (0.0, "hardly uses the target"),
        (0.5, "uses the target more than another object"),
        (0.11, "The intervals overlap"),
    ],
)
def test_the_words_follow_from_the_figures(generator, most, expected):
    part = Reliance("the target", Interval(most, most - 0.02, most + 0.02), Interval(most, most, most))
    other = Reliance("another object", Interval(0.1, 0.08, 0.12), Interval(0.1, 0.1, 0.1))
    subject = planted_subject(generator)
    words = " ".join(in_words(subject, [ROW], SAME, Where(compared(subject, part, other))))
    assert expected in words
    assert "40 % of the decisions change" in words
    assert "do not show that a result is right" in words
    assert "optimistic" not in words
    assert "the removals cancel out" in words  # a single one changes 40 %
    little = " ".join(in_words(subject, [ROW._replace(changed=certain(0.05))], SAME, Where()))
    assert "attention hardly decides anything" in little
    known = replace(subject, trained_on=("input 0",))
    assert "optimistic" in " ".join(in_words(known, [ROW], SAME, Where()))


def test_a_scene_is_explained(tmp_path, capsys):
    shelf = Path(voxelwave.__path__[0]) / "apps" / "demo" / "data" / "shelf.json"
    command = ["attention", "explain", "--input", str(shelf), "--weights", "planted-observer"]
    assert main([*command, "-o", str(tmp_path)]) == 0
    page = (tmp_path / "attention.html").read_text()
    assert page.count("<svg") >= 4
    assert not PROGRAM or html_faults(tmp_path / "attention.html") == []
    assert "src=" not in page  # one file without anything from elsewhere
    assert set(re.findall(r'href="(.)', page)) <= {"#", "d"}  # parts of the picture, and data within the page
    record = json.loads((tmp_path / "attention.json").read_text())
    assert len(record["heads"]) == 24
    assert record["removal"]["largest_first"][0]["mean"] == 1
    assert "On 1 scene" in capsys.readouterr().out


def test_weights_without_attention_layers_are_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    torch.manual_seed(0)
    arguments = {"n_chans": 2, "n_times": 128, "n_outputs": 2, "sfreq": 64.0}
    card = ModelCard("eegnet", arguments, ("control", "case"), ("Cz", "Pz"), 64.0, {"seconds": 2.0})
    save_network(tmp_path / "weights", build_network("eegnet", arguments), card)
    command = ["attention", "explain", "--input", str(tmp_path / "empty"), "-o", str(tmp_path / "out")]
    assert main([*command, "--weights", str(tmp_path / "weights")]) == 1
    assert "got those of eegnet" in capsys.readouterr().err
    assert main([*command, "--weights", "rhythm-demo"]) == 1
    assert "holds no recording that fits the weights" in capsys.readouterr().err
    assert main([*command, "--weights", "planted-observer"]) == 1
    assert "holds no scene that fits the weights" in capsys.readouterr().err
