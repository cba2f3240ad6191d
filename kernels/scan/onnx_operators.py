"""The scan along directions in plain operators of ONNX, for images of any size.

ONNX has no selective scan. Its operator Scan runs a small graph once for each block of the sequence. In a block, the
gates exp(dl A) and inputs dl u B of all steps are computed at once; then one multiplication and one addition per step
carry the state on, and one product with C reads all states.
"""

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset20

from . import operators  # noqa: F401  (it registers the operator)

op: Any = opset20  # its types fix each argument to one kind of number
_STEPS = 16  # per block


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The table for `torch.onnx.export(custom_translation_table=...)`: operator -> function that writes its nodes."""
    return {torch.ops.voxelwave.directional_scan.default: _directional_scan}


def _directional_scan(  # type: ignore[no-untyped-def]  # the operator's arguments; without annotations, they are inputs
    x,
    delta,
    A,
    B,
    C,
    permutation,
    D=None,
    delta_bias=None,
    delta_softplus: bool = False,
    checkpointed: bool = False,
):
    """The nodes of `voxelwave::directional_scan`: out (B, L, K, C), and no checkpoints."""
    one, all_ = _numbers(1), _numbers(-1)
    batch, length, width = (op.Shape(x, start=i, end=i + 1) for i in range(3))
    directions, states = op.Shape(permutation, start=0, end=1), op.Shape(A, start=1, end=2)

    def per_direction(vector, *last):  # type: ignore[no-untyped-def]  # (K*C, ...) -> (K, C, ...)
        return op.Reshape(vector, op.Concat(directions, width, *last, axis=0))

    order = op.Cast(permutation, to=ir.DataType.INT64)  # (K, L)
    step = op.Range(op.Constant(value_int=0), op.Squeeze(length), op.Constant(value_int=1))
    place = op.ScatterElements(order, order, op.Expand(step, op.Shape(order)), axis=1)  # step of each pixel
    k = op.Range(op.Constant(value_int=0), op.Squeeze(directions), op.Constant(value_int=1))

    def rows(index):  # type: ignore[no-untyped-def]  # (K, L) of L -> (L, K) of the L * K rows of one image
        return op.Add(op.Mul(op.Transpose(index, perm=[1, 0]), directions), k)

    def reordered(values, index):  # type: ignore[no-untyped-def]  # (B, L, K, X), rows -> (B, L, K, X)
        flat = op.Reshape(values, op.Concat(batch, all_, op.Shape(values, start=3, end=4), axis=0))
        return op.Gather(flat, index, axis=1)

    if delta_bias is not None:
        delta = op.Add(delta, per_direction(delta_bias))
    dl = op.Softplus(delta) if delta_softplus else delta
    driven = op.Mul(dl, op.Unsqueeze(x, _numbers(2)))  # dl u, (B, L, K, C)
    missing = op.Mod(op.Neg(length), _numbers(_STEPS))  # steps of size 0 at the end change nothing
    pads = op.Concat(_numbers(0, 0, 0, 0, 0), missing, _numbers(0, 0), axis=0)

    def blocks(values):  # type: ignore[no-untyped-def]  # (B, L, K, X) in image order -> (B, blocks, steps, K, X)
        padded = op.Pad(reordered(values, rows(order)), pads)
        return op.Reshape(padded, op.Concat(batch, all_, _numbers(_STEPS), op.Shape(values, start=2), axis=0))

    rates = op.Unsqueeze(per_direction(A, states), _numbers(0, 1))  # (1, 1, K, C, N)
    zero = op.ConstantOfShape(op.Concat(batch, one, directions, width, states, axis=0))
    inputs = [blocks(values) for values in (dl, driven, B, C)]
    last_state = op.Scan(
        zero,
        *inputs,
        body=_block(rates),
        num_scan_inputs=4,
        scan_input_axes=[1, 1, 1, 1],
        scan_output_axes=[1],
    )
    scan = last_state.producer()
    scan.resize_outputs(2)  # the recorder of the nodes knows no operator with as many outputs as its graph has
    found = scan.outputs[1]  # (B, blocks, steps, K, C)
    flat = op.Reshape(found, op.Concat(batch, all_, directions, width, axis=0))
    out = reordered(op.Slice(flat, _numbers(0), length, one), rows(place))
    if D is not None:
        out = op.Add(out, op.Mul(op.Unsqueeze(x, _numbers(2)), per_direction(D)))
    return out, op.ConstantOfShape(_numbers(0))


def _numbers(*values: int):  # type: ignore[no-untyped-def]
    return op.Constant(value_ints=list(values))


def _block(rates):  # type: ignore[no-untyped-def]
    """The graph of a block: state (B, 1, K, C, N) and the block's inputs -> state and outputs (B, steps, K, C)."""
    tape = ir.tape.Tape()
    state, dl, driven, b, c = (
        ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([None] * axes))
        for name, axes in (("state", 5), ("dl", 4), ("driven", 4), ("b", 4), ("c", 4))
    )
    last, before_last = (tape.op("Constant", [], {"value_ints": [axis]}) for axis in (-1, -2))
    gates = tape.op("Exp", [tape.op("Mul", [tape.op("Unsqueeze", [dl, last]), rates])])  # (B, steps, K, C, N)
    added = tape.op("Mul", [tape.op("Unsqueeze", [driven, last]), tape.op("Unsqueeze", [b, before_last])])
    split = {"axis": 1, "num_outputs": _STEPS}
    gate_of, added_of = (tape.op_multi_out("Split", [x], split, num_outputs=_STEPS) for x in (gates, added))
    h, states = state, []
    for gate, new in zip(gate_of, added_of, strict=True):
        h = tape.op("Add", [tape.op("Mul", [gate, h]), new])
        states.append(h)
    all_states = tape.op("Concat", states, {"axis": 1})
    read = tape.op("MatMul", [all_states, tape.op("Unsqueeze", [c, last])])  # (B, steps, K, C, 1)
    out, after = tape.op("Squeeze", [read, last]), tape.op("Identity", [h])
    for value, axes in ((after, 5), (out, 4)):
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None] * axes)
    return ir.Graph([state, dl, driven, b, c], [after, out], nodes=tape.nodes, name="block")
