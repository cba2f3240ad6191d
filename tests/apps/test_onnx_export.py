"""The export commands write ONNX files that onnxruntime computes like PyTorch, at sizes that were not traced."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from voxelwave.apps.cli import main
from voxelwave.eeg.networks import ModelCard, build_network, load_network, save_network
from voxelwave.registration.exported import exportable as nestedmorph_exportable
from voxelwave.registration.nestedmorph import NestedMorph
from voxelwave.registration.nestedmorph_files import save_nestedmorph
from voxelwave.restoration.mair import MaIR
from voxelwave.restoration.mair_unet import MaIRUNet
from voxelwave.restoration.weights import load_weights, save_weights
from voxelwave.runs.exit import USAGE
from voxelwave.runs.onnx_file import ROUNDING
from voxelwave.scanpath.exported import OneCallOAT
from voxelwave.scanpath.oat import OAT
from voxelwave.scanpath.weights import WeightsInfo, load_model, save_model

onnxruntime = pytest.importorskip("onnxruntime", reason='needs pip install "voxelwave[export]"')
pytest.importorskip("onnxscript", reason='needs pip install "voxelwave[export]"')


def _export(field: str, weights: Path, output: Path, *more: str) -> onnxruntime.InferenceSession:
    assert main([field, "export", "--weights", str(weights), "-o", str(output), *more]) == 0
    return onnxruntime.InferenceSession(output)


def _assert_same(session: onnxruntime.InferenceSession, network: nn.Module, *inputs: Tensor) -> None:
    with torch.inference_mode():
        expected = network.eval()(*inputs)
    names = [each.name for each in session.get_inputs()]
    found = session.run(None, dict(zip(names, (each.numpy() for each in inputs), strict=True)))
    for wanted, got in zip(expected if isinstance(expected, tuple) else (expected,), found, strict=True):
        scale = float(wanted[wanted.isfinite()].abs().max())
        np.testing.assert_allclose(got, wanted.numpy(), rtol=0, atol=ROUNDING * scale)


def _card(network: str, **arguments: float | str) -> ModelCard:
    channels = tuple(f"C{k}" for k in range(int(arguments["n_chans"])))
    given = {"n_outputs": 2, **arguments}
    return ModelCard(network, given, ("control", "adhd"), channels, float(arguments["sfreq"]), {"scaling": "window"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "unshuffle", "size"), [("MaIR", 1, (13, 37)), ("MaIR", 2, (14, 38)), ("MaIRUNet", 1, (32, 24))]
)
def test_a_restoration_network_of_any_size(kind: str, unshuffle: int, size: tuple[int, int], tmp_path: Path) -> None:
    common = {"in_channels": 1, "width": 8, "stripe_width": 4}
    if kind == "MaIR":
        made: MaIR | MaIRUNet = MaIR(scale=1, upsampler=None, depths=[2], states=2, unshuffle=unshuffle, **common)
    else:
        made = MaIRUNet(depths=[0, 0, 0, 1], refinement=0, **common)  # all levels, and a block at the lowest
    weights = tmp_path / "w.safetensors"
    save_weights(weights, made, task="denoise", intensity_range=(0, 1), intensity_unit="relative")
    session = _export("restoration", weights, tmp_path / "model.onnx")
    _assert_same(session, load_weights(weights)[0], torch.rand(1, 1, *size))
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["voxelwave.network"] == kind
    assert json.loads(facts["voxelwave.card"])["task"] == "denoise"
    assert json.loads(facts["voxelwave.preprocessing"])["high"] == 1


@pytest.mark.slow
def test_a_network_of_eeg_windows(tmp_path: Path) -> None:
    card = _card("adhdeepnet", n_chans=5, n_times=128, sfreq=64.0, F1=4, D=2)
    save_network(tmp_path, build_network(card.network, card.arguments), card)
    session = _export("eeg", tmp_path, tmp_path / "model.onnx")
    _assert_same(session, load_network(tmp_path)[0], torch.randn(4, 5, 128))
    assert json.loads(session.get_modelmeta().custom_metadata_map["voxelwave.preprocessing"])["sfreq"] == 64.0


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["recurrent", "softmax"])
def test_a_network_of_whole_recordings_of_any_length(mixer: str, tmp_path: Path) -> None:
    card = _card("long_recording", n_chans=3, sfreq=32.0, dim=8, heads=2, depth=1, mixer=mixer)
    save_network(tmp_path, build_network(card.network, card.arguments), card)
    session = _export("eeg", tmp_path, tmp_path / "model.onnx")
    _assert_same(session, load_network(tmp_path)[0], torch.randn(3, 3, 32 * 77))


@pytest.mark.slow
def test_oat_with_any_number_of_scenes_objects_and_fixations(tmp_path: Path) -> None:
    sizes = {"d_appearance": 8, "d_position": 8, "heads": 2, "layers": 1, "feed_forward": 16, "steps": 32}
    network = OAT(rows=4, columns=4, appearance="features", features=3, prior_share=0.4, **sizes)
    weights = tmp_path / "model.safetensors"
    save_model(weights, network, WeightsInfo(network.arguments, "hidden", "search", grid=True))
    session = _export("scanpath", weights, tmp_path / "model.onnx")
    place = torch.tensor([[[0.0, 0], [1, 2], [3, 3], [2, 1]]])
    no, previous = torch.tensor([False]), torch.tensor([[-1, 2, 0, 0, 3, 1]])
    scene = (place, torch.ones(1, 4, dtype=torch.bool), torch.tensor([2]), no, no)
    _assert_same(session, OneCallOAT(load_model(weights).network), *scene, previous, torch.rand(1, 4, 3))


@pytest.mark.slow
def test_nestedmorph_with_images_of_one_size(tmp_path: Path) -> None:
    network = NestedMorph()
    with torch.no_grad():
        network.flow.weight.normal_()  # a displacement of some voxels
    save_nestedmorph(tmp_path / "w.safetensors", network)
    session = _export("registration", tmp_path / "w.safetensors", tmp_path / "model.onnx", "--size", "32,32,64")
    _assert_same(session, network, *torch.rand(2, 1, 1, 32, 32, 64, generator=torch.Generator().manual_seed(1)))


def test_the_size_of_nestedmorph_can_be_fixed_and_must_be_for_regions() -> None:
    fixed = nestedmorph_exportable(NestedMorph().eval(), size=(32, 64, 96))
    assert (fixed.inputs["moving"], fixed.sizes) == ((1, 1, 32, 64, 96), {})
    with pytest.raises(ValueError, match="size must be given"):
        nestedmorph_exportable(NestedMorph(mixer="bilevel(regions=2, top=1)").eval(), size=None)


def test_wrong_usage_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["restoration", "export", "--weights", "denoise-grey", "-o"]
    assert main([*words, str(tmp_path / "x.safetensors")]) == USAGE
    assert "a .safetensors file is written from CHECKPOINT" in capsys.readouterr().err
    assert main(["scanpath", "export", "--weights", "planted-observer", "-o", str(tmp_path / "x.pt")]) == USAGE
    assert "--output must end in .onnx" in capsys.readouterr().err


def test_a_missing_package_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voxelwave.apps.options.find_spec", lambda name: None)
    assert main(["restoration", "export", "--weights", "denoise-grey", "-o", str(tmp_path / "x.onnx")]) == 1
    assert 'an ONNX file needs onnx and onnxscript: pip install "voxelwave[export]"' in capsys.readouterr().err
