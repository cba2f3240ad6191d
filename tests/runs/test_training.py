"""Properties of training under Lightning in all four fields: precision, processes, checkpoints, testing."""

import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from voxelwave.eeg.module import EEGModule, WindowData
from voxelwave.registration.module import RegistrationModule
from voxelwave.restoration.module import RestorationModule
from voxelwave.restoration.settings import ModuleSettings
from voxelwave.runs.training import SteppedModule
from voxelwave.scanpath.data import PathData
from voxelwave.scanpath.estimators import build_module
from voxelwave.scanpath.planted import planted_dataset

sys.path.insert(0, str(Path(__file__).parent))  # spawned processes find the network here too
toy_network = importlib.import_module("toy_network")

Part = tuple[SteppedModule, DataLoader]


def registration() -> Part:
    torch.manual_seed(0)
    images = torch.rand(4, 1, 10, 10, 10)
    pairs = [{"moving": image, "fixed": image.roll(1, 1)} for image in images]
    return RegistrationModule(toy_network.Shift(), epochs=1), DataLoader(pairs, batch_size=1)


def eeg() -> Part:
    torch.manual_seed(0)
    arguments = {"n_chans": 2, "n_times": 64, "F1": 2, "D": 1, "kernel_length": 3, "se_nodes": 2}
    data = WindowData(torch.randn(10, 2, 64), torch.arange(10) % 2, torch.arange(10))
    return EEGModule(arguments=arguments, sigmas=[0.1], magnifications=[1.0]), data.loader(3)


def restoration() -> Part:
    torch.manual_seed(0)
    arguments = {"in_channels": 1, "scale": 1, "upsampler": None, "width": 8, "depths": [1], "states": 1}
    settings = ModuleSettings(
        network="MaIR", arguments={**arguments, "expansion": 1.0, "stripe_width": 4}, mixup=1.2, ema_decay=0.9
    )
    patches = [{"degraded": torch.rand(1, 8, 8), "clean": torch.rand(1, 8, 8)} for _ in range(4)]
    return RestorationModule(settings), DataLoader(patches, batch_size=1)


def scanpath() -> Part:
    torch.manual_seed(0)
    dataset = planted_dataset(4, seed=1)
    tiny = {"d_appearance": 4, "d_position": 12, "layers": 1, "feed_forward": 16, "dropout": 0.1, "ema_decay": 0.9}
    module = build_module(dataset, tiny, appearance="features", seed=0)
    return module, PathData(dataset, appearance="features").loader(1)


FIELDS = (registration, eeg, restoration, scanpath)
pytestmark = pytest.mark.filterwarnings("ignore")


def _trainer(**options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    plain = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    return Trainer(**{**quiet, **plain, **options})


@pytest.mark.parametrize("field", FIELDS)
def test_testing_gives_the_figures_of_validation_and_prediction_one_result_per_batch(field: Callable[[], Part]) -> None:
    module, loader = field()
    trainer = _trainer()
    (validated,) = trainer.validate(module, loader, verbose=False)
    (tested,) = trainer.test(module, loader, verbose=False)
    names = [name.removeprefix("val_").removeprefix("validation_") for name in validated]
    assert tested == pytest.approx(dict(zip([f"test_{name}" for name in names], validated.values(), strict=True)))
    predicted = trainer.predict(module, loader)
    assert predicted is not None
    assert len(predicted) == len(loader)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("field", FIELDS)
def test_half_precision_trains_to_finite_figures_near_those_of_single(
    field: Callable[[], Part], precision: Any
) -> None:
    figures = []
    for kind in ("32-true", precision):
        module, loader = field()
        trainer = _trainer(precision=kind)
        trainer.fit(module, loader, loader)
        figures.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        assert all(torch.isfinite(p).all() for p in module.parameters())
    assert figures[1].keys() == figures[0].keys()
    for name, value in figures[0].items():
        if "loss" in name or "psnr" in name or "nats" in name:
            assert figures[1][name] == pytest.approx(value, rel=0.05, abs=0.02), name  # bf16 has 3 digits


class _States(Callback):
    """A callback that records the state of the module before each batch."""

    def __init__(self) -> None:
        self.kept: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        state = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
        self.kept[trainer.global_step] = state


@pytest.mark.parametrize("field", FIELDS)
def test_a_checkpoint_amid_an_epoch_holds_what_the_step_left(field: Callable[[], Part], tmp_path: Path) -> None:
    module, loader = field()
    states = _States()
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    _trainer(callbacks=[states, keep], enable_checkpointing=True).fit(module, loader)
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == len(loader)
    for file in files:
        content = torch.load(file, weights_only=True)
        if content["global_step"] in states.kept:
            for name, tensor in states.kept[content["global_step"]].items():
                torch.testing.assert_close(content["state_dict"][name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("field", [registration, eeg])
def test_continuing_amid_an_epoch_warns_and_at_its_end_does_not(field: Callable[[], Part], tmp_path: Path) -> None:
    warned = {}
    for name, every in (("within", {"every_n_train_steps": 3}), ("end", {"save_on_train_epoch_end": True})):
        module, loader = field()
        keep = ModelCheckpoint(tmp_path, name, **every)
        _trainer(callbacks=[keep], enable_checkpointing=True).fit(module, loader)
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            module, loader = field()
            _trainer(max_epochs=2).fit(module, loader, ckpt_path=tmp_path / f"{name}.ckpt", weights_only=True)
        warned[name] = any("batches of an epoch" in str(note.message) for note in notes)
    assert warned == {"within": True, "end": False}


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS)
def test_two_processes_train_every_weight_and_agree_on_the_figures(field: Callable[[], Part]) -> None:
    module, loader = field()
    before = [parameter.clone() for parameter in module.parameters()]
    trainer = _trainer(strategy="ddp_spawn", devices=2)
    trainer.fit(module, loader, loader)
    assert any(not torch.equal(new, old) for new, old in zip(module.parameters(), before, strict=True))
    two = {name: float(value) for name, value in trainer.callback_metrics.items()}
    (alone,) = _trainer().validate(module, loader, verbose=False)
    assert {name: two[name] for name in alone} == pytest.approx(alone, rel=1e-4)
