"""Which regions of the moving image a network searched, as numbers and as a picture."""

import numpy as np
import torch
from PIL import Image as Pillow
from scipy.ndimage import gaussian_filter

from voxelwave.registration.nestedmorph import NestedMorph
from voxelwave.registration.nestedmorph_files import TrainedNetwork
from voxelwave.registration.searched import draw_searched, find_searched, searched_regions
from voxelwave.volumes import AffineTransform, Volume

ONE = "bilevel(region=[1, 1, 1], top=1)"


def texture(shift=0, size=(32, 32, 128)):
    noise = np.random.default_rng(0).standard_normal((*size[:2], size[2] + 96)).astype(np.float32)
    smooth = gaussian_filter(noise, 2.5)
    window = 0.5 + 3 * smooth[..., 48 - shift : 48 - shift + size[2]]
    return torch.from_numpy(np.clip(window, 0, 1).copy())[None, None]


def test_a_shift_of_two_tokens_is_found_before_any_training():
    torch.manual_seed(0)
    searched = searched_regions(NestedMorph(mixer=ONE), texture(32), texture())
    assert searched is not None
    assert (searched.region, searched.counts) == ((16, 16, 16), (2, 2, 8))
    shifts = searched.best_shift().reshape(2, 2, 8, 3)[:, :, 1:5]  # regions whose content is in both images
    assert (shifts == [0, 0, 32]).all(-1).mean() > 0.9


def test_boxes_are_voxels_of_the_images_without_their_padding():
    searched = searched_regions(NestedMorph(mixer=ONE), texture(size=(32, 40, 33)), texture(size=(32, 40, 33)))
    assert searched is not None
    assert (searched.counts, searched.before) == ((2, 4, 4), (0, 12, 15))
    assert searched.box(0) == [(0, 16), (0, 4), (0, 1)]
    assert searched.box(31) == [(16, 32), (36, 40), (33, 33)]  # in the padding


def test_networks_that_choose_no_regions_have_none():
    volume = Volume(texture()[0, 0].numpy(), np.eye(4))
    for network in (NestedMorph(), NestedMorph(mixer="softmax"), torch.nn.Identity()):
        found = find_searched(TrainedNetwork(network), volume, volume, AffineTransform(np.eye(4)), grid=volume)
        assert found is None


def test_the_picture_shows_regions_in_colour(tmp_path):
    volume = Volume(texture(size=(40, 32, 64))[0, 0].numpy(), np.eye(4))
    network = TrainedNetwork(NestedMorph(mixer="bilevel(regions=4, top=3)"))
    searched = find_searched(network, volume, volume, AffineTransform(np.eye(4)), grid=volume)
    assert searched is not None
    draw_searched(tmp_path / "searched.png", searched)
    picture = np.asarray(Pillow.open(tmp_path / "searched.png").convert("RGB")).astype(int)
    coloured = np.ptp(picture, axis=2) > 100
    left, right = np.array_split(coloured, 2, axis=1)
    assert left.sum() > 200
    assert right.sum() > 200


def test_an_image_without_content_is_drawn(tmp_path):
    empty = torch.zeros(1, 1, 32, 32, 32)
    searched = searched_regions(NestedMorph(mixer=ONE), empty, empty)
    assert searched is not None
    draw_searched(tmp_path / "searched.png", searched)
