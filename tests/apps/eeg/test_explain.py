"""The explanation of networks with a known rule, and its pictures."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from voxelwave.apps.eeg.explain import explain_run
from voxelwave.apps.eeg.explain_figures import draw
from voxelwave.apps.eeg.explanation import (
    Case,
    cases_of_run,
    explain_one,
    first_network,
    single_case,
    summarise,
    thinned,
)
from voxelwave.apps.nested_cv.plan import Design, make_plan
from voxelwave.apps.nested_cv.records import Explanation
from voxelwave.apps.nested_cv.splits import Cohort
from voxelwave.eeg.adhdeepnet import ADHDeepNet
from voxelwave.eeg.channels import CED_ORDER
from voxelwave.eeg.networks import NETWORKS
from voxelwave.eeg.synthetic import CLASSES
from voxelwave.eeg.windows import Windows
from voxelwave.runs.json_types import check_record

PEOPLE, WINDOWS, TIMES, SFREQ = 6, 2, 128, 64.0
CHANNEL = CED_ORDER.index("Pz")


@pytest.fixture(scope="module")
def windows(synthetic_windows) -> Windows:
    """Two windows of 2 s for each of 6 people; the cases have 10 Hz on Pz."""
    return synthetic_windows(people=PEOPLE, count=WINDOWS, planted_uv=30.0, planted=("Pz",))


class Alpha(nn.Module):
    """Logits that depend only on the correlation of Pz with a sine and a cosine of 10 Hz."""

    def __init__(self):
        super().__init__()
        time = torch.arange(TIMES) / SFREQ
        waves = torch.stack([torch.sin(2 * math.pi * 10 * time), torch.cos(2 * math.pi * 10 * time)])
        self.register_buffer("waves", waves / TIMES)
        self.final_layer = nn.Linear(2, 2)
        with torch.no_grad():
            self.final_layer.weight.copy_(torch.tensor([[0.0, 0.0], [30.0, 30.0]]))
            self.final_layer.bias.copy_(torch.tensor([0.0, -1.0]))

    def forward(self, x):
        return self.final_layer((x[:, CHANNEL] @ self.waves.T) ** 2)


def _case(windows, network, name="net") -> Case:
    return Case(name, "adhdeepnet", network.eval(), windows, np.arange(len(windows.x)), None)


def test_the_channel_and_the_band_of_the_rule_are_named(windows):
    case = _case(windows, Alpha())
    found = explain_one(case, most_windows=100, steps=8, seed=0)
    content = summarise([found], [case], ["a note"])
    channels = {row["channel"]: row for row in content["channels"]}
    assert channels["Pz"]["importance"] == pytest.approx(1, abs=1e-6)
    assert [name for name, row in channels.items() if row["hiding_costs"] != 0] == ["Pz"]
    bands = {row["band"]: row for row in content["bands"]}
    assert bands["alpha"]["importance"] > 0.9
    assert (bands["other"]["low"], bands["other"]["hiding_costs"]) == (None, None)
    assert content["completeness_error"] < 1e-4
    assert (content["subjects"], content["windows"]) == (PEOPLE, PEOPLE * WINDOWS)
    assert content["notes"][0] == "a note"
    assert found.filters is None  # only ADHDeepNet has temporal filters


def test_figures_are_means_and_standard_deviations_over_networks(windows):
    cases = [_case(windows, Alpha(), "one"), _case(windows, Alpha(), "two")]
    with torch.no_grad():
        cases[1].network.final_layer.weight.mul_(0.1)
    found = [explain_one(case, most_windows=100, steps=4, seed=0) for case in cases]
    content = summarise(found, cases, [])
    row = content["bands"][2]
    shares = [f.band[2] for f in found]
    assert row["importance"] == pytest.approx(np.mean(shares))
    assert row["sd"] == pytest.approx(np.std(shares, ddof=1))
    assert row["hiding_costs"] == pytest.approx(np.mean([f.band_cost[2] for f in found]))
    assert summarise(found[:1], cases[:1], [])["bands"][2]["sd"] is None


def test_every_picture_is_written_with_a_caption_and_the_content_has_its_type(windows, tmp_path):
    torch.manual_seed(0)
    network = ADHDeepNet(len(CED_ORDER), TIMES, 2, SFREQ, F1=2, D=2, kernel_length=8)
    case = _case(windows, network)
    found = [explain_one(case, most_windows=100, steps=2, seed=0)]
    summary = summarise(found, [case], [])
    images, captions = draw(tmp_path, found, windows, summary)
    assert list(images) == list(captions) == ["topomap", "bands", "filters", "patterns", "tsne"]
    assert all((tmp_path / file).read_bytes().startswith(b"\x89PNG") for file in images.values())
    assert all("6 held-out subjects" in captions[name] for name in ("topomap", "bands"))
    content = {"model": "adhdeepnet", **summary, "images": images, "captions": captions}
    check_record(json.loads(json.dumps(content)), Explanation, "explanation.json")


@pytest.mark.parametrize("most", [1, 3, 5, 100])
def test_thinning_keeps_each_subject(most):
    subject = np.repeat([0, 1, 2], [8, 3, 1])
    rows = thinned(np.arange(12), subject, most)
    assert set(subject[rows]) == {0, 1, 2}
    assert len(rows) <= max(most + 2, 3)
    assert list(rows) == sorted(set(rows))


# --- the run


def _plan(tmp_path, models: dict[str, str], protocol: str = "nested") -> None:
    cohort = Cohort(tuple("abcdefgh"), (0, 1) * 4, CLASSES)
    specs = {name: {"factory": factory, "arguments": {}} for name, factory in models.items()}
    design = Design(
        outer=2, inner=2, protocol=protocol, published=() if protocol == "nested" else (next(iter(models)),)
    )
    (tmp_path / "plan.json").write_text(json.dumps(make_plan(cohort, specs, design)))


def test_the_first_network_of_an_eeg_run_is_explained(tmp_path):
    _plan(tmp_path, {"bandpower": "eeg-models", "eegnet": "eeg-models", "adhdeepnet": "eeg-models"})
    assert "eegnet" in NETWORKS
    assert first_network(tmp_path) == "eegnet"


@pytest.mark.parametrize(
    ("models", "protocol"),
    [
        ({"bandpower": "eeg-models"}, "nested"),
        ({"eegnet": "others"}, "nested"),
        ({"eegnet": "eeg-models"}, "published"),
    ],
)
def test_runs_without_a_network_of_an_outer_training_part_have_no_explanation(models, protocol, tmp_path):
    _plan(tmp_path, models, protocol)
    assert explain_run(tmp_path) is None
    assert not (tmp_path / "explain").exists()


def test_a_folder_without_a_plan_has_no_explanation_and_a_damaged_plan_is_refused(tmp_path):
    assert explain_run(tmp_path) is None
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(ValueError, match=r"plan\.json: design is missing"):
        explain_run(tmp_path)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [("eegnet", r"one of the run's \(bandpower\), got 'eegnet'"), ("bandpower", "must be a network")],
)
def test_models_that_cannot_be_explained_are_refused(model, complaint, tmp_path):
    _plan(tmp_path, {"bandpower": "eeg-models"})
    with pytest.raises(ValueError, match=complaint):
        cases_of_run(tmp_path, model)


def test_weights_are_not_explained_on_their_training_subjects_unless_asked(windows, tmp_path, monkeypatch):
    card = type("Card", (), {})()
    card.network, card.channels, card.sfreq, card.classes = "adhdeepnet", windows.channels, windows.sfreq, CLASSES
    card.window_options, card.fitted_scaler, card.subjects = windows.options, None, windows.subjects[:4]
    module = "voxelwave.apps.eeg.explanation"
    monkeypatch.setattr(f"{module}.load_network", lambda path: (Alpha(), card))
    listed = type("Listed", (), {"persons": {name: name for name in windows.subjects}})()
    monkeypatch.setattr(f"{module}.read_study", lambda *_, **__: listed)
    monkeypatch.setattr(f"{module}.load_windows", lambda *_: windows)
    case, notes = single_case(tmp_path, tmp_path, None, trained=False)
    assert (set(windows.subject[case.rows]), notes) == ({4, 5}, [])
    listed.persons[windows.subjects[4]] = windows.subjects[0]  # a second recording of a person in the training data
    case, _ = single_case(tmp_path, tmp_path, None, trained=False)
    assert set(windows.subject[case.rows]) == {5}
    listed.persons[windows.subjects[4]] = windows.subjects[4]
    case, notes = single_case(tmp_path, tmp_path, None, trained=True)
    assert set(windows.subject[case.rows]) == set(range(PEOPLE))
    assert notes == ["4 of these subjects were used in training: only the fit is explained."]
    card.subjects = windows.subjects
    with pytest.raises(ValueError, match="no subject is held out; give another study, or --trained"):
        single_case(tmp_path, tmp_path, None, trained=False)
    card.sfreq = 100.0
    with pytest.raises(ValueError, match=r"the sampling rate \(100 Hz\) of the weights, got Fp1, .*; 64 Hz"):
        single_case(tmp_path, tmp_path, None, trained=False)
