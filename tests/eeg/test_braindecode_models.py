"""Our networks as models of braindecode, by the contract that braindecode tests for each of its models."""

import json

import mne
import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch.testing import assert_close

from voxelwave.eeg.adhdeepnet import ADHDeepNet
from voxelwave.eeg.long_recording import LongRecordingNet

try:
    from braindecode import EEGClassifier
    from braindecode.models.util import models_dict

    from voxelwave.eeg import braindecode_models
except (ImportError, OSError) as error:  # some builds of PyTorch cannot import braindecode
    pytest.skip(f"braindecode cannot be imported: {error}", allow_module_level=True)

SIGNAL = {"n_chans": 3, "n_times": 128, "n_outputs": 2, "sfreq": 32.0}
SMALL = {"ADHDeepNet": {"F1": 4, "D": 2}, "LongRecordingNet": {"dim": 8, "heads": 2, "depth": 1}}


@pytest.fixture(params=SMALL)
def model(request):
    torch.manual_seed(0)
    return models_dict[request.param](**SIGNAL, **SMALL[request.param]).eval()


def test_names_of_the_signal_are_those_of_braindecode(model):
    assert model.get_output_shape() == (1, 2)
    assert model.input_window_seconds == 4.0
    assert model.input_shape == (1, 3, 128)
    assert [name for name, _ in model.named_children()][-1] == "final_layer"


def test_the_signal_is_inferred_from_channels_and_seconds():
    info = mne.create_info(["Fz", "Cz", "Pz"], 32.0, "eeg")
    given = {"chs_info": info["chs"], "input_window_seconds": 4, "sfreq": 32.0, "n_outputs": 2}
    for name, small in SMALL.items():
        made = models_dict[name](**given, **small)
        assert (made.n_chans, made.n_times) == (3, 128)
    hops = models_dict["LongRecordingNet"](**given, **SMALL["LongRecordingNet"], electrode_hops=1)
    assert hops.get_output_shape() == (1, 2)


def test_windows_of_a_batch_do_not_affect_each_other_or_the_state(model, generator):
    x = torch.randn(2, 3, 128, generator=generator)
    before, state = x.clone(), {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        out, swapped = model(x), model(x.flip(0))
        x[1] = 1 - 3 * x[1]
        changed = model(x)
    assert torch.equal(x[0], before[0])
    assert_close(swapped, out.flip(0))
    assert_close(changed[0], out[0])
    assert_close(dict(model.state_dict()), state, rtol=0, atol=0)


def test_configuration_and_state_make_the_same_model(model, generator):
    x = torch.randn(2, 3, 128, generator=generator)
    again = type(model).from_config(json.loads(json.dumps(model.get_config()))).eval()
    again.load_state_dict(model.state_dict())
    assert_close(again(x), model(x))


def test_a_new_head_has_another_number_of_outputs(model):
    model.reset_head(5)
    assert model.n_outputs == 5
    assert model.get_output_shape() == (1, 5)
    assert model.get_config()["n_outputs"] == 5


@pytest.mark.parametrize("name", SMALL)
def test_weights_of_our_networks_load_and_give_the_same_logits(name, generator):
    torch.manual_seed(1)
    if name == "ADHDeepNet":
        own = ADHDeepNet(**SIGNAL, **SMALL[name]).eval()
    else:
        own = LongRecordingNet(3, 2, 32.0, **SMALL[name]).eval()
    model = models_dict[name](**SIGNAL, **SMALL[name]).eval()
    model.load_state_dict(own.state_dict())
    x = torch.randn(2, 3, 128, generator=generator)
    assert_close(model(x), own(x), rtol=0, atol=0)


def test_norms_are_limited_when_training_ends():
    model = braindecode_models.ADHDeepNet(**SIGNAL, **SMALL["ADHDeepNet"]).train()
    with torch.no_grad():
        model.final_layer.weight.fill_(1)
    model.eval()
    assert float(model.final_layer.weight.detach().norm(dim=1).max()) <= 0.25 + 1e-6


@pytest.mark.parametrize("name", SMALL)
def test_a_classifier_finds_them_by_name_and_trains(name):
    rng = np.random.default_rng(0)
    y = np.arange(24) % 2
    x = rng.standard_normal((24, 3, 128)).astype(np.float32) * (1 + 3 * y[:, None, None]).astype(np.float32)
    classifier = EEGClassifier(
        name,
        module__n_chans=3,
        module__n_outputs=2,
        module__n_times=128,
        module__sfreq=32.0,
        **{f"module__{key}": value for key, value in SMALL[name].items()},
        max_epochs=8,
        batch_size=8,
        lr=0.01,
        optimizer=torch.optim.Adam,
        train_split=None,
        verbose=0,
        callbacks=[],
    )
    classifier.fit(x, y)
    assert classifier.predict_proba(x).shape == (24, 2)
    losses = classifier.history[:, "train_loss"]
    assert losses[-1] < losses[0]


def test_scikit_learn_clones_a_classifier():
    given = {"module__n_chans": 3, "module__n_times": 128, "module__n_outputs": 2, "lr": 0.01}
    assert {name: clone(EEGClassifier("ADHDeepNet", **given)).get_params()[name] for name in given} == given
