"""Linear attention as a memory: recall, capacity, and the limit in which it equals softmax attention."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from voxelwave.kernels.attention.associative import AssociativeMemory, delta_memory, taylor_features
from voxelwave.kernels.attention.mixer import CS, NC, attention_map
from voxelwave.kernels.attention.softmax import attention

F64 = torch.float64


def orthonormal(count, channels, generator):
    return torch.linalg.qr(torch.randn(channels, count, generator=generator, dtype=F64)).Q.mT


@pytest.mark.parametrize("rule", ["hebb", "delta"])
def test_orthonormal_keys_are_recalled_exactly(rule, generator):
    k = orthonormal(6, 8, generator).view(1, 1, 6, 8)
    v = torch.randn(1, 1, 6, 3, generator=generator, dtype=F64)
    mixed = AssociativeMemory("identity", rule)(k, k, v, pattern=CS)
    assert_close(mixed.out, v)
    assert_close(k @ mixed.state.memory, v)


@pytest.mark.parametrize(("pairs", "expected"), [(16, 0.900), (64, 0.712), (128, 0.581)])
def test_fidelity_falls_with_the_number_of_pairs_as_predicted(pairs, expected, generator):
    k = F.normalize(torch.randn(8, 1, pairs, 64, generator=generator, dtype=F64), dim=-1)
    v = F.normalize(torch.randn(8, 1, pairs, 64, generator=generator, dtype=F64), dim=-1)
    cosine = F.cosine_similarity(AssociativeMemory("identity")(k, k, v).out, v, dim=-1).mean().item()
    assert abs(cosine - (1 + (pairs - 1) / 64) ** -0.5) < 0.02
    assert abs(cosine - expected) < 0.02


def test_the_delta_rule_recalls_the_pair_just_written_and_repeated_passes_recall_all(generator):
    k = F.normalize(torch.randn(1, 12, 16, generator=generator, dtype=F64), dim=-1)
    v = torch.randn(1, 12, 4, generator=generator, dtype=F64)
    out, memory = delta_memory(k, k, v, 1.0)
    assert_close(out, v)
    for _ in range(400):  # Kaczmarz
        _, memory = delta_memory(k, k, v, 1.0, memory=memory)
    assert_close(k @ memory, v, rtol=0, atol=1e-6)


def test_weights_are_the_normalised_products_of_features(generator):
    q, k = torch.randn(2, 1, 2, 9, 4, generator=generator, dtype=F64).unbind()
    for pattern in (CS, NC):
        products = (F.elu(q) + 1) @ (F.elu(k) + 1).mT
        products = products.tril() if pattern is CS else products
        assert_close(
            attention_map(AssociativeMemory(), q, k, pattern=pattern), products / products.sum(-1, keepdim=True)
        )


def test_decay_of_each_head_and_of_each_token(generator):
    q, k, v = torch.randn(3, 1, 2, 9, 4, generator=generator, dtype=F64).unbind()
    heads = AssociativeMemory("identity", "decay", decay=(0.9, 0.5))
    log_decay = torch.tensor([0.9, 0.5], dtype=F64).log().view(1, 2, 1).expand(1, 2, 9)
    assert_close(
        heads(q, k, v, pattern=CS).out, AssociativeMemory("identity")(q, k, v, pattern=CS, log_decay=log_decay).out
    )
    kept = AssociativeMemory("identity", "decay", decay=1.0)(q, k, v, pattern=CS).out
    assert_close(kept, AssociativeMemory("identity")(q, k, v, pattern=CS).out)


def test_taylor_features_give_the_series_and_equal_the_full_pairs(generator):
    x, y = torch.randn(2, 7, 5, generator=generator, dtype=F64).unbind()

    def full(z):
        return torch.cat([torch.ones(7, 1), z, (z.unsqueeze(2) * z.unsqueeze(1)).flatten(1) / 2**0.5], 1)

    s = x @ y.mT
    assert_close(taylor_features(x) @ taylor_features(y).mT, 1 + s + s**2 / 2)
    assert_close(full(x) @ full(y).mT, 1 + s + s**2 / 2)


def test_taylor_tends_to_softmax_with_the_third_power_of_the_scores(generator):
    q, k, v = torch.randn(3, 1, 2, 30, 4, generator=generator, dtype=F64).unbind()
    errors = []
    for size in (0.2, 0.1):  # size of the scores: half as large
        factor = size**0.5
        exact = attention(factor * q, factor * k, v)
        errors.append((AssociativeMemory("taylor")(factor * q, factor * k, v).out - exact).abs().max().item())
    assert 6 < errors[0] / errors[1] < 10


def test_random_features_approach_softmax(generator):
    q, k, v = (0.5 * torch.randn(3, 1, 1, 20, 4, generator=generator, dtype=F64)).unbind()
    exact = attention(q, k, v)
    errors = [(AssociativeMemory("exp", count=n)(q, k, v).out - exact).abs().max() for n in (8, 8192)]
    assert errors[1] < errors[0] / 5
    assert errors[1] < 0.02


def test_what_cannot_be_normalised_is_refused():
    with pytest.raises(ValueError, match="positive features"):
        AssociativeMemory("identity", normalise=True)
    with pytest.raises(ValueError, match="positive features"):
        AssociativeMemory("elu", "delta", normalise=True)
