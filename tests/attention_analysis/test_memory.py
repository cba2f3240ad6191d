"""Section 18: what a memory returns after n pairs."""

import pytest

from voxelwave.attention_analysis.memory import capacity_curve, memory_fidelity
from voxelwave.kernels.attention.associative import AssociativeMemory
from voxelwave.kernels.attention.baselines import SoftmaxAttention
from voxelwave.kernels.attention.neural_memory import NeuralMemory


@pytest.mark.parametrize("pairs", [2, 16, 64, 128])
def test_a_linear_memory_loses_with_the_root_of_the_load(pairs):
    found = memory_fidelity(AssociativeMemory("identity"), pairs, repeats=-(-2048 // pairs))
    assert found.cosine == pytest.approx((1 + (pairs - 1) / 64) ** -0.5, rel=0.02)


def test_sharp_softmax_attention_forgets_nothing():
    found = memory_fidelity(SoftmaxAttention(scale=200.0), 128)
    assert found.cosine == pytest.approx(1, abs=1e-3)
    assert found.recall == 1


def test_the_delta_rule_keeps_more_than_the_linear_memory_at_a_small_load():
    linear = capacity_curve(AssociativeMemory("identity"), [4, 16])
    delta = capacity_curve(AssociativeMemory("identity", rule="delta"), [4, 16])
    assert [one.pairs for one in delta] == [4, 16]
    assert all(d.cosine > one.cosine for d, one in zip(delta, linear, strict=True))


def test_a_single_pair_is_read_exactly_by_every_memory():
    for mixer in (
        AssociativeMemory("identity"),
        AssociativeMemory(rule="delta", feature="identity"),
        NeuralMemory(1, 64),
    ):
        assert memory_fidelity(mixer, 1).cosine == pytest.approx(1, abs=1e-5)
