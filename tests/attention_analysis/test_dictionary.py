"""Section 5: the dictionary finds the patterns from which maps were made."""

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch.testing import assert_close

from voxelwave.attention_analysis.dictionary import make_dictionary, map_pictures, recentred
from voxelwave.attention_analysis.handmade import band_map, block_map, lag_map, sink_map, uniform_map

LENGTH = 32
PATTERNS = [uniform_map(LENGTH, causal=False), band_map(LENGTH, 5), lag_map(LENGTH, 8), sink_map(LENGTH, 3)]


def noisy(pattern, count, generator):
    noise = torch.rand(count, LENGTH, LENGTH, generator=generator, dtype=torch.float64)
    noise = noise / noise.sum(-1, keepdim=True)
    return 0.95 * pattern + 0.05 * noise


@pytest.fixture(scope="module")
def found():
    generator = torch.Generator().manual_seed(0)
    maps = torch.cat([noisy(pattern, 8, generator) for pattern in PATTERNS])
    return maps, make_dictionary(maps, steps=100)


def test_clusters_are_the_patterns(found):
    truth = [i for i in range(4) for _ in range(8)]
    assert adjusted_rand_score(truth, found[1].labels) >= 0.95
    assert found[1].prototypes.shape == (4, 16, 16)
    assert found[1].places.shape == (32, 2)


def test_the_same_seed_gives_the_same_labels(found):
    first, again = (make_dictionary(found[0], steps=20, clusters=4) for _ in range(2))
    assert (again.labels == first.labels).all()


def test_another_pattern_is_novel_and_a_known_one_is_not(found):
    generator = torch.Generator().manual_seed(1)
    new = noisy(block_map(LENGTH, 8).flip(-1), 4, generator)
    known = torch.cat([noisy(pattern, 2, generator) for pattern in PATTERNS])
    assert found[1].is_novel(new).all()
    assert not found[1].is_novel(known).any()


def test_pictures_have_one_scale_and_rows_can_be_recentred():
    pictures = map_pictures(torch.stack(PATTERNS))
    assert_close(pictures.square().mean((1, 2, 3)), torch.ones(4))
    rows = recentred(lag_map(LENGTH, 2), 3)
    assert rows[2:, 1].eq(1).all()
    assert rows[0].tolist() == [0, 0, 0, 1, 0, 0, 0]
