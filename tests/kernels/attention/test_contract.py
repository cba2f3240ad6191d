"""Properties of every attention mechanism, in every pattern that it supports, compared with its reference."""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from voxelwave.kernels import attention as folder
from voxelwave.kernels.attention.associative import AssociativeMemory
from voxelwave.kernels.attention.baselines import EfficientAttention, SoftmaxAttention
from voxelwave.kernels.attention.bilevel import BilevelAttention
from voxelwave.kernels.attention.deconstructed import FixedMapAttention, KeyScoredAttention, UniformAttention
from voxelwave.kernels.attention.dynamic_sparse import DynamicSparseAttention
from voxelwave.kernels.attention.dynamical import DualityAttention
from voxelwave.kernels.attention.graph_window import GraphWindowAttention
from voxelwave.kernels.attention.head_split import HeadSplit, SlidingWindowAttention
from voxelwave.kernels.attention.landmark import LandmarkAttention
from voxelwave.kernels.attention.mixer import CC, CS, NC, NS, Mixer, Pattern, UnsupportedPattern, attention_map
from voxelwave.kernels.attention.neural_memory import NeuralMemory
from voxelwave.kernels.attention.power import PowerAttention, power_mask
from voxelwave.kernels.attention.recurrent import RecurrentAttention
from voxelwave.kernels.attention.relative_convolution import RelativeConvolutionAttention
from voxelwave.kernels.attention.routing import RoutingAttention
from voxelwave.kernels.attention.softmax import attention
from voxelwave.kernels.attention.workspace import WorkspaceAttention

F64 = torch.float64
HEADS, CHANNELS = 4, 4


class Member(NamedTuple):
    """A mechanism with small options, so that short sequences meet every one of its branches.

    `make` and `softmax` are called with (heads, n_queries, n_keys); most mechanisms need none of them.
    """

    make: Callable[[int, int, int], Mixer]
    softmax: Callable[[int, int, int], Mixer] | None = None  # the special case that equals softmax attention
    rows_sum_to_1: bool = True
    heads_are_independent: bool = True
    value_channels: int | None = None  # for mechanisms that have parameters for them


def relative_convolution(heads):
    mixer = RelativeConvolutionAttention(heads, CHANNELS, reach=6)
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return mixer


def split(heads):
    if heads == 1:
        return HeadSplit([SlidingWindowAttention(5)], [1])
    return HeadSplit([SlidingWindowAttention(5), SoftmaxAttention()], [heads // 2, heads // 2])


def path(length):
    return torch.diag(torch.ones(max(length - 1, 0)), 1).bool()[:length, :length]


# Add a new mechanism here; `test_no_mechanism_is_left_out` compares this list with the folder.
MEMBERS = {
    "softmax": Member(lambda *_: SoftmaxAttention(), lambda *_: SoftmaxAttention(with_lse=True)),
    "efficient": Member(lambda *_: EfficientAttention()),
    "landmark": Member(
        lambda *_: LandmarkAttention(block=4, top=2), lambda *_: LandmarkAttention(block=4, score="exact")
    ),
    "landmark, all blocks": Member(lambda *_: LandmarkAttention(block=5)),
    "power": Member(
        lambda *_: PowerAttention(block=2, window=2, sink=1), lambda *_: PowerAttention(block=2, window=12, sink=0)
    ),
    "bilevel": Member(
        lambda _, n, m: BilevelAttention((n,), (3,), 2, (m,)),
        lambda _, n, m: BilevelAttention((n,), (3,), 99, (m,)),
        heads_are_independent=False,
    ),
    "bilevel, for each head": Member(lambda _, n, m: BilevelAttention((n,), (4,), 1, (m,), per_head=True)),
    "dynamic sparse": Member(
        lambda *_: DynamicSparseAttention(budget=12, local=4, block=4, longest=4, margin=2, radius=2, threshold=0.1),
        lambda *_: DynamicSparseAttention(budget=99, local=4, block=4, longest=4, margin=2, radius=2),
        heads_are_independent=False,
    ),
    "dynamic sparse, for each head": Member(
        lambda *_: DynamicSparseAttention(budget=7, local=2, block=2, longest=2, margin=1, radius=1, per_head=True),
        heads_are_independent=False,  # the heads share the chunks
    ),
    "recurrent": Member(lambda heads, *_: RecurrentAttention(heads, CHANNELS)),
    "associative, elu": Member(lambda *_: AssociativeMemory("elu")),
    "associative, identity": Member(lambda *_: AssociativeMemory("identity"), rows_sum_to_1=False),
    "associative, taylor": Member(lambda *_: AssociativeMemory("taylor")),
    "associative, exp": Member(lambda *_: AssociativeMemory("exp", count=16)),
    "associative, decay": Member(lambda *_: AssociativeMemory("elu", "decay")),
    "associative, delta": Member(lambda *_: AssociativeMemory("identity", "delta", rate=0.1), rows_sum_to_1=False),
    "graph window": Member(
        lambda _, n, m: GraphWindowAttention(path(max(n, m)), 2),
        lambda _, n, m: GraphWindowAttention(path(max(n, m)), 100),
    ),
    "graph window, soft": Member(lambda _, n, m: GraphWindowAttention(path(max(n, m)), None, softness=0.7)),
    "workspace": Member(lambda heads, *_: WorkspaceAttention(heads, CHANNELS, slots=3, top=2)),
    "relative convolution": Member(
        lambda heads, *_: relative_convolution(heads),
        rows_sum_to_1=False,
        value_channels=CHANNELS,
    ),
    "neural memory": Member(lambda heads, *_: NeuralMemory(heads, CHANNELS, chunk=4), rows_sum_to_1=False),
    "neural memory, deep": Member(
        lambda heads, *_: NeuralMemory(heads, CHANNELS, chunk=4, depth=2, hidden=3), rows_sum_to_1=False
    ),
    "uniform": Member(lambda *_: UniformAttention()),
    "key scored": Member(lambda *_: KeyScoredAttention()),
    "fixed map": Member(lambda heads, *_: FixedMapAttention.random(heads, 40, CHANNELS)),
    "duality": Member(lambda heads, *_: DualityAttention(heads, CHANNELS), rows_sum_to_1=False),
    "sliding window": Member(lambda *_: SlidingWindowAttention(5), lambda *_: SlidingWindowAttention(50)),
    "heads split": Member(lambda heads, *_: split(heads)),
    "routing": Member(
        lambda heads, *_: RoutingAttention(heads, CHANNELS, 3), lambda heads, *_: RoutingAttention(heads, CHANNELS, 1)
    ),
    "routing, balanced": Member(
        lambda heads, *_: RoutingAttention(heads, CHANNELS, 3, mode="balanced", window=5),
        lambda heads, *_: RoutingAttention(heads, CHANNELS, 3, mode="balanced", window=50),
    ),
}


def made(make: Callable[[int, int, int], Mixer], heads: int, n_queries: int, n_keys: int, dtype=F64) -> Mixer:
    torch.manual_seed(0)
    mixer = make(heads, n_queries, n_keys)
    return mixer.to(dtype).eval() if isinstance(mixer, nn.Module) else mixer


PAIRS = [(name, p) for name, member in MEMBERS.items() for p in Pattern if p in made(member.make, 4, 7, 7).patterns]
CAUSAL_SELF = [name for name, pattern in PAIRS if pattern is CS]


def pairs_of(*patterns: Pattern) -> pytest.MarkDecorator:
    """Run a test over all mechanisms, each with those of these patterns that it supports."""
    chosen = [(name, pattern) for name, pattern in PAIRS if pattern in patterns]
    return pytest.mark.parametrize(("name", "pattern"), chosen, ids=[f"{n}-{p.value}" for n, p in chosen])


every_pair = pairs_of(*Pattern)


def sizes_of(pattern, length):
    return (length, length) if pattern in (NS, CS) else (length, length + 4)


def random_qkv(n_queries, n_keys, generator, *, name, heads=HEADS, key_heads=2, batch=2, value_channels=3):
    value_channels = MEMBERS[name].value_channels or value_channels
    shapes = (
        (batch, heads, n_queries, CHANNELS),
        (batch, key_heads, n_keys, CHANNELS),
        (batch, key_heads, n_keys, value_channels),
    )
    return tuple(torch.randn(shape, generator=generator, dtype=F64) for shape in shapes)


def reference_of(mixer):
    return sys.modules[type(mixer).__module__].reference


def differentiable(mixer):
    return [p for p in mixer.parameters() if p.requires_grad] if isinstance(mixer, nn.Module) else []


def gradients_of(out, inputs, upstream):
    if not out.requires_grad:
        return tuple(torch.zeros_like(x) for x in inputs)
    return torch.autograd.grad(out, inputs, upstream, allow_unused=True, materialize_grads=True)


def assert_exact(actual, expected):
    assert_close(
        actual, expected, rtol=1e-9, atol=1e-10, equal_nan=True
    )  # float64 against float64: only the order of sums differs


def test_no_mechanism_is_left_out():
    listed = {type(made(member.make, 4, 7, 7)) for member in MEMBERS.values()}
    found = set()
    for info in pkgutil.iter_modules(folder.__path__, folder.__name__ + "."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            own = inspect.isclass(value) and value.__module__ == module.__name__ and value is not Mixer
            if own and hasattr(value, "patterns") and hasattr(value, "v_linear"):
                found.add(value)
                assert callable(module.reference), f"{module.__name__} needs a function reference"
    assert found == listed


@every_pair
@pytest.mark.parametrize(
    ("length", "key_heads", "masked"),
    [(1, 2, False), (13, 2, True)]
    + [pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((13, 4, True), (16, 2, False), (23, 2, True))],
)
def test_equals_its_reference_with_all_gradients(name, pattern, length, key_heads, masked, generator):
    n_queries, n_keys = sizes_of(pattern, length)
    mixer = made(MEMBERS[name].make, HEADS, n_queries, n_keys)
    q, k, v = (x.requires_grad_() for x in random_qkv(n_queries, n_keys, generator, name=name, key_heads=key_heads))
    mask = torch.rand(2, 1, 1, n_keys, generator=generator) < 0.7 if masked else None
    expected = reference_of(mixer)(mixer, q, k, v, pattern=pattern, mask=mask)
    out = mixer(q, k, v, pattern=pattern, mask=mask).out
    assert_exact(out, expected)
    upstream = torch.randn(out.shape, generator=generator, dtype=F64)
    inputs = [q, k, v, *differentiable(mixer)]
    assert_exact(gradients_of(out, inputs, upstream), gradients_of(expected, inputs, upstream))


@every_pair
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_narrow_types_stay_near_float64_and_keep_their_type(name, pattern, dtype, tolerance, generator):
    n_queries, n_keys = sizes_of(pattern, 13)
    narrow = [x.to(dtype) for x in random_qkv(n_queries, n_keys, generator, name=name)]
    mixer = made(MEMBERS[name].make, HEADS, n_queries, n_keys, dtype)
    out = mixer(*narrow, pattern=pattern).out
    assert out.dtype == dtype
    if isinstance(mixer, nn.Module):
        mixer = mixer.to(F64)
    exact = reference_of(mixer)(mixer, *(x.to(F64) for x in narrow), pattern=pattern)
    assert_close(out.to(F64), exact, rtol=tolerance, atol=tolerance * max(1.0, exact.abs().max().item()))


@pytest.mark.parametrize(
    ("name", "pattern"),
    [(n, p) for n, p in PAIRS if MEMBERS[n].softmax is not None],
    ids=[f"{n}-{p.value}" for n, p in PAIRS if MEMBERS[n].softmax is not None],
)
def test_special_case_is_softmax_attention(name, pattern, generator):
    n_queries, n_keys = sizes_of(pattern, 23)
    mixer = made(MEMBERS[name].softmax, HEADS, n_queries, n_keys)
    q, k, v = random_qkv(n_queries, n_keys, generator, name=name)
    assert_exact(mixer(q, k, v, pattern=pattern).out, attention(q, k, v, causal=pattern is CS))


@pairs_of(CS, CC)  # in other patterns every token sees every token
def test_output_does_not_depend_on_what_comes_later(name, pattern, generator):
    n_queries, n_keys = sizes_of(pattern, 29)
    q, k, v = random_qkv(n_queries, n_keys, generator, name=name)
    whole = made(MEMBERS[name].make, HEADS, n_queries, n_keys)(q, k, v, pattern=pattern).out
    for t in (1, 4, 8, 17, 28):
        seen = t if pattern is CS else n_keys
        prefix = made(MEMBERS[name].make, HEADS, t, seen)(q[:, :, :t], k[:, :, :seen], v[:, :, :seen], pattern=pattern)
        assert_exact(prefix.out, whole[:, :, :t])


@every_pair
def test_keys_that_are_masked_out_change_nothing(name, pattern, generator):
    n_queries, n_keys = sizes_of(pattern, 16)
    more = 5 if pattern in (NS, CS) else 0
    q, k, v = random_qkv(n_queries + more, n_keys + 5, generator, name=name)
    k[:, :, n_keys:] *= 1e3
    mask = torch.arange(n_keys + 5).view(1, 1, 1, -1) < n_keys
    longer = made(MEMBERS[name].make, HEADS, n_queries + more, n_keys + 5)(q, k, v, pattern=pattern, mask=mask)
    mixer = made(MEMBERS[name].make, HEADS, n_queries, n_keys)
    shorter = mixer(q[:, :, :n_queries], k[:, :, :n_keys], v[:, :, :n_keys], pattern=pattern)
    assert_exact(longer.out[:, :, :n_queries], shorter.out)


@every_pair
def test_nothing_visible_gives_zero_and_finite_gradients(name, pattern, generator):
    n_queries, n_keys = sizes_of(pattern, 9)
    mixer = made(MEMBERS[name].make, HEADS, n_queries, n_keys)
    q, k, v = (x.requires_grad_() for x in random_qkv(n_queries, n_keys, generator, name=name))
    out = mixer(q, k, v, pattern=pattern, mask=torch.zeros(1, 1, 1, n_keys, dtype=torch.bool)).out
    assert not out.any()
    gradients = gradients_of(out, [q, k, v], torch.ones_like(out))
    assert all(g.isfinite().all() for g in gradients)


@every_pair
def test_what_stands_in_hidden_keys_and_values_reaches_neither_output_nor_gradient(name, pattern, generator):
    n_queries, n_keys = sizes_of(pattern, 9)
    mixer = made(MEMBERS[name].make, HEADS, n_queries, n_keys)
    q, k, v = random_qkv(n_queries, n_keys, generator, name=name)
    mask = torch.arange(n_keys).view(1, 1, 1, -1) % 4 != 2
    clean = mixer(q, k, v, pattern=pattern, mask=mask).out
    k[:, :, 2::4], v[:, :, 2::4] = float("nan"), float("inf")
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    out = mixer(q, k, v, pattern=pattern, mask=mask).out
    assert_exact(out, clean)
    gradients = gradients_of(out, [q, k, v, *differentiable(mixer)], torch.ones_like(out))
    assert all(g.isfinite().all() for g in gradients)


def visible_to(name, mixer, pattern, n_queries, n_keys):
    """The keys that a query may attend to, bool (1, H, Lq, Lk), from the definition of each mechanism."""
    visible = torch.ones(1, HEADS, n_queries, n_keys, dtype=torch.bool)
    if pattern is CS:
        visible = visible.tril()
    age = torch.arange(n_queries).unsqueeze(1) - torch.arange(n_keys)
    if name == "power":
        mask = power_mask(n_keys, block=mixer.block, window=mixer.window, sink=mixer.sink, causal=pattern is CS)
        visible = visible & mask
    elif name == "graph window":
        visible = visible & (age.abs() <= mixer.hops)
    elif name == "sliding window":
        visible = visible & (age < mixer.window)
    elif name == "heads split":
        visible = visible.clone()
        visible[:, : HEADS // 2] &= age < 5
    return visible


@every_pair
@pytest.mark.parametrize("where", ["key", "value"])
def test_what_is_not_finite_reaches_only_the_queries_that_may_see_it(name, pattern, where, generator):
    n_queries, n_keys = sizes_of(pattern, 16)
    mixer = made(MEMBERS[name].make, HEADS, n_queries, n_keys)
    qkv = random_qkv(n_queries, n_keys, generator, name=name)
    for place in (0, 6, 13):
        check_what_is_not_finite(name, mixer, pattern, place, where, *(x.clone() for x in qkv))


def check_what_is_not_finite(name, mixer, pattern, place, where, q, k, v):
    n_queries, n_keys = q.shape[2], k.shape[2]
    if where == "key":
        k[0, 1, place, 2] = float("nan")
    else:
        v[0, 1, place, 1] = float("inf")
    looks_at_keys = name != "fixed map"
    zeroed = [x.clone() for x in (k, v)]
    for x in zeroed if looks_at_keys or where == "value" else ():
        x[0, 1, place] = 0
    expected = mixer(q, *zeroed, pattern=pattern).out
    heads = slice(0, HEADS) if getattr(mixer, "heads_choose_together", False) else slice(HEADS // 2, HEADS)
    seen = torch.zeros(2, HEADS, n_queries, dtype=torch.bool)
    seen[0, heads] = visible_to(name, mixer, pattern, n_queries, n_keys)[0, heads, :, place]
    if where == "key" and not looks_at_keys:
        seen[:] = False
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    result = mixer(q, k, v, pattern=pattern)
    assert_exact(result.out, expected.masked_fill(seen.unsqueeze(-1), float("nan")))
    out = result.out[~seen]
    gradients = gradients_of(out, [q, k, v, *differentiable(mixer)], torch.ones_like(out))
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", CAUSAL_SELF)
def test_a_state_after_a_nan_gives_nan(name, generator):
    mixer = made(MEMBERS[name].make, HEADS, 12, 12)
    q, k, v = random_qkv(12, 12, generator, name=name)
    k[0, 1, 3, 0] = float("nan")
    first, second = ([x[:, :, part] for x in (q, k, v)] for part in (slice(0, 8), slice(8, 12)))
    state = mixer(*first, pattern=CS).state
    if state is None:
        pytest.skip("the past is in the keys and values")
    out = mixer(*second, pattern=CS, state=state).out
    assert out[0, HEADS // 2 :].isnan().all()
    assert out[1].isfinite().all()


@pytest.mark.parametrize("name", ["softmax", "graph window", "sliding window"])
def test_a_mask_for_each_query_keeps_nan_from_the_queries_that_it_hides_it_from(name, generator):
    pattern = CS if name == "sliding window" else NS
    mixer = made(MEMBERS[name].make, HEADS, 9, 9)
    q, k, v = random_qkv(9, 9, generator, name=name)
    mask = torch.rand(2, HEADS, 9, 9, generator=generator) < 0.5
    clean = mixer(q, k, v, pattern=pattern, mask=mask).out
    k[:, :, 4], v[:, :, 2] = float("nan"), float("-inf")
    seen = (visible_to(name, mixer, pattern, 9, 9) & mask)[..., [2, 4]].any(-1)
    out = mixer(q, k, v, pattern=pattern, mask=mask).out
    assert 0 < seen.sum() < seen.numel()
    assert_exact(out, clean.masked_fill(seen.unsqueeze(-1), float("nan")))


@every_pair
@pytest.mark.parametrize(
    "types", [(torch.bfloat16, torch.float32, torch.bfloat16), (torch.float32,) * 3], ids=["mixed", "float32"]
)
def test_autocast_takes_any_types_and_computes_in_one(name, pattern, types, generator):
    n_queries, n_keys = sizes_of(pattern, 9)
    mixer = made(MEMBERS[name].make, HEADS, n_queries, n_keys, torch.float32)
    given = [x.to(t) for x, t in zip(random_qkv(n_queries, n_keys, generator, name=name), types, strict=True)]
    q, k, v = (x.requires_grad_() for x in given)
    with torch.autocast("cpu", torch.bfloat16):
        out = mixer(q, k, v, pattern=pattern).out
    has_numbers = isinstance(mixer, nn.Module) and [*mixer.parameters(), *mixer.buffers()]
    one = torch.float32 if has_numbers else torch.bfloat16
    alike = (x.detach().to(one).requires_grad_() for x in given)  # gradients exclude kernels with another order of sums
    assert_close(out, mixer(*alike, pattern=pattern).out, rtol=0, atol=0)
    assert all(g.isfinite().all() for g in gradients_of(out, [q, k, v], torch.ones_like(out)))


@every_pair
def test_identity_values_give_the_weights(name, pattern, generator):
    n_queries, n_keys = sizes_of(pattern, 19)
    mixer = made(MEMBERS[name].make, HEADS, n_queries, n_keys)
    q, k, v = random_qkv(n_queries, n_keys, generator, name=name)
    if not mixer.v_linear:
        with pytest.raises(ValueError, match="not linear in v"):
            attention_map(mixer, q, k, pattern=pattern)
        return
    mask = torch.arange(n_keys).view(1, 1, 1, -1) % 7 != 3
    weights = attention_map(mixer, q, k, pattern=pattern, mask=mask)
    values = v.repeat_interleave(2, 1)
    assert_exact(weights @ values, mixer(q, k, v, pattern=pattern, mask=mask).out)
    assert not weights[..., 3::7].any()
    if pattern is CS:
        assert not weights.triu(1).any()
    if MEMBERS[name].rows_sum_to_1:
        visible = weights.sum(-1)[weights.any(-1)]
        assert_exact(visible, torch.ones_like(visible))
        assert weights.any(-1).sum() >= weights.any(-1).numel() - 3 * HEADS * 2  # only the first rows may see no key


@every_pair
def test_gradients_are_right_to_finite_differences(name, pattern, generator):
    n_queries, n_keys = (7, 7) if pattern in (NS, CS) else (5, 7)
    mixer = made(MEMBERS[name].make, 2, n_queries, n_keys)
    q, k, v = (
        x.requires_grad_()
        for x in random_qkv(n_queries, n_keys, generator, name=name, heads=2, key_heads=1, batch=1, value_channels=2)
    )

    def out(*qkv: Tensor) -> Tensor:
        return mixer(*qkv, pattern=pattern).out

    torch.autograd.gradcheck(out, (q, k, v), fast_mode=True)


@pytest.mark.parametrize("name", CAUSAL_SELF)
@pytest.mark.parametrize("steps", [[1] * 13, [5, 1, 9, 6]], ids=["single", "uneven"])
def test_step_by_step_equals_one_call(name, steps, generator):
    length = sum(steps)
    mixer = made(MEMBERS[name].make, HEADS, length, length)
    q, k, v = random_qkv(length, length, generator, name=name)
    whole = mixer(q, k, v, pattern=CS)
    outs, state, start = [], None, 0
    for step in steps:
        stop = start + step
        if "state" in inspect.signature(mixer.forward if isinstance(mixer, nn.Module) else mixer).parameters:
            part = mixer(*(x[:, :, start:stop] for x in (q, k, v)), pattern=CS, state=state)
            state = part.state
        else:  # the state is the cache of keys and values
            part = mixer(q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop], pattern=CS, q_start=start)
        outs.append(part.out)
        start = stop
    assert_exact(torch.cat(outs, 2), whole.out)
    if whole.state is not None:
        tensors = [(a, b) for a, b in zip(whole.state, state, strict=True) if isinstance(a, Tensor)]
        for expected, actual in tensors:
            assert_exact(actual, expected)


@every_pair
def test_huge_scores_stay_finite(name, pattern, generator):
    n_queries, n_keys = sizes_of(pattern, 21)
    mixer = made(MEMBERS[name].make, HEADS, n_queries, n_keys, torch.float32)
    q, k, v = (x.float() for x in random_qkv(n_queries, n_keys, generator, name=name))
    q, k, v = (x.requires_grad_() for x in (q * 1e2, k * 1e2, v))  # scores of about 1e4
    out = mixer(q, k, v, pattern=pattern).out
    assert out.isfinite().all()
    gradients = gradients_of(out, [q, k, v, *differentiable(mixer)], torch.ones_like(out))
    assert all(g.isfinite().all() for g in gradients)


@every_pair
def test_odd_lengths_and_one_head(name, pattern, generator):
    for length in (0, 1, 2, 3, 11):
        n_queries, n_keys = sizes_of(pattern, length)
        mixer = made(MEMBERS[name].make, 1, n_queries, n_keys)
        q, k, v = random_qkv(n_queries, n_keys, generator, name=name, heads=1, key_heads=1, batch=1, value_channels=5)
        out = mixer(q, k, v, pattern=pattern).out
        assert out.shape == (1, 1, n_queries, MEMBERS[name].value_channels or 5)
        if length:
            assert_exact(out, reference_of(mixer)(mixer, q, k, v, pattern=pattern))


@pairs_of(NC, CC)  # in other patterns there are as many keys as queries
def test_no_keys_give_zero(name, pattern, generator):
    mixer = made(MEMBERS[name].make, HEADS, 3, 0)
    out = mixer(*random_qkv(3, 0, generator, name=name), pattern=pattern).out
    assert out.shape == (2, HEADS, 3, MEMBERS[name].value_channels or 3)
    assert not out.any()


@every_pair
def test_batch_items_and_heads_do_not_influence_each_other(name, pattern, generator):
    n_queries, n_keys = sizes_of(pattern, 17)
    mixer = made(MEMBERS[name].make, HEADS, n_queries, n_keys)
    q, k, v = random_qkv(n_queries, n_keys, generator, name=name)
    out = mixer(q, k, v, pattern=pattern).out
    other = [x.clone() for x in (q, k, v)]
    for x in other:
        x[1] = x[1].flip(1) + 1
    assert_exact(mixer(*other, pattern=pattern).out[0], out[0])
    assert_exact(mixer(q[:1], k[:1], v[:1], pattern=pattern).out, out[:1])
    if MEMBERS[name].heads_are_independent:
        other = [x.clone() for x in (q, k, v)]
        for x in other:  # the second half of the heads
            x[:, x.shape[1] // 2 :] += 1
        assert_exact(mixer(*other, pattern=pattern).out[:, :2], out[:, :2])


@pytest.mark.parametrize("name", MEMBERS)
def test_a_pattern_outside_of_the_mechanism_is_an_error(name, generator):
    mixer = made(MEMBERS[name].make, HEADS, 5, 5)
    qkv = random_qkv(5, 5, generator, name=name)
    for pattern in set(Pattern) - mixer.patterns:
        with pytest.raises(UnsupportedPattern, match=pattern.value):
            mixer(*qkv, pattern=pattern)


@pytest.mark.parametrize("name", CAUSAL_SELF)
def test_causal_attention_of_unlike_lengths_needs_the_position_of_the_first_query(name, generator):
    mixer = made(MEMBERS[name].make, HEADS, 5, 7)
    with pytest.raises(ValueError, match=r"q_start|as many queries as keys"):
        mixer(*random_qkv(5, 7, generator, name=name), pattern=CS)
