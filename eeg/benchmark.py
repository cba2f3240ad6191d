"""Training speed of ADHDeepNet compared with the published order of its layers and with other networks."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adhdeepnet import ADHDeepNet
from .adhdeepnet_reference import LiteralADHDeepNet
from .eegnet import EEGNet
from .module import KerasAdam
from .shallowconvnet import ShallowConvNet

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "fold 1": {"F1": 32, "kernel_length": 64, "se_nodes": 32, "max_norm": 10.0},
    "longest": {"F1": 64, "kernel_length": 512},
}


def networks(arguments: dict[str, Any], *, others: bool) -> dict[str, nn.Module]:
    """The networks to compare; the second one is the literal network, with the same weights as ours.

    Args:
        arguments: arguments of ADHDeepNet.
        others: add EEGNet and ShallowConvNet.
    """
    ours, literal = ADHDeepNet(**arguments), LiteralADHDeepNet(**arguments)
    literal.load_state_dict(ours.state_dict())
    found: dict[str, nn.Module] = {"ADHDeepNet": ours, "ADHDeepNet, layer by layer": literal}
    if others:
        found["EEGNet"] = EEGNet(19, 512, 2, 128.0)
        found["ShallowConvNet"] = ShallowConvNet(19, 512, 2, 128.0)
    return found


def compare(candidates: dict[str, nn.Module], title: str, batch: int, repeats: int) -> list[dict[str, Any]]:
    """A row of figures per network: windows per second of a training step, and ratios to the second network.

    Args:
        candidates: name -> network for windows of 19 channels and 512 samples; they take turns.
        title: name of the setting, appended to the names unless it is "defaults".
        batch: windows per step.
        repeats: timed steps of each network, after one step that is not timed.
    """
    x, label = torch.randn(batch, 19, 512), torch.arange(batch) % 2
    steps = {name: _step(network, x, label) for name, network in candidates.items()}
    wall: dict[str, list[float]] = {name: [] for name in steps}
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            started, started_cpu = time.perf_counter(), time.process_time()
            step()
            cpu[name].append(time.process_time() - started_cpu)
            wall[name].append(time.perf_counter() - started)
    literal = list(steps)[1]
    return [
        {
            "network": name if title == "defaults" else f"{name}, {title}",
            "windows/s": batch / statistics.median(wall[name]),
            "slowest": batch / max(wall[name]),
            "fastest": batch / min(wall[name]),
            "times as fast": statistics.median(wall[literal]) / statistics.median(wall[name]),
            "windows per CPU s": batch / statistics.median(cpu[name]),
            "CPU ratio": statistics.median(cpu[literal]) / statistics.median(cpu[name]),
        }
        for name in steps
    ]


def _step(network: nn.Module, x: Tensor, label: Tensor) -> Callable[[], None]:
    optimizer = KerasAdam(network.train().parameters())

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(x), label).backward()
        optimizer.step()

    return step
