"""The scans as PyTorch operators, with gradients and shape functions for autograd and torch.compile.

Three modules compute the scans: `triton` on CUDA, `cpu` with the compiled library, and `reference` for all other cases.
Each satisfies `ScanPath`. An operator has a fixed number of outputs; a result that does not exist is an empty tensor.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..eligibility import are_plain
from . import cpu, reference, triton
from .reference import DirectionalInputs, ScanInputs


class ScanPath(Protocol):
    """A module that computes both scans; `reference` documents arguments and results.

    The order of the numbers within the checkpoints may differ between paths, since only the backward pass of the same
    path reads them.
    """

    CHECKPOINT_STEPS: int

    def scan_forward(
        self,
        inputs: ScanInputs,
        *,
        checkpointed: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def scan_backward(
        self,
        grad_out: Tensor,
        grad_last_state: Tensor | None,
        inputs: ScanInputs,
        checkpoints: Tensor,
    ) -> tuple[Tensor | None, ...]: ...

    def directional_forward(
        self,
        inputs: DirectionalInputs,
        *,
        checkpointed: bool = True,
    ) -> tuple[Tensor, Tensor]: ...

    def directional_backward(
        self,
        grad_out: Tensor,
        inputs: DirectionalInputs,
        checkpoints: Tensor,
    ) -> tuple[Tensor | None, ...]: ...


class _Context(Protocol):
    """The context in which autograd keeps tensors of a forward pass for its backward pass."""

    delta_softplus: bool
    checkpointed: bool

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...
    def set_materialize_grads(self, value: bool) -> None: ...
    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


def _save(ctx: _Context, inputs: Sequence[Tensor | bool | None], checkpointed: bool, checkpoints: Tensor) -> None:
    """Keep the tensors of a forward pass, in their order."""
    ctx.set_materialize_grads(False)
    ctx.checkpointed = checkpointed
    tensors: list[Tensor | None] = []
    for each in inputs:
        if isinstance(each, bool):
            ctx.delta_softplus = each
        else:
            tensors.append(each)
    ctx.save_for_backward(*tensors, checkpoints)


def _selective_scan(
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
    """out, the last state, and the checkpoints (B, ceil(L / steps), D, N), or none unless `checkpointed`."""
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state)
    out, last_state, checkpoints = _path(u).scan_forward(inputs, checkpointed=checkpointed)
    return out.contiguous(), last_state.contiguous(), checkpoints  # contiguous, as the fake operator promises


selective_scan_operator = torch.library.custom_op("voxelwave::selective_scan", _selective_scan, mutates_args=())


def _selective_scan_backward(
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
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state)
    gradients = _path(u).scan_backward(grad_out, grad_last_state, inputs, checkpoints)
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = (_operator_result(g, u) for g in gradients)
    return du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial


selective_scan_backward_operator = torch.library.custom_op(
    "voxelwave::selective_scan_backward", _selective_scan_backward, mutates_args=()
)


@selective_scan_operator.register_fake
def _selective_scan_shapes(
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
    batch, channels, length = u.shape
    last_state = A.new_empty(batch, channels, A.shape[1])
    return u.new_empty(u.shape), last_state, _fake_checkpoints(u, A, batch, channels, length, checkpointed)


@selective_scan_backward_operator.register_fake
def _selective_scan_backward_shapes(
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
) -> tuple[Tensor, ...]:
    return tuple(_fake_gradient(v, u) for v in (u, delta, A, B, C, D, z, delta_bias, initial_state))


def _save_scan(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _save(ctx, inputs[:-1], inputs[-1], output[2])


def _differentiate_scan(
    ctx: _Context, grad_out: Tensor | None, grad_last_state: Tensor | None, grad_checkpoints: None
) -> tuple[Tensor | None, ...]:
    u, delta, A, B, C, D, z, delta_bias, initial_state, checkpoints = ctx.saved_tensors
    assert ctx.checkpointed
    if grad_out is None and grad_last_state is None:
        return (None,) * 11
    if grad_out is None:
        grad_out = torch.zeros_like(u)
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, ctx.delta_softplus, initial_state)
    if _runs_directly(grad_out, grad_last_state, *inputs):
        gradients = _path(u).scan_backward(grad_out, grad_last_state, inputs, checkpoints)
    else:
        results = _by_operator(selective_scan_backward_operator, grad_out, grad_last_state, *inputs, checkpoints)
        tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
        gradients = tuple(None if v is None else g for v, g in zip(tensors, results, strict=True))
    return *gradients[:8], None, gradients[8], None


selective_scan_operator.register_autograd(_differentiate_scan, setup_context=_save_scan)


def _directional_scan(
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
    """out, and the checkpoints (B, ceil(L / steps), K*C, N), or none unless `checkpointed`."""
    inputs = DirectionalInputs(x, delta, A, B, C, permutation, D, delta_bias, delta_softplus)
    return _path(x).directional_forward(inputs, checkpointed=checkpointed)


directional_scan_operator = torch.library.custom_op("voxelwave::directional_scan", _directional_scan, mutates_args=())


def _directional_scan_backward(
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
    inputs = DirectionalInputs(x, delta, A, B, C, permutation, D, delta_bias, delta_softplus)
    gradients = _path(x).directional_backward(grad_out, inputs, checkpoints)
    dx, ddelta, dA, dB, dC, dD, dbias = (_operator_result(g, x) for g in gradients)
    return dx, ddelta, dA, dB, dC, dD, dbias


directional_scan_backward_operator = torch.library.custom_op(
    "voxelwave::directional_scan_backward", _directional_scan_backward, mutates_args=()
)


@directional_scan_operator.register_fake
def _directional_scan_shapes(
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
    batch, length, width = x.shape
    directions = permutation.shape[0]
    out = x.new_empty(batch, length, directions, width)
    return out, _fake_checkpoints(x, A, batch, directions * width, length, checkpointed)


@directional_scan_backward_operator.register_fake
def _directional_scan_backward_shapes(
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
) -> tuple[Tensor, ...]:
    return tuple(_fake_gradient(v, x) for v in (x, delta, A, B, C, D, delta_bias))


def _save_directional(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _save(ctx, inputs[:-1], inputs[-1], output[1])


def _differentiate_directional(
    ctx: _Context, grad_out: Tensor | None, grad_checkpoints: None
) -> tuple[Tensor | None, ...]:
    x, delta, A, B, C, permutation, D, delta_bias, checkpoints = ctx.saved_tensors
    assert ctx.checkpointed
    if grad_out is None:
        return (None,) * 10
    inputs = DirectionalInputs(x, delta, A, B, C, permutation, D, delta_bias, ctx.delta_softplus)
    if _runs_directly(grad_out, *inputs):
        dx, ddelta, dA, dB, dC, dD, dbias = _path(x).directional_backward(grad_out, inputs, checkpoints)
    else:
        results = _by_operator(directional_scan_backward_operator, grad_out, *inputs, checkpoints)
        dx, ddelta, dA, dB, dC = results[:5]
        dD, dbias = (None if v is None else g for v, g in zip((D, delta_bias), results[5:], strict=True))
    return dx, ddelta, dA, dB, dC, None, dD, dbias, None, None


directional_scan_operator.register_autograd(_differentiate_directional, setup_context=_save_directional)


class _Gradients(torch.autograd.Function):
    """An operator that computes gradients, for the transforms of torch.func; it has no gradient itself."""

    generate_vmap_rule = True

    @staticmethod
    def forward(operator: Any, *inputs: Any) -> tuple[Tensor, ...]:
        return tuple(operator(*inputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        raise RuntimeError("the scans have no second derivatives: differentiate a function of a scan once")


def _by_operator(operator: Any, *inputs: Any) -> tuple[Tensor, ...]:
    inside = torch._C._are_functorch_transforms_active()
    gradients: tuple[Tensor, ...] = _Gradients.apply(operator, *inputs) if inside else operator(*inputs)
    return gradients


def _runs_directly(grad_out: Tensor, *inputs: Any) -> bool:
    """Whether the gradients can be computed without the operator.

    Its first call would load torch's compiler, which takes 1.5 s, and every call 60 us.
    """
    batched = torch._C._functorch.is_legacy_batchedtensor(grad_out)  # with is_grads_batched
    return not batched and are_plain([grad_out, *(each for each in inputs if isinstance(each, Tensor))])


class _SelectiveScan(torch.autograd.Function):
    """The operator as a function that `torch.func.grad` can differentiate; a registered formula does not allow this.

    PyTorch refuses forward mode (`torch.func.jvp`), and `_Gradients` refuses second derivatives.
    """

    generate_vmap_rule = True
    setup_context = staticmethod(_save_scan)
    backward = staticmethod(_differentiate_scan)

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        out, last_state, checkpoints = selective_scan_operator(*inputs)
        return out, last_state, checkpoints


class _DirectionalScan(torch.autograd.Function):
    """Same as `_SelectiveScan`, for images."""

    generate_vmap_rule = True
    setup_context = staticmethod(_save_directional)
    backward = staticmethod(_differentiate_directional)

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        out, checkpoints = directional_scan_operator(*inputs)
        return out, checkpoints


def _once(backward: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """A backward pass whose results have no gradients; without them, the check of PyTorch takes 3 us for nothing."""
    checked = once_differentiable(backward)

    def once(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        return (checked if torch.is_grad_enabled() else backward)(ctx, *gradients)

    return once


class _DirectSelectiveScan(torch.autograd.Function):
    """The scan with its gradient, without the operator."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        out, last_state, checkpoints = _path(inputs[0]).scan_forward(ScanInputs(*inputs))
        _save(ctx, inputs, True, checkpoints)
        return out, last_state

    @staticmethod
    @_once
    def backward(ctx: Any, grad_out: Tensor | None, grad_last_state: Tensor | None) -> tuple[Tensor | None, ...]:
        return _differentiate_scan(ctx, grad_out, grad_last_state, None)[:-1]


class _DirectDirectionalScan(torch.autograd.Function):
    """Same as `_DirectSelectiveScan`, for images."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        out, checkpoints = _path(inputs[0]).directional_forward(DirectionalInputs(*inputs))
        _save(ctx, inputs, True, checkpoints)
        return out

    @staticmethod
    @_once
    def backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, ...]:
        return _differentiate_directional(ctx, grad_out, None)[:-1]


def run_selective_scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """`selective_scan_operator`, also within the transforms of torch.func; it skips the operator if it can.

    Returns:
        out and the last state.
    """
    tensors, checkpointed = _tensors_of(inputs)
    if are_plain(tensors):
        if checkpointed:
            direct: tuple[Tensor, Tensor] = _DirectSelectiveScan.apply(*inputs)
            return direct
        return _path(inputs.u).scan_forward(inputs, checkpointed=False)[:2]
    inside = torch._C._are_functorch_transforms_active()
    operator = _SelectiveScan.apply if inside else selective_scan_operator
    out, last_state, _ = operator(*inputs, checkpointed)
    return out, last_state


def run_directional_scan(inputs: DirectionalInputs) -> Tensor:
    """The same for `directional_scan_operator`; it returns out."""
    tensors, checkpointed = _tensors_of(inputs)
    if are_plain(tensors):
        if checkpointed:
            direct: Tensor = _DirectDirectionalScan.apply(*inputs)
            return direct
        return _path(inputs.x).directional_forward(inputs, checkpointed=False)[0]
    inside = torch._C._are_functorch_transforms_active()
    operator = _DirectionalScan.apply if inside else directional_scan_operator
    out: Tensor = operator(*inputs, checkpointed)[0]
    return out


def _tensors_of(inputs: Sequence[Any]) -> tuple[list[Tensor], bool]:
    """The tensors among the arguments, and whether a gradient is needed."""
    tensors, wanted = [], False
    for each in inputs:
        if isinstance(each, Tensor):
            tensors.append(each)
            wanted = wanted or each.requires_grad
    return tensors, wanted and torch.is_grad_enabled()


def _path(u: Tensor) -> ScanPath:
    """The module that computes the scan of this input."""
    if _on_cuda(u):
        return triton
    return cpu if cpu.serves(u) else reference


def _on_cuda(u: Tensor) -> bool:
    return u.is_cuda and u.dtype != torch.float64


def _fake_checkpoints(u: Tensor, A: Tensor, batch: int, channels: int, length: int, checkpointed: bool) -> Tensor:
    if not checkpointed:
        return A.new_empty(0)
    # not by _path, which depends on the number of elements, so that torch.compile would compile each length again
    steps = triton.CHECKPOINT_STEPS if _on_cuda(u) else reference.CHECKPOINT_STEPS
    return A.new_empty(batch, (length + steps - 1) // steps, channels, A.shape[1])


def _operator_result(gradient: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if gradient is None else gradient.contiguous()


def _fake_gradient(argument: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if argument is None else argument.new_empty(argument.shape)
