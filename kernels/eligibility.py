"""Whether tensors can go to a compiled kernel that computes no gradients."""

import torch
from torch import Tensor

from . import native


def serves_inference(function: str, *tensors: Tensor) -> bool:
    """Whether a function of the library can process these tensors.

    They must be float32 on the CPU and not empty, and no gradient, compilation or transform may be under way.

    Args:
        function: name of the function without the suffix of the level.
        tensors: its inputs.
    """
    if any(x.device.type != "cpu" or x.dtype != torch.float32 or not x.numel() for x in tensors):
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return False
    if torch.compiler.is_compiling() or any(torch._C._functorch.is_functorch_wrapped_tensor(x) for x in tensors):
        return False
    built = native.levels()
    # a library that was built from older sources lacks newer functions
    return bool(built) and hasattr(native.library(), f"{function}_{built[0]}")
