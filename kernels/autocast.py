"""Detection of autocast, for functions that choose the types of their operations themselves."""

import torch
from torch import Tensor


def in_autocast(tensor: Tensor) -> bool:
    """Whether operations on the device of a tensor choose their types by autocast."""
    device = tensor.device.type  # the meta device has no autocast
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
