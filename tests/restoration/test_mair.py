"""MaIR and MaIRUNet: agreement with the published networks, sizes, channels, scan paths."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from voxelwave.kernels import native
from voxelwave.kernels.scan.selective import selective_scan
from voxelwave.restoration.mair import MaIR
from voxelwave.restoration.mair_unet import MaIRUNet, pad_by_reflection
from voxelwave.restoration.scan_block import (
    DropPath,
    ScanBlock,
    SequenceShuffleAttention,
    VisionScan,
    use_plain_scan,
)
from voxelwave.restoration.scan_order import scan_order
from voxelwave.restoration.timing import time_by_part
from voxelwave.restoration.weights import model_from_variant

PARAMETERS = {
    "mair-t-x2": 877_752,
    "mair-t-x3": 885_867,
    "mair-t-x4": 897_228,
    "mair-s-x2": 1_354_680,
    "mair-s-x3": 1_362_795,
    "mair-s-x4": 1_374_156,
    "mair-x2": 19_444_247,
    "mair-x3": 19_628_887,
    "mair-x4": 19_591_959,
    "mair-denoise": 14_089_035,
    "mair-unet-denoise": 26_293_296,
    "mair-unet-deblur": 26_293_296,
    "mair-unet-dehaze": 3_404_376,
}
TENSORS = {"mair-t-x2": 570, "mair-x3": 854, "mair-x4": 856, "mair-denoise": 850, "mair-unet-denoise": 1022}
needs_library = pytest.mark.skipif(not native.levels(), reason="the compiled kernels were not built")

FIXTURES = ["mini_light_x2_16x16", "mini_gray_dn_16x16", "mini_unet_32x32"]
SMALL = {"width": 12, "depths": (2,), "states": 3, "expansion": 1.3, "stripe_width": 4}
SMALL_UNET = {"width": 8, "depths": (1, 1, 1, 1), "refinement": 1, "expansion": 1.2, "stripe_width": 4}


@pytest.fixture(params=FIXTURES)
def published(request, shared_fixtures):
    return torch.load(shared_fixtures / f"{request.param}.pt", weights_only=True)


def build(published):
    """Our network with the parameters of a published one."""
    config = published["config"]
    if published["kind"] == "unet":
        model = MaIRUNet(
            stripe_width=config["scan_len"],
            width=config["dim"],
            depths=config["num_blocks"],
            refinement=config["num_refinement_blocks"],
            expansion=config["ssm_ratio"],
            first_mlp_ratio=config["flp_ratio"],
            mlp_ratio=config["mlp_ratio"],
        )
    else:
        model = MaIR(
            stripe_width=config["scan_len"],
            in_channels=config["in_chans"],
            scale=config["upscale"],
            upsampler=config["upsampler"],
            width=config["embed_dim"],
            depths=config["depths"],
            states=config["d_state"],
            expansion=config["ssm_ratio"],
            mlp_ratio=config["mlp_ratio"],
        )
    model.load_state_dict(published["state_dict"])
    return model.eval()


def roughen(model, generator):
    """Change every parameter from its initial value, so that none is 0 or 1 by construction."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def assert_close_by_deviation(actual, expected, tolerance=1e-5):
    """The largest difference, in standard deviations of the expected values."""
    assert actual.shape == expected.shape
    assert ((actual - expected).abs().max() / expected.std()).item() < tolerance


@pytest.mark.parametrize("variant", PARAMETERS)
def test_variant_has_the_published_number_of_parameters(variant):
    with torch.device("meta"):
        model = model_from_variant(variant)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[variant]
    assert len(model.state_dict()) == TENSORS.get(variant, len(model.state_dict()))


def test_output_agrees_with_the_published_network(published):
    with torch.no_grad():
        assert_close_by_deviation(build(published)(published["input"]), published["output"])


def test_inner_activations_agree_with_the_published_network(published):
    model = build(published)
    taps: dict[str, torch.Tensor] = {}

    def keep(name):
        return lambda module, arguments, result: taps.__setitem__(name, result)

    for name in published["taps"]:
        inner = {"gating": ".gating", "patch_embed": ".norm"}.get(name.rsplit(".", 1)[-1], "")
        if published["kind"] == "unet" and name == "patch_embed":
            inner = ".proj"
        model.get_submodule(name + inner).register_forward_hook(keep(name))
    with torch.no_grad():
        model(published["input"])
    for name, expected in published["taps"].items():
        tap = taps[name]
        if name.endswith("gating"):  # our order is channel by channel, the published order direction by direction
            tap = tap.view(tap.shape[0], -1, 4).mT.reshape(expected.shape)
        elif expected.ndim == 3 and published["kind"] == "unet" and name.startswith(("patch", "down", "up")):
            tap = tap.flatten(2).mT  # (B, C, H, W) -> (B, L, C)
        elif expected.ndim == 3:
            tap = tap.flatten(1, 2)  # (B, H, W, C) -> (B, L, C)
        # twice that of the output: both sides differ by up to 8e-6 from a float64 run, in the U-net's last blocks
        assert_close_by_deviation(tap, expected, tolerance=2e-5)


def test_gradients_agree_with_the_published_network(published):
    model = build(published)
    model(published["input"]).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, expected in published["train_grads"].items():
        # 1e-4 as the specification allows: float32 sums over 256 to 1024 steps in another order
        assert (gradients[name] - expected).norm() < 1e-4 * expected.norm(), name


def test_scan_orders_agree_with_the_published_network(published):
    size = published["input"].shape[-1]
    tables = published["scan_ids"]
    for name, shifted in (("plain", False), ("shifted", True)):
        order = scan_order(size, size, 4, shifted=shifted)
        assert torch.equal(order, tables[name])
        assert torch.equal(order.argsort(dim=1).int(), tables[f"{name}_inverse"])


def scan_in_words(mixer: VisionScan, features, order):
    """Section 3 of the paper, step by step: gather, project, scan, scatter, gate, add."""
    batch, height, width, _ = features.shape
    inner = mixer.out_norm.normalized_shape[0]
    content, gate = mixer.in_proj(features).split(inner, dim=-1)
    content = F.silu(mixer.conv2d(content.permute(0, 3, 1, 2))).flatten(2)  # (B, d, L)
    gathered = torch.stack([content[:, :, path.long()] for path in order], dim=1)  # (B, K, d, L)
    projected = torch.einsum("bkdl,kcd->bkcl", gathered, mixer.x_proj_weight)
    step, B, C = projected.split([mixer.rank, mixer.states, mixer.states], dim=2)
    delta = torch.einsum("bkrl,kdr->bkdl", step, mixer.dt_projs_weight)
    scanned = selective_scan(
        gathered.flatten(1, 2),
        delta.flatten(1, 2),
        -mixer.A_logs.exp(),
        B,
        C,
        mixer.Ds,
        delta_bias=mixer.dt_projs_bias.flatten(),
        delta_softplus=True,
    ).unflatten(1, (4, inner))
    raster = torch.stack([scanned[:, k, :, order[k].argsort()] for k in range(4)], dim=1)
    shuffled = raster.mean(dim=3).transpose(1, 2).reshape(batch, -1, 1, 1)  # (B, d*4, 1, 1)
    conv = mixer.gating.gating[1]
    gates = torch.sigmoid(F.conv2d(shuffled, conv.weight, conv.bias, groups=inner)).view(batch, inner, 4)
    mixed = torch.einsum("bkdl,bdk->bld", raster, gates)
    return mixer.out_proj(mixer.out_norm(mixed).view(batch, height, width, inner) * F.silu(gate))


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 9), (3, 1)])
def test_vision_scan_equals_a_literal_version_of_the_paper(size, generator):
    mixer = roughen(VisionScan(6, 3, 1.5), generator).double()
    features = torch.randn(2, *size, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    order = scan_order(*size, 4, shifted=True)
    weight = torch.randn(2, *size, 6, generator=generator, dtype=torch.float64)
    fast, plain = mixer(features, order), scan_in_words(mixer, features, order)
    torch.testing.assert_close(fast, plain)
    parameters = [features, *mixer.parameters()]
    fast_gradients = torch.autograd.grad((fast * weight).sum(), parameters)
    plain_gradients = torch.autograd.grad((plain * weight).sum(), parameters)
    for fast_gradient, plain_gradient in zip(fast_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(fast_gradient, plain_gradient)


@pytest.mark.parametrize(
    "model", [MaIR(**SMALL, in_channels=1), MaIRUNet(**SMALL_UNET, in_channels=1)], ids=["MaIR", "MaIRUNet"]
)
def test_fast_scan_equals_the_sequential_one(model, generator):
    model = roughen(model, generator).eval()
    image = torch.rand(2, 1, 11, 9, generator=generator)
    with torch.no_grad():
        fast = model(image)
        use_plain_scan(model)
        assert_close_by_deviation(fast, model(image))
        use_plain_scan(model, False)


@needs_library
@pytest.mark.parametrize("size", [(1, 1), (5, 11), (13, 8)])
@pytest.mark.parametrize(("width", "states", "expansion"), [(6, 1, 1.1), (20, 3, 2.0), (64, 16, 1.0)])
def test_compiled_layers_of_a_block_equal_its_modules(width, states, expansion, size, generator):
    block = roughen(ScanBlock(width, states, expansion, 1.6, 0.1, "mlp"), generator).eval()
    order = scan_order(*size, 4)
    features = torch.randn(2, width, *size, generator=generator).permute(0, 2, 3, 1)  # not contiguous
    modules = block(features, order)  # with gradients, which the compiled layers do not have
    assert modules.requires_grad
    for level in native.levels():
        with native.use_level(level), torch.no_grad():
            assert_close_by_deviation(block(features, order), modules.detach())


@needs_library
def test_compiled_layers_leave_changed_blocks_and_unfit_inputs_to_the_modules(generator):
    features, order = torch.randn(1, 4, 6, 12, generator=generator), scan_order(4, 6, 4)
    block = ScanBlock(12, 3, 1.0, 1.0, 0.1, "mlp").eval()
    with torch.no_grad():
        assert block._compiled(features, order)
        assert not block._compiled(torch.zeros(1, 4, 6, 20), order)
        assert not block._compiled(features, scan_order(2, 6, 4))
        block.self_attention.in_proj = torch.nn.Sequential(block.self_attention.in_proj)
        assert not block._compiled(features, order)


@torch.no_grad()
def test_a_block_with_a_hook_or_another_type_runs_its_modules(generator):
    block = ScanBlock(6, 2, 1.0, 1.0, 0.1, "mlp").eval()
    features, order, seen = torch.randn(1, 4, 5, 6, generator=generator), scan_order(4, 5, 4), []
    block(features, order)
    handle = block.ln_2.register_forward_hook(lambda module, given, result: seen.append(result))
    hooked = block(features, order)
    handle.remove()
    assert len(seen) == 1
    torch.testing.assert_close(hooked, block(features, order))
    torch.testing.assert_close(block.double()(features.double(), order).float(), hooked)


def test_gates_weight_the_directions_of_one_channel_only(generator):
    attention = SequenceShuffleAttention(3)
    scanned = torch.randn(1, 10, 4, 3, generator=generator)
    changed = scanned.clone()
    changed[:, :, :, 1] += 1
    difference = (attention(changed) - attention(scanned)).abs().amax(dim=(0, 1))
    assert difference[1] > 0
    assert difference[[0, 2]].max() == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 2), (13, 11)])
@pytest.mark.parametrize(("scale", "upsampler"), [(1, None), (3, "pixelshuffledirect"), (4, "pixelshuffle")])
def test_mair_takes_any_size(size, scale, upsampler, generator):
    model = MaIR(**SMALL, in_channels=1, scale=scale, upsampler=upsampler, resi_connection="3conv")
    restored = model(torch.rand(1, 1, *size, generator=generator))
    assert restored.shape == (1, 1, size[0] * scale, size[1] * scale)


def test_unshuffled_pixels_are_channels_of_a_smaller_map(generator):
    model = MaIR(**SMALL, in_channels=1, scale=1, upsampler=None, unshuffle=2).eval()
    inner = MaIR(**SMALL, in_channels=4, scale=1, upsampler=None).eval()
    inner.load_state_dict(model.state_dict())
    image = torch.rand(2, 1, 12, 10, generator=generator)
    with torch.no_grad():
        expected = F.pixel_shuffle(inner(F.pixel_unshuffle(image, 2)), 2)
        torch.testing.assert_close(model(image), expected)
        # the last row and column are repeated up to an even size
        odd = image[..., :-1, :-1]
        repeated = F.pad(odd, (0, 1, 0, 1), mode="replicate")
        torch.testing.assert_close(model(odd), model(repeated)[..., :-1, :-1])


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 9), (17, 16)])
def test_unet_takes_any_size(size, generator):
    image = torch.rand(1, 3, *size, generator=generator)
    assert MaIRUNet(**SMALL_UNET)(image).shape == image.shape


@pytest.mark.parametrize("size", [(3, 5), (1, 8), (9, 16)])
def test_padding_mirrors_as_numpy_does(size, generator):
    image = torch.rand(1, 1, *size, generator=generator)
    margins = [(0, 0), (0, 0), (0, -size[0] % 8), (0, -size[1] % 8)]
    expected = torch.from_numpy(np.pad(image.numpy(), margins, mode="reflect"))
    torch.testing.assert_close(pad_by_reflection(image, 8), expected)


def test_padding_leaves_a_fitting_image(generator):
    image = torch.rand(1, 1, 8, 16, generator=generator)
    assert pad_by_reflection(image, 8) is image


@pytest.mark.parametrize(
    "make",
    [
        lambda **channels: MaIR(**SMALL, scale=1, upsampler=None, **channels),
        lambda **channels: MaIR(**SMALL, scale=1, upsampler=None, unshuffle=2, **channels),
        lambda **channels: MaIRUNet(**SMALL_UNET, **channels),
    ],
    ids=["MaIR", "MaIR unshuffled", "MaIRUNet"],
)
def test_neighbouring_slices_as_channels_restore_the_middle_one(make, generator):
    model = make(in_channels=5, out_channels=1)
    last = model.conv_last if isinstance(model, MaIR) else model.output
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.zero_()
    slices = torch.rand(2, 5, 9, 8, generator=generator)
    torch.testing.assert_close(model(slices), slices[:, 2:3])


def test_constant_scale_of_img_range_keeps_an_empty_network_the_identity(generator):
    model = MaIR(**SMALL, scale=1, upsampler=None, img_range=255.0)
    with torch.no_grad():
        for parameter in model.conv_last.parameters():
            parameter.zero_()
    image = torch.rand(1, 3, 6, 6, generator=generator)
    torch.testing.assert_close(model(image), image)


def test_checkpointed_blocks_give_the_same_gradients(generator):
    model = roughen(MaIR(**SMALL, in_channels=1), generator)
    saving = MaIR(**SMALL, in_channels=1, checkpoint_blocks=True)
    saving.load_state_dict(model.state_dict())
    image = torch.rand(2, 1, 6, 7, generator=generator)
    for network in (model, saving):
        torch.manual_seed(1)  # the same blocks are dropped
        network.train()(image).square().mean().backward()
    for expected, actual in zip(model.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad)


def test_continuous_order_changes_an_even_map_only(generator):
    published = roughen(MaIR(**SMALL, in_channels=1), generator).eval()
    continuous = MaIR(**SMALL, in_channels=1, continuous=True).eval()
    continuous.load_state_dict(published.state_dict())
    with torch.no_grad():
        odd, even = torch.rand(1, 1, 7, 9, generator=generator), torch.rand(1, 1, 8, 8, generator=generator)
        torch.testing.assert_close(continuous(odd), published(odd))
        assert (continuous(even) - published(even)).abs().max() > 1e-4


def test_autocast_keeps_the_scan_in_float32(generator):
    model = roughen(MaIR(**SMALL, in_channels=1), generator).eval()
    image = torch.rand(1, 1, 8, 8, generator=generator)
    with torch.no_grad():
        expected = model(image)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(image)
    # bfloat16 has 8 bits of mantissa, and the layers around the scan lose accuracy
    assert_close_by_deviation(half.float(), expected, tolerance=0.1)


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    torch.manual_seed(0)
    branch = DropPath(0.25)(torch.ones(4000, 2, 2, 3))
    assert sorted(branch.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert (branch.amax(dim=(1, 2, 3)) == branch.amin(dim=(1, 2, 3))).all()
    assert branch.mean().item() == pytest.approx(1, abs=0.03)  # 3 standard errors of 4000 samples
    assert (DropPath(0.25).eval()(branch) == branch).all()


def test_times_of_the_parts_add_up(generator):
    seconds = time_by_part(MaIR(**SMALL, in_channels=1).eval(), torch.rand(1, 1, 8, 8, generator=generator), repeats=1)
    total = seconds.pop("total")
    assert sum(seconds.values()) == pytest.approx(total)
    assert {"selective scan", "sequence shuffle attention", "convolutions", "layer norms", "MLPs"} < set(seconds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 4, "out_channels": 1}, "out_channels must be"),
        ({"in_channels": 1, "out_channels": 3}, "out_channels must be"),
        ({"scale": 5}, "scale must be one of"),
        ({"scale": 2, "upsampler": None}, "scale must be one of"),
        ({"upsampler": "nearest+conv"}, "upsampler must be"),
        ({"resi_connection": "2conv"}, "resi_connection must be"),
        ({"mean": (0.5,)}, "mean must have 3 values"),
        ({"stripe_width": 0}, "stripe_width must be at least 1"),
        ({"unshuffle": 0, "upsampler": None, "scale": 1}, "unshuffle must be at least 1"),
        ({"unshuffle": 2}, "unshuffle must be at least 1, and 1 with an upsampler"),
    ],
)
def test_wrong_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaIR(**{**SMALL, **arguments})


def test_an_unknown_variant_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="variant must be one of mair-t-x2"):
        MaIR.from_variant("mair-xl")
    with pytest.raises(ValueError, match="variant must be one of mair-unet-denoise"):
        MaIRUNet.from_variant("mair-s-x2")


def test_image_with_other_channels_is_refused():
    with pytest.raises(ValueError, match=r"image must have shape \(B, 1, H, W\), got \(1, 3, 8, 8\)"):
        MaIR(**SMALL, in_channels=1)(torch.zeros(1, 3, 8, 8))


@needs_library
@pytest.mark.parametrize("upsampler", [None, "pixelshuffledirect"])
def test_compiled_layers_of_the_network_equal_its_modules(upsampler, generator):
    scale = 1 if upsampler is None else 2
    model = MaIR(in_channels=1, width=20, depths=(1, 1), states=2, stripe_width=4, upsampler=upsampler, scale=scale)
    model = roughen(model, generator).eval()
    image = torch.rand(2, 1, 13, 9, generator=generator)
    modules = model(image)  # with gradients, which the compiled layers do not have
    assert modules.requires_grad
    for level in native.levels():
        with native.use_level(level), torch.no_grad():
            assert_close_by_deviation(model(image), modules.detach())
