"""A record changes nothing, and its parts add up to the model's output."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from voxelwave.attention_analysis.edits import WeightEdit, intervene
from voxelwave.attention_analysis.handmade import TwoStreamModel, map_model, uniform_map
from voxelwave.attention_analysis.trace import attention_layers, record, record_run, stream
from voxelwave.eeg.long_recording import LongRecordingNet
from voxelwave.kernels.attention.baselines import EfficientAttention, SoftmaxAttention
from voxelwave.kernels.attention.choice import Place, mixer_of
from voxelwave.kernels.attention.layer import MixingLayer
from voxelwave.registration.nestedmorph import NestedMorph
from voxelwave.scanpath.oat import OAT, SceneBatch

F64 = torch.float64


class Stack(nn.Module):
    """Two attention layers around a residual stream."""

    def __init__(self, mixer):
        super().__init__()
        self.layers = nn.ModuleList(MixingLayer(8, 2, mixer_of(mixer, Place(2, 4, length=16))) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x).out
        return x


@pytest.fixture
def tokens(generator):
    return torch.randn(3, 6, 8, generator=generator)


@pytest.mark.parametrize("mixer", ["softmax", "efficient", "uniform", "associative", "fixed_map"])
def test_a_record_leaves_the_output_as_it_is(mixer, tokens):
    torch.manual_seed(0)
    model = Stack(mixer).eval()
    with torch.no_grad():
        plain = model(tokens)
    trace = record(model, tokens)
    assert torch.equal(trace.output, plain)
    assert torch.equal(model(tokens), plain)
    assert all(layer.watch is None for layer in attention_layers(model).values())


def test_weights_times_values_are_the_heads_and_contributions_are_the_output(tokens):
    torch.manual_seed(0)
    layer = MixingLayer(8, 2, SoftmaxAttention()).double()
    x = tokens.double()
    out = layer(x).out
    call = record(layer, x)[0]
    values = layer.value(x).unflatten(-1, (2, 4)).transpose(1, 2)
    assert_close(call.map().sum(-1), torch.ones(3, 2, 6, dtype=F64))
    assert_close((call.map() @ values).transpose(1, 2), call.heads)
    assert_close(call.contributions.sum(2) + layer.output.bias, out)


def test_the_residual_stream_is_recorded_before_and_after_each_sublayer(generator):
    model = map_model([uniform_map(5)[None].repeat(2, 1, 1)] * 2)
    x = torch.randn(2, 5, 8, generator=generator, dtype=F64)
    trace = record(model, x)
    assert len(trace.residuals) == 6
    assert_close(trace.residuals["blocks.0.before"][0], x)
    for i in range(2):
        added = trace.residuals[f"blocks.{i}.between"][0] - trace.residuals[f"blocks.{i}.before"][0]
        assert_close(added, trace[i].contributions.sum(2))
    assert_close(trace.residuals["blocks.1.after"][0][:, -1] @ model.readout.mT, trace.output)


def test_only_requested_layers_are_recorded(tokens):
    trace = record(Stack("softmax"), tokens, layers=[1], weights=False)
    assert [call.layer for call in trace.calls] == [1]
    with pytest.raises(ValueError, match="no recorded weights"):
        trace.calls[0].map()
    with pytest.raises(ValueError, match="numbers below 2, got 5"):
        record(Stack("softmax"), tokens, layers=[5])
    with pytest.raises(ValueError, match="Linear has no attention layer"):
        record(nn.Linear(2, 2), torch.zeros(1, 2))


def test_sums_over_a_stream_equal_means_over_a_record(tokens):
    model = Stack("softmax").eval()
    measures = {"columns": lambda a: a.mean(2), "square": lambda a: a.square().sum((-2, -1))}
    found = stream(model, [tokens[:1], tokens[1:]], measures)
    trace = record(model, tokens)
    for layer in range(2):
        for name, measure in measures.items():
            expected = measure(trace[layer].map()).double().mean(0)
            assert_close(found[name][layer], expected, atol=1e-6, rtol=1e-5)


def test_the_watch_goes_away_after_an_exception(tokens):
    model = Stack("softmax")
    with pytest.raises(RuntimeError):
        record(model, torch.zeros(1, 6, 3))
    assert all(layer.watch is None for layer in attention_layers(model).values())


def test_a_recording_network_is_reached(generator):
    torch.manual_seed(0)
    network = LongRecordingNet(3, 2, 32.0, mixer="softmax", dim=8, heads=2).eval()
    x = torch.randn(2, 3, 160, generator=generator)
    with torch.no_grad():
        plain = network(x)
    trace = record(network, x)
    assert torch.equal(trace.output, plain)
    assert trace.maps.shape == (2, 2, 2, 5, 5)
    assert trace.residuals["blocks.1.after"][0].shape == (2, 5, 8)


def scenes(generator):
    count, objects = 2, 4
    return SceneBatch(
        torch.rand(count, objects, 2, generator=generator) * 2,
        torch.tensor([[True] * 4, [True] * 3 + [False]]),
        torch.tensor([1, 0]),
        torch.ones(count, dtype=torch.bool),
        torch.ones(count, dtype=torch.bool),
    )


def test_encoder_and_decoder_of_oat_are_reached(generator):
    torch.manual_seed(0)
    sizes = {"d_appearance": 4, "d_position": 4, "feed_forward": 8, "layers": 2, "heads": 2}
    model = OAT(rows=3, columns=5, appearance="none", **sizes).eval()
    given = scenes(generator), torch.tensor([0, 1]), torch.tensor([[-1, 2, 1], [-1, 0, 2]])
    with torch.no_grad():
        plain = model(*given)
    trace = record(model, *given)
    assert torch.equal(trace.output, plain)
    assert [call.map().shape[2:] for call in trace.calls] == [(5, 5)] * 2 + [(3, 3), (3, 5)] * 2
    assert trace.calls[3].map()[1, :, :, 3].abs().max() == 0  # padding


def test_blocks_of_nestedmorph_are_reached_by_the_probe(generator):
    torch.manual_seed(0)
    model = NestedMorph().eval()
    moving, fixed = torch.rand(2, 1, 1, 32, 32, 32, generator=generator)
    with torch.inference_mode():
        plain = model(moving, fixed)[1]
    trace = record(model, moving, fixed, layers=[2, 3])
    assert torch.equal(trace.output[1], plain)
    assert [call.map().shape for call in trace.calls] == [(1, 2, 8, 8), (1, 2, 1, 1)]
    assert_close(trace.calls[0].map().sum(-1), torch.ones(1, 2, 8), atol=1e-5, rtol=0)


def test_only_readers_of_the_image_give_it_weight(generator):
    model = TwoStreamModel()
    image, text = torch.randn(2, 1, 5, 4, generator=generator, dtype=F64)
    trace = record(model, model.embed(image, text, torch.zeros(1, 5, dtype=torch.bool)))
    share = trace.maps[:, 0, :, -1, :5].sum(-1)
    expected = torch.zeros(2, 4, dtype=F64)
    expected[0, 1] = expected[1, 2] = 1
    assert_close(share, expected, atol=1e-15, rtol=0)


@pytest.mark.parametrize("mixer", [SoftmaxAttention(), EfficientAttention()])
def test_rows_and_means_without_a_map_equal_those_of_the_map(generator, mixer):
    layer = MixingLayer(12, 3, mixer, key_heads=3)
    x = torch.randn(2, 50, 12, generator=generator)
    whole = record_run(layer, lambda: layer(x))[0]
    part = record_run(layer, lambda: layer(x), most_keys=20, rows=5)[0]
    chosen = torch.linspace(0, 49, 5).round().long()
    assert_close(part.weights, whole.weights[:, :, chosen])
    assert_close(part.column_means(), whole.weights.mean(-2))
    assert whole.received is None
    with intervene(layer, [WeightEdit(0, lambda a: a.flip(-1))]):
        part = record_run(layer, lambda: layer(x), most_keys=20, rows=5)[0]
    assert_close(part.column_means(), whole.weights.mean(-2).flip(-1))
