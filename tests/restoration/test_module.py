"""Schedules and losses are those that are written down; training goes on after a break as if there had been none."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image as Pillow

from voxelwave.apps.cli import main
from voxelwave.apps.restoration.train import train
from voxelwave.restoration.module import RestorationModule, charbonnier, halved, held_then_cosine, load_checkpoint
from voxelwave.restoration.weights import load_weights
from voxelwave.volumes import Volume, write_volume

_CONFIGURATIONS = Path(__file__).parents[2] / "apps/configs/restoration"
_TINY = {
    "network": "MaIR",
    "arguments": {
        "in_channels": 1,
        "scale": 1,
        "upsampler": None,
        "width": 8,
        "depths": [1],
        "states": 1,
        "expansion": 1.0,
        "stripe_width": 4,
        "drop_path_rate": 0.0,
    },
    "lr": 2e-3,
    "schedule": "cosine",
    "steps": 24,
}


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


def _train(pictures: Path, output: Path, *, steps: int = 24, resume: bool = False) -> None:
    train(
        pictures / "train",
        pictures / "validation",
        output=output,
        module=_TINY,
        degradation={"kind": "gaussian", "sigma": 0.1},
        stages=[{"steps": steps, "batch": 2, "patch": 16}],
        epoch_steps=8,
        validation_crop=32,
        resume=resume,
        device="cpu",
    )


def test_rate_halves_at_the_published_steps() -> None:
    milestones = [250_000, 400_000, 450_000, 475_000]  # classical super-resolution x2
    factors = [halved(step, milestones=milestones) for step in (0, 249_999, 250_000, 449_999, 499_999)]
    assert factors == [1, 1, 0.5, 0.25, 0.0625]


def test_cosine_holds_then_falls_to_its_floor() -> None:
    # real denoising: constant for 184 k, then a cosine to 1e-6 over 544 k
    options = {"warmup": 0, "hold": 184_000, "steps": 728_000, "floor": 1e-6 / 3e-4}
    factors = [held_then_cosine(step, **options) for step in (0, 184_000, 456_000, 728_000, 800_000)]
    np.testing.assert_allclose(factors, [1, 1, (1 + 1 / 300) / 2, 1 / 300, 1 / 300])


def test_charbonnier_is_nearly_l1() -> None:
    x, y = torch.randn(2, 100), torch.randn(2, 100)
    torch.testing.assert_close(charbonnier(x, y), (x - y).abs().mean(), atol=1e-6, rtol=1e-6)


def test_average_starts_as_the_weights_and_follows_them() -> None:
    module = RestorationModule(**_TINY)
    for average, present in zip(module.ema.parameters(), module.network.parameters(), strict=True):
        torch.testing.assert_close(average, present, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter.add_(1.0)
    before = [p.clone() for p in module.ema.parameters()]
    module.on_train_batch_end(None, None, 0)
    share = 1 - (1 + 1) / (10 + 1)  # the short memory of the first step
    for old, new in zip(before, module.ema.parameters(), strict=True):
        torch.testing.assert_close(new, old + share)


def test_scan_parameters_norms_and_biases_do_not_decay() -> None:
    module = RestorationModule(**{**_TINY, "optimizer": "adamw", "weight_decay": 0.1})
    groups = module.configure_optimizers()["optimizer"].param_groups
    spared = {id(p) for p in groups[1]["params"]}
    names = {name for name, p in module.network.named_parameters() if id(p) in spared}
    assert any(name.endswith("A_logs") for name in names)
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert groups[1]["weight_decay"] == 0


def test_mixup_blends_within_the_batch() -> None:
    module = RestorationModule(**{**_TINY, "mixup": 1.2})
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    seen = set()
    for step in range(30):
        degraded, clean = module._mix(x, x * 2, step)
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
def test_wrong_options_are_named(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RestorationModule(**{**_TINY, **options})


@pytest.mark.filterwarnings("ignore")
def test_interrupted_training_goes_on_as_if_it_had_not_been(pictures: Path) -> None:
    _train(pictures, pictures / "whole")
    _train(pictures, pictures / "parts", steps=8)
    _train(pictures, pictures / "parts", resume=True)
    whole, parts = (torch.load(pictures / name / "last.ckpt", weights_only=True) for name in ("whole", "parts"))
    assert whole["global_step"] == parts["global_step"] == 24
    for name, tensor in whole["state_dict"].items():
        torch.testing.assert_close(parts["state_dict"][name], tensor, msg=name)


@pytest.mark.filterwarnings("ignore")
def test_training_lowers_the_loss_and_exports_the_average(pictures: Path) -> None:
    _train(pictures, pictures / "out", steps=24)
    module = load_checkpoint(pictures / "out/last.ckpt")
    model, info = load_weights(pictures / "out/weights.safetensors")
    assert (info.task, info.intensity_unit, info.arguments["stripe_width"]) == ("denoise", "relative", 4)
    image = torch.rand(1, 1, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(model(image), module.ema.eval()(image))
    rows = (pictures / "out/metrics.csv").read_text()
    assert "psnr" in rows
    with pytest.raises(ValueError, match="--resume"):
        _train(pictures, pictures / "out")
    with pytest.raises(FileNotFoundError, match="--resume"):
        _train(pictures, pictures / "other", resume=True)


def test_start_from_keeps_what_fits(tmp_path: Path) -> None:
    small = RestorationModule(**_TINY)
    small.export(tmp_path / "x.safetensors")
    large = {**_TINY, "arguments": {**_TINY["arguments"], "scale": 2, "upsampler": "pixelshuffledirect"}}  # type: ignore[dict-item]
    module = RestorationModule(**{**large, "start_from": str(tmp_path / "x.safetensors")})
    torch.testing.assert_close(module.network.conv_first.weight, small.network.conv_first.weight)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", sorted(_CONFIGURATIONS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configuration_trains(path: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(path.read_text())
    settings["stages"] = [{"steps": 1, "batch": 1, "patch": 16}]
    settings["module"]["arguments"] |= {
        "width": 8,
        "depths": [1] * len(settings["module"]["arguments"].get("depths", [1])),
    }
    settings["module"].pop("start_from", None)  # weights of the full width
    settings["validation_crop"] = 32
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(settings))
    rng = np.random.default_rng(0)
    words = ["restoration", "train"]
    kind = settings.get("degradation", {}).get("kind")
    if kind in ("ct", "rician") or (kind is None and not settings["module"]["network"].startswith("mair-s")):
        scan = str(tmp_path / "scan.nii.gz")
        low = 0 if kind == "rician" else -900
        write_volume(scan, Volume(rng.integers(low, 1900, (40, 40, 4)).astype(np.int16), np.eye(4)))
        words += [scan, scan]
        if kind is None:
            words += ["--train-degraded", scan, "--validation-degraded", scan]
    else:
        for part in ("train", "validation"):
            (tmp_path / part).mkdir()
            Pillow.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(tmp_path / part / "a.png")
        words += [str(tmp_path / "train"), str(tmp_path / "validation")]
    command = [*words, "-o", str(tmp_path / "out"), "--config", str(tmp_path / "short.yaml"), "--device", "cpu"]
    assert main(command) == 0
    assert (tmp_path / "out/weights.safetensors").is_file()
