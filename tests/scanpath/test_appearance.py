import numpy as np
import pytest
import torch
from torch import nn

from voxelwave.scanpath.appearance import CROP_SIZE, CropNetwork, crop_tensor


def test_the_published_network_has_its_shapes_and_is_its_formula():
    torch.manual_seed(0)
    network = CropNetwork().eval()
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    assert shapes == {
        "cnn1.0.weight": (16, 3, 5, 5),
        "cnn1.0.bias": (16,),
        "cnn2.0.weight": (32, 16, 3, 3),
        "cnn2.0.bias": (32,),
        "fc.weight": (256, 1440),
        "fc.bias": (256,),
    }
    crops = torch.rand(2, 3, *CROP_SIZE)
    x = nn.functional.conv2d(crops, network.cnn1[0].weight, network.cnn1[0].bias).relu()
    x = nn.functional.max_pool2d(x, 5)
    assert x.shape[1:] == (16, 29, 17)
    x = nn.functional.conv2d(x, network.cnn2[0].weight, network.cnn2[0].bias).relu()
    x = nn.functional.max_pool2d(x, 3)
    assert x.shape[1:] == (32, 9, 5)
    torch.testing.assert_close(network(crops), x.flatten(1) @ network.fc.weight.T + network.fc.bias)


@pytest.mark.parametrize(("pyramid", "inputs"), [(2, 160), (3, 672), (4, 2720)])
def test_a_pyramid_takes_crops_of_any_size(pyramid, inputs):
    network = CropNetwork(8, pyramid=pyramid)
    assert network.fc.in_features == inputs
    assert network(torch.rand(1, 3, 61, 40)).shape == (1, 8)
    assert network(torch.rand(2, 3, 150, 93)).shape == (2, 8)


def test_the_largest_of_all_is_the_first_level_of_a_pyramid():
    network = CropNetwork(8, pyramid=2)
    crop = torch.rand(1, 3, 50, 50)
    features = network.cnn2(network.cnn1(crop))
    with torch.no_grad():
        network.fc.weight.zero_()
        network.fc.weight[0, 3] = 1  # channel 3 of the single cell of level 1
        network.fc.bias.zero_()
    torch.testing.assert_close(network(crop)[0, 0], features[0, 3].max())


def test_crops_are_scaled_to_one_or_given_raw_as_published():
    pixels = np.random.default_rng(0).integers(0, 256, (150, 93, 3), dtype=np.uint8)
    batch = crop_tensor([pixels])
    torch.testing.assert_close(batch[0], torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    torch.testing.assert_close(
        crop_tensor([pixels], raw=True)[0], torch.from_numpy(pixels).permute(2, 0, 1).flip(0).float()
    )
    flat = np.full((20, 31, 3), (10, 20, 30), dtype=np.uint8)  # another size, one colour
    resized = crop_tensor([flat])
    assert resized.shape == (1, 3, 150, 93)
    torch.testing.assert_close(resized[0, :, 70, 40] * 255, torch.tensor([10.0, 20, 30]))
    assert crop_tensor([]).shape == (0, 3, 150, 93)


def test_wrong_crops_are_refused():
    with pytest.raises(ValueError, match=r"crops must be 150 x 93 pixels, got \(61, 40\)"):
        CropNetwork()(torch.rand(1, 3, 61, 40))
    with pytest.raises(ValueError, match="pyramid must be 0, 2, 3 or 4, got 1"):
        CropNetwork(pyramid=1)
    for wrong in (np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3))):
        with pytest.raises(ValueError, match="crops must be uint8"):
            crop_tensor([wrong])
