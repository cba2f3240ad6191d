"""Detection of autocast, for functions that choose the types of their operations themselves."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def in_autocast(tensor: Tensor) -> bool:
    """Whether operations on the device of a tensor choose their types by autocast."""
    if tensor.is_cpu:
        return torch.is_autocast_enabled("cpu")
    device = tensor.device.type
    if device != "cuda" and not torch.amp.is_autocast_available(device):
        return False  # the meta device has no autocast
    return torch.is_autocast_enabled(device)


def without_autocast(tensor: Tensor) -> AbstractContextManager[None]:
    """A context in which operations on the device of a tensor keep the types of their inputs."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    disabled: AbstractContextManager[None] = torch.autocast(device, enabled=False)
    return disabled
