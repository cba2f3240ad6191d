"""Pre-training under a growing mask lowers its loss, depends on the seed alone, and leaves labels aside."""

import numpy as np
import pytest
import torch

from voxelwave.eeg.adhdeepnet import ADHDeepNet
from voxelwave.eeg.eegnet import EEGNet
from voxelwave.eeg.long_recording import LongRecordingNet
from voxelwave.eeg.module import WindowData
from voxelwave.eeg.pretraining import pretrain
from voxelwave.eeg.training import data_of


@pytest.fixture(scope="module")
def windows(synthetic_windows):
    return synthetic_windows(people=12, count=6, planted_uv=12.0, planted=("Pz",))


def networks(windows):
    channels, times = windows.x.shape[1:]
    torch.manual_seed(0)
    small = ADHDeepNet(channels, times, sfreq=windows.sfreq, F1=4, D=1, se_nodes=4, drop_prob=0.1)
    long = LongRecordingNet(channels, 2, windows.sfreq, dim=8, heads=2, depth=1, filters=4, components=4, drop_prob=0.0)
    return {"adhdeepnet": small, "long_recording": long}


@pytest.mark.parametrize("name", ["adhdeepnet", "long_recording"])
def test_signals_are_recognised_better_after_pre_training(windows, name):
    data = data_of(name, windows, range(12), None)
    network = networks(windows)[name]
    state = torch.get_rng_state()
    losses = pretrain(network, data, epochs=6, batch=16, lr=3e-3, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert losses[-1] < losses[0] - 0.2  # although more and more is hidden
    again = networks(windows)[name]
    assert pretrain(again, data, epochs=6, batch=16, lr=3e-3, seed=3) == losses
    for first, second in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(first, second)


def test_labels_and_noise_play_no_part(windows):
    x = torch.from_numpy(windows.x[:32])
    subject = torch.arange(32)
    losses = [
        pretrain(networks(windows)["adhdeepnet"], WindowData(x, label, subject, levels=levels), epochs=1, batch=8)
        for label, levels in ((torch.zeros(32).long(), [0.0]), (torch.ones(32).long(), [0.0, 5.0]))
    ]
    assert losses[0] == losses[1]


def test_other_networks_and_single_items_are_refused(windows):
    x = torch.from_numpy(windows.x[:4])
    data = WindowData(x, torch.zeros(4).long(), torch.arange(4))
    with pytest.raises(ValueError, match="is for adhdeepnet and long_recording, got a network of EEGNet"):
        pretrain(EEGNet(*x.shape[1:], n_outputs=2, sfreq=64.0), data, epochs=1)
    with pytest.raises(ValueError, match="at least 2 windows"):
        pretrain(networks(windows)["adhdeepnet"], WindowData(x[:1], data.label[:1], data.subject[:1]), epochs=1)
    data.x[:] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        pretrain(networks(windows)["adhdeepnet"], data, epochs=1)
