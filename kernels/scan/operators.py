"""The scans as PyTorch operators, with gradients and shape functions for torch.compile."""

import torch
from torch import Tensor

from . import cpu as scan_cpu
from . import reference as scan_reference

# Custom operators. Outputs that an argument does not ask for are empty tensors: an operator has a fixed number of them.


@torch.library.custom_op("voxelwave::selective_scan", mutates_args=())
def selective_scan_operator(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    checkpointed: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """out, last state, and the checkpoints (B, ceil(L / steps), D, N) if `checkpointed`."""
    arguments = (u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state)
    if _on_cuda(u):
        from . import triton as scan_triton

        out, last_state, checkpoints = scan_triton.scan_forward(*arguments, checkpointed=checkpointed)
    elif scan_cpu.serves(u):
        out, last_state, checkpoints = scan_cpu.scan_forward(*arguments, checkpointed=checkpointed)
    else:
        out, last_state, checkpoints = scan_reference.scan_forward(*arguments)
    out, last_state = out.contiguous(), last_state.contiguous()  # as the fake operator promises
    return out, last_state, checkpoints if checkpointed else checkpoints.new_empty(0)


@torch.library.custom_op("voxelwave::selective_scan_backward", mutates_args=())
def selective_scan_backward_operator(
    grad_out: Tensor,
    grad_last_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    checkpoints: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias and initial_state."""
    arguments = (
        grad_out,
        grad_last_state,
        u,
        delta,
        A,
        B,
        C,
        D,
        z,
        delta_bias,
        delta_softplus,
        initial_state,
        checkpoints,
    )
    if _on_cuda(u):
        from . import triton as scan_triton

        gradients = scan_triton.scan_backward(*arguments)
    elif scan_cpu.serves(u):
        gradients = scan_cpu.scan_backward(*arguments)
    else:
        gradients = scan_reference.scan_backward(*arguments)
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = (_operator_result(g, u) for g in gradients)
    return du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial


def save_scan(ctx, inputs, output):
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, checkpointed = inputs
    ctx.set_materialize_grads(False)
    ctx.delta_softplus, ctx.checkpointed = delta_softplus, checkpointed
    ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, initial_state, output[2])


def differentiate_scan(ctx, grad_out, grad_last_state, grad_checkpoints):
    u, delta, A, B, C, D, z, delta_bias, initial_state, checkpoints = ctx.saved_tensors
    assert ctx.checkpointed
    if grad_out is None and grad_last_state is None:
        return (None,) * 11
    if grad_out is None:
        grad_out = torch.zeros_like(u)
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = selective_scan_backward_operator(
        grad_out, grad_last_state, u, delta, A, B, C, D, z, delta_bias, ctx.delta_softplus, initial_state, checkpoints
    )
    return (
        du,
        ddelta,
        dA,
        dB,
        dC,
        None if D is None else dD,
        None if z is None else dz,
        None if delta_bias is None else dbias,
        None,
        None if initial_state is None else dinitial,
        None,
    )


@torch.library.custom_op("voxelwave::directional_scan", mutates_args=())
def directional_scan_operator(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    permutation: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    checkpointed: bool,
) -> tuple[Tensor, Tensor]:
    """out, and the checkpoints (B, ceil(L / steps), K*C, N) if `checkpointed`."""
    arguments = (x, delta, A, B, C, permutation, D, delta_bias, delta_softplus)
    if _on_cuda(x):
        from . import triton as scan_triton

        out, checkpoints = scan_triton.directional_forward(*arguments, checkpointed=checkpointed)
    elif scan_cpu.serves(x):
        out, checkpoints = scan_cpu.directional_forward(*arguments, checkpointed=checkpointed)
    else:
        out, checkpoints = scan_reference.directional_forward(*arguments)
    return out, checkpoints if checkpointed else checkpoints.new_empty(0)


@torch.library.custom_op("voxelwave::directional_scan_backward", mutates_args=())
def directional_scan_backward_operator(
    grad_out: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    permutation: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    checkpoints: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, delta, A, B, C, D and delta_bias."""
    arguments = (grad_out, x, delta, A, B, C, permutation, D, delta_bias, delta_softplus, checkpoints)
    if _on_cuda(x):
        from . import triton as scan_triton

        gradients = scan_triton.directional_backward(*arguments)
    elif scan_cpu.serves(x):
        gradients = scan_cpu.directional_backward(*arguments)
    else:
        gradients = scan_reference.directional_backward(*arguments)
    dx, ddelta, dA, dB, dC, dD, dbias = (_operator_result(g, x) for g in gradients)
    return dx, ddelta, dA, dB, dC, dD, dbias


def save_directional(ctx, inputs, output):
    x, delta, A, B, C, permutation, D, delta_bias, delta_softplus, checkpointed = inputs
    ctx.set_materialize_grads(False)
    ctx.delta_softplus, ctx.checkpointed = delta_softplus, checkpointed
    ctx.save_for_backward(x, delta, A, B, C, permutation, D, delta_bias, output[1])


def differentiate_directional(ctx, grad_out, grad_checkpoints):
    x, delta, A, B, C, permutation, D, delta_bias, checkpoints = ctx.saved_tensors
    assert ctx.checkpointed
    if grad_out is None:
        return (None,) * 10
    dx, ddelta, dA, dB, dC, dD, dbias = directional_scan_backward_operator(
        grad_out, x, delta, A, B, C, permutation, D, delta_bias, ctx.delta_softplus, checkpoints
    )
    return dx, ddelta, dA, dB, dC, None, None if D is None else dD, None if delta_bias is None else dbias, None, None


def _on_cuda(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype != torch.float64


def fake_checkpoints(u: Tensor, A: Tensor, batch: int, channels: int, length: int, checkpointed: bool) -> Tensor:
    if not checkpointed:
        return A.new_empty(0)
    steps = scan_reference.CHECKPOINT_STEPS
    if _on_cuda(u):
        from . import triton as scan_triton

        steps = scan_triton.CHECKPOINT_STEPS
    return A.new_empty(batch, (length + steps - 1) // steps, channels, A.shape[1])


def _operator_result(gradient: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if gradient is None else gradient.contiguous()


def fake_gradient(argument: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if argument is None else argument.new_empty(argument.shape)
