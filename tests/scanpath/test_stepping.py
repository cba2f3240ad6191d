"""The decoder that computes one step at a time gives the scores of the network."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from voxelwave.scanpath.decoding import sample
from voxelwave.scanpath.oat import BEGIN, log_probabilities
from voxelwave.scanpath.stepping import Stepper, serves

from .test_oat import grid_scenes, small_network


@pytest.mark.parametrize("changes", [{}, {"object_heads": 1}, {"mixer": "workspace(slots=3, top=2)"}])
@pytest.mark.parametrize("absent", [False, True])
@torch.no_grad()
def test_scores_are_those_of_the_network_also_when_rows_are_left_out(changes, absent):
    network, scenes = small_network(**changes).eval(), grid_scenes()
    if absent:
        scenes.present[:, 1] = False
    memory, rows = network.encode(scenes), torch.tensor([0, 2, 2, 1])
    stepper, state = Stepper(network, memory, rows, 6), network.start(memory, rows)
    chosen = torch.full((4,), BEGIN)
    for step in range(5):
        scores, state, _ = network.step(state, chosen.unsqueeze(1))
        found = stepper.step(chosen if step else None)
        expected = log_probabilities(scores)[:, 0]
        assert_close(found.log_softmax(-1), expected, rtol=1e-5, atol=1e-5)
        chosen = expected[:, :-1].argsort(-1)[:, -1 - step % 2]
        if step == 2:
            index = torch.tensor([3, 1])
            stepper.keep(index)
            state, chosen = state.rows(index), chosen[index]


def test_hooks_edits_training_and_gradients_exclude_it():
    network = small_network().eval()
    assert not serves(network)
    with torch.no_grad():
        assert serves(network)
        handle = network.transformer_decoder.layers[0].after.register_forward_hook(lambda *_: None)
        assert not serves(network)
        handle.remove()
        network.transformer_decoder.layers[0].self_attn.watch = lambda _: None
        assert not serves(network)
        network.transformer_decoder.layers[0].self_attn.watch = None
        assert not serves(network.train())
        network.eval().transformer_decoder.layers[0].linear1 = nn.Sequential(nn.Linear(8, 8))  # may compute more
        assert not serves(network)


def test_a_path_beyond_the_table_of_steps_is_refused_and_an_unused_length_is_not():
    network, scenes = small_network(steps=8).eval(), grid_scenes()
    with torch.no_grad():
        end = network.score_directions(network.encode(scenes))[0].shape[1] - 1
        drawn = sample(network, scenes, samples=1, max_length=8)
        assert all(len(path) <= 8 and max(path) < end for paths in drawn for path in paths)
        with pytest.raises(ValueError, match="a path may have at most 8 steps, got 9"):
            sample(network, scenes, samples=50, max_length=20)
