"""Losses, schedules, averaged weights and hyper-parameters of a training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from voxelwave.restoration.module import (
    RestorationModule,
    charbonnier,
    halved,
    held_then_cosine,
    load_checkpoint,
    psnr_loss,
)
from voxelwave.restoration.settings import ModuleSettings


def test_rate_halves_at_the_published_steps() -> None:
    milestones = [250_000, 400_000, 450_000, 475_000]  # classical super-resolution x2
    factors = [halved(step, milestones=milestones) for step in (0, 249_999, 250_000, 449_999, 499_999)]
    assert factors == [1, 1, 0.5, 0.25, 0.0625]


def test_cosine_holds_then_falls_to_its_floor() -> None:
    # real denoising: constant for 184 k, then a cosine to 1e-6 over 544 k
    options = {"warmup": 0, "hold": 184_000, "steps": 728_000, "floor": 1e-6 / 3e-4}
    factors = [held_then_cosine(step, **options) for step in (0, 184_000, 456_000, 728_000, 800_000)]
    np.testing.assert_allclose(factors, [1, 1, (1 + 1 / 300) / 2, 1 / 300, 1 / 300])


def test_psnr_loss_is_the_negative_psnr_and_weighs_images_equally() -> None:
    clean = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    restored = clean + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    restored.requires_grad_()
    loss = psnr_loss(restored, clean)
    assert float(loss.detach()) == pytest.approx(-30, abs=1e-2)  # 20 dB and 40 dB
    (slope,) = torch.autograd.grad(loss, restored)
    moved = (slope * (restored - clean)).detach().sum(dim=(1, 2, 3))  # the change if each error grows by its own length
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-3, atol=0)


def test_charbonnier_is_nearly_l1() -> None:
    x, y = torch.randn(2, 100), torch.randn(2, 100)
    torch.testing.assert_close(charbonnier(x, y), (x - y).abs().mean(), atol=1e-6, rtol=1e-6)


def test_the_average_starts_at_the_weights_and_follows_them(tiny_module: dict[str, Any]) -> None:
    module = RestorationModule(ModuleSettings(**tiny_module))
    for average, present in zip(module.ema.parameters(), module.network.parameters(), strict=True):
        torch.testing.assert_close(average, present, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter.add_(1.0)
    before = [p.clone() for p in module.ema.parameters()]
    module.after_step(1)
    share = 1 - (1 + 1) / (10 + 1)  # the first step has a small decay
    for old, new in zip(before, module.ema.parameters(), strict=True):
        torch.testing.assert_close(new, old + share)


def test_scan_parameters_norms_and_biases_do_not_decay(tiny_module: dict[str, Any]) -> None:
    module = RestorationModule(ModuleSettings(**{**tiny_module, "optimizer": "adamw", "weight_decay": 0.1}))
    groups = module.configure_optimizers()["optimizer"].param_groups
    spared = {id(p) for p in groups[1]["params"]}
    names = {name for name, p in module.network.named_parameters() if id(p) in spared}
    assert any(name.endswith("A_logs") for name in names)
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert groups[1]["weight_decay"] == 0


def test_mixup_blends_within_the_batch(tiny_module: dict[str, Any]) -> None:
    module = RestorationModule(ModuleSettings(**{**tiny_module, "mixup": 1.2}))
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    seen = set()
    for step in range(30):
        degraded, clean = module._mix(x, x * 2, 1.2, step)
        torch.testing.assert_close(clean, degraded * 2)
        seen.add(torch.equal(degraded, x))
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "l3"}, "loss"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"steps": 0}, "steps"),
    ],
)
def test_wrong_options_are_named(tiny_module: dict[str, Any], options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModuleSettings(**{**tiny_module, **options})


def test_start_from_keeps_what_fits(tiny_module: dict[str, Any], tmp_path: Path) -> None:
    small = RestorationModule(ModuleSettings(**tiny_module))
    small.export(tmp_path / "x.safetensors")
    large = {**tiny_module, "arguments": {**tiny_module["arguments"], "scale": 2, "upsampler": "pixelshuffledirect"}}
    module = RestorationModule(ModuleSettings(**{**large, "start_from": str(tmp_path / "x.safetensors")}))
    torch.testing.assert_close(module.network.conv_first.weight, small.network.conv_first.weight)


@pytest.mark.parametrize("unshuffle", [1, 2])
def test_a_network_for_three_slices_begins_with_the_results_of_one(
    unshuffle: int, tiny_module: dict[str, Any], tmp_path: Path
) -> None:
    tiny_module = {**tiny_module, "arguments": {**tiny_module["arguments"], "unshuffle": unshuffle}}
    one = RestorationModule(ModuleSettings(**tiny_module))
    one.export(tmp_path / "x.safetensors")
    wider = {**tiny_module["arguments"], "in_channels": 3, "out_channels": 1}
    settings = {**tiny_module, "arguments": wider, "start_from": str(tmp_path / "x.safetensors")}
    three = RestorationModule(ModuleSettings(**settings))
    stack = torch.rand(1, 3, 9, 11)
    torch.testing.assert_close(three.network(stack), one.network(stack[:, 1:2]))
    colour = RestorationModule(ModuleSettings(**{**settings, "arguments": {**wider, "out_channels": 3}}))
    assert colour.network.conv_first.weight.abs().amin() > 0  # colours are not slices


def test_a_u_shaped_network_for_three_slices_begins_with_the_results_of_one(tmp_path: Path) -> None:
    arguments = {"in_channels": 1, "width": 4, "depths": [1] * 4, "refinement": 1, "stripe_width": 4}
    settings: dict[str, Any] = {"network": "MaIRUNet", "arguments": arguments}
    one = RestorationModule(ModuleSettings(**settings))
    one.export(tmp_path / "x.safetensors")
    settings["arguments"] = {**arguments, "in_channels": 3, "out_channels": 1}
    three = RestorationModule(ModuleSettings(**settings, start_from=str(tmp_path / "x.safetensors")))
    stack = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(three.network(stack), one.network(stack[:, 1:2]))


def test_hyper_parameters_are_plain_values_that_build_the_same_module(
    tiny_module: dict[str, Any], tmp_path: Path
) -> None:
    module = RestorationModule(ModuleSettings(**{**tiny_module, "betas": (0.8, 0.9), "intensity_range": (-1000, 2000)}))
    torch.save({"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict()}, tmp_path / "m.ckpt")
    again = load_checkpoint(tmp_path / "m.ckpt")
    assert again.hparams == module.hparams
    assert "averaged_steps" in module.state_dict()
    assert (again.hparams["betas"], again.hparams["intensity_range"]) == ([0.8, 0.9], [-1000.0, 2000.0])
    torch.testing.assert_close(again.state_dict(), module.state_dict(), rtol=0, atol=0)


def test_checkpoints_of_other_trainings_are_refused(tmp_path: Path) -> None:
    torch.save({"hyper_parameters": {"n_chans": 19}, "state_dict": {}}, tmp_path / "eeg.ckpt")
    with pytest.raises(ValueError, match=r"eeg.ckpt is not a checkpoint of a restoration training: .*n_chans"):
        load_checkpoint(tmp_path / "eeg.ckpt")


def test_a_checkpoint_of_version_0_1_0_loads(tiny_module: dict[str, Any], tmp_path: Path) -> None:
    module = RestorationModule(ModuleSettings(**tiny_module))
    hyper_parameters = {
        "network": "MaIR",
        "arguments": tiny_module["arguments"],
        "loss": "l1",
        "optimizer": "adam",
        "lr": 0.002,
        "betas": [0.9, 0.99],
        "weight_decay": 0.0,
        "schedule": "cosine",
        "milestones": [],
        "warmup": 0,
        "hold": 0,
        "steps": 24,
        "lr_min": 1e-06,
        "ema_decay": 0.999,
        "mixup": None,
        "start_from": "weights.safetensors",  # not needed to load the checkpoint
        "task": "denoise",
        "intensity_range": [0.0, 1.0],
        "intensity_unit": "relative",
    }
    state = module.state_dict()
    assert {name.partition(".")[0] for name in state} == {"network", "ema", "averaged_steps"}
    torch.save({"hyper_parameters": hyper_parameters, "state_dict": state}, tmp_path / "last.ckpt")
    again = load_checkpoint(tmp_path / "last.ckpt")
    assert dict(again.hparams) == {**hyper_parameters, "start_from": None}


def test_the_first_steps_are_masked_and_the_others_are_as_without(
    tiny_module: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module = RestorationModule(ModuleSettings(**{**tiny_module, "mask_steps": 2}))
    plain = RestorationModule(ModuleSettings(**tiny_module))
    plain.load_state_dict(module.state_dict())
    assert module.hparams["mask_steps"] == 2
    assert "mask_steps" not in plain.hparams
    batch = {"degraded": torch.rand(2, 1, 32, 32), "clean": torch.rand(2, 1, 32, 32)}
    seen = []
    for one in (module, plain):
        one.log = lambda *args, **options: None
        one.network.register_forward_pre_hook(lambda network, given: seen.append(given[0]))
    for step, same in ((0, False), (1, False), (2, True)):
        monkeypatch.setattr(RestorationModule, "global_step", step)
        losses = [one.training_step(batch, 0) for one in (module, plain)]
        assert torch.equal(*losses) == same
        hidden = float((seen[-2] != batch["degraded"]).double().mean())
        assert hidden == pytest.approx({0: 0.125, 1: 0.625, 2: 0.0}[step])  # of 16 blocks, 10 and 60 %
    with pytest.raises(ValueError, match="mask_steps must be at least 0"):
        ModuleSettings(mask_steps=-1)
