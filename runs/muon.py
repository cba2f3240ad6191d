"""The Muon optimizer for kernels and matrices, with Adam for all other parameters.

Muon replaces the momentum of a matrix by the nearest matrix with orthonormal rows or columns, so that all directions
are learned at one rate (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024). The update is
scaled to the size of an update of Adam, so that both parts share one learning rate (Liu et al., arXiv 2502.16982).
`torch.optim.Muon` takes matrices only; most parameters of our networks for images are kernels of convolutions.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_LEAST_SIDE = 16  # of a matrix; smaller ones and depthwise kernels are left to Adam
_ROUNDS = 5
_QUINTIC = 3.4445, -4.7750, 2.0315  # coefficients of the Newton-Schulz iteration, by Jordan et al.
_ADAM_SIZE = 0.2  # root mean square of a usual update of Adam, as a multiple of the learning rate


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon takes a parameter: a kernel or matrix that mixes channels, and not the decay rates of a scan."""
    if parameter.ndim not in (2, 4, 5) or name.endswith("A_logs"):
        return False
    rows, columns = parameter.flatten(1).shape
    return min(rows, columns) >= _LEAST_SIDE


class Muon(Optimizer):
    """Muon for the matrices of a network, Adam for the rest.

    Args:
        named_parameters: names and parameters of the network.
        lr: the learning rate of both parts.
        betas: the decay rates of Adam's two moments.
        momentum: the decay rate of Muon's momentum, which is Nesterov's.

    Example:
        >>> layer = torch.nn.Linear(16, 16)
        >>> optimizer = Muon(layer.named_parameters(), lr=0.01)
        >>> [len(group["params"]) for group in optimizer.param_groups]
        [1, 1]
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
    ):
        parts: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in named_parameters:
            parts[is_matrix(name, parameter)].append(parameter)
        groups = [{"params": parameters, "matrices": kind} for kind, parameters in parts.items() if parameters]
        super().__init__(groups, {"lr": lr, "betas": betas, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = self._of_matrix if group["matrices"] else self._of_adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(update(parameter, parameter.grad, group), alpha=-group["lr"])
        return loss

    def _of_matrix(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        matrix = gradient.lerp(momentum, group["momentum"]).flatten(1)
        size = _ADAM_SIZE * math.sqrt(max(matrix.shape))
        return (size * orthogonalised(matrix)).view_as(parameter)

    def _of_adam(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["steps"] = torch.zeros(())
            state["first"], state["second"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["steps"] += 1
        first, second = group["betas"]
        mean: Tensor = state["first"].lerp_(gradient, 1 - first) / (1 - first ** float(state["steps"]))
        square: Tensor = state["second"].lerp_(gradient.square(), 1 - second) / (1 - second ** float(state["steps"]))
        return mean / (square.sqrt() + 1e-8)


def orthogonalised(matrix: Tensor) -> Tensor:
    """About the nearest matrix with orthonormal rows or columns: the singular values become 0.7 to 1.2.

    Five rounds of the Newton-Schulz iteration with the coefficients of Jordan et al. (2024), without a decomposition.

    Args:
        matrix: (m, n), not 0.

    Example:
        >>> values = torch.linalg.svdvals(orthogonalised(torch.tensor([[3.0, 0.0], [0.0, 0.5]])))
        >>> bool(0.6 < values.min() and values.max() < 1.3)
        True
    """
    a, b, c = _QUINTIC
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(_ROUNDS):
        product = wide @ wide.T
        wide = a * wide + (b * product + c * product @ product) @ wide
    result: Tensor = wide.T if matrix.shape[0] > matrix.shape[1] else wide
    return result
