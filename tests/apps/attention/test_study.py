"""`voxelwave attention explain` of a study: means over subjects or layouts, with intervals."""

import json
from dataclasses import replace

import pytest
import torch

from voxelwave.apps.attention.heads import describe_heads, removal
from voxelwave.apps.attention.recordings import look_at_recordings, recording_subject
from voxelwave.apps.attention.scenes import look_at_scenes, scene_subject
from voxelwave.apps.attention.subject import Case, Subject
from voxelwave.apps.cli import main
from voxelwave.attention_analysis.handmade import planted_classifier
from voxelwave.attention_analysis.importance import over_units
from voxelwave.eeg.networks import ModelCard, build_network, load_network, save_network
from voxelwave.scanpath.own_files import write_scanpaths
from voxelwave.scanpath.planted import planted_dataset
from voxelwave.scanpath.weights import load_model


def test_an_interval_is_taken_over_units_and_not_over_inputs():
    values, units = torch.tensor([0.0, 0.0, 0.0, 1.0]), ["a", "a", "a", "b"]
    found = over_units(values, units)
    assert found.mean == 0.5  # of the means 0 and 1, not 0.25
    assert (found.low, found.high) == (0.0, 1.0)
    alone = over_units(values[:3], units[:3])
    assert alone.mean == 0
    assert alone.low != alone.low  # unknown
    assert over_units(torch.tensor([1.0, torch.nan, 3.0]), ["a", "b", "c"]).mean == 2


def study(generator, people=6):
    """A planted classifier whose head 1 carries all; each person has two recordings of one class."""
    model, _ = planted_classifier(torch.tensor([0.0, 3.0, 0.0]))
    x = torch.randn(2 * people, 40, 18, generator=generator, dtype=torch.float64)
    x[..., :3] = 0
    decided = model(x).argmax(1).tolist()
    cases = [
        Case(f"{i}", lambda i=i: model(x[i : i + 1]).softmax(1), unit=f"p{i // 2}", label=decided[i] if i else 2)
        for i in range(2 * people)
    ]
    classes = ("one", "two", "three")
    return Subject("Study", "recording", "class", model, ["only"], cases, [], (), unit="subject", classes=classes)


def test_the_figures_of_a_study_have_intervals_over_subjects(generator):
    subject = study(generator)
    rows = describe_heads(subject)
    assert rows[1].importance.low < rows[1].importance.mean < rows[1].importance.high
    assert rows[1].entropy.low <= rows[1].entropy.mean <= rows[1].entropy.high
    found = removal(subject, rows)
    decided = [float(case.run().argmax(1)[0] == case.label) for case in subject.cases]
    assert found.right[0].mean == pytest.approx(sum(decided) / len(decided))
    assert found.largest_first[0] == (1, 1, 1)
    where = look_at_recordings(subject)
    assert "correctly (95 % interval" in " ".join(where.sentences)
    assert "mean over subjects" in where.pictures[0][1]


def test_the_scenes_of_a_study_are_explained_over_layouts(tmp_path, capsys):
    data = planted_dataset(5, seed=3)
    data = replace(
        data, scenes={name: replace(scene, target=i % 4) for i, (name, scene) in enumerate(data.scenes.items())}
    )
    write_scanpaths(data, tmp_path / "data.json")
    subject = scene_subject(load_model("planted-observer"), tmp_path / "data.json", 3)
    assert len(set(subject.units)) == 3
    where = look_at_scenes(subject)
    assert "over 3 layouts" in where.sentences[0]
    assert "distance from the target" in where.pictures[-1][1]
    assert max(where.dependence.values()) > 0
    command = ["attention", "explain", "--input", str(tmp_path / "data.json"), "--weights", "planted-observer"]
    assert main([*command, "-o", str(tmp_path / "out"), "--most", "3"]) == 0
    record = json.loads((tmp_path / "out" / "attention.json").read_text())
    assert record["removal"]["random"][3]["low"] is not None
    assert "On 3 scenes" in capsys.readouterr().out


def test_scenes_without_a_target_are_explained_by_the_object_with_most_attention(tmp_path):
    write_scanpaths(planted_dataset(3, seed=3), tmp_path / "data.json")
    where = look_at_scenes(scene_subject(load_model("planted-observer"), tmp_path / "data.json", 3))
    assert [row.part for row in where.reliance] == ["the object with most attention", "another object"]
    assert "Blue outline" not in where.pictures[0][1]


def test_the_recordings_of_a_study_are_explained_over_subjects(study):
    command = ["attention", "explain", "--input", str(study), "--weights", str(study / "weights")]
    assert main([*command, "-o", str(study / "out"), "--most", "6"]) == 0
    record = json.loads((study / "out" / "attention.json").read_text())
    assert record["units"] == ["p0", "p2", "p4", "p7", "p9", "p11"]  # spread over the table
    assert len(record["removal"]["right"]) == len(record["removed_heads"])
    assert "optimistic" in " ".join(record["summary"])  # p0 was in the training
    one = ["attention", "explain", "--input", str(study / "p3_raw.fif"), "--weights", str(study / "weights")]
    assert main([*one, "-o", str(study / "one")]) == 0
    page = (study / "one" / "attention.html").read_text()
    assert "intervals over the subjects" not in page  # there is only one


def test_electrodes_that_attend_to_each_other_are_drawn_on_the_scalp(study):
    torch.manual_seed(0)
    arguments = {"n_chans": 2, "n_outputs": 2, "sfreq": 64.0, "dim": 8, "heads": 2, "depth": 1, "filters": 2}
    arguments |= {"electrode_hops": 1, "channels": ["Cz", "Pz"]}
    windows = {"seconds": 3.0, "scaling": "window"}
    card = ModelCard("long_recording", arguments, ("control", "case"), ("Cz", "Pz"), 64.0, windows)
    save_network(study / "graph", build_network("long_recording", arguments), card)
    where = look_at_recordings(recording_subject(*load_network(study / "graph"), study, 4))
    assert "Attention that each electrode receives" in where.pictures[1][1]


def test_a_study_with_other_classes_is_refused(study, capsys):
    table = study / "subjects.tsv"
    table.write_text(table.read_text().replace("case", "other"))
    command = ["attention", "explain", "--input", str(study), "--weights", str(study / "weights")]
    assert main([*command, "-o", str(study / "out")]) == 1
    assert "must have the classes of the weights, control and case, got other" in capsys.readouterr().err
