"""The time that each part of a restoration network takes."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .scan_block import MLP, DirectionalScan, SequenceShuffleAttention, VisionScan

_PARTS: list[tuple[type[nn.Module], str]] = [
    (DirectionalScan, "selective scan"),
    (SequenceShuffleAttention, "sequence shuffle attention"),
    (VisionScan, "projections around the scan"),
    (MLP, "MLPs"),
    (nn.LayerNorm, "layer norms"),
    (nn.Conv2d, "convolutions"),
]
_WHOLE = {SequenceShuffleAttention, MLP}  # modules inside these are not timed separately


@torch.inference_mode()
def time_by_part(model: nn.Module, image: Tensor, *, repeats: int = 5) -> dict[str, float]:
    """Seconds that each part of a network takes in the fastest of several forward passes after a warm-up.

    Args:
        model: a `MaIR` or `MaIRUNet` on the CPU.
        image: (B, in_channels, H, W).
        repeats: the number of timed passes.

    Returns:
        The times of the parts and "total", their sum. A part does not include parts inside it; "the rest" is the
        time between parts (residual sums, colour mean, pixel shuffle).
    """
    running: list[str] = []
    spent: dict[str, float] = {}
    last = 0.0

    def switch() -> None:
        """Add the time since the last switch to the part that ran."""
        nonlocal last
        now = time.perf_counter()
        if running:
            spent[running[-1]] = spent.get(running[-1], 0.0) + now - last
        last = now

    def enter(part: str) -> Callable[[nn.Module, object], None]:
        def hook(module: nn.Module, arguments: object) -> None:
            switch()
            running.append(part)

        return hook

    def leave(module: nn.Module, arguments: object, result: object) -> None:
        switch()
        running.pop()

    hooks = []
    for part_module, part in _timed_modules(model):
        hooks += [part_module.register_forward_pre_hook(enter(part)), part_module.register_forward_hook(leave)]
    try:
        model(image)
        fastest: dict[str, float] = {}
        for _ in range(repeats):
            spent.clear()
            running.append("the rest")
            last = time.perf_counter()
            model(image)
            switch()
            running.pop()
            total = sum(spent.values())
            if not fastest or total < fastest["total"]:
                fastest = {"total": total, **spent}
    finally:
        for hook in hooks:
            hook.remove()
    return fastest


def _timed_modules(module: nn.Module) -> list[tuple[nn.Module, str]]:
    found = []
    for child in module.children():
        part = next((name for kind, name in _PARTS if isinstance(child, kind)), None)
        if part:
            found.append((child, part))
        if type(child) not in _WHOLE:
            found += _timed_modules(child)
    return found
