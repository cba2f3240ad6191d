"""The compiled attention between blocks agrees with the plain versions, at every instruction-set level."""

import math

import pytest
import torch
from torch.testing import assert_close

from voxelwave.kernels import native
from voxelwave.kernels.attention import bilevel, dynamic_sparse, landmark, power
from voxelwave.kernels.attention.bilevel import BilevelAttention
from voxelwave.kernels.attention.blocks import (
    attend_chosen,
    attend_gathered,
    attend_lists,
    best_keys,
    merge_blocks,
    pack,
    serves,
)
from voxelwave.kernels.attention.dense import dense_attention
from voxelwave.kernels.attention.dynamic_sparse import DynamicSparseAttention
from voxelwave.kernels.attention.landmark import LandmarkAttention
from voxelwave.kernels.attention.mixer import CC, CS, NC, NS
from voxelwave.kernels.attention.power import PowerAttention
from voxelwave.kernels.attention.selection import attend_chosen_blocks, to_blocks, top_k
from voxelwave.kernels.attention.softmax import attention

pytestmark = pytest.mark.skipif(not native.levels(), reason="the compiled kernels were not built")


@pytest.fixture(params=native.levels() or ("none",), autouse=True)
def level(request):
    with native.use_level(request.param):
        yield request.param


def random_qkv(generator, n_queries, n_keys, *, channels=8, values=8, key_heads=2):
    q = torch.randn(2, 4, n_queries, channels, generator=generator)
    k = torch.randn(2, key_heads, n_keys, channels, generator=generator)
    return q, k, torch.randn(2, key_heads, n_keys, values, generator=generator)


@pytest.mark.parametrize("block", [3, 16, 40, 150])
@pytest.mark.parametrize(("channels", "values", "key_heads"), [(8, 8, 4), (5, 33, 2), (32, 64, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_lists_of_all_blocks_are_softmax_attention(block, channels, values, key_heads, masked, generator):
    q, k, v = random_qkv(generator, 131, 131, channels=channels, values=values, key_heads=key_heads)
    visible = torch.rand(2, 131, generator=generator) < 0.5 if masked else None
    every = [list(range(-(-131 // block)))] * -(-131 // block)
    out, lse = attend_lists(q, pack(k, block), v, every, scale=0.7, visible=visible)
    mask = None if visible is None else visible[:, None, None]
    expected = attention(q, k, v, scale=0.7, mask=mask, return_lse=True)
    assert_close((out, lse), expected, rtol=2e-5, atol=1e-5)  # scores up to 20 are rounded by 1e-6


@pytest.mark.parametrize(("start", "count"), [(0, 100), (0, 1), (7, 60), (99, 1), (16, 32)])
def test_own_blocks_are_causal_at_the_position_of_the_query(start, count, generator):
    q, k, v = random_qkv(generator, count, 100)
    first, last = start // 16, (start + count - 1) // 16
    lists = [list(range(block + 1)) for block in range(first, last + 1)]
    out, lse = attend_lists(q, pack(k, 16), v, lists, scale=0.4, causal=True, start=start)
    expected = attention(q, k, v, scale=0.4, causal=True, q_start=start, return_lse=True)
    assert_close((out, lse), expected, rtol=2e-5, atol=2e-6)


def test_a_query_without_a_key_gets_0_and_other_rows_are_unchanged(generator):
    q, k, v = random_qkv(generator, 20, 20)
    visible = torch.zeros(2, 20, dtype=torch.bool)
    visible[1] = True
    out, lse = attend_lists(q, pack(k, 8), v, [[0, 1, 2], [], [1]], scale=1.0, visible=visible)
    assert (out[0] == 0).all()
    assert torch.isneginf(lse[0]).all()
    assert (out[1, :, 8:16] == 0).all()
    assert_close(out[1, :, :8], attention(q, k, v, scale=1.0)[1, :, :8], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("size", [1e4, 1e-4])
def test_large_and_small_scores_stay_finite_and_exact(size, generator):
    q, k, v = random_qkv(generator, 50, 50)
    out, _ = attend_lists(q * size, pack(k, 16), v, [[0, 1, 2, 3]] * 4, scale=1.0)
    exact = attention((q * size).double(), k.double(), v.double(), scale=1.0)
    assert_close(out.double(), exact, rtol=1e-4, atol=1e-4 if size > 1 else 2e-6)


def test_a_query_that_is_not_finite_gives_nan_for_itself_only(generator):
    q, k, v = random_qkv(generator, 20, 20)
    q[0, 1, 5, 2] = math.nan
    out, _ = attend_lists(q, pack(k, 8), v, [[0, 1, 2]] * 3, scale=1.0)
    broken = torch.zeros(2, 4, 20, dtype=torch.bool)
    broken[0, 1, 5] = True
    assert (out.isnan().all(-1) == broken).all()
    assert (out.isfinite().all(-1) == ~broken).all()
    mixed = LandmarkAttention(block=4, top=2)(q, k, v, pattern=NS)
    assert (mixed.out.isnan().any(-1) == broken).all()


def test_weights_of_far_smaller_scores_are_exactly_0(generator):
    q = torch.full((1, 1, 1, 4), 10.0)
    k = torch.stack([torch.full((4,), 10.0), torch.full((4,), -10.0)]).view(1, 1, 2, 4)
    out, _ = attend_lists(q, pack(k, 2), torch.eye(2).view(1, 1, 2, 2), [[0]], scale=1.0)
    assert out.flatten().tolist() == [1.0, 0.0]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("length", "block"), [(64, 16), (77, 10), (5, 8)])
def test_chosen_blocks_agree_with_the_plain_form(length, block, masked, generator):
    q, k, v = random_qkv(generator, 45, length)
    visible = torch.rand(2, length, generator=generator) < 0.7 if masked else torch.ones(2, length, dtype=torch.bool)
    visible[:, ::block] = True  # the plain form uses all keys of a block without a visible one
    chosen = torch.randint(0, -(-length // block), (2, 4, 45, 3), generator=generator)
    out = attend_chosen(q, pack(k, block), v, chosen, scale=0.5, visible=visible)
    in_blocks = to_blocks(visible.unsqueeze(-1), block).squeeze(-1)
    keys, values = to_blocks(k, block), to_blocks(v, block)
    assert_close(out, attend_chosen_blocks(q, keys, values, in_blocks, chosen, scale=0.5), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("step", [None, 7])
def test_best_keys_are_in_order_and_the_first_of_equal_ones(step, generator):
    q, k, _ = random_qkv(generator, 90, 70)
    k[:, :, 30:40] = k[:, :, 20:30]  # equal scores
    bias = torch.randn(2, 70, generator=generator)
    bias[:, 30:40] = bias[:, 20:30]
    bias[:, 50] = -math.inf
    best, kept = best_keys(q, k, bias, 5, scale=0.3, step=step)
    scores = 0.3 * q @ k.repeat_interleave(2, 1).mT + bias[:, None, None]
    if step:
        later = torch.arange(70) >= (torch.arange(90) // step).unsqueeze(1)
        scores = scores.masked_fill(later, -math.inf)
    assert torch.equal(best, top_k(scores, 5))
    assert_close(kept, scores.gather(-1, best), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_key_that_is_not_finite_is_chosen_first_and_stays_visible_in_the_scores(count, generator):
    q, k, _ = random_qkv(generator, 9, 20)
    k[1, 1, 6, 2] = math.nan  # of the heads 2 and 3
    best, kept = best_keys(q, k, torch.zeros(2, 20), count, scale=0.3)
    assert torch.equal(best, top_k(0.3 * q @ k.repeat_interleave(2, 1).mT, count))
    broken = torch.zeros(2, 4, 9, count, dtype=torch.bool)
    broken[1, 2:, :, 0] = True
    assert torch.equal(kept.isnan(), broken)


def test_merged_blocks_are_weighted_by_the_softmax_of_their_scores(generator):
    reached, scores = torch.randn(2, 3, 70, 4, 8, generator=generator), torch.randn(2, 3, 70, 4, generator=generator)
    own = torch.randn(2, 3, 70, 8, generator=generator), torch.randn(2, 3, 70, generator=generator)
    scores[0, 0, :5] = -math.inf
    own[1][0, 0, :2] = -math.inf
    assert_close(merge_blocks(reached, scores, own), landmark._weighted(reached, scores, own), rtol=1e-5, atol=1e-6)
    assert_close(merge_blocks(reached, scores, None), landmark._weighted(reached, scores, None), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pattern", [NS, CS, NC, CC])
@pytest.mark.parametrize("masked", [False, True])
def test_landmark_retrieval_agrees_with_the_form_that_has_gradients(pattern, masked, generator, monkeypatch):
    n_queries = 83 if pattern in (NC, CC) else 97
    q, k, v = random_qkv(generator, n_queries, 97)
    mask = torch.rand(2, 1, 1, 97, generator=generator) < 0.7 if masked else None
    mixer = LandmarkAttention(block=8, top=3)
    fast = mixer(q, k, v, pattern=pattern, mask=mask)
    monkeypatch.setattr(landmark, "serves", lambda *_: False)
    plain = mixer(q, k, v, pattern=pattern, mask=mask)
    assert_close((fast.out, fast.lse), (plain.out, plain.lse), rtol=2e-5, atol=2e-6)
    real = plain.extras.scores > -math.inf
    assert torch.equal(fast.extras.chosen[real], plain.extras.chosen[real])


@pytest.mark.parametrize("pattern", [NS, CS])
@pytest.mark.parametrize(("block", "window", "sink"), [(4, 2, 1), (16, 1, 0), (70, 5, 2)])
def test_power_attention_agrees_with_the_form_that_has_gradients(pattern, block, window, sink, generator, monkeypatch):
    q, k, v = random_qkv(generator, 150, 150)
    mask = torch.rand(2, 1, 1, 150, generator=generator) < 0.7
    mixer = PowerAttention(block=block, window=window, sink=sink)
    fast = [mixer(q, k, v, pattern=pattern, mask=given).out for given in (None, mask)]
    if pattern is CS:
        fast.append(mixer(q[:, :, :20], k, v, pattern=CS, q_start=37).out)
    monkeypatch.setattr(power, "serves", lambda *_: False)
    plain = [mixer(q, k, v, pattern=pattern, mask=given).out for given in (None, mask)]
    if pattern is CS:
        plain.append(mixer(q[:, :, :20], k, v, pattern=CS, q_start=37).out)
    assert_close(fast, plain, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("own_keys_last", [False, True])
@pytest.mark.parametrize(("channels", "values", "key_heads"), [(8, 8, 4), (5, 33, 2)])
def test_gathered_keys_give_softmax_attention_with_their_mask(channels, values, key_heads, own_keys_last, generator):
    q, k, v = random_qkv(generator, 150, 150, channels=channels, values=values, key_heads=key_heads)
    rows = torch.randperm(150, generator=generator).view(2, 75)
    index = torch.stack([torch.randperm(150, generator=generator)[:100] for _ in range(2 * 2)]).view(2, 1, 2, 100)
    if own_keys_last:
        index = torch.stack([torch.cat([index[:, :, r, :30], rows[r].expand(2, 1, 75)], -1) for r in range(2)], 2)
        early = (index[..., :30].unsqueeze(-1) == rows[:, None]).any(-1)  # keys of a row are different
        index[..., :30] = index[..., :30].masked_fill(early, -1)
    index = index.masked_fill(torch.rand(index.shape, generator=generator) < 0.1, -1)
    allowed = torch.zeros(2, 4, 150, 150, dtype=torch.bool)
    for item in range(2):
        for row in range(2):
            for place, query in enumerate(rows[row].tolist()):
                keys = index[item, 0, row]
                keys = keys[: 30 + place + 1] if own_keys_last else keys
                allowed[item, :, query, keys[keys >= 0]] = True
    found = attend_gathered(q, k, v, rows, index, scale=0.3, own_keys_last=own_keys_last)
    assert_close(found, dense_attention(q, k, v, allowed, scale=0.3), rtol=2e-5, atol=2e-6)


def test_gathering_leaves_out_missing_queries_and_gives_0_without_a_key(generator):
    q, k, v = random_qkv(generator, 3, 5)
    rows = torch.tensor([[0, -1], [2, 1]])
    index = torch.tensor([[4, -1], [-1, -1]]).view(1, 1, 2, 2).expand(2, 1, 2, 2)
    found = attend_gathered(q, k, v, rows, index, scale=1.0)
    expected = torch.zeros(2, 4, 3, 8)
    expected[:, :, 0] = v[:, :, 4].repeat_interleave(2, 1)
    assert_close(found, expected)


@pytest.mark.parametrize("pattern", [NS, NC])
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_bilevel_routing_agrees_with_the_form_that_has_gradients(pattern, per_head, masked, generator, monkeypatch):
    q, k, v = random_qkv(generator, 9 * 14, 9 * 14)
    mask = torch.rand(2, 1, 1, 9 * 14, generator=generator) < 0.5 if masked else None
    mixer = BilevelAttention((9, 14), (4, 4), 3, per_head=per_head)
    fast = mixer(q, k, v, pattern=pattern, mask=mask)
    monkeypatch.setattr(bilevel, "serves", lambda *_: False)
    plain = mixer(q, k, v, pattern=pattern, mask=mask)
    assert_close(fast.out, plain.out, rtol=2e-5, atol=2e-6)
    assert torch.equal(fast.extras.chosen, plain.extras.chosen)


@pytest.mark.parametrize("pattern", [NS, CS, NC, CC])
@pytest.mark.parametrize("masked", [False, True])
def test_dynamic_sparsity_agrees_with_the_form_that_has_gradients(pattern, masked, generator, monkeypatch):
    q, k, v = random_qkv(generator, 150 if pattern in (NS, CS) else 90, 150)
    mask = torch.rand(2, 1, 1, 150, generator=generator) < 0.7 if masked else None
    mixer = DynamicSparseAttention(budget=60, local=16, block=16, longest=8, radius=4, per_head=masked)

    def results():
        found = [mixer(q, k, v, pattern=pattern, mask=mask).out]
        if pattern is CS and not masked:
            first = mixer(q[:, :, :37], k[:, :, :37], v[:, :, :37], pattern=CS)
            rest = mixer(q[:, :, 37:], k[:, :, 37:], v[:, :, 37:], pattern=CS, state=first.state)
            found += [first.out, rest.out, mixer(q[:, :, :20], k, v, pattern=CS, q_start=32).out]
        return found

    fast = results()
    monkeypatch.setattr(dynamic_sparse, "serves", lambda *_: False)
    assert_close(fast, results(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("channels", [10, 16])
def test_strided_inputs_are_read_in_their_order(channels, generator):
    q, k, v = (torch.randn(2, 36, channels, 4, generator=generator).permute(0, 3, 1, 2) for _ in range(3))
    plain = [x.contiguous() for x in (q, k, v)]
    mixers = (
        (BilevelAttention((6, 6), (2, 2), 3), NS),
        (DynamicSparseAttention(budget=30, local=8, block=8, longest=4, margin=2, radius=2), CS),
        (PowerAttention(block=8, window=2), CS),
        (LandmarkAttention(block=8, top=2), CS),
    )
    for mixer, pattern in mixers:
        found = mixer(q, k, v, pattern=pattern).out
        assert_close(found, mixer(*plain, pattern=pattern).out, rtol=1e-4, atol=1e-5)
        assert found.is_contiguous()


def test_outputs_do_not_depend_on_the_number_of_threads(generator):
    q, k, v = random_qkv(generator, 300, 300)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            dynamic = DynamicSparseAttention(budget=100, local=32, block=32, longest=16)
            mixers = (PowerAttention(block=16), LandmarkAttention(block=16, top=2), dynamic)
            found.append([mixer(q, k, v, pattern=CS).out for mixer in mixers])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_gradients_other_types_and_transforms_use_the_plain_form(generator):
    q, k, v = random_qkv(generator, 30, 30)
    assert serves(q, k, v)
    assert not serves(q.double(), k.double(), v.double())
    assert not serves(q.requires_grad_(), k, v)
    with torch.no_grad():
        assert serves(q, k, v)
    seen = []
    torch.func.grad(lambda x: (seen.append(serves(x, k, v)), x.sum())[1])(q.detach())
    assert seen == [False]


@pytest.mark.parametrize("missing", ["the library", "these kernels"])
def test_without_the_compiled_kernels_the_plain_form_gives_the_same(missing, generator, monkeypatch):
    q, k, v = random_qkv(generator, 40, 40)
    mixers = (PowerAttention(block=8, window=2), LandmarkAttention(block=8, top=2))
    fast = [mixer(q, k, v, pattern=CS).out for mixer in mixers]
    if missing == "the library":
        monkeypatch.setattr(native, "levels", lambda: ())
    else:  # a library that was built from older sources
        monkeypatch.setattr(native, "library", lambda: object())
        monkeypatch.setattr(native, "levels", lambda: ("v2",))
    assert not serves(q, k, v)
    assert_close([mixer(q, k, v, pattern=CS).out for mixer in mixers], fast, rtol=2e-5, atol=2e-6)
