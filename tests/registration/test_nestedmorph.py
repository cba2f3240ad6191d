"""NestedMorph: its parts compared with explicit formulas, its parameters with the published table, and its files."""

import warnings
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from voxelwave.registration import nestedmorph
from voxelwave.registration.benchmark_model import model_cost_table
from voxelwave.registration.nestedmorph import NestedMorph
from voxelwave.registration.nestedmorph_files import (
    load_nestedmorph,
    published_state_dict,
    read_trained_network,
    save_nestedmorph,
    save_published,
)
from voxelwave.registration.warp import integrate, jacobian_determinant, warp

F64 = torch.float64


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def randomise(module, generator, flow_std=0.3):
    """Set weights and running statistics to values other than 0 and 1, so that they can hide no error."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.randn(tensor.shape, generator=generator, dtype=F64)
        if name.endswith("running_var"):
            tensor.data.copy_(noise.abs() + 0.5)
        elif name.startswith("flow."):
            tensor.data.copy_(flow_std * noise)
        elif tensor.ndim > 1:
            tensor.data.copy_(noise / tensor[0].numel() ** 0.5)
        else:
            tensor.data.copy_(float(name.endswith("weight") or "layer_scale" in name) + 0.1 * noise)
    return module


@pytest.fixture(scope="module")
def official():
    return randomise(NestedMorph(official=True), torch.Generator().manual_seed(1)).eval()


@pytest.fixture(scope="module")
def aligned():
    return randomise(NestedMorph(), torch.Generator().manual_seed(2)).eval()


@pytest.fixture
def narrow(monkeypatch):
    """A network of the same structure that is ten times cheaper to train."""
    monkeypatch.setattr(nestedmorph, "WIDTHS", (16, 32, 64, 128))


def images(size, generator, dtype=torch.float32, batch=1):
    return torch.rand(2, batch, 1, *size, generator=generator, dtype=dtype).unbind()


def test_official_model_has_the_published_parameters_and_buffers(official):
    assert count(official) == 21_958_433
    assert len(list(official.parameters())) == 544
    assert len(list(official.buffers())) == 84
    assert sum(buffer.numel() for buffer in official.buffers()) == 8_676
    assert len(official.state_dict()) == 628
    parts = {name: count(part) for name, part in official.unet.named_children()}
    assert parts == {
        "backbone": 6_802_224,
        "decoder_3": 11_304_199,
        "decoder_2": 2_878_087,
        "decoder_1": 644_551,
        "decoder_0": 329_288,
    }
    assert count(official.flow) == 84


def test_default_model_has_no_unused_parameters(aligned, official):
    assert count(aligned) == count(NestedMorph(official=True, keep_unused=False)) == 11_221_402
    assert aligned.state_dict().keys() < official.state_dict().keys()


def published_names():
    """The table of entries of the published state_dict, written a second time from its description."""
    names = {}

    def add(prefix, shapes):
        names.update({f"{prefix}{name}": shape for name, shape in shapes.items()})

    def affine(name, *shape):
        return {f"{name}.weight": shape, f"{name}.bias": (shape[0],)}

    def batch_norm(name, c):
        running = {f"{name}.running_mean": (c,), f"{name}.running_var": (c,), f"{name}.num_batches_tracked": ()}
        return affine(name, c) | running

    def dual(prefix, c, mix_skip):
        for i in range(1, 5):
            add(prefix, affine(f"norm{i}", c))
        for name in ("keys", "queries", "values", "reprojection"):
            add(prefix, affine(f"attn.{name}", c, c, 1, 1, 1))
        add(prefix, {"channel_attn.fc.0.weight": (c // 16, c), "channel_attn.fc.2.weight": (c, c // 16)})
        for mlp in ("mlp1", "mlp2"):
            add(prefix, affine(f"{mlp}.fc1", 4 * c, c) | affine(f"{mlp}.dwconv.dwconv", 4 * c, 1, 3, 3, 3))
            add(prefix, {f"{mlp}.fc2.weight": (c, 4 * c), f"{mlp}.fc2.bias": (c,)})
            for i in (1, 2, 3) if mix_skip else ():
                add(prefix, affine(f"{mlp}.norm{i}", 4 * c))

    def gate(prefix, c):
        add(prefix, affine("multi.local.dconv.0", c, 1, 3, 3, 3) | batch_norm("multi.local.dconv.1", c))
        add(prefix, affine("multi.local.dconv.3", c, c, 3, 3, 3) | batch_norm("multi.local.dconv.4", c))
        add(prefix, affine("multi.local.proj.0", c, c, 1, 1, 1) | batch_norm("multi.local.proj.1", c))
        add(prefix, affine("multi.global_.proj.0", 1, 2, 1, 1, 1) | batch_norm("multi.global_.proj.1", 1))
        add(prefix, batch_norm("multi.bn", c) | affine("selection", 2, c, 1, 1, 1) | affine("proj", c, c, 1, 1, 1))
        add(prefix, batch_norm("bn", c) | batch_norm("bn_2", c) | affine("conv_block.0", c, c, 1, 1, 1))

    def lka(prefix, c):
        add(prefix, {"layer_scale_1": (c,), "layer_scale_2": (c,)} | affine("norm1", c) | affine("norm2", c))
        add(prefix, affine("attn.proj_1", c, c, 1, 1, 1) | affine("attn.proj_2", c, c, 1, 1, 1))
        unit = "attn.spatial_gating_unit"
        add(prefix, affine(f"{unit}.conv0", c, 1, 5, 5, 5) | affine(f"{unit}.conv_spatial", c, 1, 7, 7, 7))
        add(prefix, affine(f"{unit}.conv1", c, c, 1, 1, 1) | affine("mlp.fc1", 4 * c, c, 1, 1, 1))
        add(prefix, affine("mlp.dwconv.dwconv", 4 * c, 1, 3, 3, 3) | affine("mlp.fc2", c, 4 * c, 1, 1, 1))

    widths = (48, 96, 192, 384)
    for i, c in enumerate(widths, start=1):
        before, kernel = (2, 7) if i == 1 else (c // 2, 3)
        stage = affine(f"patch_embed{i}.proj", c, before, kernel, kernel, kernel)
        add("unet.backbone.", stage | affine(f"patch_embed{i}.norm", c) | affine(f"norm{i}", c))
        dual(f"unet.backbone.block{i}.0.", c, mix_skip=True)
    for i, c in enumerate(widths):
        prefix = f"unet.decoder_{i}."
        add(prefix, affine("x1_linear", c, c) | affine("ag_attn_norm", c))
        gate(f"{prefix}ag_attn.", c)
        out, expanded = (c, 64 * c) if i == 0 else (c // 2, 4 * c)
        add(prefix, {"layer_up.expand.weight": (expanded, c)} | affine("layer_up.norm", out))
        for j in (1, 2):
            if i >= 2:
                dual(f"{prefix}tran_layer{j}.", c, mix_skip=False)
            else:
                lka(f"{prefix}layer_lka_{j}.", c)
    add("unet.decoder_0.", affine("last_layer", 1, 48, 1, 1, 1))
    add("", affine("flow", 3, 1, 3, 3, 3))
    return names


def test_names_and_shapes_are_the_published_ones(official):
    assert {name: tuple(tensor.shape) for name, tensor in official.state_dict().items()} == published_names()


def test_training_starts_from_the_identity(generator):
    _, displacement = NestedMorph().eval()(*images((32, 32, 32), generator))
    assert displacement.abs().max() < 4e-3


def test_efficient_attention_is_its_formula(generator):
    c, n = 8, 15
    module = randomise(nestedmorph._EfficientAttention(c).double(), generator)
    x = torch.randn(2, n, c, generator=generator, dtype=F64)
    q, k, v = (
        (x @ conv.weight.view(c, c).T + conv.bias).mT for conv in (module.queries, module.keys, module.values)
    )  # each (B, C, N)
    heads = []
    for channels in (slice(0, 4), slice(4, 8)):
        context = torch.softmax(k[:, channels], 2) @ v[:, channels].mT
        heads.append(context.mT @ torch.softmax(q[:, channels], 1))
    expected = torch.cat(heads, 1).mT @ module.reprojection.weight.view(c, c).T + module.reprojection.bias
    assert_close(module(x), expected)


@pytest.mark.parametrize("factor", [2, 4])
def test_patch_expand_puts_each_channel_group_at_its_voxel(factor, generator):
    c, size = 8, (2, 3, 2)
    module = randomise(nestedmorph._PatchExpand(c, factor).double(), generator)
    tokens = torch.randn(1, 12, c, generator=generator, dtype=F64)
    out = module(tokens, size)
    channels = c // 2 if factor == 2 else c
    volume = out.view(1, *(factor * n for n in size), channels)
    linear = module.expand(tokens).view(*size, -1)
    for d, h, w in [(0, 0, 0), (1, 2, 1), (0, 1, 1)]:
        for i, j, k in [(0, 0, 0), (1, 0, 1), (factor - 1, factor - 1, 0)]:
            first = ((i * factor + j) * factor + k) * channels
            expected = module.norm(linear[d, h, w, first : first + channels])
            assert_close(volume[0, factor * d + i, factor * h + j, factor * w + k], expected)


def test_gate_is_its_formula_in_evaluation_mode(generator):
    c = 4
    gate = randomise(nestedmorph._Gate(c).double(), generator).eval()
    e, d = torch.randn(2, 2, c, 3, 4, 5, generator=generator, dtype=F64).unbind()

    def batch_norm(bn, x):
        shape = (1, -1, 1, 1, 1)
        mean, var = bn.running_mean.view(shape), bn.running_var.view(shape)
        return (x - mean) / (var + 1e-5).sqrt() * bn.weight.view(shape) + bn.bias.view(shape)

    def mix(conv, x):
        return torch.einsum("oc,bcdhw->bodhw", conv.weight.flatten(1), x) + conv.bias.view(1, -1, 1, 1, 1)

    local, glob = gate.multi.local, gate.multi.global_
    x = F.conv3d(e, local.dconv[0].weight, local.dconv[0].bias, padding=1, groups=c)
    x = batch_norm(local.dconv[1], x).relu()
    x = F.conv3d(x, local.dconv[3].weight, local.dconv[3].bias, padding=2, dilation=2)
    x = batch_norm(local.proj[1], mix(local.proj[0], batch_norm(local.dconv[4], x).relu()))
    pooled = torch.stack([d.mean(1), d.max(1).values], 1)
    m = batch_norm(gate.multi.bn, x + batch_norm(glob.proj[1], mix(glob.proj[0], pooled)))
    a = mix(gate.selection, m).softmax(1)
    e1, d1 = e * (1 + a[:, :1]), d * (1 + a[:, 1:])
    d2, e2 = torch.sigmoid(e1) * d1, torch.sigmoid(d1) * e1
    p = torch.sigmoid(batch_norm(gate.bn, mix(gate.proj, e2 * d2)))
    gated = gate(e.movedim(1, -1), d.movedim(1, -1)).movedim(-1, 1)
    assert_close(gated, batch_norm(gate.bn_2, mix(gate.conv_block[0], p * e)))


def test_channel_gate_and_lka_block_are_their_formulas(generator):
    gate = randomise(nestedmorph._ChannelGate(32).double(), generator)
    x = torch.randn(2, 7, 32, generator=generator, dtype=F64)
    hidden = F.relu(x.mean(1) @ gate.fc[0].weight.T)
    assert_close(gate(x), x * torch.sigmoid(hidden @ gate.fc[2].weight.T)[:, None])

    block = randomise(nestedmorph._LKABlock(4).double(), generator)
    y = torch.randn(1, 4, 5, 4, 3, generator=generator, dtype=F64)
    unit, mlp = block.attn.spatial_gating_unit, block.mlp

    def norm(layer, z):
        return F.layer_norm(z.permute(0, 2, 3, 4, 1), (4,), layer.weight, layer.bias).permute(0, 4, 1, 2, 3)

    a = norm(block.norm1, y)
    g = F.gelu(F.conv3d(a, block.attn.proj_1.weight, block.attn.proj_1.bias))
    large = F.conv3d(g, unit.conv0.weight, unit.conv0.bias, padding=2, groups=4)
    large = F.conv3d(large, unit.conv_spatial.weight, unit.conv_spatial.bias, padding=9, dilation=3, groups=4)
    large = F.conv3d(large, unit.conv1.weight, unit.conv1.bias)
    inner = F.conv3d(g * large, block.attn.proj_2.weight, block.attn.proj_2.bias)
    z = y + block.layer_scale_1.view(1, 4, 1, 1, 1) * (a + inner)
    f = F.conv3d(norm(block.norm2, z), mlp.fc1.weight, mlp.fc1.bias)
    f = F.gelu(F.conv3d(f, mlp.dwconv.dwconv.weight, mlp.dwconv.dwconv.bias, padding=1, groups=16))
    z = z + block.layer_scale_2.view(1, 4, 1, 1, 1) * F.conv3d(f, mlp.fc2.weight, mlp.fc2.bias)
    assert_close(block(y.movedim(1, -1)).movedim(-1, 1), z)


@pytest.mark.parametrize("inner_skip", [True, False])
def test_feed_forward_is_its_formula(inner_skip, generator):
    ffn = randomise(nestedmorph._MixFFN(4, inner_skip=inner_skip, keep_unused=True).double(), generator)
    x = torch.randn(1, 24, 4, generator=generator, dtype=F64)
    u = x @ ffn.fc1.weight.T + ffn.fc1.bias
    v = F.conv3d(u.mT.reshape(1, 16, 2, 3, 4), ffn.dwconv.dwconv.weight, ffn.dwconv.dwconv.bias, padding=1, groups=16)
    v = v.flatten(2).mT
    if inner_skip:
        v = F.layer_norm(u + v, (16,), ffn.norm1.weight, ffn.norm1.bias)
    assert_close(ffn(x, (2, 3, 4)), F.gelu(v) @ ffn.fc2.weight.T + ffn.fc2.bias)


def record_gate_inputs(stage):
    seen: dict[str, torch.Tensor] = {}
    stage.ag_attn.register_forward_hook(lambda _, inputs, __: seen.update(decoder=inputs[1]))
    return seen


@pytest.mark.parametrize("official", [True, False])
def test_official_layout_reinterprets_memory_and_the_aligned_one_transposes(official, generator):
    stage = nestedmorph._LKADecoder(48, official).double().eval()
    size, n = (2, 3, 2), 12
    tokens = torch.randn(2, n, 48, generator=generator, dtype=F64)
    skip = torch.randn(2, *size, 48, generator=generator, dtype=F64)
    seen = record_gate_inputs(stage)
    stage(tokens, skip)
    linear = stage.x1_linear(tokens)
    volume = seen["decoder"].flatten(1, 3).mT  # (B, C, N)
    for c, i in [(0, 0), (0, 1), (5, 7), (47, 11)]:
        flat = c * n + i
        expected = linear[:, flat // 48, flat % 48] if official else linear[:, i, c]
        assert_close(volume[:, c, i], expected)


@pytest.mark.parametrize("official", [True, False])
def test_stages_keep_the_order_of_the_voxels(official, generator):
    # With blocks that do nothing, a norm that returns x and no skip, tokens are returned unchanged.
    stage = nestedmorph._LKADecoder(48, official).double().eval()
    for name in ("ag_attn", "ag_attn_norm", "layer_lka_1", "layer_lka_2", "x1_linear"):
        setattr(stage, name, nn.Identity())
    stage.ag_attn.forward = lambda skip, x: torch.zeros_like(x)
    tokens = torch.randn(2, 12, 48, generator=generator, dtype=F64)
    assert_close(stage.mix(tokens, torch.zeros(2, 2, 3, 2, 48, dtype=F64)), tokens, rtol=0, atol=0)


def test_warped_is_the_moving_image_under_the_displacement(official, generator):
    moving, fixed = images((32, 64, 32), generator)
    with torch.inference_mode():
        warped, displacement = official(moving, fixed)
    assert warped.shape == (1, 1, 32, 64, 32)
    assert displacement.shape == (1, 3, 32, 64, 32)
    assert displacement.abs().max() > 1
    assert_close(warped, warp(moving, displacement))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1, 1), (20, 33, 31)])
def test_any_size_equals_the_centre_of_the_padded_volume(size, aligned, generator):
    moving, fixed = images(size, generator)
    full = [-(-n // 32) * 32 for n in size]
    before = [(m - n) // 2 for m, n in zip(full, size, strict=True)]
    d, h, w = (slice(b, b + n) for b, n in zip(before, size, strict=True))
    padded = torch.zeros(2, 1, 1, *full)
    padded[..., d, h, w] = torch.stack([moving, fixed])
    with torch.inference_mode():
        displacement = aligned(moving, fixed)[1]
        whole = aligned(*padded)[1]
    assert_close(displacement, whole[..., d, h, w], rtol=0, atol=0)


def test_the_quarter_head_filters_all_channels_and_enlarges_the_result(generator, narrow):
    model = randomise(NestedMorph(flow_head="quarter"), generator).eval()
    moving, fixed = images((32, 64, 32), generator)
    with torch.no_grad():
        features = model.unet(torch.cat([moving, fixed], 1))
        output = model.network_output(moving, fixed)
        coarse = F.conv3d(features.movedim(-1, 1), model.flow.weight, model.flow.bias, padding=1)
    assert features.shape == (1, 8, 16, 8, 16)

    def enlarge(values):
        """Linear interpolation of cells of 4 voxels, by their centres."""
        return np.interp((np.arange(4 * len(values)) + 0.5) / 4 - 0.5, np.arange(len(values)), values)

    expected = coarse.numpy()
    for axis in (2, 3, 4):
        expected = np.apply_along_axis(enlarge, axis, expected)
    assert_close(output, torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-4)  # float32


def test_the_quarter_head_starts_from_the_identity_and_has_gradients(generator, narrow):
    model = NestedMorph(flow_head="quarter")
    warped, displacement = model(*images((32, 32, 32), generator))
    assert displacement.shape == (1, 3, 32, 32, 32)
    assert 0 < displacement.abs().max() < 4e-3
    (warped.mean() + displacement.square().mean()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_quarter_head_is_not_the_published_model():
    with pytest.raises(ValueError, match=r"flow_head must be .published. if official"):
        NestedMorph(official=True, flow_head="quarter")
    with pytest.raises(ValueError, match="flow_head must be one of published, quarter, got 'half'"):
        NestedMorph(flow_head="half")


def test_files_record_the_flow_head(narrow, tmp_path):
    model = NestedMorph(flow_head="quarter")
    save_nestedmorph(tmp_path / "q.safetensors", model)
    loaded = load_nestedmorph(tmp_path / "q.safetensors")
    assert loaded.flow_head == "quarter"
    assert_close(loaded.state_dict(), model.state_dict())
    with pytest.raises(ValueError, match=r'flow_head must be "quarter", as recorded in q\.safetensors'):
        load_nestedmorph(tmp_path / "q.safetensors", flow_head="published")
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ValueError, match=r"bare.pth does not fit NestedMorph: .* entries are missing"):
        load_nestedmorph(tmp_path / "bare.pth")
    assert load_nestedmorph(tmp_path / "bare.pth", flow_head="quarter").flow_head == "quarter"
    # a file whose record and tensors contradict each other
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "n.safetensors", {"nestedmorph": '{"official": false}'})
    with pytest.raises(ValueError, match=r"n.safetensors does not fit NestedMorph: .* entries are missing"):
        load_nestedmorph(tmp_path / "n.safetensors")


def test_a_file_with_the_published_head_has_the_record_of_version_0_1_0(narrow):
    assert NestedMorph().config == {"official": False, "keep_unused": False, "diffeomorphic": False}


def test_files_record_the_width_and_the_norm(tmp_path):
    model = NestedMorph(width=16, norm="group", flow_head="quarter").eval()
    assert [norm.normalized_shape for norm in (model.unet.backbone.norm1, model.unet.backbone.norm4)] == [(16,), (128,)]
    save_nestedmorph(tmp_path / "n.safetensors", model)
    loaded = load_nestedmorph(tmp_path / "n.safetensors")
    assert loaded.config == model.config
    assert_close(loaded.state_dict(), model.state_dict())
    wide = NestedMorph(width=32)  # the widths of an older revision of the published code, but recorded
    save_nestedmorph(tmp_path / "w.safetensors", wide)
    assert load_nestedmorph(tmp_path / "w.safetensors").width == 32


def test_with_group_norms_a_pair_does_not_depend_on_its_batch(generator):
    model = NestedMorph(width=16, norm="group", flow_head="quarter")
    randomise(model, generator).train()
    moving, fixed = images((32, 32, 32), generator, batch=2)
    with torch.no_grad():
        both = model.network_output(moving, fixed)
        alone = torch.cat([model.network_output(moving[i : i + 1], fixed[i : i + 1]) for i in range(2)])
    assert both.std() > 0
    assert_close(alone, both, rtol=1e-3, atol=1e-4 * float(both.abs().max()))  # order of float32 sums


def test_group_norm_is_that_of_pytorch_on_channel_first_maps(generator):
    maps = torch.randn(2, 3, 4, 5, 12, generator=generator)
    expected = F.group_norm(maps.movedim(-1, 1), 4).movedim(1, -1)
    assert_close(nestedmorph._GroupNorm(12)(maps), expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 15}, "width must be an even number from 16, got 15"),
        ({"norm": "layer"}, "norm must be one of batch, group, got 'layer'"),
        ({"width": 24, "official": True}, "width must be None"),
        ({"norm": "group", "official": True}, 'norm "batch" if official'),
    ],
)
def test_wrong_widths_and_norms_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        NestedMorph(**options)


@pytest.mark.parametrize("batch", [1, 2])
def test_chunks_of_the_last_expansion_change_neither_result_nor_gradient(batch, generator):
    stage = randomise(nestedmorph._LastDecoder(48, False, None).double(), generator)
    tokens = torch.randn(batch, 60, 48, generator=generator, dtype=F64).requires_grad_()
    skip = torch.randn(batch, 3, 4, 5, 48, generator=generator, dtype=F64).requires_grad_()
    upstream = torch.randn(batch, 12, 16, 20, 1, generator=generator, dtype=F64)
    results = []
    for chunk in (None, 30, 7):
        stage.expand_chunk = chunk
        out = stage(tokens, skip)
        inputs = (tokens, skip, *stage.parameters())
        results.append((out.detach(), *torch.autograd.grad(out, inputs, upstream)))
    for other in results[1:]:
        assert_close(other, results[0], rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("is_official", [True, False])
def test_gradients_at_batch_1_are_right(is_official, generator, narrow):
    # PyTorch's CPU BatchNorm3d is wrong at batch 1 for some orders of memory, so batch 1 is held against the same pair
    # twice, which has the same batch statistics, and against finite differences along one random direction.
    model = randomise(NestedMorph(official=is_official, keep_unused=False, expand_chunk=None), generator).double()
    moving, fixed = images((32, 32, 32), generator, F64)
    target = torch.randn(1, 3, 32, 32, 32, generator=generator, dtype=F64)
    parameters = list(model.parameters())

    def loss(copies=1):
        pair = (image.expand(copies, -1, -1, -1, -1) for image in (moving, fixed))
        return (model.network_output(*pair) * target).mean()

    once = torch.autograd.grad(loss(), parameters)
    twice = torch.autograd.grad(loss(copies=2), parameters)
    assert_close(once, twice, rtol=1e-6, atol=1e-10)  # atol: biases before a normalisation have gradient 0

    directions = [torch.randn(p.shape, generator=generator, dtype=F64) for p in parameters]
    along = sum(float((g * d).sum()) for g, d in zip(once, directions, strict=True))
    values = []
    with torch.no_grad():
        for step in (1e-7, -2e-7):
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += step * direction
            values.append(float(loss()))
    assert (values[0] - values[1]) / 2e-7 == pytest.approx(along, rel=1e-4)


def test_batch_normalisation_is_that_of_volumes(generator):
    maps = torch.randn(2, 2, 2, 4, 8, generator=generator, dtype=F64)
    norm, volumes = nestedmorph._BatchNorm(8).double(), nn.BatchNorm3d(8).double()
    for _ in range(2):
        assert_close(norm(maps), volumes(maps.movedim(-1, 1)).movedim(1, -1))
    assert_close(norm.running_var, volumes.running_var)
    assert_close(norm.eval()(maps), volumes.eval()(maps.movedim(-1, 1)).movedim(1, -1))


def test_the_last_expansion_is_its_formula(generator):
    stage = randomise(nestedmorph._LastDecoder(48, False, None).double(), generator)
    tokens = torch.randn(2, 6, 48, generator=generator, dtype=F64)
    channels = stage.layer_up.norm((tokens @ stage.layer_up.expand.weight.T).unflatten(2, (64, 48)))
    expected = channels @ stage.last_layer.weight.flatten() + stage.last_layer.bias
    assert_close(stage._expand(tokens, *stage._maps_of_blocks())[..., 0], expected)


def test_unused_parameters_get_no_gradient_and_all_others_do(generator, narrow):
    model = randomise(NestedMorph(official=True), generator)
    warped, displacement = model(*images((32, 64, 64), generator))
    (warped.mean() + displacement.square().mean()).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    lean = dict(NestedMorph(official=True, keep_unused=False).named_parameters())
    assert without == dict(model.named_parameters()).keys() - lean.keys()


def test_diffeomorphic_output_is_the_integrated_velocity_without_folds(generator):
    model = randomise(NestedMorph(diffeomorphic=True), generator, flow_std=0.2).eval()
    moving, fixed = images((32, 32, 32), generator)
    smooth = [F.avg_pool3d(image, 9, 1, 4) for image in (moving, fixed)]
    with torch.inference_mode():
        velocity = model.network_output(*smooth)
        warped, displacement = model(*smooth)
    assert_close(displacement, integrate(velocity))
    assert_close(warped, warp(smooth[0], displacement))
    assert jacobian_determinant(displacement).isfinite().all()


@pytest.mark.slow
def test_batch_items_do_not_influence_each_other_in_evaluation(official, generator):
    moving, fixed = images((32, 32, 32), generator, batch=2)
    with torch.inference_mode():
        both = official(moving, fixed)[1]
        first = official(moving[:1], fixed[:1])[1]
    assert_close(both[:1], first, rtol=1e-3, atol=1e-3)  # float32 through 60 layers, displacements of several voxels


@pytest.mark.parametrize(
    ("moving", "fixed", "message"),
    [
        ((1, 2, 8, 8, 8), (1, 2, 8, 8, 8), r"moving must have shape \(B, 1, D, H, W\), got \(1, 2, 8, 8, 8\)"),
        ((8, 8, 8), (8, 8, 8), r"moving must have shape \(B, 1, D, H, W\), got \(8, 8, 8\)"),
        ((1, 1, 8, 8, 8), (1, 1, 8, 8, 9), r"fixed must have shape \(1, 1, 8, 8, 8\).*got \(1, 1, 8, 8, 9\)"),
    ],
)
def test_wrong_images_are_named(moving, fixed, message, aligned):
    with pytest.raises(ValueError, match=message):
        aligned(torch.zeros(moving), torch.zeros(fixed))


def published_file(path, state, **changes):
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(2))], amsgrad=True).state_dict()
    contents = {"epoch": 3, "state_dict": state, "best_dsc": np.float64(0.8), "optimizer": optimizer}
    torch.save(contents | changes, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("unused", ["drop", "keep"])
def test_a_published_checkpoint_loads_as_official(unused, official, generator, tmp_path):
    path = published_file(tmp_path / "final_model_x.pth.tar", official.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_nestedmorph(path, unused=unused)
    assert model.official
    assert not model.training
    assert count(model) == (11_221_402 if unused == "drop" else 21_958_433)
    moving, fixed = images((32, 32, 32), generator)
    with torch.inference_mode():
        assert_close(model(moving, fixed), official(moving, fixed), rtol=0, atol=0)


@pytest.mark.slow
def test_a_checkpoint_of_an_older_numpy_loads(official, tmp_path):
    path = published_file(tmp_path / "new.pth.tar", official.state_dict())
    with zipfile.ZipFile(path) as new, zipfile.ZipFile(tmp_path / "old.pth.tar", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert load_nestedmorph(tmp_path / "old.pth.tar").official


@pytest.mark.slow
def test_unused_entries_survive_a_round_trip(official, tmp_path):
    path = published_file(tmp_path / "a.pth.tar", official.state_dict())
    kept = load_nestedmorph(path, unused="keep")
    save_published(tmp_path / "b.pth.tar", kept, epoch=3)
    assert_close(torch.load(tmp_path / "b.pth.tar", weights_only=True)["state_dict"], dict(official.state_dict()))
    lean = load_nestedmorph(path)
    assert_close(published_state_dict(lean, unused=official.state_dict()), dict(official.state_dict()))
    NestedMorph(official=True).load_state_dict(published_state_dict(lean), strict=True)
    assert load_nestedmorph(tmp_path / "b.pth.tar").official


@pytest.mark.slow
@pytest.mark.parametrize("is_official", [True, False])
def test_our_files_record_their_layout(is_official, official, aligned, tmp_path):
    model = official if is_official else aligned
    save_nestedmorph(tmp_path / "m.safetensors", model)
    training = {f"network.{name}": tensor for name, tensor in model.state_dict().items()}
    common = {"state_dict": training, "pytorch-lightning_version": "2.6.4"}
    torch.save(common | {"nestedmorph": model.config}, tmp_path / "a.ckpt")
    torch.save(common | {"hyper_parameters": {"nestedmorph": model.config}}, tmp_path / "b.ckpt")
    for name in ("m.safetensors", "a.ckpt", "b.ckpt"):
        loaded = load_nestedmorph(tmp_path / name)
        assert loaded.official == is_official
        assert_close(loaded.flow.weight, model.flow.weight)
        with pytest.raises(ValueError, match=f"official must be {is_official}, as recorded in {name}"):
            load_nestedmorph(tmp_path / name, official=not is_official)


@pytest.mark.slow
def test_a_layout_is_never_guessed(official, aligned, tmp_path):
    path = tmp_path / "bare.safetensors"
    safetensors.torch.save_file(aligned.state_dict(), path)
    with pytest.raises(ValueError, match="does not record its layout: pass official="):
        load_nestedmorph(path)
    assert not load_nestedmorph(path, official=False).official
    torch.save(official.state_dict(), tmp_path / "bare.pth")
    with pytest.warns(UserWarning, match="read as official"):
        assert load_nestedmorph(tmp_path / "bare.pth").official
    with pytest.raises(ValueError, match="model must have official=True"):
        published_state_dict(aligned)


@pytest.mark.parametrize(
    ("width", "flow_channels", "message"),
    [(128, 3, "widths 128 to 1024"), (48, 3, "flow from three channels"), (32, 1, "widths 32 to 256")],
)
def test_older_revisions_are_refused_by_name(width, flow_channels, message, tmp_path):
    state = {
        "unet.backbone.patch_embed1.proj.weight": torch.zeros(width, 2, 7, 7, 7),
        "flow.weight": torch.zeros(3, flow_channels, 3, 3, 3),
        "spatial_transform.grid": torch.zeros(1, 3, 4, 4, 4),
    }
    with pytest.raises(ValueError, match=f"older revision of the published code, .*{message}"):
        load_nestedmorph(published_file(tmp_path / "old.pth.tar", state))


@pytest.mark.slow
def test_files_that_do_not_fit_are_refused_with_one_line(official, tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_nestedmorph(tmp_path / "missing.pth.tar")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(ValueError, match=r"text.pth is not a readable file of weights"):
        load_nestedmorph(tmp_path / "text.pth")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(ValueError, match=r"text.safetensors is not a readable safetensors file"):
        load_nestedmorph(tmp_path / "text.safetensors")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold NestedMorph's weights"):
        load_nestedmorph(tmp_path / "other.pth")
    state = dict(official.state_dict())
    del state["unet.decoder_1.x1_linear.bias"]
    with pytest.raises(ValueError, match=r"1 entries are missing \(such as unet.decoder_1.x1_linear.bias\)"):
        load_nestedmorph(published_file(tmp_path / "part.pth.tar", state))
    state = dict(official.state_dict()) | {"unet.norm.weight": torch.zeros(3)}
    torch.save({"state_dict": state}, tmp_path / "more.pth")
    with pytest.raises(ValueError, match=r"1 are unknown \(such as unet.norm.weight\)"):
        load_nestedmorph(tmp_path / "more.pth")
    state = dict(official.state_dict()) | {"unet.decoder_0.x1_linear.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"decoder_0.x1_linear.bias must have shape \(48,\), got \(3,\)"):
        load_nestedmorph(published_file(tmp_path / "shape.pth.tar", state))
    save_nestedmorph(tmp_path / "lean.safetensors", NestedMorph())
    with pytest.raises(ValueError, match='unused must be "drop"'):
        load_nestedmorph(tmp_path / "lean.safetensors", unused="keep")


def test_a_file_that_would_run_code_is_refused(tmp_path):
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return (marker.touch, ())

    torch.save({"state_dict": Attack()}, tmp_path / "bad.pth.tar")
    with pytest.raises(ValueError, match=r"is not a readable file of weights: .* more than tensors and plain values"):
        load_nestedmorph(tmp_path / "bad.pth.tar")
    assert not marker.exists()


@pytest.mark.slow
def test_cost_table_measures_time_and_memory():
    (row,) = model_cost_table(cases=(((32, 32, 32), "forward", 2),))
    assert row.size == (32, 32, 32)
    assert row.seconds > 0
    assert row.peak_mib > 0


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ({"nestedmorph": '{"official": "no"}'}, "official must be bool, got str"),
        ({"nestedmorph": "[]"}, "the content must be an object"),
        ({"nestedmorph": '{"official": false, "flow_head": "half"}'}, "flow_head must be one of published, quarter"),
        ({"training": '{"spacing_mm": "2"}'}, "spacing_mm must be float or NoneType, got str"),
        ({"training": '{"spacing_mm": -2}'}, "spacing_mm must be above 0, got -2"),
        ({"training": "[1]"}, "the content must be an object"),
    ],
)
def test_a_damaged_record_in_a_file_of_weights_is_named(metadata, complaint, narrow, tmp_path):
    whole = {"nestedmorph": '{"official": false}', "training": '{"spacing_mm": 2.0}'}
    state = {name: tensor.contiguous() for name, tensor in NestedMorph().state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "whole.safetensors", whole)
    assert read_trained_network(tmp_path / "whole.safetensors").spacing_mm == 2.0
    safetensors.torch.save_file(state, tmp_path / "n.safetensors", whole | metadata)
    with pytest.raises(ValueError, match=rf"n\.safetensors.*{complaint}"):
        read_trained_network(tmp_path / "n.safetensors")
