"""EEGNet and ShallowConvNet have the parameters, initial weights and outputs of braindecode, without importing it."""

import subprocess
import sys

import pytest
import torch

from voxelwave.eeg.eegnet import EEGNet, MaxNorm
from voxelwave.eeg.networks import build_network
from voxelwave.eeg.shallowconvnet import ShallowConvNet

SHAPE = {"n_chans": 5, "n_times": 200, "n_outputs": 2, "sfreq": 100.0}
BUILDERS = {"eegnet": EEGNet, "shallow": ShallowConvNet}


@pytest.fixture(scope="module")
def peers():
    """braindecode's models; some builds of PyTorch cannot import braindecode."""
    try:
        from braindecode import models
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"braindecode cannot be imported: {error}")
    return models


def peer(models, name, *, n_chans=5, n_times=200, n_outputs=2, sfreq=100.0, **settings):
    shape = {"n_chans": n_chans, "n_times": n_times, "n_outputs": n_outputs, "sfreq": sfreq}
    if name == "eegnet":
        return models.EEGNet(**shape, kernel_length=round(sfreq / 2), final_layer_with_constraint=True, **settings)
    filters = settings.pop("filters", 40)
    lengths = {"filter_time_length": 25, "pool_time_length": 75, "pool_time_stride": 15}
    lengths = {option: max(1, round(samples * sfreq / 250)) for option, samples in lengths.items()}
    return models.ShallowFBCSPNet(**shape, **lengths, n_filters_time=filters, n_filters_spat=filters, **settings)


CASES = [
    ("eegnet", {}),
    ("eegnet", {"F1": 3, "D": 4, "drop_prob": 0.5, "sfreq": 128.0, "n_chans": 19, "n_times": 512}),
    ("eegnet", {"sfreq": 77.0, "n_outputs": 3}),  # a temporal filter of odd length
    ("shallow", {}),
    ("shallow", {"filters": 7, "drop_prob": 0.1, "sfreq": 128.0, "n_chans": 19, "n_times": 511}),
    ("shallow", {"sfreq": 64.0, "n_outputs": 3}),
]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_seed_gives_the_weights_outputs_and_gradients_of_braindecode(name, settings, peers):
    networks = []
    for build in (lambda: BUILDERS[name](**{**SHAPE, **settings}), lambda: peer(peers, name, **settings)):
        torch.manual_seed(3)
        networks.append(build())
    ours, theirs = networks
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    for parameter, value in ours.state_dict().items():
        torch.testing.assert_close(value, state[parameter], rtol=0, atol=0)
    used = {**SHAPE, **settings}
    x = torch.randn(4, used["n_chans"], used["n_times"], generator=torch.Generator().manual_seed(0))
    for train in (True, False):  # in training, dropout draws the same masks, and norms learn the same
        outputs = []
        for network in networks:
            torch.manual_seed(4)
            network.train(train).zero_grad()
            outputs.append(network(x))
            outputs[-1].square().sum().backward()
        torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)  # the order of the sums differs


@pytest.mark.parametrize("name", BUILDERS)
def test_weights_of_braindecode_load(name, peers):
    theirs = peer(peers, name)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1)
    ours = BUILDERS[name](**SHAPE)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 5, 200, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=0)


RECORDED = {
    "eegnet": [-0.0010312454542145133, 0.0014435647753998637, 0.0012575696455314755, 0.002945719752460718],
    "shallow": [-1.1368935108184814, -2.8089470863342285, -1.3409390449523926, -3.1208763122558594],
}


@pytest.mark.parametrize("name", RECORDED)
def test_a_seed_gives_the_outputs_of_version_0_1_0(name):
    """Recorded with braindecode 1.8.1 and PyTorch 2.14 on the CPU."""
    torch.manual_seed(0)
    network = build_network(name, SHAPE).eval()
    x = torch.randn(2, 5, 200, generator=torch.Generator().manual_seed(0))
    found = network(x).flatten()
    torch.testing.assert_close(found, torch.tensor(RECORDED[name]), rtol=1e-4, atol=1e-6)  # another order of the sums


@pytest.mark.parametrize(("name", "least"), [("eegnet", 27), ("shallow", 39)])
def test_windows_that_are_too_short_are_refused_by_their_length(name, least):
    shape = {**SHAPE, "n_times": least}
    assert build_network(name, shape).eval()(torch.zeros(2, 5, least)).shape == (2, 2)
    with pytest.raises(ValueError, match=rf"needs windows of at least {least} samples, got {least - 1}"):
        build_network(name, {**shape, "n_times": least - 1})


@pytest.mark.parametrize("name", BUILDERS)
def test_one_channel_and_one_filter_are_enough(name):
    settings = {"F1": 1, "D": 1} if name == "eegnet" else {"filters": 1}
    network = build_network(name, {**SHAPE, "n_chans": 1, **settings})
    assert network(torch.randn(2, 1, 200)).shape == (2, 2)


def test_the_norm_of_a_spatial_filter_is_limited_at_every_size_of_its_weights():
    weight = torch.randn(4, 1, 5, 1, generator=torch.Generator().manual_seed(0))
    for scale in (1e-3, 1.0, 1e3):
        norms = MaxNorm(1.0)(scale * weight).flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, (scale * weight).flatten(1).norm(dim=1).clamp(max=1.0), rtol=1e-4, atol=0)


@pytest.mark.slow  # the imports of apps.eeg are tested in less time
def test_building_a_network_imports_neither_braindecode_nor_torchaudio_and_leaves_torch_as_it_was():
    code = (
        "import sys, torch; before = torch.version.cuda; from voxelwave.eeg.networks import build_network; "
        f"[build_network(name, {SHAPE}) for name in ('eegnet', 'shallow')]; "
        "assert torch.version.cuda == before; print([m for m in ('braindecode', 'torchaudio') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
