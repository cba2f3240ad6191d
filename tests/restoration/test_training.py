"""A training on tiny pictures: its files, resuming, and refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from voxelwave.restoration.module import load_checkpoint
from voxelwave.restoration.settings import TrainingSettings
from voxelwave.restoration.training import Trained, train
from voxelwave.restoration.weights import load_weights


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Smooth random pictures in train/ and validation/."""
    rng = np.random.default_rng(0)
    for part in ("train", "validation"):
        (tmp_path / part).mkdir()
        for i in range(2):
            picture = np.kron(rng.random((6, 6)), np.ones((8, 8))) * 255
            Pillow.fromarray(picture.astype(np.uint8)).save(tmp_path / part / f"{i}.png")
    return tmp_path


def _train(
    tiny_module: dict[str, Any], pictures: Path, output: Path, *, steps: int = 24, resume: bool = False
) -> Trained:
    settings = TrainingSettings(
        module=tiny_module,
        degradation={"kind": "gaussian", "sigma": 0.1},
        stages=[{"steps": steps, "batch": 2, "patch": 16}],
        epoch_steps=8,
        validation_crop=32,
    )
    return train(pictures / "train", pictures / "validation", output, settings, resume=resume)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_resumed_training_gives_the_weights_of_an_uninterrupted_one(
    optimizer: str, tiny_module: dict[str, Any], pictures: Path
) -> None:
    arguments = {**tiny_module["arguments"], "width": 16}  # wide enough for matrices of Muon
    tiny_module = {**tiny_module, "arguments": arguments, "optimizer": optimizer}
    _train(tiny_module, pictures, pictures / "whole")
    _train(tiny_module, pictures, pictures / "parts", steps=8)
    _train(tiny_module, pictures, pictures / "parts", resume=True)
    whole, parts = (torch.load(pictures / name / "last.ckpt", weights_only=True) for name in ("whole", "parts"))
    assert whole["global_step"] == parts["global_step"] == 24
    for name, tensor in whole["state_dict"].items():
        torch.testing.assert_close(parts["state_dict"][name], tensor, msg=name)
    assert (pictures / "parts/metrics.csv").read_text() == (pictures / "whole/metrics.csv").read_text()


@pytest.mark.filterwarnings("ignore")
def test_training_lowers_the_loss_and_exports_the_average(tiny_module: dict[str, Any], pictures: Path) -> None:
    _train(tiny_module, pictures, pictures / "out", steps=24)
    module = load_checkpoint(pictures / "out/last.ckpt")
    model, info = load_weights(pictures / "out/weights.safetensors")
    assert info.notes["degradation"] == "gaussian"  # so that `restore --sigma` knows what the results are
    assert module.degradation == "gaussian"  # so that `export` notes it too
    assert (info.task, info.intensity_unit, info.arguments["stripe_width"]) == ("denoise", "relative", 4)
    image = torch.rand(1, 1, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(model(image), module.ema.eval()(image))
    rows = (pictures / "out/metrics.csv").read_text()
    assert "psnr" in rows
    with pytest.raises(ValueError, match="--resume"):
        _train(tiny_module, pictures, pictures / "out")
    with pytest.raises(FileNotFoundError, match="--resume"):
        _train(tiny_module, pictures, pictures / "other", resume=True)


@pytest.mark.filterwarnings("ignore")
def test_a_training_returns_its_steps_and_figures(tiny_module: dict[str, Any], pictures: Path) -> None:
    lines: list[str] = []
    settings = TrainingSettings(
        module=tiny_module,
        degradation={"kind": "gaussian", "sigma": 0.1},
        stages=[{"steps": 1, "batch": 1, "patch": 16}],
    )
    trained = train(pictures / "train", pictures / "validation", pictures / "out", settings, report=lines.append)
    assert (trained.steps, trained.interrupted) == (1, False)
    assert trained.metrics["psnr"] > 5
    assert lines[0].startswith("2 training images, 2 for validation; ")


def test_degraded_partners_of_one_part_alone_are_refused(tiny_module: dict[str, Any], pictures: Path) -> None:
    settings = TrainingSettings(module=tiny_module, train_degraded=pictures / "train", intensity_range="dtype")
    with pytest.raises(ValueError, match="must be given together, got one of them"):
        train(pictures / "train", pictures / "validation", pictures / "out", settings)
