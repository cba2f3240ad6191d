import copy

import pytest
import torch
from torch import nn

from voxelwave.scanpath.decoding import beam, greedy, sample
from voxelwave.scanpath.oat import BEGIN, GRIDS, OAT, SceneBatch, log_probabilities, near_objects


def small_network(**changes):
    torch.manual_seed(0)
    arguments = {"rows": 3, "columns": 4, "appearance": "none", "d_appearance": 8, "d_position": 24, "layers": 2}
    return OAT(**{**arguments, "feed_forward": 32, "steps": 60, **changes}).eval()


def grid_scenes(count=3, rows=3, columns=4):
    place = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1).float()
    yes = torch.ones(count, dtype=torch.bool)
    position = place.reshape(1, -1, 2).repeat(count, 1, 1)
    return SceneBatch(position, torch.ones(count, rows * columns, dtype=torch.bool), torch.arange(count), yes, yes)


@pytest.mark.parametrize(("data", "count"), [("amazon", 18_300_985), ("yogurt", 18_271_744), ("wine", 18_269_179)])
def test_published_networks_have_the_published_number_of_parameters(data, count):
    with torch.device("meta"):
        rows, columns = GRIDS[data]
        network = OAT(rows=rows, columns=columns, vocabulary=rows * columns, positions="original")
    assert sum(p.numel() for p in network.parameters()) == count


def test_published_names_load_with_their_prefix_and_a_missing_one_is_named():
    network = small_network(vocabulary=12)
    state = {f"model.{name}": tensor + 1 for name, tensor in network.state_dict().items()}
    network.load_published(state)
    assert torch.equal(network.readout.bias, state["model.readout.bias"])
    del state["model.cross_attentions.1.encode_fc.weight"]
    with pytest.raises(ValueError, match=r"cross_attentions\.1\.encode_fc\.weight is missing"):
        network.load_published(state)


def test_layers_agree_with_those_of_pytorch_and_scores_with_their_formula():
    network, scenes = small_network(), grid_scenes()
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 32, batch_first=True), 2).eval()
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(32, 4, 32, batch_first=True), 2).eval()
    encoder.load_state_dict(network.transformer_encoder.state_dict())
    decoder.load_state_dict(network.transformer_decoder.state_dict())
    looks = network.constant_embedding.expand(3, 12, 8)
    objects = torch.cat([looks, network.position(scenes.position, torch.zeros(3, 12))], -1)
    target = torch.cat([looks[:, 0], network.position(scenes.position[range(3), range(3)], torch.ones(3))], -1)
    memory = encoder(torch.cat([objects, target.unsqueeze(1)], 1))
    middle = torch.tensor([[1.0, 2.0]]).expand(3, 2)
    begin = torch.cat([looks[:, 0], network.position(middle, torch.zeros(3))], -1)
    fixated = torch.cat([looks[:, :1], network.position(scenes.position[:, 5:6], torch.zeros(3, 1))], -1)
    steps = network.onedpositional_encoding.pos_embedding[:2, 0]
    decoded = decoder(
        torch.cat([begin.unsqueeze(1), fixated], 1) + steps, memory, tgt_mask=torch.ones(2, 2).triu(1).bool()
    )
    s = [h.decode_fc(decoded) @ h.encode_fc(memory).mT / 32**0.5 for h in network.cross_attentions]
    w, bias = network.readout.weight[0], network.readout.bias
    expected = torch.cat([w[0] * s[0] + w[1] * s[1] + bias, bias.expand(3, 2, 1)], -1)
    given = network(scenes, torch.arange(3), torch.tensor([[-1, 5]] * 3))
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)


def test_permuted_objects_permute_the_scores():
    network, scenes = small_network(), grid_scenes()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    back = order.argsort()
    moved = SceneBatch(scenes.position[:, order], scenes.present, back[scenes.target], scenes.shown, scenes.flagged)
    previous = torch.tensor([[-1, 4, 7]] * 3)
    plain = network(scenes, torch.arange(3), previous)
    permuted = network(moved, torch.arange(3), torch.where(previous < 0, previous, back[previous.clamp(min=0)]))
    torch.testing.assert_close(permuted[..., :12], plain[..., order], atol=1e-5, rtol=1e-5)


def test_probabilities_sum_to_one_and_the_end_is_never_first():
    network, scenes = small_network(), grid_scenes()
    log_p = log_probabilities(
        network(scenes, torch.arange(3), torch.tensor([[-1, 4]] * 3)), first=torch.tensor([[True, False]] * 3)
    )
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(3, 2))
    assert (log_p[:, 0, -1] == -torch.inf).all()
    assert (log_p[:, 1, -1] > -torch.inf).all()


def test_hidden_target_leaves_no_trace_of_its_place():
    network, scenes = small_network(), grid_scenes()
    no = torch.zeros(3, dtype=torch.bool)
    hidden = SceneBatch(scenes.position, scenes.present, scenes.target, no, no)
    scores = network(hidden, torch.arange(3), torch.tensor([[-1, 0, 1, 2]] * 3))
    torch.testing.assert_close(scores[0], scores[1])
    shown = network(scenes, torch.arange(3), torch.tensor([[-1, 0, 1, 2]] * 3))
    assert not torch.allclose(shown[0], shown[1])


def test_the_cache_changes_no_path_and_a_beam_of_one_is_greedy():
    network, scenes = small_network(), grid_scenes()
    paths = greedy(network, scenes, max_length=9)
    assert paths == greedy(network, scenes, max_length=9, cache=False)
    assert paths == beam(network, scenes, width=1, max_length=9)
    drawn = sample(network, scenes, samples=4, max_length=20, names=["a", "b", "c"])
    assert drawn == sample(network, scenes, samples=4, max_length=20, names=["a", "b", "c"], cache=False)
    assert drawn[1:2] == sample(network, scenes.rows(torch.tensor([1])), samples=4, max_length=20, names=["b"])
    assert min(len(path) for paths in drawn for path in paths) >= 1


MIXERS = ["softmax", "workspace(slots=3, top=2)", "graph_window(hops=1)", "graph_window(hops=2, softness=0.5)"]
MIXERS += ["routing(clusters=2)", "uniform", 'head_split(mixers=["softmax", "uniform"], heads=[1, 3])']


def begin(count):
    return torch.full((count, 1), BEGIN)


def test_named_softmax_attention_is_the_published_network():
    published, named = small_network(), small_network(mixer="softmax")
    assert published.state_dict().keys() == named.state_dict().keys()
    assert "mixer" not in published.arguments
    assert named.arguments["mixer"] == "softmax"
    scenes = grid_scenes()
    torch.testing.assert_close(
        named(scenes, torch.arange(3), begin(3)), published(scenes, torch.arange(3), begin(3)), rtol=0, atol=0
    )


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("gates", [None, "mixture_of_heads(shared=1, active=2)"])
def test_absent_objects_change_nothing_whatever_the_mechanism(mixer, gates):
    network, scenes = small_network(mixer=mixer, gates=gates), grid_scenes()
    few = SceneBatch(scenes.position[:, :7], scenes.present[:, :7], scenes.target, scenes.shown, scenes.flagged)
    present = scenes.present.clone()
    present[:, 7:] = False
    padded = SceneBatch(scenes.position, present, scenes.target, scenes.shown, scenes.flagged)
    scores = network(padded, torch.arange(3), begin(3))
    assert scores.isfinite()[..., :7].all()
    expected = network(few, torch.arange(3), begin(3))
    torch.testing.assert_close(scores[..., [*range(7), 12, 13]], expected, rtol=1e-5, atol=1e-5)  # float32


def test_an_object_reaches_only_near_ones_in_a_window():
    network, scenes = small_network(mixer="graph_window(hops=1)", layers=1), grid_scenes(1)
    before = network.encode(scenes).encoded
    moved = scenes.position.clone()
    moved[0, 11] += 0.01  # the far corner; the graph is unchanged
    changed = network.encode(SceneBatch(moved, scenes.present, scenes.target, scenes.shown, scenes.flagged)).encoded
    differs = (before != changed).any(-1)[0]
    assert differs.nonzero().flatten().tolist() == [6, 7, 10, 11, 12]  # its neighbours and the target's token


def test_near_objects_are_those_with_none_between():
    place = grid_scenes(1).position
    near = near_objects(place, torch.ones(1, 12, dtype=torch.bool))
    steps = (place[0, :, None] - place[0, None]).abs().amax(-1)
    assert torch.equal(near[0], steps == 1)
    without = torch.ones(1, 12, dtype=torch.bool)
    without[0, 1] = False
    assert near_objects(place, without)[0, 0].nonzero().flatten().tolist() == [2, 4, 5]


def test_the_gates_give_a_loss_while_training_and_the_network_can_be_copied():
    network, scenes = small_network(gates="mixture_of_heads(shared=1, active=2)"), grid_scenes()
    network(scenes, torch.arange(3), begin(3))
    assert network.take_balance() is None
    network.train()(scenes, torch.arange(3), begin(3))
    balance = network.take_balance()
    assert float(balance.detach()) >= 1
    balance.backward()
    assert network.transformer_encoder.layers[0].self_attn.gates.route.grad.abs().sum() > 0
    copy.deepcopy(network)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixer": "worksapce"}, "did you mean workspace"),
        ({"mixer": "bilevel"}, "needs tokens on a grid"),
        ({"mixer": 'head_split(mixers=["graph_window", "softmax"], heads=[2, 2])'}, "needs the mixer graph_window"),
        ({"gates": "mixture_of_heads(shared=5, active=2)"}, "shared must be between 0 and the 4 heads"),
    ],
)
def test_wrong_words_for_a_mechanism_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_network(**arguments)


def test_published_parameters_do_not_fit_another_mechanism():
    with pytest.raises(ValueError, match=r"self_attn\.mixer\.slots is missing"):
        small_network(mixer="workspace", vocabulary=12).load_published(small_network(vocabulary=12).state_dict())
