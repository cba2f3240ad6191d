"""Features of random convolutions in the manner of MiniRocket (Dempster et al. 2021, KDD, 248), for several channels.

Each of the 84 kernels of length 9 with three weights of 2 and six of -1 is applied at several dilations to the sum of a
random choice of channels. A feature is the share of samples at which the result exceeds a bias, which is a quantile of
the result on a training window. Differences to the publication: fewer features, and channels drawn for each kernel and
dilation from all subsets of up to nine.
"""

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

_LENGTH = 9
_THREES = np.array(list(itertools.combinations(range(_LENGTH), 3)))  # (84, 3): the places of the weights 2
_BIASES = 3  # per kernel and dilation
_MOST_DILATIONS = 6
_MOST_CHANNELS = 9
_AT_ONCE = 32  # windows


class RandomConvolutions:
    """Random convolutions with fixed channels and biases.

    Args:
        channels: (dilations, 84, channels) bool, the channels that each kernel sums.
        biases: (dilations, 84, biases).
    """

    def __init__(self, channels: np.ndarray, biases: np.ndarray):
        self.channels, self.biases = channels, biases

    @classmethod
    def fit(cls, x: np.ndarray, seed: int) -> "RandomConvolutions":
        """Draw channels, and biases from the windows (n, channels, times)."""
        generator = np.random.default_rng(seed)
        count = dilations_of(x.shape[2])
        chosen = np.stack([_choices(generator, x.shape[1]) for _ in range(count)])
        biases = np.empty((count, len(_THREES), _BIASES), np.float32)
        for place in range(count):
            rows = generator.choice(len(x), size=min(len(x), 16), replace=False)
            found = convolved(torch.from_numpy(x[np.sort(rows)]), chosen[place], 2**place).numpy()
            for kernel in range(len(_THREES)):
                own = found[generator.integers(len(rows)), kernel]
                biases[place, kernel] = np.quantile(own, generator.uniform(size=_BIASES))
        return cls(chosen, biases)

    def features(self, x: np.ndarray) -> np.ndarray:
        """(n, dilations x 84 x biases) shares, float32, of windows (n, channels, times)."""
        parts = [self._features(torch.from_numpy(x[k : k + _AT_ONCE])) for k in range(0, len(x), _AT_ONCE)]
        return np.concatenate(parts) if parts else np.empty((0, self.biases.size), np.float32)

    def _features(self, x: Tensor) -> np.ndarray:
        found = []
        for place, biases in enumerate(torch.from_numpy(self.biases)):
            result = convolved(x, self.channels[place], 2**place)  # (n, 84, times)
            shares = [(result > biases[:, k, None]).float().mean(-1) for k in range(_BIASES)]
            found.append(torch.stack(shares, -1).flatten(1))
        return torch.cat(found, 1).numpy()

    def numbers(self) -> dict[str, Any]:
        """The convolutions as plain values."""
        return {"channels": self.channels.tolist(), "biases": self.biases.tolist()}

    @classmethod
    def of(cls, numbers: dict[str, Any]) -> "RandomConvolutions":
        """The convolutions of `numbers`."""
        return cls(np.array(numbers["channels"], bool), np.array(numbers["biases"], np.float32))


def dilations_of(times: int) -> int:
    """The number of dilations 1, 2, 4 ... whose kernels fit into a window.

    Example:
        >>> dilations_of(512), dilations_of(64), dilations_of(8)
        (6, 3, 1)
    """
    return min(_MOST_DILATIONS, 1 + math.floor(math.log2(max(1.0, (times - 1) / (_LENGTH - 1)))))


def convolved(x: Tensor, channels: np.ndarray, dilation: int) -> Tensor:
    """All 84 kernels at one dilation, each on the sum of its channels, with zeros outside the window.

    Args:
        x: (n, channels, times) float32.
        channels: (84, channels) bool.
        dilation: samples between two weights.

    Returns:
        (n, 84, times).
    """
    times, reach = x.shape[2], dilation * (_LENGTH // 2)
    summed = pad(torch.einsum("kc,nct->nkt", torch.from_numpy(channels).to(x), x), (reach, reach))
    shifted = [summed[..., k * dilation : k * dilation + times] for k in range(_LENGTH)]
    result = -_sum(shifted)
    for k, piece in enumerate(shifted):
        kernels = torch.from_numpy(_with_three_at(k))
        result[:, kernels] += 3 * piece[:, kernels]  # weights -1 + 3
    return result


def _with_three_at(place: int) -> np.ndarray:
    """Indices of the kernels that have a weight of 2 at this place."""
    return np.array([kernel for kernel, threes in enumerate(_THREES.tolist()) if place in threes])


def _sum(parts: list[Tensor]) -> Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def _choices(generator: np.random.Generator, channels: int) -> np.ndarray:
    """(84, channels) bool: a random subset for each kernel, whose size is drawn evenly on a logarithmic scale."""
    most = math.log2(min(channels, _MOST_CHANNELS) + 1)
    chosen = np.zeros((len(_THREES), channels), bool)
    for row in chosen:
        row[generator.permutation(channels)[: int(2 ** generator.uniform(0, most))]] = True
    return chosen
