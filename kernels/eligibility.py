"""Whether tensors can go to a compiled kernel, or must go through PyTorch, which can trace and transform its calls."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from . import native


def are_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors hold values, and nothing watches or transforms the calls that read them.

    Compilation, tracing, the transforms of torch.func, forward-mode derivatives and fake tensors need PyTorch's calls.
    """
    for each in tensors:
        if type(each) not in (Tensor, Parameter) or each.is_meta:
            return False
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or forward_ad._current_level >= 0
    )


def serves(function: str, *tensors: Tensor) -> bool:
    """Whether a function of the library can process these tensors.

    They must be float32 on the CPU and not empty.

    Args:
        function: name of the function without the suffix of the level.
        tensors: all its inputs.
    """
    if any(x.device.type != "cpu" or x.dtype != torch.float32 or not x.numel() for x in tensors):
        return False
    built = native.levels() if are_plain(tensors) else ()
    # a library that was built from older sources lacks newer functions
    return bool(built) and hasattr(native.library(), f"{function}_{built[0]}")


def serves_inference(function: str, *tensors: Tensor) -> bool:
    """The same for a function that computes no gradients: none may be needed."""
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return not needs_gradient and serves(function, *tensors)
