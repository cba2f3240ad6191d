"""Nested sizes of MaIR: a smaller size equals the full network with all other units masked."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torch import Tensor, nn
from torch.testing import assert_close

from voxelwave.kernels.attention.elastic import ActiveNorm, prefix_mask
from voxelwave.restoration.elastic import NestedSizes, extract, nested_arguments
from voxelwave.restoration.mair import MaIR
from voxelwave.restoration.module import RestorationModule, load_checkpoint
from voxelwave.restoration.settings import ModuleSettings, TrainingSettings
from voxelwave.restoration.training import train
from voxelwave.restoration.unit_order import sort_units
from voxelwave.restoration.weights import load_weights, read_info, save_weights
from voxelwave.runs.weight_file import read_weights, write_weights

FULL: dict[str, Any] = {
    "in_channels": 1,
    "scale": 1,
    "upsampler": None,
    "width": 40,
    "depths": (3, 2),
    "states": 3,
    "expansion": 1.3,
    "mlp_ratio": 1.6,
    "stripe_width": 4,
}
SIZES: dict[str, dict[str, Any]] = {
    "small": {"width": 14, "depths": [2], "expansion": 1.1},  # fewer groups and blocks, rank 1 of 3
    "medium": {"width": 33, "mlp_ratio": 1.2},
}
KINDS: dict[str, dict[str, Any]] = {
    "denoise": {},
    "colour x2, classical": {"in_channels": 3, "scale": 2, "upsampler": "pixelshuffle", "resi_connection": "3conv"},
    "light x3": {"scale": 3, "upsampler": "pixelshuffledirect", "continuous": True},
}
RELATIVE = {"task": "denoise", "intensity_range": (0.0, 1.0), "intensity_unit": "relative"}


def shaken(model: MaIR) -> MaIR:
    """The model with every parameter moved off its initial value, so that no unit is like another."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


class _Masked(nn.Module):
    """A norm over the first channels only."""

    def __init__(self, norm: nn.LayerNorm, count: int):
        super().__init__()
        self.norm = ActiveNorm(norm.normalized_shape[0]).to(norm.weight)
        self.norm.load_state_dict(norm.state_dict())
        self.mask = prefix_mask(count, norm.normalized_shape[0], norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        masked: Tensor = self.norm(x, self.mask)
        return masked


def mask_all_but(model: MaIR, small: dict[str, Any]) -> MaIR:
    """Mask the units of the full network that do not belong to a size, without removing one."""
    width = small["width"]
    inner, neurons = int(small["expansion"] * width), int(small["mlp_ratio"] * width)
    rank = math.ceil(width / 16)

    def keep(module: nn.Module, count: int, axis: int) -> None:
        def mask(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
            shape = [1] * out.ndim
            shape[axis] = -1
            return out * prefix_mask(count, out.shape[axis], out).view(shape)

        module.register_forward_hook(mask)

    def narrow(conv: nn.Module) -> None:
        keep(conv, width, 1)
        if isinstance(conv, nn.Sequential):
            keep(conv[0], width // 4, 1)
            keep(conv[2], width // 4, 1)

    keep(model.conv_first, width, 1)
    narrow(model.conv_after_body)
    model.norm = _Masked(model.norm, width)
    model.patch_embed["norm"] = _Masked(model.patch_embed["norm"], width)
    for number, group in enumerate(list(model.layers)):
        if number >= len(small["depths"]):
            del model.layers[number:]
            break
        blocks = group.residual_group["blocks"]
        del blocks[small["depths"][number] :]
        narrow(group.conv)
        for block in blocks:
            block.ln_1, block.ln_2 = _Masked(block.ln_1, width), _Masked(block.ln_2, width)
            scan, mlp = block.self_attention, block.conv_blk
            keep(scan.conv2d, inner, 1)
            keep(scan.out_proj, width, -1)
            keep(mlp.fc1, neurons, -1)
            keep(mlp.fc2, width, -1)
            scan.out_norm = _Masked(scan.out_norm, inner)
            with torch.no_grad():
                scan.x_proj_weight[:, rank : scan.rank] = 0
    return model


@pytest.mark.parametrize("size", ["small", "medium"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_an_extracted_size_equals_the_masked_parent(
    kind: str, size: str, dtype: torch.dtype, tolerance: float, generator: torch.Generator
) -> None:
    torch.manual_seed(0)
    model = shaken(MaIR(**{**FULL, **KINDS[kind]})).to(dtype).eval()
    image = torch.rand(2, model.in_channels, 11, 9, generator=generator).to(dtype)
    small = extract(model, size, SIZES)
    with torch.no_grad():
        out, whole = small(image), model(image)
        masked = mask_all_but(model, small.arguments)(image)
    assert_close(out, masked, rtol=tolerance, atol=tolerance * float(masked.abs().max()))
    assert (out - whole).abs().max() > 1e-3  # the mask does something


@pytest.mark.parametrize("kind", KINDS)
def test_sorting_the_units_changes_their_order_only(kind: str, generator: torch.Generator) -> None:
    torch.manual_seed(0)
    model = shaken(MaIR(**{**FULL, **KINDS[kind]})).double().eval()
    images = torch.rand(2, model.in_channels, 8, 9, generator=generator).double()
    with torch.no_grad():
        before, weight = model(images), model.conv_first.weight.clone()
        sort_units(model, images)
        assert_close(model(images), before, rtol=1e-11, atol=1e-11)
        assert (model.conv_first.weight != weight).any()
        sorted_once = {name: p.clone() for name, p in model.named_parameters()}
        sort_units(model, images)
    for name, parameter in model.named_parameters():
        assert_close(parameter, sorted_once[name], rtol=0, atol=0, msg=name)


def test_units_without_influence_come_last(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    model = shaken(MaIR(**FULL)).eval()
    block = model.layers[0].residual_group["blocks"][0]
    scan, mlp = block.self_attention, block.conv_blk
    dead_inner, dead_neurons, dead_channel = [0, 7, 20], [1, 30], 5
    inner = scan.out_norm.weight.shape[0]
    with torch.no_grad():
        scan.in_proj.weight[:inner][dead_inner] = 0
        mlp.fc1.weight[dead_neurons], mlp.fc1.bias[dead_neurons] = 0, 0
        scan.dt_projs_weight[2, :, 0] = 0
        norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm) and m.weight.numel() == 40]
        for norm in norms:
            norm.weight[dead_channel], norm.bias[dead_channel] = 0, 0
        sort_units(model, torch.rand(1, 1, 8, 9, generator=generator))
    assert not scan.in_proj.weight[:inner][-3:].any()
    assert scan.in_proj.weight[:inner][:-3].any(1).all()
    assert not mlp.fc1.weight[-2:].any()
    assert not scan.dt_projs_weight[2, :, -1].any()
    assert scan.dt_projs_weight[[0, 1, 3]].any(1).all()
    assert len(norms) == 2 + 2 * 5
    assert all(not norm.weight[-1] and norm.weight[:-1].all() for norm in norms)


def test_sizes_are_parts_of_each_other() -> None:
    model = shaken(MaIR(**FULL))
    small, medium = (extract(model, size, SIZES) for size in ("small", "medium"))
    again = extract(medium, "small", {"small": {**SIZES["small"], "mlp_ratio": 1.6}})
    for name, tensor in small.state_dict().items():
        assert_close(again.state_dict()[name], tensor, rtol=0, atol=0, msg=name)
    assert extract(model, "full", SIZES) is model
    counts = [sum(p.numel() for p in m.parameters()) for m in (small, medium, model)]
    assert counts == sorted(counts)
    assert counts[0] == sum(p.numel() for p in MaIR(**{**FULL, **SIZES["small"]}).parameters())


def test_training_a_size_trains_its_part_of_the_parameters() -> None:
    torch.manual_seed(0)
    model = shaken(MaIR(**FULL, drop_path_rate=0.0)).double()
    small = extract(model, "small", SIZES)
    image = torch.rand(1, 1, 6, 7, dtype=torch.float64)
    NestedSizes(model.arguments, SIZES).restore(model, "small", image).square().sum().backward()
    small(image).square().sum().backward()
    own = dict(small.named_parameters())
    for name, parameter in model.named_parameters():
        if name not in own:
            assert parameter.grad is None, name
        elif parameter.grad is not None and parameter.ndim != 3:
            assert_close(parameter.grad.norm(), own[name].grad.norm(), msg=name)
    weight = model.conv_first.weight.grad
    assert_close(weight[:14], small.conv_first.weight.grad)
    assert not weight[14:].any()


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"tiny": {"width": 8}}, "sizes must be small and medium.*got 'tiny'"),
        ({"full": {"width": 8}}, "got 'full'"),
        ({"small": {"states": 1}}, "must give some of width, depths"),
        ({"small": {}}, "must give some of"),
        ({"small": {"width": 0}}, "values above 0"),
        ({"small": {"width": 8.5}}, "values above 0"),
        ({"small": {"width": True}}, "values above 0"),
        ({"small": {"expansion": math.inf}}, "values above 0"),
        ({"small": {"depths": [1, 0]}}, "values above 0"),
        ({"small": {"width": 41}}, "size small must be a part of size full"),
        ({"small": {"width": 8, "depths": [1, 3]}}, "must be a part of size full"),
        ({"small": {"width": 8, "depths": [1, 1, 1]}}, "must be a part of size full"),
        ({"small": {"width": 20}, "medium": {"width": 16}}, "size small must be a part of size medium"),
        ({"medium": {"width": 40}}, "size medium must be smaller than size full"),
        ({"small": 3}, "got 3"),
    ],
)
def test_sizes_that_are_no_parts_are_refused(sizes: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        nested_arguments(MaIR(**FULL).arguments, sizes)


def test_a_file_holds_its_sizes(tmp_path: Path) -> None:
    model, file = shaken(MaIR(**FULL)).eval(), tmp_path / "elastic.safetensors"
    save_weights(file, model, **RELATIVE, sizes=SIZES)
    image = torch.rand(1, 1, 8, 8)
    for size in ("small", "medium", "full"):
        loaded, info = load_weights(file, size=size)
        with torch.no_grad():
            assert_close(loaded(image), extract(model, size, SIZES)(image), rtol=0, atol=0)
        assert info.arguments == loaded.arguments
        assert info.sizes == ({} if size != "full" else SIZES)
    save_weights(tmp_path / "plain.safetensors", model, **RELATIVE)
    with pytest.raises(ValueError, match=r"size must be full for plain.safetensors, .* got small"):
        load_weights(tmp_path / "plain.safetensors", size="small")
    save_weights(tmp_path / "half.safetensors", model, **RELATIVE, sizes={"small": SIZES["small"]})
    with pytest.raises(ValueError, match="must be small or full for half"):
        load_weights(tmp_path / "half.safetensors", size="medium")


@pytest.mark.parametrize(
    "sizes", ['{"small": {"width": 99}}', '{"small": 1}', "[1]", "[]", "null", "0", "{", '{"x": {"width": 1}}']
)
def test_damaged_sizes_are_one_clear_line(sizes: str, tmp_path: Path) -> None:
    file = tmp_path / "elastic.safetensors"
    save_weights(file, MaIR(**FULL), **RELATIVE, sizes=SIZES)
    state, metadata = read_weights(file)
    write_weights(file, state, {**metadata, "sizes": sizes})
    with pytest.raises(ValueError, match=r"elastic\.safetensors has damaged metadata") as caught:
        read_info(file)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_one_training_gives_three_sizes(tiny_module: dict[str, Any], tmp_path: Path) -> None:
    for part in ("train", "validation"):
        (tmp_path / part).mkdir()
        Pillow.fromarray(np.kron(np.arange(36).reshape(6, 6) * 7, np.ones((8, 8))).astype(np.uint8)).save(
            tmp_path / part / "a.png"
        )
    sizes = {"small": {"width": 4}, "medium": {"width": 6}}
    settings = TrainingSettings(
        module={**tiny_module, "sizes": sizes, "larger_from": 12},
        degradation={"kind": "gaussian", "sigma": 0.1},
        stages=[{"steps": 24, "batch": 2, "patch": 16}],
        epoch_steps=12,
        validation_crop=32,
    )
    trained = train(tmp_path / "train", tmp_path / "validation", tmp_path / "out", settings)
    assert {"psnr", "psnr_small", "psnr_medium"} <= set(trained.metrics)
    module = load_checkpoint(tmp_path / "out/last.ckpt")
    widths = []
    for size in ("small", "medium", "full"):
        model, _ = load_weights(tmp_path / "out/weights.safetensors", size=size)
        widths.append(model.arguments["width"])
        with torch.no_grad():
            image = torch.rand(1, 1, 9, 9)
            assert module.nested is not None
            assert_close(model(image), module.nested.restore(module.ema.eval(), size, image))
    assert widths == [4, 6, 8]


@pytest.mark.filterwarnings("ignore")
def test_sizes_of_weights_of_one_size_start_with_its_most_important_units(
    tiny_module: dict[str, Any], tmp_path: Path
) -> None:
    Pillow.fromarray(np.arange(0, 240, dtype=np.uint8).repeat(20).reshape(60, 80)).save(tmp_path / "a.png")
    start = shaken(MaIR(**tiny_module["arguments"]))
    started = []
    for name, own in (("plain", None), ("elastic", {"small": {"width": 4}})):
        save_weights(tmp_path / f"{name}.safetensors", start, **RELATIVE, sizes=own)
        module = {**tiny_module, "sizes": {"small": {"width": 4}}, "start_from": str(tmp_path / f"{name}.safetensors")}
        settings = TrainingSettings(
            module={**module, "lr": 1e-12, "lr_min": 0.0},
            degradation={"kind": "gaussian", "sigma": 0.1},
            stages=[{"steps": 1, "batch": 1, "patch": 16}],
            validation_crop=16,
        )
        train(tmp_path, tmp_path, tmp_path / name, settings)
        started.append(load_weights(tmp_path / name / "weights.safetensors")[0])
    image = torch.rand(1, 1, 9, 9)
    with torch.no_grad():
        for model in started:
            assert_close(model(image), start.eval()(image), rtol=1e-4, atol=1e-4)
    first, kept = (model.conv_first.weight for model in started)
    assert_close(kept, start.conv_first.weight, rtol=0, atol=1e-6)
    assert not torch.equal(first, kept)
    assert_close(first.sum(), kept.sum())


def test_sizes_are_drawn_as_the_settings_say(tiny_module: dict[str, Any]) -> None:
    sizes = {"small": {"width": 4}, "medium": {"width": 6}}
    module = RestorationModule(ModuleSettings(**tiny_module, sizes=sizes, larger_from=600))
    assert module.nested is not None
    drawn = [module._drawn_size(module.nested, step) for step in range(1200)]
    assert drawn == [module._drawn_size(module.nested, step) for step in range(1200)]
    shares = [[part.count(size) / 600 for size in module.nested.names] for part in (drawn[:600], drawn[600:])]
    np.testing.assert_allclose(shares, [[1 / 3] * 3, [1 / 6, 2 / 6, 3 / 6]], atol=0.07)  # 3.5 standard errors


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_smaller_size_learns_from_the_clean_image_and_from_the_initial_network(
    share: float, tiny_module: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = shaken(MaIR(**tiny_module["arguments"])).eval()
    save_weights(tmp_path / "start.safetensors", start, **RELATIVE)
    options = {**tiny_module, "sizes": {"small": {"width": 4}}, "distillation": share}
    degraded, clean = torch.rand(2, 2, 1, 8, 8)
    for begun, part in (("start.safetensors", share), (None, 0.0)):
        file = None if begun is None else str(tmp_path / begun)
        module = RestorationModule(ModuleSettings(**options, start_from=file))
        shaken(module.network)  # as if it had been trained; the initial network stays the teacher
        monkeypatch.setattr(module, "_drawn_size", lambda *_: "small")
        assert module.nested is not None
        small = module.nested.restore(module.network, "small", degraded)
        expected = (1 - part) * (small - clean).abs().mean() + part * (small - start(degraded)).abs().mean()
        assert_close(module._loss(degraded, clean), expected)
        assert {name.partition(".")[0] for name in module.state_dict()} == {"network", "ema", "averaged_steps"}


def test_a_network_of_which_only_a_part_is_given_is_no_teacher(
    tiny_module: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_head = {**tiny_module["arguments"], "scale": 2, "upsampler": "pixelshuffledirect"}
    save_weights(tmp_path / "start.safetensors", MaIR(**other_head), **RELATIVE)
    options = {**tiny_module, "sizes": {"small": {"width": 4}}, "start_from": str(tmp_path / "start.safetensors")}
    with pytest.warns(
        UserWarning, match=r"start\.safetensors is not this whole network, so smaller sizes learn from cl"
    ):
        module = RestorationModule(ModuleSettings(**options))
    monkeypatch.setattr(module, "_drawn_size", lambda *_: "small")
    degraded, clean = torch.rand(2, 2, 1, 8, 8)
    assert module.nested is not None
    small = module.nested.restore(module.network, "small", degraded)
    assert_close(module._loss(degraded, clean), (small - clean).abs().mean())


def test_only_mair_has_sizes(tiny_module: dict[str, Any]) -> None:
    arguments = {"in_channels": 1, "width": 8, "depths": [1, 1, 1, 1], "refinement": 1, "stripe_width": 4}
    with pytest.raises(ValueError, match="sizes need the network MaIR, got MaIRUNet"):
        RestorationModule(ModuleSettings(network="MaIRUNet", arguments=arguments, sizes={"small": {"width": 4}}))
    with pytest.raises(ValueError, match="distillation must be from 0 to 1, got 2"):
        ModuleSettings(**tiny_module, distillation=2.0)
