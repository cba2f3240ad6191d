"""Weights on disk: our files, published files, and files that must not be loaded."""

import hashlib
import json
import os

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from voxelwave.restoration.inference import restore
from voxelwave.restoration.mair import MaIR
from voxelwave.restoration.mair_unet import MaIRUNet
from voxelwave.restoration.weights import (
    load_weights,
    matching_variants,
    model_from_variant,
    read_info,
    read_parameters,
    save_weights,
)
from voxelwave.runs.catalogue import find_weights, list_weights

SMALL = {"in_channels": 1, "width": 12, "depths": (1, 1), "states": 2, "stripe_width": 4}
CT = {"task": "denoise", "intensity_range": (-1024.0, 3071.0), "intensity_unit": "HU"}


@pytest.fixture(scope="module")
def tiny():
    """The smallest published variant with random parameters."""
    return MaIR.from_variant("mair-t-x2")


@pytest.mark.parametrize(
    "model",
    [
        MaIR(**SMALL, scale=1, upsampler=None, continuous=True),
        MaIR(**{**SMALL, "in_channels": 5}, out_channels=1, scale=1, upsampler=None),
        MaIRUNet(in_channels=1, width=8, depths=(1, 1, 1, 1), refinement=1, stripe_width=4),
    ],
    ids=["MaIR", "2.5-D", "MaIRUNet"],
)
def test_our_file_gives_the_same_model(model, tmp_path):
    save_weights(tmp_path / "ct.safetensors", model, **CT, notes={"seed": "7"})
    loaded, info = load_weights(tmp_path / "ct.safetensors")
    assert type(loaded) is type(model)
    assert loaded.arguments == model.arguments == info.arguments
    assert (info.task, info.intensity_range, info.intensity_unit) == ("denoise", (-1024.0, 3071.0), "HU")
    assert info.notes == {"seed": "7"}
    assert not loaded.training
    image = torch.rand(1, model.in_channels, 9, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), model.eval()(image))
    loaded.train()(image).sum().backward()  # the parameters can be trained further
    assert read_info(tmp_path / "ct.safetensors") == info


def test_our_file_is_an_ordinary_safetensors_file(tmp_path):
    save_weights(tmp_path / "ct.safetensors", MaIR(**SMALL), **CT)
    with safe_open(tmp_path / "ct.safetensors", framework="np") as file:
        assert json.loads(file.metadata()["arguments"])["stripe_width"] == 4
        assert file.get_tensor("conv_first.weight").shape == (12, 1, 3, 3)


def test_stripe_width_is_checked_against_our_file(tmp_path):
    save_weights(tmp_path / "ct.safetensors", MaIR(**SMALL), **CT)
    load_weights(tmp_path / "ct.safetensors", stripe_width=4)
    with pytest.raises(ValueError, match=r"stripe_width must be 4, .* got 8"):
        load_weights(tmp_path / "ct.safetensors", stripe_width=8)
    with pytest.raises(ValueError, match="does not hold a mair-s-x2"):
        load_weights(tmp_path / "ct.safetensors", variant="mair-s-x2")


@pytest.mark.parametrize("wrap", [lambda s: {"params": s}, lambda s: s, lambda s: {"state_dict": s, "epoch": 3}])
@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
def test_published_file_is_loaded_by_variant_and_stripe_width(tiny, wrap, suffix, tmp_path):
    path, state = tmp_path / f"MaIR_T{suffix}", tiny.state_dict()
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(wrap({f"module.{name}": tensor for name, tensor in state.items()}), path)
    model, info = load_weights(path, variant="mair-t-x2", stripe_width=8)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert (info.task, info.intensity_range, info.intensity_unit) == ("super-resolution", (0.0, 255.0), "8-bit")
    assert info.arguments["stripe_width"] == 8


def test_published_fixture_is_loaded_strictly(shared_fixtures, tmp_path):
    published = torch.load(shared_fixtures / "mini_gray_dn_16x16.pt", weights_only=True)
    torch.save({"params": published["state_dict"]}, tmp_path / "mini.pth")
    state = read_parameters(tmp_path / "mini.pth")
    config = published["config"]
    model = MaIR(
        stripe_width=config["scan_len"],
        in_channels=1,
        scale=1,
        upsampler=None,
        width=config["embed_dim"],
        depths=config["depths"],
        states=config["d_state"],
        expansion=config["ssm_ratio"],
        mlp_ratio=config["mlp_ratio"],
    )
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in state.items()
    }


def test_missing_variant_or_stripe_width_is_asked_for(tiny, tmp_path):
    torch.save({"params": tiny.state_dict()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"variant must be given for w.pth, .* its shapes fit mair-t-x2"):
        load_weights(tmp_path / "w.pth", stripe_width=8)
    with pytest.raises(ValueError, match=r"stripe_width must be given for w.pth, .* mair-t-x2 has 8"):
        load_weights(tmp_path / "w.pth", variant="mair-t-x2")


def test_stripe_width_other_than_published_is_warned_about(tiny, tmp_path):
    torch.save({"params": tiny.state_dict()}, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match="stripe_width 4; the published configuration of mair-t-x2 has 8"):
        model, _ = load_weights(tmp_path / "w.pth", variant="mair-t-x2", stripe_width=4)
    assert model.stripe_width == 4


def test_averaged_parameters_are_chosen_by_key(tiny, tmp_path):
    state = tiny.state_dict()
    averaged = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"params": state, "params_ema": averaged}, tmp_path / "w.pth")
    torch.save({"params": state}, tmp_path / "without.pth")
    assert torch.equal(read_parameters(tmp_path / "w.pth", key="params_ema")["norm.bias"], averaged["norm.bias"])
    assert torch.equal(read_parameters(tmp_path / "w.pth")["norm.bias"], state["norm.bias"])
    assert torch.equal(read_parameters(tmp_path / "without.pth", key="params_ema")["norm.bias"], state["norm.bias"])


def test_file_of_another_variant_is_refused_by_name(tiny, tmp_path):
    torch.save({"params": tiny.state_dict()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w.pth does not fit mair-t-x4: upsample.0.weight .* fit mair-t-x2"):
        load_weights(tmp_path / "w.pth", variant="mair-t-x4", stripe_width=8)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_loading_is_strict(tiny, change, tmp_path):
    state = tiny.state_dict()
    if change == "missing":
        del state["norm.bias"]
    else:
        state["extra.bias"] = torch.zeros(3)
    torch.save({"params": state}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"(norm|extra).bias must have shape .*1 parameters differ"):
        load_weights(tmp_path / "w.pth", variant="mair-t-x2", stripe_width=8)


class Payload:
    """An object that would call a function when it is unpickled."""

    def __reduce__(self):
        return print, ("executed",)


def test_file_that_would_execute_code_is_refused(tmp_path, capsys):
    torch.save({"params": Payload()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="more than tensors"):
        load_weights(tmp_path / "w.pth", variant="mair-t-x2", stripe_width=8)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 40, 5000])
def test_truncated_file_is_refused_in_one_line(tiny, suffix, keep, tmp_path):
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save({"params": tiny.state_dict()}, path)
    else:
        save_file(tiny.state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"w\.(pth|safetensors) is not a readable") as error:
        load_weights(path, variant="mair-t-x2", stripe_width=8)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "damage",
    [{"arguments": "{"}, {"arguments": "[]"}, {"architecture": "Unknown"}, {"intensity_range": "[0]"}, {"task": None}],
)
def test_damaged_metadata_is_refused(damage, tmp_path):
    save_weights(tmp_path / "good.safetensors", MaIR(**SMALL), **CT)
    with safe_open(tmp_path / "good.safetensors", framework="pt") as file:
        metadata = {**file.metadata(), **damage}
    state = read_parameters(tmp_path / "good.safetensors")
    save_file(state, tmp_path / "bad.safetensors", {key: value for key, value in metadata.items() if value is not None})
    with pytest.raises(ValueError, match=r"bad.safetensors has damaged metadata"):
        load_weights(tmp_path / "bad.safetensors")


def test_huge_arguments_in_a_small_file_cost_no_memory(tmp_path):
    save_weights(tmp_path / "good.safetensors", MaIR(**SMALL), **CT)
    with safe_open(tmp_path / "good.safetensors", framework="pt") as file:
        metadata = dict(file.metadata())
    parameters = read_parameters(tmp_path / "good.safetensors")
    arguments = json.loads(metadata["arguments"])
    for claim, words in (
        ({"width": 4096}, "does not fit MaIR"),
        ({"width": 10**9}, "claims a network of impossible size"),
        ({"depths": [10**9]}, "claims a network of impossible size"),
        ({"depths": [1] * 10**6}, "claims a network of impossible size"),
    ):
        metadata["arguments"] = json.dumps(arguments | claim)
        save_file(parameters, tmp_path / "bad.safetensors", metadata)
        with pytest.raises(ValueError, match=rf"bad.safetensors .*{words}"):
            load_weights(tmp_path / "bad.safetensors")
    metadata["arguments"] = "[" * 100_000
    save_file(parameters, tmp_path / "bad.safetensors", metadata)
    with pytest.raises(ValueError, match="nested too deeply"):
        load_weights(tmp_path / "bad.safetensors")


def test_missing_file_and_unknown_suffix_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file of weights at .*w.safetensors"):
        load_weights(tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"weights must be a .safetensors, .pth, .pt or .ckpt file"):
        load_weights(tmp_path / "w.onnx")


def test_each_variant_is_known_by_its_shapes_up_to_the_task():
    with torch.device("meta"):
        denoise = model_from_variant("mair-unet-denoise").state_dict()
        classical = model_from_variant("mair-x4").state_dict()
    assert matching_variants(denoise) == ["mair-unet-denoise", "mair-unet-deblur"]
    assert matching_variants(classical) == ["mair-x4"]


def test_a_written_file_has_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        save_weights(tmp_path / "ct.safetensors", MaIR(**SMALL), **CT)
    finally:
        os.umask(before)
    assert (tmp_path / "ct.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", [entry.name for entry in list_weights("restoration")])
def test_shipped_weights_load_by_name_and_come_with_a_card(name):
    model, info = load_weights(name)
    file = find_weights(name, "restoration")
    assert info.arguments.items() <= model.arguments.items()  # later arguments have defaults
    assert info.notes["seed"]
    assert file.stat().st_size < 4 * 2**20
    card = file.with_suffix(".md").read_text()
    assert "licence" in card.lower()
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card  # otherwise its figures belong to other weights


@pytest.mark.parametrize(("size", "left"), [(96, 0.02), (64, 0.03), (48, 0.05), (24, 0.1)])
def test_shipped_denoiser_removes_noise_of_every_trained_strength(generator, size, left):
    model, _ = load_weights("denoise-grey")
    ramp = torch.linspace(0.2, 0.8, size).expand(1, size, size)
    for sigma in (10 / 255, 25 / 255, 50 / 255):
        noise = sigma * torch.randn(ramp.shape, generator=generator)
        error = restore(model, ramp + noise) - ramp.numpy()
        assert np.square(error).mean() < left * noise.square().mean()


def test_a_name_without_suffix_that_is_not_shipped_is_an_error_that_lists_the_names(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a name \(denoise-grey, denoise-mr\)"):
        load_weights("denoise-gray")
    assert find_weights(tmp_path / "denoise-grey.pth", "restoration") == tmp_path / "denoise-grey.pth"
