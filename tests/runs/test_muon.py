"""The Muon optimizer: orthogonal updates of matrices, Adam for the rest."""

import pytest
import torch
from torch import nn

from voxelwave.restoration.mair import MaIR
from voxelwave.runs.muon import Muon, is_matrix, orthogonalised


@pytest.mark.parametrize("size", [(16, 16), (20, 50), (70, 24)])
def test_orthogonalised_keeps_singular_vectors_and_levels_singular_values(size, generator):
    matrix = torch.randn(size, generator=generator)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    levelled = orthogonalised(matrix)
    values = left.T @ levelled @ right.T
    assert values.diagonal().min() > 0.6
    assert values.diagonal().max() < 1.3
    torch.testing.assert_close(values - values.diagonal().diag(), torch.zeros_like(values), rtol=0, atol=1e-4)
    torch.testing.assert_close(orthogonalised(1e-3 * matrix), levelled, rtol=1e-3, atol=1e-3)


def test_kernels_and_matrices_of_a_network_are_orthogonalised_and_scan_parameters_are_not():
    network = MaIR(stripe_width=4, in_channels=1, scale=1, upsampler=None, width=24, depths=(1,), states=16)
    chosen = {name for name, parameter in network.named_parameters() if is_matrix(name, parameter)}
    block = "layers.0.residual_group.blocks.0."
    assert {"layers.0.conv.weight", f"{block}conv_blk.fc1.weight", f"{block}self_attention.in_proj.weight"} <= chosen
    left = {name for name, _ in network.named_parameters()} - chosen
    scan = {f"{block}self_attention.{name}" for name in ("A_logs", "Ds", "conv2d.weight", "dt_projs_weight")}
    assert scan | {"conv_first.weight", "conv_last.weight"} <= left  # one channel in, one out


def test_parameters_that_are_no_matrices_follow_adam(generator):
    start = torch.randn(7, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine = Muon([("bias", ours)], lr=0.1, betas=(0.8, 0.95))
    adam = torch.optim.Adam([theirs], lr=0.1, betas=(0.8, 0.95))
    for _ in range(5):
        for parameter, optimizer in ((ours, mine), (theirs, adam)):
            optimizer.zero_grad()
            (parameter**4).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_updates_of_a_matrix_have_the_size_of_those_of_adam(generator):
    weight = nn.Parameter(torch.zeros(32, 64))
    optimizer = Muon([("weight", weight)], lr=0.01)
    weight.grad = torch.randn(32, 64, generator=generator)
    optimizer.step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.2)


def test_a_training_continues_from_the_saved_state(generator):
    target = torch.randn(16, 16, generator=generator)

    def take(parameters, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (parameters["weight"] @ target + parameters["bias"]).square().sum().backward()
            optimizer.step()

    def new():
        parameters = {"weight": nn.Parameter(torch.eye(16)), "bias": nn.Parameter(torch.ones(16))}
        return parameters, Muon(parameters.items(), lr=0.01)

    whole, optimizer = new()
    take(whole, optimizer, 6)
    half, optimizer = new()
    take(half, optimizer, 3)
    rest, continued = new()
    for name, parameter in rest.items():
        parameter.data.copy_(half[name].data)
    continued.load_state_dict(optimizer.state_dict())
    take(rest, continued, 3)
    for name, parameter in whole.items():
        torch.testing.assert_close(rest[name], parameter, rtol=0, atol=0)
