"""ADHDeepNet: the published outputs, and the fast order of layers compared with the published order."""

import copy

import numpy as np
import pytest
import torch

from voxelwave.eeg.adhdeepnet import ADHDeepNet
from voxelwave.eeg.adhdeepnet_reference import LiteralADHDeepNet
from voxelwave.kernels import signal_layers

SMALL = {"n_chans": 3, "n_times": 40, "F1": 4, "D": 2, "kernel_length": 7, "drop_prob": 0.0}
SIZES = [
    {},
    {"n_times": 41},
    {"n_times": 42},
    {"n_times": 43},
    {"n_times": 4, "kernel_length": 16},
    {"n_chans": 1, "F1": 3, "D": 1},
    {"kernel_length": 1},
    {"kernel_length": 64},
    {"n_times": 1100, "n_outputs": 3},
    {"n_times": 64, "kernel_length": 16},
    {"n_times": 96, "kernel_length": 4},
]


@pytest.fixture
def published(shared_fixtures):
    content = np.load(shared_fixtures / "adhdeepnet_default.npz", allow_pickle=False)
    arrays = [content[name] for name in sorted(content.files) if name.startswith("w/")]
    return arrays, torch.from_numpy(content["x"]).squeeze(1), torch.from_numpy(content["y"])


@pytest.mark.parametrize("kind", [ADHDeepNet, LiteralADHDeepNet])
def test_keras_weights_give_the_published_outputs(published, kind):
    arrays, x, y = published
    model = kind().eval()
    model.load_keras(arrays)
    with torch.no_grad():
        torch.testing.assert_close(model(x).softmax(-1), y, rtol=0, atol=1e-5)


def test_keras_weights_that_do_not_fit_are_refused(published):
    arrays, _, _ = published
    with pytest.raises(ValueError, match="arrays must be the 38 of the Keras model, got 37"):
        ADHDeepNet().load_keras(arrays[:-1])
    with pytest.raises(ValueError, match="array 0 of the Keras weights must fit"):
        ADHDeepNet(kernel_length=32).load_keras(arrays)


def test_numbers_in_the_model_are_as_published():
    fold_1 = ADHDeepNet(F1=32, kernel_length=64, se_nodes=32)
    trainable = [sum(p.numel() for p in model.parameters()) for model in (ADHDeepNet(), fold_1)]
    assert (ADHDeepNet().keras_parameters, fold_1.keras_parameters) == (174_626, 166_466)
    assert trainable == [172_962, 165_122]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_fast_order_trains_as_the_literal_one(sizes, generator):
    """Compare outputs, gradients and running statistics in float64; the shift of the first norm has a gradient of 0."""
    torch.manual_seed(0)
    literal = LiteralADHDeepNet(**{**SMALL, **sizes}).double()
    for norm in (literal.norm1, literal.norm2, literal.norm3, literal.norm4):
        torch.nn.init.normal_(norm.weight, 1, 0.3)
        torch.nn.init.normal_(norm.bias, 0, 0.3)
    fast = ADHDeepNet(**literal.arguments).double()
    fast.load_state_dict(literal.state_dict())
    x = torch.randn(4, literal.n_chans, literal.n_times, generator=generator, dtype=torch.float64) + 0.5
    results = []
    for model in (literal, fast):
        inputs = x.clone().requires_grad_()
        logits = model(inputs)
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0, 1])).backward()
        results.append((logits, inputs.grad, {n: p.grad for n, p in model.named_parameters()}, model.state_dict()))
    (expected, expected_dx, expected_grads, expected_state), (logits, dx, grads, state) = results
    close = {"rtol": 1e-7, "atol": 1e-9}
    torch.testing.assert_close(logits, expected, **close)
    torch.testing.assert_close(dx, expected_dx, **close)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(torch.zeros_like(grad) if grads[name] is None else grads[name], grad, **close)
    torch.testing.assert_close(state, expected_state, **close)
    with torch.no_grad():
        torch.testing.assert_close(fast.eval()(x), literal.eval()(x), **close)


@pytest.mark.skipif(not signal_layers.serves(torch.ones(1)), reason="the compiled kernels were not built")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sizes", [*SIZES, {"n_times": 95, "F1": 5, "D": 3}], ids=str)
def test_compiled_layers_give_what_the_plain_ones_give(sizes, training, generator, monkeypatch):
    """In float32, with dropout from the same random bits; the outputs of both differ from float64 by their rounding."""
    torch.manual_seed(0)
    network = ADHDeepNet(**{**SMALL, **sizes, "drop_prob": 0.4}).train(training)
    for norm in (network.norm1, network.norm2, network.norm3, network.norm4):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias, 0, 0.3)
    x = torch.randn(4, network.n_chans, network.n_times, generator=generator)
    found = []
    for compiled in (True, False):
        model = copy.deepcopy(network)
        if not compiled:
            monkeypatch.setattr(signal_layers, "serves", lambda *tensors: False)
        torch.manual_seed(1)
        logits = model(x)
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0, 1])).backward()
        found.append((logits.detach(), {n: p.grad for n, p in model.named_parameters()}, model.state_dict()))
    (logits, grads, state), (expected, expected_grads, expected_state) = found
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, expected_state, rtol=1e-5, atol=1e-6)
    for name, grad in expected_grads.items():
        # a gradient behind a norm is a difference of large sums
        torch.testing.assert_close(grads[name], grad, rtol=1e-3, atol=3e-4 * float(grad.abs().max()) + 2e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_a_strictly_exported_program_takes_any_batch(training, generator):
    """`torch.export` traces the bytecode, with gradients enabled as in a user's own call."""
    torch.manual_seed(0)
    model = ADHDeepNet(**SMALL).train(training)
    dynamic = ({0: torch.export.Dim("batch")},)
    x = torch.randn(3, 3, 40, generator=generator)
    program = torch.export.export(model, (x,), dynamic_shapes=dynamic, strict=True).module()
    for batch in (5, 2):
        x = torch.randn(batch, 3, 40, generator=generator)
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)
    running = {name: tensor for name, tensor in model.named_buffers() if "running" in name}
    torch.testing.assert_close({name: program.get_buffer(name) for name in running}, running, rtol=1e-5, atol=1e-6)
