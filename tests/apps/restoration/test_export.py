"""The export command."""

from pathlib import Path

import pytest
import torch

from voxelwave.apps.cli import main
from voxelwave.restoration.module import RestorationModule
from voxelwave.restoration.settings import ModuleSettings
from voxelwave.restoration.weights import load_weights
from voxelwave.runs.exit import ERROR, USAGE

TINY = {"in_channels": 1, "scale": 1, "upsampler": None, "width": 8, "depths": [1], "states": 1, "stripe_width": 4}


def test_export_of_a_file_that_is_no_checkpoint_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "last.ckpt").write_bytes(b"hello")
    assert main(["restoration", "export", str(folder / "last.ckpt"), "-o", str(folder / "x.safetensors")]) == ERROR
    assert "last.ckpt is not a readable checkpoint" in capsys.readouterr().err


def test_export_writes_the_averaged_weights_of_a_checkpoint(tmp_path: Path) -> None:
    module = RestorationModule(ModuleSettings(network="MaIR", arguments=TINY, ema_decay=0.9))
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter.add_(1)  # so that the current weights differ from the averaged weights
    module.averaged_steps += 7
    content = {"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict()}
    torch.save(content, tmp_path / "last.ckpt")
    words = ["restoration", "export", str(tmp_path / "last.ckpt"), "-o", str(tmp_path / "w.safetensors")]
    assert main([*words, "--notes", '{"licence": "CC0"}']) == 0
    model, info = load_weights(tmp_path / "w.safetensors")
    assert (info.notes["steps"], info.notes["licence"]) == ("7", "CC0")
    torch.testing.assert_close(model.state_dict(), module.ema.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["last.ckpt", "-o", "x.safetensors", "--size", "small"], "--size, --variant and --stripe-width"),
        (["last.ckpt", "-o", "x.safetensors", "--stripe-width", "4"], "--size, --variant and --stripe-width"),
        (["--weights", "w.safetensors", "-o", "x.onnx", "--notes", '{"licence": "CC0"}'], "--notes is for"),
    ],
)
def test_options_of_the_other_form_are_refused(
    words: list[str],
    said: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    (folder / "last.ckpt").touch()
    assert main(["restoration", "export", *words]) == USAGE
    assert said in capsys.readouterr().err
