"""The choice of a mechanism by its name in a configuration; only this file knows all mechanisms by name.

A mixer is written as its name, or as its name with settings: `recurrent`, `power(block=64, window=5)`,
`head_split(mixers=["softmax", "sliding_window(window=16)"], heads=[2, 2])`. Settings are the arguments of the class,
except for those that the surrounding model provides as a `Place`.
"""

import ast
import difflib
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Union, get_args, get_origin

from torch import Tensor

from .associative import AssociativeMemory
from .baselines import EfficientAttention, SoftmaxAttention
from .bilevel import BilevelAttention, regions_of
from .deconstructed import FixedMapAttention, KeyScoredAttention, UniformAttention
from .dynamic_sparse import DynamicSparseAttention
from .dynamical import DualityAttention
from .graph_window import GraphWindowAttention
from .head_split import HeadSplit, SlidingWindowAttention
from .landmark import LandmarkAttention
from .mixer import Mixer
from .mixture_of_heads import HeadGates
from .neural_memory import NeuralMemory
from .power import PowerAttention
from .recurrent import RecurrentAttention
from .relative_convolution import RelativeConvolutionAttention
from .routing import RoutingAttention
from .workspace import WorkspaceAttention

GATES = "mixture_of_heads"
_LONGEST = 500  # characters of the longest text that is parsed


@dataclass(frozen=True, eq=False)
class Place:
    """The properties of the surrounding model from which a mixer is constructed.

    Args:
        heads: number of query heads.
        channels: channels of a head.
        grid: number of tokens along each axis, if they are on a known grid.
        key_grid: the grid of the keys, if it differs.
        graph: bool (n, n) or (B, n, n), edges between the tokens, if there are any.
        length: the largest number of tokens, if known.
    """

    heads: int
    channels: int
    grid: tuple[int, ...] | None = None
    key_grid: tuple[int, ...] | None = None
    graph: Tensor | None = None
    length: int | None = None


_GIVEN = tuple(field.name for field in fields(Place))
_MISSING = {
    "grid": "tokens on a grid",
    "graph": "a graph of the tokens",
    "length": "a largest number of tokens",
}


def mixer_of(text: str, place: Place) -> Mixer:
    """Make the mixer that a configuration names; its weights are drawn from torch's generator.

    Args:
        text: a name of `NAMES`, or a name with settings.
        place: the properties of the model.

    Raises:
        ValueError: the name or a setting is unknown or out of range, or the model lacks what the mixer needs.

    Example:
        >>> mixer_of("power(block=64, window=5)", Place(heads=4, channels=8))
        PowerAttention(block=64, window=5, sink=1, scale=None)
    """
    name, settings = read_call(text, "mixer")
    if name == "head_split":
        return _head_split(settings, place)
    make = _maker(name)
    parameters = inspect.signature(make).parameters
    given = {key: getattr(place, key) for key in parameters if key in _GIVEN}
    for key, value in given.items():
        if value is None and parameters[key].default is inspect.Parameter.empty:
            raise ValueError(f"mixer {name} needs {_MISSING[key]}, which this model does not have")
    check_settings(name, make, settings)
    try:
        return make(**given, **settings)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError(f"mixer {text}: {error}") from None


def needs(text: str) -> frozenset[str]:
    """The fields of a `Place` that the mixer needs, such as "grid"; a model may have to construct the mixer later.

    Raises:
        ValueError: the name is unknown.
    """
    name, settings = read_call(text, "mixer")
    if name == "head_split":
        inner = settings.get("mixers", [])
        return frozenset().union(*(needs(one) for one in inner if isinstance(one, str)))
    return frozenset(_GIVEN) & frozenset(inspect.signature(_maker(name)).parameters)


def gates_of(text: str, dim: int, heads: int) -> HeadGates:
    """Make the head gates that a configuration names, such as `mixture_of_heads(shared=1, active=2)`.

    Args:
        text: the name with its settings.
        dim: channels of a token.
        heads: number of heads of the layer.

    Raises:
        ValueError: the name is another one, or a setting is unknown, missing or out of range.
    """
    name, settings = read_call(text, "gates")
    if name != GATES:
        raise ValueError(f"gates must be {GATES} with settings, got {name!r}")
    check_settings(name, HeadGates, settings, given=("dim", "heads"))
    return HeadGates(dim, heads, **settings)


def _maker(name: str) -> Callable[..., Mixer]:
    """The function that makes the mixer of that name; its parameters are the settings and the fields of `Place`."""
    if name not in _MAKERS:
        near = difflib.get_close_matches(name, NAMES, 1)
        raise ValueError(
            f"mixer must be one of {', '.join(NAMES)}, got {name!r}" + "".join(f"; did you mean {n}?" for n in near)
        )
    return _MAKERS[name]


def _bilevel(
    grid: tuple[int, ...],
    key_grid: tuple[int, ...] | None = None,
    *,
    regions: int = 7,
    region: tuple[int, ...] | None = None,
    top: int = 4,
    per_head: bool = False,
    scale: float | None = None,
) -> BilevelAttention:
    """`regions` is the number of regions along each axis of the queries; `region`, their size, overrides it."""
    if regions < 1:
        raise ValueError(f"regions must be at least 1, got {regions}")
    size = regions_of(grid, regions) if region is None else tuple(region)
    return BilevelAttention(grid, size, top, key_grid, per_head, scale)


_MAKERS: dict[str, Callable[..., Mixer]] = {
    "softmax": SoftmaxAttention,
    "efficient": EfficientAttention,
    "landmark": LandmarkAttention,
    "routing": RoutingAttention,
    "power": PowerAttention,
    "dynamic_sparse": DynamicSparseAttention,
    "bilevel": _bilevel,
    "relative_convolution": RelativeConvolutionAttention,
    "recurrent": RecurrentAttention,
    "neural_memory": NeuralMemory,
    "uniform": UniformAttention,
    "key_scored": KeyScoredAttention,
    "fixed_map": FixedMapAttention.random,
    "associative": AssociativeMemory,
    "duality": DualityAttention,
    "workspace": WorkspaceAttention,
    "graph_window": GraphWindowAttention,
    "sliding_window": SlidingWindowAttention,
}
NAMES = (*_MAKERS, "head_split")


def mechanisms() -> dict[str, type]:
    """The class of the mixer that each name makes."""
    classes = {name: make for name, make in _MAKERS.items() if isinstance(make, type)}
    others = {"bilevel": BilevelAttention, "fixed_map": FixedMapAttention, "head_split": HeadSplit}
    return {name: {**classes, **others}[name] for name in NAMES}


def settings_of(name: str) -> list[str]:
    """The settings that a configuration can give to a mixer.

    Example:
        >>> settings_of("power")
        ['block', 'window', 'sink', 'scale']
    """
    if name not in _MAKERS:
        return list(inspect.signature(HeadSplit).parameters)
    return [key for key in inspect.signature(_MAKERS[name]).parameters if key not in _GIVEN]


def _head_split(settings: Mapping[str, Any], place: Place) -> HeadSplit:
    if set(settings) != {"mixers", "heads"} or not all(isinstance(value, list) for value in settings.values()):
        raise ValueError(f"head_split takes the lists mixers and heads, got {', '.join(settings) or 'nothing'}")
    mixers, heads = settings["mixers"], settings["heads"]
    whole = all(isinstance(count, int) and not isinstance(count, bool) and count > 0 for count in heads)
    if not whole or len(mixers) != len(heads) or sum(heads) != place.heads:
        raise ValueError(f"heads of head_split must share {place.heads} heads among {len(mixers)} mixers, got {heads}")
    return HeadSplit([mixer_of(one, replace(place, heads=n)) for one, n in zip(mixers, heads, strict=True)], heads)


def read_call(text: str, what: str) -> tuple[str, dict[str, Any]]:
    """The name and the settings of a text such as "power(block=64)".

    Args:
        text: a name, or a name with keyword settings whose values are Python literals.
        what: a noun for the error message, such as "mixer".

    Example:
        >>> read_call("power(block=64, scale=None)", "mixer")
        ('power', {'block': 64, 'scale': None})
    """
    if isinstance(text, str) and len(text) <= _LONGEST:
        try:
            tree = ast.parse(text.strip(), mode="eval").body
            if isinstance(tree, ast.Name):
                return tree.id, {}
            if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
                return tree.func.id, {_keyword(each): ast.literal_eval(each.value) for each in tree.keywords}
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            pass
    raise ValueError(
        f'{what} must be a name, or a name with settings such as "power(block=64, window=5)", got {str(text)[:80]!r}'
    )


def _keyword(each: ast.keyword) -> str:
    if each.arg is None:
        raise ValueError("** has no name")
    return each.arg


def check_settings(
    name: str, make: Callable[..., object], settings: Mapping[str, Any], *, given: tuple[str, ...] = _GIVEN
) -> None:
    """Check the names and the types of settings against the arguments of a class or function.

    Args:
        name: name of the mechanism, for the message.
        make: the class or function.
        settings: argument -> value.
        given: arguments of the class that are not settings.

    Raises:
        ValueError: a setting is unknown, missing, or of another type.
    """
    parameters = {
        key: parameter
        for key, parameter in inspect.signature(make).parameters.items()
        if key not in given and not any(get_origin(o) is Callable for o in _options_of(parameter.annotation))
    }
    if unknown := sorted(set(settings) - set(parameters)):
        near = difflib.get_close_matches(unknown[0], parameters, 1)
        raise ValueError(
            f"settings of {name} must be among {', '.join(parameters) or 'none'}, got {', '.join(unknown)}"
            + "".join(f"; did you mean {n}?" for n in near)
        )
    if missing := [k for k, p in parameters.items() if p.default is inspect.Parameter.empty and k not in settings]:
        raise ValueError(f"{name} needs the settings {', '.join(missing)}")
    for key, value in settings.items():
        hint = parameters[key].annotation
        if not _fits(value, hint):
            raise ValueError(f"{key} of {name} must be {_in_words(hint)}, got {value!r}")


def _options_of(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a literal has the type; a bool does not count as a number, an int counts as float, a list as tuple."""
    for option in _options_of(hint):
        if get_origin(option) is Literal:
            if value in get_args(option):
                return True
        elif get_origin(option) is tuple:
            if isinstance(value, list | tuple) and all(_fits(each, get_args(option)[0]) for each in value):
                return True
        elif option is type(None):
            if value is None:
                return True
        elif option is bool or isinstance(value, bool):
            if option is bool and isinstance(value, bool):
                return True
        elif isinstance(value, int | float if option is float else option):
            return True
    return False


def _in_words(hint: Any) -> str:
    words: list[str] = []
    for option in _options_of(hint):
        if get_origin(option) is Literal:
            words += map(str, get_args(option))
        elif get_origin(option) is tuple:
            words.append(f"a list of {get_args(option)[0].__name__}")
        else:
            words.append("None" if option is type(None) else option.__name__)
    return " or ".join(words)
