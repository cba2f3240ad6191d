"""The convolution of volumes equals that of PyTorch, with its gradients, for every kind of filter and input."""

import pytest
import torch
from torch import nn

from voxelwave.kernels.convolution import Conv3d

SIZE = (9, 10, 11)
FORMS = {
    "filter of 3": {"kernel_size": 3, "padding": 1},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "strided": {"kernel_size": 3, "padding": 1, "stride": (1, 1, 2)},
    "without bias": {"kernel_size": (1, 3, 5), "bias": False},
    "groups": {"kernel_size": 3, "groups": 2},
    "same": {"kernel_size": 3, "padding": "same"},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
}


def both(**form):
    """The layer and that of PyTorch, with the same weights."""
    torch.manual_seed(0)
    ours = Conv3d(4, 6, **form)
    plain = nn.Conv3d(4, 6, **form)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def draw(*shape: int):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_results_and_gradients_equal_those_of_pytorch(form, last):
    volume = draw(2, *SIZE, 4).movedim(-1, 1) if last else draw(2, 4, *SIZE)
    results = []
    for layer in both(**form):
        leaf = volume.clone().requires_grad_()
        out = layer(leaf)
        grad = draw(*out.shape)
        results.append([out, *torch.autograd.grad(out, [leaf, *layer.parameters()], grad)])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)  # sums of up to 2,000 products


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch was built without oneDNN")
def test_a_filter_of_one_channel_for_many_voxels_goes_to_onednn():
    layer = Conv3d(1, 3, 3, padding=1)
    with torch.autograd.profiler.profile() as profile:
        layer(draw(1, 1, 16, 16, 16))
    assert "aten::mkldnn_convolution" in {event.name for event in profile.function_events}


@pytest.mark.parametrize("size", [(0, 4, *SIZE), (2, 4, 3, 3, 3), (4, *SIZE)], ids=str)
def test_inputs_that_onednn_does_not_get_give_the_result_of_pytorch(size):
    ours, plain = both(kernel_size=3, padding=1)
    assert torch.equal(ours(draw(*size)), plain(draw(*size)))
    ours, plain = ours.double(), plain.double()
    assert torch.equal(ours(draw(*size).double()), plain(draw(*size).double()))


def test_wrong_channels_are_refused_as_by_pytorch():
    with pytest.raises(RuntimeError, match="expected input"):
        Conv3d(4, 6, 3)(draw(1, 5, *SIZE))


def test_autocast_and_functional_transforms_give_the_result_of_pytorch():
    ours, plain = both(kernel_size=3, padding=1)
    volume = draw(2, 4, *SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(volume), plain(volume))
    torch.testing.assert_close(torch.vmap(ours)(volume[:, None]), torch.vmap(plain)(volume[:, None]))
