"""The product of a small matrix with a wide one by a compiled kernel (csrc/products.cpp), for float32 on the CPU."""

import ctypes

import torch
from torch import Tensor

from . import native
from .threads import kernel_threads


class _Product(ctypes.Structure):  # mirrors csrc/products.cpp
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "depth", "columns", "a_row", "a_step", "b_row", "out_row")),
        *((name, ctypes.c_int64) for name in ("add", "threads")),
        ("scratch", ctypes.c_void_p),
    )


def wide_product(small: Tensor, wide: Tensor, *, add_to: Tensor | None = None) -> Tensor:
    """The product of two matrices without a gradient; it needs half of the time of MKL where n is large.

    Args:
        small: (m, k) float32 on the CPU, with any strides.
        wide: (k, n), with neighbouring columns next to each other in memory.
        add_to: (m, n), in the same way; the product is added to it in place.

    Returns:
        (m, n), or `add_to`.

    Raises:
        ValueError: a shape, a stride, a type or a device does not fit.
    """
    rows, depth = small.shape
    out = wide.new_empty(rows, wide.shape[1]) if add_to is None else add_to
    for name, tensor, shape in (("wide", wide, (depth, wide.shape[1])), ("add_to", out, (rows, wide.shape[1]))):
        if tuple(tensor.shape) != shape or tensor.stride(1) != 1:
            raise ValueError(f"{name} must have shape {shape} and neighbouring columns, got {tuple(tensor.shape)}")
    if not all(each.dtype == torch.float32 and each.device.type == "cpu" for each in (small, wide, out)):
        raise ValueError("small, wide and add_to must be float32 on the CPU")
    sizes = _Product(
        rows=rows,
        depth=depth,
        columns=wide.shape[1],
        a_row=small.stride(0),
        a_step=small.stride(1),
        b_row=wide.stride(0),
        out_row=out.stride(0),
        add=add_to is not None,
        threads=kernel_threads(),
    )
    count = native.function("vw_product_scratch", ctypes.c_int64)(ctypes.byref(sizes))
    scratch = torch.empty(count, dtype=torch.float32, device="cpu")
    sizes.scratch = scratch.data_ptr()
    native.call("vw_product", sizes, small, wide, out, keep=[scratch])
    return out
