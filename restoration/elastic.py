"""Nested sizes of MaIR: one set of parameters that contains smaller networks, each a part of the next.

After Nemotron Elastic (2025, arXiv 2511.16664). A size keeps the first units of each axis: channels of the feature
maps, inner channels of the scans, neurons of the MLPs, rank of the step sizes, blocks of a group, and groups. Each is
an ordinary `MaIR` of that size whose parameters are parts of the larger one's. It computes the same as the full
network with all other units masked, if the norms of the masked network divide by the number of active channels.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from .mair import MaIR
from .scan_order import DIRECTIONS

FULL = "full"
SMALLER = ("small", "medium")  # ascending

_AXES: dict[str, Any] = {"width": int, "depths": Sequence, "expansion": int | float, "mlp_ratio": int | float}

Sizes = Mapping[str, Mapping[str, Any]]
"""Name of a size -> the arguments of `MaIR` in which it differs from the full size."""


def nested_arguments(arguments: Mapping[str, Any], sizes: Sizes) -> dict[str, dict[str, Any]]:
    """Complete and check the constructor arguments of each smaller size.

    Args:
        arguments: the arguments of the full size, as `MaIR.arguments` holds them.
        sizes: "small", "medium" or both, each with at least one of width, depths, expansion and mlp_ratio. A shorter
            list of depths drops the last groups.

    Returns:
        Name -> arguments, from the smallest size to the largest, without the full size.

    Raises:
        ValueError: a name or value is unknown, or a size is no part of the next larger one.

    Example:
        >>> full = {"width": 64, "depths": [2, 2], "expansion": 1.0, "mlp_ratio": 2.0}
        >>> nested_arguments(full, {"small": {"width": 24, "depths": [2]}})
        {'small': {'width': 24, 'depths': [2], 'expansion': 1.0, 'mlp_ratio': 2.0}}
    """
    if unknown := [name for name in sizes if name not in SMALLER]:
        raise ValueError(f"sizes must be {' and '.join(SMALLER)}, smaller than the network, got {unknown[0]!r}")
    complete = {}
    for name in (name for name in SMALLER if name in sizes):
        own = sizes[name]
        if not isinstance(own, Mapping) or not own or not all(_fits(axis, value) for axis, value in own.items()):
            raise ValueError(f"size {name} must give some of {', '.join(_AXES)} with values above 0, got {own!r}")
        complete[name] = {**arguments, **own}
    steps = [*complete.items(), (FULL, dict(arguments))]
    for (name, small), (other, large) in pairwise(steps):
        mine, theirs = _counts(small), _counts(large)
        deeper = len(small["depths"]) > len(large["depths"]) or any(
            m > t for m, t in zip(small["depths"], large["depths"], strict=False)
        )
        if deeper or any(mine[axis] > theirs[axis] for axis in mine):
            raise ValueError(
                f"size {name} must be a part of size {other}: got depths {list(small['depths'])} and {_words(mine)}"
                f" against {list(large['depths'])} and {_words(theirs)}"
            )
        if mine == theirs and list(small["depths"]) == list(large["depths"]):
            raise ValueError(f"size {name} must be smaller than size {other}, got the same size")
    return complete


def _fits(axis: str, value: Any) -> bool:
    if axis not in _AXES or isinstance(value, bool | str) or not isinstance(value, _AXES[axis]):
        return False
    if axis == "depths":
        return bool(value) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in value)
    return bool(0 < value < math.inf)


def _counts(arguments: Mapping[str, Any]) -> dict[str, int]:
    width = arguments["width"]
    return {
        "channels": width,
        "inner channels": int(arguments["expansion"] * width),
        "neurons": int(arguments["mlp_ratio"] * width),
    }


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def nested_parameters(parameters: Mapping[str, Tensor], small: MaIR) -> dict[str, Tensor]:
    """The parameters of a smaller size, as parts of those of the full size; gradients reach the full size.

    Args:
        parameters: name -> parameter of the full size.
        small: a network of the smaller size, of which only names and shapes are used.
    """
    states = int(small.arguments["states"])
    return {
        name: _part(name.rpartition("self_attention.")[2], parameters[name], own.shape, states)
        for name, own in small.named_parameters()
    }


def _part(name: str, whole: Tensor, shape: Sequence[int], states: int) -> Tensor:
    """The first units of each axis; some axes consist of several parts, each of which keeps its first units."""
    if name == "in_proj.weight":  # content and gate, (2 d, C)
        return _first(whole.unflatten(0, (2, -1)), (2, shape[0] // 2, shape[1])).flatten(0, 1)
    if name in ("A_logs", "Ds"):  # direction by direction, (4 d, N) and (4 d,)
        return _first(whole.unflatten(0, (DIRECTIONS, -1)), (DIRECTIONS, shape[0] // DIRECTIONS)).flatten(0, 1)
    if name == "x_proj_weight":  # rows of the step sizes, B and C, (4, R + 2 N, d)
        step, rest = whole[..., : shape[2]].split([whole.shape[1] - 2 * states, 2 * states], dim=1)
        return torch.cat([step[:, : shape[1] - 2 * states], rest], 1)
    return _first(whole, shape)


def _first(whole: Tensor, shape: Sequence[int]) -> Tensor:
    return whole[tuple(slice(n) for n in shape)]


def _empty(arguments: Mapping[str, Any]) -> MaIR:
    with torch.device("meta"):
        return MaIR(**arguments)


def extract(network: MaIR, name: str, sizes: Sizes) -> MaIR:
    """The network of one size with its own copy of the parameters; the network itself for the full size.

    Args:
        network: the full size.
        name: "small", "medium" or "full".
        sizes: see `nested_arguments`.

    Raises:
        ValueError: there is no such size.
    """
    if name == FULL:
        return network
    complete = nested_arguments(network.arguments, sizes)
    if name not in complete:
        raise ValueError(f"size must be one of {', '.join((*complete, FULL))}, got {name!r}")
    small = _empty(complete[name])
    parts = nested_parameters(network.state_dict(), small)
    small.load_state_dict({key: part.clone() for key, part in parts.items()}, assign=True)
    return small.train(network.training)


class NestedSizes:
    """Computes with the smaller sizes of a network without copies of its parameters, for training.

    Args:
        arguments: constructor arguments of the full size.
        sizes: see `nested_arguments`.
    """

    def __init__(self, arguments: Mapping[str, Any], sizes: Sizes):
        self._empty = {name: _empty(own) for name, own in nested_arguments(arguments, sizes).items()}

    @property
    def names(self) -> tuple[str, ...]:
        """All sizes, from the smallest to the full one."""
        return (*self._empty, FULL)

    def restore(self, network: MaIR, name: str, image: Tensor) -> Tensor:
        """The output of one size of `network`."""
        if name == FULL:
            full: Tensor = network(image)
            return full
        small = self._empty[name].train(network.training)
        parts = nested_parameters(dict(network.named_parameters()), small)
        result: Tensor = functional_call(small, parts, (image,))
        return result
