"""The log-linear model of steps: probabilities, maximum likelihood, and its place in the network."""

import numpy as np
import pytest
import torch

from voxelwave.scanpath.baselines import PlacedMarkov
from voxelwave.scanpath.data import PathData, fit_prior, scene_batch
from voxelwave.scanpath.decoding import beam, sample
from voxelwave.scanpath.markov_prior import BEGIN, MarkovPrior
from voxelwave.scanpath.module import ScanpathModule, nats_per_token, path_loss
from voxelwave.scanpath.oat import OAT, log_probabilities
from voxelwave.scanpath.scene import Dataset, Scene, SceneObject, Trial

ROWS, COLUMNS = 3, 4
SMALL = {"d_appearance": 8, "d_position": 24, "layers": 1, "feed_forward": 32}
NETWORK = {"rows": ROWS, "columns": COLUMNS, "appearance": "none", **SMALL, "prior_share": 0.3}


@pytest.fixture(scope="module")
def people() -> Dataset:
    """Random paths that tend to go right and never last more than five fixations."""
    boxes = [(100 * c, 100 * r, 80, 80) for r in range(ROWS) for c in range(COLUMNS)]
    scene = Scene("s", (400, 300), tuple(SceneObject("", box) for box in boxes), None, ROWS, COLUMNS)
    rng = np.random.default_rng(0)
    trials = []
    for k in range(200):
        path = rng.integers(0, 12, rng.integers(1, 6))
        path[1:] = np.where(rng.random(len(path) - 1) < 0.5, (path[:-1] + 1) % 12, path[1:])
        trials.append(Trial("s", f"p{k}", path, scene.centres[path]))
    return Dataset({"s": scene}, tuple(trials))


@pytest.fixture(scope="module")
def prior(people: Dataset) -> MarkovPrior:
    fitted = MarkovPrior(ROWS, COLUMNS)
    fit_prior(fitted, PathData(people))
    return fitted


def _inputs(people: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    scenes = scene_batch([people.scenes["s"]])
    return scenes.position, scenes.present


def test_probabilities_sum_to_one_and_do_not_depend_on_what_comes_later(prior: MarkovPrior, people: Dataset) -> None:
    history = torch.tensor([[BEGIN, 5, 6, 6, 2]])
    log_p = prior(*_inputs(people), history, 5)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(1, 5))
    assert log_p[0, 0, -1] == -torch.inf
    for length in (1, 3, 5):
        part = prior(*_inputs(people), history[:, :length], 1)
        torch.testing.assert_close(part[:, 0], log_p[:, length - 1])
    other = prior(*_inputs(people), torch.tensor([[BEGIN, 5, 6, 9, 2]]), 5)
    torch.testing.assert_close(other[:, :3], log_p[:, :3])
    assert (other[:, 3:] - log_p[:, 3:]).abs().max() > 0.01


def test_the_fit_has_the_frequencies_of_the_paths(prior: MarkovPrior, people: Dataset) -> None:
    # at the maximum of the likelihood of a log-linear model, expected counts are those of the data
    paths = [trial.objects for trial in people.trials]
    log_p = prior(*_inputs(people), torch.tensor([[BEGIN]]), 1)[0, 0].exp()
    first = np.bincount([path[0] for path in paths], minlength=12) / len(paths)
    np.testing.assert_allclose(log_p[:-1].numpy(), first, atol=0.02)
    for length in range(1, 5):
        ended = np.mean([len(path) == length for path in paths if len(path) >= length])
        assert float(torch.sigmoid(prior.end[length])) == pytest.approx(ended, abs=0.02)
    expected, chosen = np.zeros(12), np.zeros(12)
    for path in paths:
        history = torch.tensor([[BEGIN, *path]])
        p = prior(*_inputs(people), history, history.shape[1])[0, 1:-1, :-1].exp().numpy()
        expected += (p / p.sum(1, keepdims=True)).sum(0)
        np.add.at(chosen, path[1:], 1)
    np.testing.assert_allclose(expected, chosen, atol=2.0)


def test_more_memory_fits_no_worse_and_the_baseline_is_the_model_of_order_one(people: Dataset) -> None:
    one, two = (fit_prior(MarkovPrior(ROWS, COLUMNS, order=order), PathData(people)) for order in (1, 2))
    assert two <= one + 1e-3
    baseline = PlacedMarkov().fit(people)
    found = [baseline.log_probability(people.scenes["s"], trial.objects) for trial in people.trials]
    assert -np.concatenate(found).mean() == pytest.approx(one, abs=1e-5)


def test_the_network_and_its_prior_are_mixed_in_shares(people: Dataset) -> None:
    torch.manual_seed(0)
    module = ScanpathModule(arguments=NETWORK, ema_decay=0.9)
    module.fit_prior(PathData(people))
    network = module.averaged.eval()
    assert network.prior is not None
    alone = OAT(**{**NETWORK, "prior_share": None}).eval()
    alone.load_state_dict({k: v for k, v in network.state_dict().items() if "prior" not in k})
    scenes = scene_batch([people.scenes["s"]])
    history = torch.tensor([[BEGIN, 5, 6, 2]])
    with torch.inference_mode():
        scores = network(scenes, torch.tensor([0]), history)
        by_network = log_probabilities(alone(scenes, torch.tensor([0]), history), first=history == BEGIN).exp()
        by_prior = network.prior(*_inputs(people), history, 4).exp()
        found = log_probabilities(scores, first=history == BEGIN).exp()
        torch.testing.assert_close(found, 0.7 * by_network + 0.3 * by_prior)
        assert (scores[..., -1] == -torch.inf).all()
        state = network.start(network.encode(scenes), torch.tensor([0]))
        for k in range(4):  # one token at a time
            step, state, _ = network.step(state, history[:, k : k + 1])
            torch.testing.assert_close(step[:, 0], scores[:, k])
        plans = [sample(network, scenes, samples=3, max_length=5, names=["s"], cache=cache) for cache in (True, False)]
        assert plans[0] == plans[1]
        (best,) = beam(network, scenes, width=4, max_length=5)
    assert 1 <= len(best) <= 5


def test_the_network_learns_and_its_prior_stays(people: Dataset) -> None:
    torch.manual_seed(0)
    module = ScanpathModule(arguments=NETWORK)
    data = PathData(people)
    module.fit_prior(data)
    network = module.network
    assert isinstance(network, OAT)
    assert network.prior is not None
    before, weights = nats_per_token(network, data)[0], network.prior.step.clone()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.1)
    batch = data[list(range(len(data)))]
    path_loss(network(batch.scenes, batch.scene, batch.previous), batch.chosen).backward()  # of the mixture
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    network.train()
    for _ in range(15):
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
    assert nats_per_token(network, data)[0] < before - 0.01
    torch.testing.assert_close(network.prior.step, weights, atol=0, rtol=0)


def test_impossible_shares_and_orders_are_refused() -> None:
    with pytest.raises(ValueError, match="prior_share must be above 0 and below 1, got 1"):
        OAT(**{**NETWORK, "prior_share": 1.0})
    with pytest.raises(ValueError, match="order must be 1 or 2"):
        MarkovPrior(ROWS, COLUMNS, order=3)
