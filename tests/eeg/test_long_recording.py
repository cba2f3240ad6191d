"""Networks for whole recordings: padding, streams, a graph of electrodes, and a planted rhythm."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.testing import assert_close

from voxelwave.eeg.channels import CED_ORDER
from voxelwave.eeg.electrode_positions import neighbours
from voxelwave.eeg.estimators import build
from voxelwave.eeg.long_recording import LongRecordingNet
from voxelwave.eeg.networks import LONG_RECORDING, build_network, load_network
from voxelwave.eeg.recording_data import RecordingData
from voxelwave.eeg.search_spaces import DEFAULT_NAMES
from voxelwave.eeg.whole_recordings import joined, predict_recordings
from voxelwave.kernels.attention.graph_window import hop_distance

SFREQ = 32.0
STREAMING = ["recurrent", "associative", "associative(rule='delta')", "duality", "neural_memory(chunk=4)", "key_scored"]
OTHERS = ["softmax", "power(block=4)", "landmark(block=4)", "relative_convolution(reach=64)", "workspace"]
OTHERS += ["routing(clusters=3, mode='balanced')", "routing(clusters=3)", "dynamic_sparse(block=64)"]


def network(mixer="recurrent", **more):
    torch.manual_seed(0)
    return LongRecordingNet(3, 2, SFREQ, mixer=mixer, dim=16, filters=4, **more).double().eval()


def recordings(*seconds, generator):
    return [torch.randn(3, round(s * SFREQ), generator=generator, dtype=torch.float64) for s in seconds]


@pytest.mark.parametrize("mixer", STREAMING + OTHERS)
def test_what_fills_up_a_batch_has_no_influence(mixer, generator):
    net = network(mixer)
    parts = recordings(9.3, 25, 1, generator=generator)
    alone = torch.cat([net(x[None]) for x in parts])
    batch = torch.full((3, 3, 25 * 32), torch.nan, dtype=torch.float64)
    for row, x in zip(batch, parts, strict=True):
        row[:, : x.shape[1]] = x
    together = net(batch, samples=torch.tensor([x.shape[1] for x in parts]))
    assert_close(together, alone, rtol=1e-9, atol=1e-10)  # float64; the order of the sums differs


@pytest.mark.parametrize("mixer", STREAMING)
@pytest.mark.parametrize("step", [7, 32, 333])
def test_a_stream_ends_with_the_answer_of_one_call(mixer, step, generator):
    net = network(mixer)
    [x] = recordings(21.6, generator=generator)
    state, numbers = None, set()
    for part in x[None].split(step, -1):
        state = net.stream(part, state)
        numbers.add(sum(t.numel() for mixed in state.mixers if mixed is not None for t in _tensors(mixed)))
    assert_close(state.logits, net(x[None]), rtol=1e-9, atol=1e-10)
    assert state.rest.shape[-1] < SFREQ
    assert state.rest.untyped_storage().nbytes() <= 3 * SFREQ * 8
    assert len(numbers - {0}) == 1


def _tensors(state):
    return (
        [state]
        if isinstance(state, torch.Tensor)
        else [t for x in state if isinstance(x, tuple | torch.Tensor) for t in _tensors(x)]
    )


@pytest.mark.parametrize("mixer", OTHERS)
def test_a_mechanism_without_a_small_state_reads_no_stream(mixer):
    net = network(mixer)
    assert not net.streams
    with pytest.raises(ValueError, match="no state of constant size"):
        net.stream(torch.zeros(1, 3, 64, dtype=torch.float64))


def test_electrodes_see_their_neighbours_while_training_and_all_in_evaluation(generator):
    torch.manual_seed(0)
    net = LongRecordingNet(19, 2, SFREQ, electrode_hops=1, channels=CED_ORDER, dim=16, drop_prob=0, drop_seconds=0)
    attended = net.stem.mixing.mixer
    q = torch.randn(1, 4, 19, 4, generator=generator)
    eye = torch.eye(19).expand(1, 4, 19, 19)
    graph = torch.from_numpy(neighbours(CED_ORDER))
    near = attended(q, q, eye).out
    assert ((near > 0) == (hop_distance(graph) <= 1)).all()
    net.eval()
    assert (attended(q, q, eye).out > 0).all()
    x = torch.randn(1, 19, 64, generator=generator)
    evaluated = net(x)
    assert not torch.equal(net.train()(x), evaluated)


def test_the_graph_of_electrodes_joins_near_ones_and_all():
    graph = neighbours(CED_ORDER)
    assert (graph == graph.T).all()
    assert not graph.diagonal().any()
    assert graph[CED_ORDER.index("Cz")].nonzero()[0].tolist() == [CED_ORDER.index(n) for n in ("C3", "C4", "Fz", "Pz")]
    assert int(hop_distance(torch.from_numpy(graph)).max()) < 19
    with pytest.raises(ValueError, match="position in the 10-05 system, got E7"):
        neighbours(["Cz", "E7"])
    with pytest.raises(ValueError, match="different positions"):
        neighbours(["Cz", "cz"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixer": "pwoer"}, "did you mean power"),
        ({"mixer": "bilevel"}, "needs tokens on a grid"),
        ({"heads": 3}, "heads must divide dim"),
        ({"dim": 0}, "dim must be a whole number"),
        ({"drop_prob": 1.0}, "drop_prob must be at least 0 and below 1"),
        ({"electrode_hops": 1}, "needs channels"),
        ({"electrode_hops": -1, "channels": ["Fz", "Cz", "Pz"]}, "not negative, got -1"),
        ({"n_times": 100}, "does not take these arguments"),
    ],
)
def test_wrong_arguments_are_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_network(LONG_RECORDING, {"n_chans": 3, "n_outputs": 2, "sfreq": SFREQ, **arguments})


def test_inputs_that_do_not_fit_are_refused():
    net = network()
    with pytest.raises(ValueError, match=r"x must have shape \(recordings, 3, samples\), got \(1, 2, 64\)"):
        net(torch.zeros(1, 2, 64, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"must hold a second \(32 samples\), got 31"):
        net(torch.zeros(2, 3, 64, dtype=torch.float64), samples=torch.tensor([64, 31]))
    with pytest.raises(ValueError, match="2 numbers up to 64, got"):
        net(torch.zeros(2, 3, 64, dtype=torch.float64), samples=torch.tensor([64, 65]))
    with pytest.raises(ValueError, match=r"call eval\(\) first"):
        net.train().stream(torch.zeros(1, 3, 64, dtype=torch.float64))


def test_joined_windows_hold_each_sample_once():
    signal = np.arange(20.0)[None]
    for step in (1, 2, 3, 4):
        start = np.arange(0, 17, step)
        x = np.stack([signal[:, s : s + 4] for s in start])
        np.testing.assert_array_equal(joined(x, start), signal[:, : start[-1] + 4])


def test_a_recording_shorter_than_a_second_is_named(cohort):
    short = dataclasses.replace(cohort, x=cohort.x[:, :, :12])
    with pytest.raises(ValueError, match=r"s03 must have a second of EEG .* got 0.94 s"):
        RecordingData(short, [3], None)


OPTIONS = {"settings": {"mixer": "recurrent", "dim": 16, "depth": 1, "lr": 5e-3, "components": 8, "drop_seconds": 0.2}}
TRAIN, VALIDATION, TEST = list(range(20)), list(range(20, 30)), list(range(30, 40))


@pytest.mark.slow
@pytest.mark.parametrize("hops", [None, 1])
def test_a_planted_rhythm_is_found_in_new_people(hops, cohort):
    options = {**OPTIONS, "settings": {**OPTIONS["settings"], "electrode_hops": hops}, "epochs": 20, "patience": 20}
    fit = build(LONG_RECORDING, cohort, options).fit(TRAIN, VALIDATION, {}, 0, None, None)
    predictions = fit.predict(TEST)
    scores = [predictions.probability[predictions.subject == s] for s in TEST]
    assert all(len(set(own.tolist())) == 1 for own in scores)
    assert roc_auc_score(cohort.labels[TEST], [own[0] for own in scores]) > 0.9


def test_a_fit_depends_on_its_seed_alone_and_its_weights_predict_the_same(cohort, tmp_path):
    estimator = build(LONG_RECORDING, cohort, OPTIONS)
    fits = [estimator.fit(TRAIN, None, {}, seed, 2, tmp_path / str(n)) for n, seed in enumerate((1, 1, 2))]
    first, again, other = (fit.predict(TEST).probability for fit in fits)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    stored, card = load_network(tmp_path / "0")
    assert card.network == LONG_RECORDING
    x = RecordingData(cohort, TEST, None).x
    np.testing.assert_array_equal(predict_recordings(stored, x), first.reshape(10, 5)[:, 0])


def test_a_wrong_mixer_in_a_space_ends_the_run_before_the_first_fit(cohort):
    with pytest.raises(ValueError, match="got 'recurent'; did you mean recurrent"):
        build(LONG_RECORDING, cohort, {"space": {"mixer": ["softmax", "recurent"]}})


def test_a_run_that_names_no_models_has_those_of_before():
    simple = ("bandpower", "amplitude", "riemann", "minirocket", "length", "majority")
    assert ("adhdeepnet", "eegnet", "shallow", *simple) == DEFAULT_NAMES
