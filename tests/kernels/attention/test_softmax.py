"""Softmax and efficient attention: agreement with the reference, known results, masks, states and messages."""

import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from voxelwave.kernels.attention.reference import attention_reference, linear_attention_reference
from voxelwave.kernels.attention.softmax import LinearAttentionState, attention, linear_attention, merge_attention

F64 = torch.float64

# name, (B, H, Hk, Lq, Lk, D, Dv), options
CASES = {
    "self": ((2, 3, 3, 7, 7, 4, 4), {}),
    "causal self": ((2, 2, 2, 7, 7, 4, 4), {"causal": True}),
    "cross": ((1, 2, 2, 5, 11, 4, 6), {}),
    "causal, more keys": ((1, 2, 2, 5, 11, 4, 4), {"causal": True}),
    "causal with a cache": ((1, 2, 2, 5, 11, 4, 4), {"causal": True, "q_start": 6}),
    "causal, first rows blind": ((1, 2, 2, 7, 4, 4, 4), {"causal": True, "q_start": -3}),
    "causal, fewer keys": ((1, 2, 2, 9, 4, 4, 4), {"causal": True}),
    "grouped heads": ((2, 6, 2, 5, 7, 4, 3), {}),
    "grouped causal": ((2, 6, 2, 7, 7, 4, 3), {"causal": True}),
    "one of everything": ((1, 1, 1, 1, 1, 1, 1), {}),
    "own scale": ((1, 2, 1, 13, 13, 8, 8), {"scale": 0.3}),
    "scale 0, causal": ((1, 1, 1, 5, 5, 4, 4), {"scale": 0.0, "causal": True}),
    "negative scale, causal": ((1, 1, 1, 5, 5, 4, 4), {"scale": -0.7, "causal": True}),
}


def assert_exact(actual, expected):
    assert_close(actual, expected, rtol=0, atol=1e-10)  # float64 against float64: only the order of the sums differs


def random_qkv(sizes, generator, dtype=F64):
    batch, heads, key_heads, n_queries, n_keys, channels, value_channels = sizes
    q = torch.randn(batch, heads, n_queries, channels, generator=generator, dtype=F64)
    k = torch.randn(batch, key_heads, n_keys, channels, generator=generator, dtype=F64)
    v = torch.randn(batch, key_heads, n_keys, value_channels, generator=generator, dtype=F64)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def random_mask(shape, generator, share=0.6):
    return torch.rand(shape, generator=generator) < share


@pytest.mark.parametrize(("sizes", "options"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("extra", ["none", "mask", "bias", "mask and bias"])
def test_attention_equals_its_reference_with_all_gradients(sizes, options, extra, generator):
    q, k, v = (x.requires_grad_() for x in random_qkv(sizes, generator))
    shape = (sizes[0], sizes[1], sizes[3], sizes[4])
    options = dict(options)
    inputs = [q, k, v]
    if "mask" in extra:
        options["mask"] = random_mask(shape, generator)
    if "bias" in extra:
        options["bias"] = torch.randn(shape, generator=generator, dtype=F64).requires_grad_()
        inputs.append(options["bias"])
    expected, expected_lse, expected_weights = attention_reference(q, k, v, **options)
    upstream = torch.randn(expected.shape, generator=generator, dtype=F64)
    gradients = (
        torch.autograd.grad(expected, inputs, upstream, allow_unused=True, materialize_grads=True)
        if expected.requires_grad
        else [torch.zeros_like(x) for x in inputs]
    )

    fused = attention(q, k, v, **options)
    assert_exact(fused, expected)
    assert_exact(torch.autograd.grad(fused, inputs, upstream), tuple(gradients))

    plain, lse, weights = attention(q, k, v, **options, return_lse=True, return_weights=True)
    assert_exact(plain, expected)
    assert_exact(lse, expected_lse)
    assert_exact(weights, expected_weights)
    assert_exact(torch.autograd.grad(plain, inputs, upstream), tuple(gradients))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (4, 2)])
@pytest.mark.parametrize("length", [1, 2, 31, 32, 67])
def test_linear_attention_equals_its_reference_with_all_gradients(causal, heads, key_heads, length, generator):
    q, k, v = (x.requires_grad_() for x in random_qkv((2, heads, key_heads, length, length, 3, 4), generator))
    expected, _ = linear_attention_reference(q, k, v, causal=causal)
    out = linear_attention(q, k, v, causal=causal)
    assert_exact(out, expected)
    upstream = torch.randn(out.shape, generator=generator, dtype=F64)
    assert_exact(torch.autograd.grad(out, (q, k, v), upstream), torch.autograd.grad(expected, (q, k, v), upstream))


def test_linear_attention_across_lengths_equals_its_reference(generator):
    q, k, v = random_qkv((2, 4, 2, 3, 11, 3, 4), generator)
    assert_exact(linear_attention(q, k, v), linear_attention_reference(q, k, v)[0])


@pytest.mark.parametrize("causal", [False, True])
def test_linear_attention_of_masked_keys_equals_its_reference(causal, generator):
    q, k, v = random_qkv((2, 2, 2, 37, 37, 3, 4), generator)
    mask = random_mask((2, 1, 1, 37), generator)
    mask[0, ..., :3] = False  # the first tokens see no key
    expected, _ = linear_attention_reference(q, k, v, mask=mask, causal=causal)
    assert_exact(linear_attention(q, k, v, mask=mask, causal=causal), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("mechanism", [attention, linear_attention])
@pytest.mark.parametrize("causal", [False, True])
def test_half_and_single_precision_stay_near_float64_and_keep_their_type(
    mechanism, causal, dtype, tolerance, generator
):
    q, k, v = random_qkv((1, 4, 2, 40, 40, 8, 8), generator, dtype)
    exact = mechanism(q.to(F64), k.to(F64), v.to(F64), causal=causal)
    out = mechanism(q, k, v, causal=causal)
    assert out.dtype == dtype
    assert_close(out.to(F64), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("wanted", [{}, {"return_lse": True}], ids=["fused", "plain"])
def test_a_bias_of_another_type_keeps_the_type_of_the_output(wanted, generator):
    q, k, v = random_qkv((1, 2, 2, 5, 5, 4, 4), generator, torch.float32)
    bias = torch.randn(5, 5, generator=generator, dtype=F64)
    out, expected = (attention(q, k, v, bias=b, **wanted) for b in (bias, bias.float()))
    assert_close(out, expected)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"causal": True, "q_start": 2},
        pytest.param({"return_lse": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_compiled_once_for_every_length(options, generator):
    def mechanism(q, k, v):
        return attention(q, k, v, **options)

    compiled = torch.compile(mechanism, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (5, 7, 40):
        qkv = random_qkv((1, 4, 2, length, length, 4, 4), generator)
        assert_close(compiled(*qkv), mechanism(*qkv))


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_linear_attention_compiles_with_its_gradients(causal, generator):
    qkv = [x.requires_grad_() for x in random_qkv((1, 2, 1, 40, 40, 4, 4), generator)]

    def total(q, k, v):
        return linear_attention(q, k, v, causal=causal).square().sum()

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    assert_close(torch.autograd.grad(compiled(*qkv), qkv), torch.autograd.grad(total(*qkv), qkv))


def test_attention_with_equal_keys_is_the_mean_of_the_values(generator):
    q, k, v = random_qkv((1, 2, 2, 3, 5, 4, 4), generator)
    out = attention(q, k[:, :, :1].expand_as(k), v)
    assert_exact(out, v.mean(2, keepdim=True).expand_as(out))


def test_linear_attention_with_equal_keys_is_the_mean_of_the_values(generator):
    q, k, v = random_qkv((1, 2, 2, 5, 5, 4, 4), generator)
    equal = k[:, :, :1].expand_as(k)
    assert_exact(linear_attention(q, equal, v), v.mean(2, keepdim=True).expand_as(v))
    running_mean = v.cumsum(2) / torch.arange(1, 6, dtype=F64).view(1, 1, 5, 1)
    assert_exact(linear_attention(q, equal, v, causal=True), running_mean)


def test_linear_attention_with_one_channel_is_softmax_attention_of_equal_queries(generator):
    # With D = 1 the query's softmax is 1, so the weights are softmax over the keys alone.
    q, k, v = random_qkv((1, 2, 2, 9, 9, 1, 3), generator)
    assert_exact(linear_attention(q, k, v), attention(torch.ones_like(q), k, v, scale=1.0))
    causal = attention(torch.ones_like(q), k, v, scale=1.0, causal=True)
    assert_exact(linear_attention(q, k, v, causal=True), causal)


@pytest.mark.parametrize("mechanism", [attention, linear_attention])
def test_causal_outputs_do_not_depend_on_later_tokens(mechanism, generator):
    q, k, v = random_qkv((2, 2, 2, 45, 45, 4, 4), generator)
    whole = mechanism(q, k, v, causal=True)
    for t in (1, 2, 32, 33, 44):
        prefix = mechanism(q[:, :, :t], k[:, :, :t], v[:, :, :t], causal=True)
        assert_exact(prefix, whole[:, :, :t])


@pytest.mark.parametrize("mechanism", [attention, linear_attention])
def test_outputs_of_cross_attention_do_not_depend_on_later_queries(mechanism, generator):
    q, k, v = random_qkv((2, 4, 2, 9, 13, 4, 3), generator)
    whole = mechanism(q, k, v)
    for t in (1, 4, 8):
        assert_exact(mechanism(q[:, :, :t], k, v), whole[:, :, :t])


@pytest.mark.parametrize("mechanism", [attention, linear_attention])
def test_masked_keys_change_nothing(mechanism, generator):
    q, k, v = random_qkv((1, 2, 2, 6, 6, 4, 4), generator)
    _, more_k, more_v = random_qkv((1, 2, 2, 6, 5, 4, 4), generator)
    mask = torch.arange(11).view(1, 1, 1, 11) < 6
    longer = mechanism(q, torch.cat([k, 1e3 * more_k], 2), torch.cat([v, more_v], 2), mask=mask)
    assert_exact(longer, mechanism(q, k, v))


@pytest.mark.parametrize("mechanism", [attention, linear_attention])
@pytest.mark.parametrize("causal", [False, True])
def test_identity_values_give_the_weights(mechanism, causal, generator):
    q, k, v = random_qkv((2, 2, 2, 7, 7, 4, 3), generator)
    weights = mechanism(q, k, torch.eye(7, dtype=F64).expand(2, 2, 7, 7), causal=causal)
    assert_exact(weights @ v, mechanism(q, k, v, causal=causal))
    assert_exact(weights.sum(-1), torch.ones(2, 2, 7, dtype=F64))
    if causal:
        assert not weights.triu(1).any()


@pytest.mark.slow
def test_gradients_agree_with_finite_differences(generator):
    q, k, v = (x.requires_grad_() for x in random_qkv((1, 2, 1, 5, 6, 3, 2), generator))
    bias = torch.randn(1, 2, 5, 6, generator=generator, dtype=F64).requires_grad_()
    mask = random_mask((1, 1, 5, 6), generator)
    mask[0, 0, 2] = False
    torch.autograd.gradcheck(lambda *x: attention(*x[:3], bias=x[3], mask=mask), (q, k, v, bias))

    def visible_parts(*x):
        out, lse, weights = attention(*x[:3], bias=x[3], mask=mask, return_lse=True, return_weights=True)
        return out, lse.masked_fill(lse == -math.inf, 0), weights

    torch.autograd.gradcheck(visible_parts, (q, k, v, bias))


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_linear_gradients_agree_with_finite_differences(causal, generator, monkeypatch):
    monkeypatch.setattr("voxelwave.kernels.attention.softmax._CHUNK", 3)
    q, k, v = (x.requires_grad_() for x in random_qkv((1, 2, 1, 8, 8, 2, 2), generator))
    mask = torch.tensor([0, 1, 1, 0, 1, 1, 1, 1], dtype=torch.bool).view(1, 1, 1, 8)
    torch.autograd.gradcheck(lambda *x: linear_attention(*x, causal=causal, mask=mask), (q, k, v))


def test_decoding_with_a_cache_equals_one_call(generator):
    q, k, v = random_qkv((1, 4, 2, 9, 9, 4, 4), generator)
    steps = [
        attention(q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1], causal=True, q_start=t) for t in range(9)
    ]
    assert_exact(torch.cat(steps, 2), attention(q, k, v, causal=True))


@pytest.mark.parametrize("step", [1, 7, 40])
def test_linear_attention_in_steps_equals_one_call(step, generator):
    q, k, v = (x.requires_grad_() for x in random_qkv((1, 4, 2, 83, 83, 3, 5), generator))
    whole, end = linear_attention(q, k, v, causal=True, return_state=True)
    outs, state = [], None
    for t in range(0, 83, step):
        part = slice(t, t + step)
        out, state = linear_attention(
            q[:, :, part], k[:, :, part], v[:, :, part], causal=True, state=state, return_state=True
        )
        outs.append(out)
    assert isinstance(state, LinearAttentionState)
    assert_exact(torch.cat(outs, 2), whole)
    assert_exact(tuple(state), tuple(end))
    upstream = torch.randn(whole.shape, generator=generator, dtype=F64)
    expected = torch.autograd.grad(whole, (q, k, v), upstream)
    assert_exact(torch.autograd.grad(torch.cat(outs, 2), (q, k, v), upstream), expected)


@pytest.mark.parametrize("causal", [False, True])
def test_huge_scores_stay_finite(causal, generator):
    q, k, v = (x.requires_grad_() for x in random_qkv((1, 2, 2, 37, 37, 4, 4), generator, torch.float32))
    for mechanism in (attention, linear_attention):
        out = mechanism(q * 1e2, k * 1e2 * (1 if mechanism is attention else 1e2), v, causal=causal)
        assert out.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), (q, k, v)))
    out, lse = attention(q * 1e2, k * 1e2, v, causal=causal, return_lse=True)
    assert out.isfinite().all()
    assert lse.isfinite().all()


def test_causal_linear_attention_keeps_early_tokens_beside_a_huge_late_key(generator):
    # With a maximum over the whole chunk, exp(k - maximum) of the early tokens would vanish and give 0 / 0.
    q, k, v = random_qkv((1, 1, 1, 20, 20, 2, 3), generator, torch.float32)
    k[:, :, 10] = 1e4
    expected, _ = linear_attention_reference(q.to(F64), k.to(F64), v.to(F64), causal=True)
    assert_close(linear_attention(q, k, v, causal=True).to(F64), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["mask", "bias", "causal"])
def test_a_row_that_sees_no_key_gives_zero_and_zero_gradient(how, generator):
    q, k, v = (x.requires_grad_() for x in random_qkv((1, 2, 2, 4, 4, 3, 3), generator))
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 0, :] = False
    ways: dict[str, dict[str, Any]] = {
        "mask": {"mask": mask},
        "bias": {"bias": torch.zeros(1, 1, 4, 4, dtype=F64).masked_fill(~mask, -math.inf).requires_grad_()},
        "causal": {"causal": True, "q_start": -1},
    }
    options = ways[how]
    inputs = (q, k, v, options["bias"]) if how == "bias" else (q, k, v)
    fused = attention(q, k, v, **options)
    plain, lse = attention(q, k, v, **options, return_lse=True)
    for out in (fused, plain):
        assert not out[:, :, 0].any()
        gradients = torch.autograd.grad(out[:, :, 0].sum(), inputs, retain_graph=True)
        assert not any(gradient.any() for gradient in gradients)
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), inputs, retain_graph=True))
    assert (lse[:, :, 0] == -math.inf).all()


@pytest.mark.parametrize(("n_queries", "n_keys"), [(0, 5), (5, 0), (0, 0)])
def test_without_queries_or_keys_the_output_is_empty_or_zero(n_queries, n_keys, generator):
    q, k, v = (x.requires_grad_() for x in random_qkv((2, 4, 2, n_queries, n_keys, 3, 6), generator))
    out, lse = attention(q, k, v, return_lse=True)
    assert out.shape == (2, 4, n_queries, 6)
    assert not out.any()
    assert (lse == -math.inf).all()
    torch.autograd.grad(attention(q, k, v, causal=True).sum() + lse.exp().sum(), (q, k, v))
    assert linear_attention(q, k, v).shape == (2, 4, n_queries, 6)
    if n_queries == n_keys:
        assert linear_attention(q, k, v, causal=True).shape == (2, 4, 0, 6)


@pytest.mark.parametrize("mechanism", [attention, linear_attention])
@pytest.mark.parametrize("causal", [False, True])
def test_batch_items_and_heads_do_not_influence_each_other(mechanism, causal, generator):
    q, k, v = random_qkv((3, 4, 2, 6, 6, 4, 4), generator)
    whole = mechanism(q, k, v, causal=causal)
    for b in range(3):
        for h in range(4):
            one = (q[b, h], k[b, h // 2], v[b, h // 2])
            alone = mechanism(*(x[None, None] for x in one), causal=causal)
            assert_exact(alone[0, 0], whole[b, h])


@pytest.mark.parametrize("shape", [(6,), (5, 6), (1, 5, 6), (2, 1, 1, 6), (1, 3, 5, 1)])
def test_masks_and_biases_broadcast(shape, generator):
    q, k, v = random_qkv((2, 3, 3, 5, 6, 4, 4), generator)
    mask, bias = random_mask(shape, generator), torch.randn(shape, generator=generator, dtype=F64)
    full = (2, 3, 5, 6)
    expected, *_ = attention_reference(q, k, v, mask=mask.expand(full), bias=bias.expand(full))
    assert_exact(attention(q, k, v, mask=mask, bias=bias), expected)
    expected, *_ = attention_reference(q, k, v, mask=mask.expand(full))
    assert_exact(attention(q, k, v, mask=mask), expected)


def test_expanded_and_transposed_inputs_give_the_same_output(generator):
    q, k, v = random_qkv((1, 2, 2, 7, 7, 4, 4), generator)
    one_query = q[:, :, :1].expand(1, 2, 7, 4)  # stride 0
    assert_exact(attention(one_query, k, v), attention(one_query.contiguous(), k, v))
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    for mechanism in (attention, linear_attention):
        assert_exact(mechanism(*strided, causal=True), mechanism(q, k, v, causal=True))


def test_merged_parts_equal_attention_over_all_keys_with_gradients(generator):
    q, k, v = (x.requires_grad_() for x in random_qkv((2, 4, 2, 5, 12, 3, 4), generator))
    mask = random_mask((2, 4, 5, 12), generator, share=0.4)
    mask[0, 0, 0] = False  # sees no key in any part
    mask[0, 0, 1, :7] = False  # sees no key in the first two parts
    expected, expected_lse, _ = attention(q, k, v, mask=mask, return_lse=True, return_weights=True)
    parts = []
    for part in (slice(0, 3), slice(3, 7), slice(7, 12)):
        out, lse = attention(q, k[:, :, part], v[:, :, part], mask=mask[..., part], return_lse=True)
        parts.append((out, lse))
    out, lse = merge_attention(parts)
    assert_exact(out, expected)
    assert_exact(lse, expected_lse)
    upstream = torch.randn(out.shape, generator=generator, dtype=F64)
    wanted = torch.autograd.grad(expected, (q, k, v), upstream)
    assert_exact(torch.autograd.grad(out, (q, k, v), upstream, retain_graph=True), wanted)
    # associative, with (0, -inf) as the neutral element
    assert_exact(merge_attention([merge_attention(parts[:2]), parts[2]]), (out, lse))
    nothing = (torch.zeros_like(out), torch.full_like(lse, -math.inf))
    assert_exact(merge_attention([nothing, parts[0], nothing]), parts[0])
    assert_exact(merge_attention([nothing, nothing]), nothing)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": (1, 2, 4)}, ValueError, r"q must have shape \(B, heads, L, channels\), got \(1, 2, 4\)"),
        ({"k": (1, 2, 5, 3)}, ValueError, r"k must have shape \(1, Hk, Lk, 4\).*got \(1, 2, 5, 3\)"),
        ({"q": (1, 3, 5, 4)}, ValueError, "heads that divides the 3 of q, got 2"),
        ({"v": (1, 2, 6, 4)}, ValueError, r"v must have shape \(1, 2, 5, Dv\).*got \(1, 2, 6, 4\)"),
        (
            {"mask": torch.ones(3, 5, dtype=torch.bool)},
            ValueError,
            r"mask must be broadcastable.*\(1, 2, 5, 5\), got \(3, 5\)",
        ),
        ({"mask": torch.zeros(5, 5)}, TypeError, "mask must be bool"),
        ({"mask": 1}, TypeError, "mask must be a tensor broadcastable.*got int"),
        (
            {"mask": torch.ones(5, 5, dtype=torch.bool, device="meta")},
            ValueError,
            "mask must be on the device of q, cpu, got meta",
        ),
        ({"bias": torch.ones(5, 5, dtype=torch.bool)}, TypeError, "bias must be floating point"),
        ({"bias": torch.ones(1, 1, 1, 5, 5)}, ValueError, "bias must be broadcastable"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_expected(change, error, message):
    arguments = {name: torch.zeros(change.get(name, (1, 2, 5, 4))) for name in "qkv"}
    arguments |= {name: value for name, value in change.items() if name in ("mask", "bias")}
    with pytest.raises(error, match=message):
        attention(**arguments)


def test_linear_attention_refuses_masks_per_query_and_states_without_causality():
    x = torch.zeros(1, 2, 5, 4)
    with pytest.raises(ValueError, match=r"size 1 along heads and queries.*got \(1, 1, 5, 5\)"):
        linear_attention(x, x, x, mask=torch.ones(5, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="as many queries as keys"):
        linear_attention(x[:, :, :3], x, x, causal=True)
    with pytest.raises(ValueError, match="causal=True"):
        linear_attention(x, x, x, return_state=True)
    _, state = linear_attention(x, x, x, causal=True, return_state=True)
    with pytest.raises(ValueError, match=r"state.maximum must have shape \(1, 2, 3\), got \(1, 2, 4\)"):
        linear_attention(x[..., :3], x[..., :3], x, causal=True, state=state)


def test_a_type_that_differs_is_named():
    x = torch.zeros(1, 2, 5, 4)
    with pytest.raises(TypeError, match=r"v must have the type of q, torch.float32, got torch.float64"):
        attention(x, x, x.double())


@pytest.mark.parametrize("causal", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("mechanism", [attention, linear_attention])
def test_compiled_code_keeps_nan_in_place_as_plain_code_does(mechanism, causal, generator):
    q, k, v = random_qkv((1, 2, 1, 12, 12, 4, 4), generator)
    k[:, :, 5] = float("nan")
    compiled = torch.compile(lambda q, k, v: mechanism(q, k, v, causal=causal), fullgraph=True, backend="aot_eager")
    out = mechanism(q, k, v, causal=causal)
    assert out.isnan().any()
    assert not causal or out[:, :, :5].isfinite().all()
    assert_close(compiled(q, k, v), out, equal_nan=True)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_over_attention_equals_a_batch(generator):
    q, k, v = random_qkv((3, 2, 2, 6, 6, 4, 4), generator)
    each = torch.func.vmap(lambda q, k, v: attention(q[None], k[None], v[None])[0])(q, k, v)
    assert_close(each, attention(q, k, v))


@pytest.mark.parametrize("q_start", [-3, 0, 2, 5])
def test_log_sum_exp_and_weights_are_nan_where_a_key_is(q_start, generator):
    q, k, v = random_qkv((1, 2, 2, 6, 8, 4, 4), generator)
    k[0, 0, 4, 0], v[0, 1, 0, 0] = float("nan"), float("inf")
    options = {"causal": True, "q_start": q_start}
    fused = attention(q, k, v, **options)
    out, lse, weights = attention(q, k, v, return_lse=True, return_weights=True, **options)
    assert_close(out, fused, equal_nan=True)
    last_key = torch.arange(6) + q_start
    for x in (out[0, 0], lse[0, 0], weights[0, 0]):
        assert x[last_key < 4].isfinite().logical_or(x[last_key < 4] == -math.inf).all()
        assert x[last_key >= 4].isnan().all()
    assert out[0, 1, last_key >= 0].isnan().all()
    assert not lse[0, 1].isnan().any()
