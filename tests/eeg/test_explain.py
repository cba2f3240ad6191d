"""Explanations find a planted signal, and attributions sum to the total."""

import numpy as np
import pytest
import torch

from voxelwave.eeg.adhdeepnet import ADHDeepNet
from voxelwave.eeg.estimators import build
from voxelwave.eeg.explain import (
    by_band,
    first_filters,
    integrated_gradients,
    last_features,
    occlude_bands,
    occlude_channels,
    shares,
)
from voxelwave.eeg.features import BANDS
from voxelwave.eeg.synthetic import synthetic_signal

PLANTED = ("O1", "O2", "Pz")
TEST = list(range(30, 40))


@pytest.fixture(scope="module")
def trained(cohort):
    """A network trained on 30 people, and windows of ten other people."""
    options = {
        "epochs": 14,
        "batch": 16,
        "settings": {"F1": 4, "D": 2, "kernel_length": 32, "lr": 5e-3, "max_norm": 5.0},
    }
    fit = build("adhdeepnet", cohort, options).fit(list(range(20)), list(range(20, 30)), {}, 0, None, None)
    rows = cohort.rows(TEST)
    return fit.network, torch.from_numpy(cohort.x[rows]), torch.from_numpy(cohort.labels[cohort.subject[rows]])


@pytest.mark.slow
def test_integrated_gradients_find_the_planted_band_and_channels(trained, cohort):
    network, x, _ = trained
    attribution = integrated_gradients(network, x)
    parts = by_band(attribution, cohort.sfreq)
    assert attribution.completeness_error < 0.01
    np.testing.assert_allclose(parts.sum((1, 2)), attribution.values.sum((1, 2)), atol=1e-6)
    band, channel = shares(parts.sum(1)), shares(parts.sum(-1))
    assert [*BANDS, "other"][band.argmax()] == "alpha"
    assert {cohort.channels[i] for i in np.argsort(-channel)[:3]} == set(PLANTED)


def test_hiding_the_planted_band_and_channels_costs_most(trained, cohort):
    network, x, label = trained
    assert list(BANDS)[occlude_bands(network, x, label, cohort.sfreq).argmax()] == "alpha"
    assert cohort.channels[occlude_channels(network, x, label).argmax()] in PLANTED


def test_the_filter_that_counts_most_passes_the_planted_rhythm_and_its_pattern_shows_the_channels(trained, cohort):
    network, x, _ = trained
    table = first_filters(network, x)
    f, d = np.unravel_index(table.weight.argmax(), table.weight.shape)
    assert table.weight.sum() == pytest.approx(1, abs=1e-5)
    at_10 = table.response[f, np.abs(table.frequencies - 10).argmin()]
    assert at_10 > 0.6
    assert cohort.channels[np.abs(table.pattern[f, d]).argmax()] in PLANTED


def test_response_of_a_known_filter_peaks_at_its_frequency():
    network = ADHDeepNet(n_chans=2, n_times=128, sfreq=64.0, F1=1, D=1, kernel_length=64).eval()
    with torch.no_grad():
        network.temporal.weight[0, 0, 0] = torch.cos(2 * torch.pi * 20 / 64 * torch.arange(64))
    table = first_filters(network, torch.randn(3, 2, 128, generator=torch.Generator().manual_seed(0)))
    assert table.peak[0] == pytest.approx(20, abs=0.2)
    assert list(BANDS)[table.band[0]] == "beta"


def test_pattern_of_a_filter_is_the_mixing_of_its_source():
    """Two channels receive one source in the ratio 2 : 1; the pattern has that ratio for any filter."""
    source = torch.randn(20, 1, 128, generator=torch.Generator().manual_seed(0))
    network = ADHDeepNet(n_chans=2, n_times=128, sfreq=64.0, F1=1, D=1, kernel_length=8).eval()
    pattern = first_filters(network, torch.cat([2 * source, source], dim=1)).pattern[0, 0]
    assert pattern[0] / pattern[1] == pytest.approx(2, rel=1e-4)


@pytest.mark.parametrize("name", ["eegnet", "shallow"])
def test_other_networks_can_be_explained(name, cohort):
    fit = build(name, cohort).fit(list(range(20)), None, {}, 0, 1, None)
    x = torch.from_numpy(cohort.x[:6])
    assert (
        integrated_gradients(fit.network, x, steps=100).completeness_error < 0.1
    )  # ShallowConvNet has a logarithm near 0
    assert len(last_features(fit.network, x)) == 6


def test_last_features_are_what_the_last_layer_sees(trained):
    network, x, _ = trained
    with torch.no_grad():
        torch.testing.assert_close(network.classify(torch.from_numpy(last_features(network, x))), network(x))


def test_synthetic_rhythm_is_where_it_was_planted():
    with_it, without = (
        synthetic_signal(np.random.default_rng(0), planted_uv=uv, planted=("Cz",), frequency=10) for uv in (8.0, 0.0)
    )
    difference = with_it - without
    assert np.flatnonzero(difference.std(axis=1) > 1e-9).tolist() == [17]
    assert difference[17].std() == pytest.approx(8)
    spectrum = np.abs(np.fft.rfft(difference[17])) ** 2
    frequencies = np.fft.rfftfreq(difference.shape[1], 1 / 128)
    assert spectrum[(frequencies > 8) & (frequencies < 12)].sum() > 0.999 * spectrum.sum()
