import importlib
import inspect
import pkgutil

import pytest
import torch
from torch.testing import assert_close

from voxelwave.kernels import attention as folder
from voxelwave.kernels.attention.bilevel import BilevelAttention
from voxelwave.kernels.attention.choice import NAMES, Place, gates_of, mixer_of, needs, read_call
from voxelwave.kernels.attention.graph_window import GraphWindowAttention
from voxelwave.kernels.attention.layer import MixingLayer
from voxelwave.kernels.attention.mixer import Mixer, Pattern
from voxelwave.kernels.attention.power import PowerAttention

EVERYTHING = Place(4, 8, grid=(4, 4), graph=torch.ones(16, 16).bool(), length=16)
TEXTS = {
    name: {
        "routing": "routing(clusters=3)",
        "head_split": 'head_split(mixers=["softmax", "power(block=4)"], heads=[1, 3])',
    }.get(name, name)
    for name in NAMES
}


def mixers_of_folder():
    found = set()
    for info in pkgutil.iter_modules(folder.__path__, folder.__name__ + "."):
        for value in vars(importlib.import_module(info.name)).values():
            own = inspect.isclass(value) and value.__module__ == info.name and value is not Mixer
            if own and hasattr(value, "patterns") and hasattr(value, "v_linear"):
                found.add(value)
    return found


def test_every_mechanism_of_the_folder_can_be_named():
    assert {type(mixer_of(text, EVERYTHING)) for text in TEXTS.values()} == mixers_of_folder()


@pytest.mark.parametrize("name", NAMES)
def test_a_named_mixer_works_in_a_layer(name, generator):
    mixer = mixer_of(TEXTS[name], EVERYTHING)
    layer = MixingLayer(32, 4, mixer, gates=gates_of("mixture_of_heads(shared=1, active=2)", 32, 4))
    pattern = next(p for p in Pattern if p in mixer.patterns)
    context = torch.randn(2, 16, 32, generator=generator)
    out = layer(torch.randn(2, 16, 32, generator=generator), context, pattern=pattern).out
    assert out.shape == (2, 16, 32)
    assert out.isfinite().all()


def test_settings_reach_the_mixer():
    assert mixer_of("power(block=64, window=3)", EVERYTHING) == PowerAttention(64, 3)
    assert mixer_of("power(scale=2)", EVERYTHING) == PowerAttention(scale=2)
    assert mixer_of("bilevel(regions=2, top=1)", EVERYTHING) == BilevelAttention((4, 4), (2, 2), 1)
    assert mixer_of("bilevel(region=[1, 4])", EVERYTHING) == BilevelAttention((4, 4), (1, 4), 4)
    graph = mixer_of("graph_window(hops=None)", EVERYTHING)
    assert isinstance(graph, GraphWindowAttention)
    assert graph.hops is None
    assert_close(graph.graph, EVERYTHING.graph)


def test_what_a_mixer_takes_from_the_model():
    assert needs("power") == frozenset()
    assert needs("bilevel(top=2)") == {"grid", "key_grid"}
    assert needs('head_split(mixers=["graph_window", "power"], heads=[1, 1])') == {"graph"}
    with pytest.raises(ValueError, match="bilevel needs tokens on a grid, which this model does not have"):
        mixer_of("bilevel", Place(4, 8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pwoer", "must be one of .*got 'pwoer'; did you mean power"),
        ("power(blok=3)", "among block, window, sink, scale, got blok; did you mean block"),
        ("power(block='a')", "block of power must be int, got 'a'"),
        ("power(block=1.5)", "must be int, got 1.5"),
        ("power(block=True)", "must be int, got True"),
        ("power(heads=2)", "among block"),
        ("power(block=0)", "at least 1"),
        ("power(3)", "must be a name, or a name with settings"),
        ("power(**{})", "must be a name, or a name with settings"),
        ("power(block=print)", "must be a name, or a name with settings"),
        ("power" * 200, "must be a name, or a name with settings"),
        (3, "must be a name, or a name with settings"),
        ("routing", "needs the settings clusters"),
        ("routing(clusters=0)", "clusters and window must be at least 1"),
        ("landmark(top=0)", "block and top must be at least 1"),
        ("sliding_window(window=0)", "window must be at least 1"),
        ("associative(feature='x')", "must be identity or elu or taylor or exp, got 'x'"),
        ("associative(decay=2.0)", "decay above 0 and at most 1"),
        ("dynamic_sparse(predict=1)", "got predict"),
        ("bilevel(region=[2, 'a'])", "region of bilevel must be a list of int or None"),
        ("head_split(mixers=['softmax'], heads=[3])", "must share 4 heads among 1 mixers, got \\[3\\]"),
        ("head_split(mixers=['softmax'], heads=4)", "takes the lists mixers and heads"),
        ("mixture_of_heads", "got 'mixture_of_heads'"),
    ],
)
def test_wrong_words_are_one_clear_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        mixer_of(text, EVERYTHING)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("softmax", "gates must be mixture_of_heads with settings, got 'softmax'"),
        ("mixture_of_heads(shared=1)", "needs the settings active"),
        ("mixture_of_heads(shared=1, active=2, dim=3)", "must be among shared, active, normalised, got dim"),
        ("mixture_of_heads(shared=1, active=9)", "active must be between 0 and the 3 routed heads"),
    ],
)
def test_wrong_words_for_gates_are_one_clear_line(text, message):
    with pytest.raises(ValueError, match=message):
        gates_of(text, 32, 4)


def test_the_call_is_only_read():
    assert read_call(" power( block = 64 ) ", "mixer") == ("power", {"block": 64})
    assert len(set(NAMES)) == len(NAMES)
