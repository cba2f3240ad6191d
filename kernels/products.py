"""The product of a small matrix with a wide one by a compiled kernel (csrc/products.cpp), for float32 on the CPU."""

import ctypes

import torch
from torch import Tensor

from . import native


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
    """
    rows, depth = small.shape
    out = wide.new_empty(rows, wide.shape[1]) if add_to is None else add_to
    assert wide.stride(1) == out.stride(1) == 1
    assert small.dtype == wide.dtype == torch.float32
    sizes = _Product(
        rows=rows,
        depth=depth,
        columns=wide.shape[1],
        a_row=small.stride(0),
        a_step=small.stride(1),
        b_row=wide.stride(0),
        out_row=out.stride(0),
        add=add_to is not None,
        threads=torch.get_num_threads(),
    )
    scratch = torch.empty(native.function("vw_product_scratch", ctypes.c_int64)(ctypes.byref(sizes)))
    sizes.scratch = scratch.data_ptr()
    native.call("vw_product", sizes, small, wide, out, keep=[scratch])
    return out
