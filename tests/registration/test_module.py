"""Losses, schedule, checkpoints that load safely, resuming, and every supplied configuration on tiny scans."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from voxelwave.registration.benchmark_labels import LabelledScan
from voxelwave.registration.benchmark_training import OVERFIT, overfit
from voxelwave.registration.diffusion import write_bvecs
from voxelwave.registration.module import RegistrationModule, common_labels, export_network, mean_dice, soft_dice_loss
from voxelwave.registration.nestedmorph_files import load_nestedmorph, read_training_options
from voxelwave.registration.pairs import find_pairs
from voxelwave.registration.training import train
from voxelwave.registration.training_settings import TrainingSettings
from voxelwave.registration.warp import warp
from voxelwave.volumes import Volume, write_volume

FOLDER = Path(__file__).parents[2] / "apps/configs/registration"
OTHERS = "nestedmorph_any_contrast.yaml", "brain_any_contrast.yaml"  # see test_synthetic.py and test_tissues.py
CONFIGS = sorted(path for path in FOLDER.glob("*.yaml") if path.name not in OTHERS)
SIZE = (16, 16, 16)


class OneShift(nn.Module):
    """A network that moves every voxel by the same learned displacement."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, 3, 1, 1, 1))

    def forward(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        displacement = self.shift.expand(len(moving), 3, *moving.shape[2:])
        return warp(moving, displacement), displacement


def blobs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """An image in [0, 1] and its label map with labels 0, 1, 2."""
    noise = torch.rand(SIZE, generator=generator).numpy()
    smooth = gaussian_filter(noise, 2)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    labels = np.digitize(smooth, [0.45, 0.6])
    return torch.from_numpy(smooth).float()[None, None], torch.from_numpy(labels)[None, None]


@pytest.fixture
def batch(generator: torch.Generator) -> dict[str, Any]:
    """A batch whose fixed image is the moving image, shifted by one voxel along w."""
    image, labels = blobs(generator)
    return {
        "moving": image,
        "fixed": image.roll(1, dims=4),
        "moving_labels": labels,
        "fixed_labels": labels.roll(1, dims=4),
        "subject": ["a"],
    }


@pytest.mark.parametrize("similarity", ["ncc", "mi", "mind"])
@pytest.mark.parametrize("regularizer", ["diffusion", "bending"])
def test_the_loss_is_lowest_at_the_true_shift(batch: dict, similarity: Any, regularizer: Any) -> None:
    module = RegistrationModule(OneShift(), similarity=similarity, regularizer=regularizer, label_weight=1.0)
    losses = []
    for shift in (0.0, -1.0):
        module.network.shift.data[0, 2] = shift
        parts = module.losses(batch, *module(batch["moving"], batch["fixed"]))
        assert float(parts["roughness"]) == 0  # a translation is smooth
        losses.append(float(parts["loss"]))
    assert losses[1] < losses[0]


def test_soft_dice_is_zero_for_a_perfect_match_and_descends_to_it(batch: dict) -> None:
    still = torch.zeros(1, 3, *SIZE)
    moving, fixed = batch["moving_labels"], batch["fixed_labels"]
    assert float(soft_dice_loss(moving, moving, still)) == pytest.approx(0, abs=1e-6)
    displacement = still.clone().requires_grad_()
    soft_dice_loss(moving, fixed, displacement).backward()
    assert displacement.grad is not None
    assert float(displacement.grad[:, 2].mean()) > 0  # descent moves towards -1
    with pytest.raises(ValueError, match="label in common"):
        soft_dice_loss(torch.zeros_like(moving), fixed, still)


def test_dice_counts_the_labels_of_both_maps(batch: dict) -> None:
    labels = batch["moving_labels"]
    assert common_labels(labels, labels + 1) == [1, 2]
    assert mean_dice(labels, labels, [1, 2]) == 1
    assert np.isnan(mean_dice(labels, labels, []))


def test_evaluation_shows_dice_before_and_after(batch: dict) -> None:
    module = RegistrationModule(OneShift())
    module.network.shift.data[0, 2] = -1.0
    values = module.evaluate_batch(batch)
    assert values["dice"] > 0.95 > values["affine_dice"]
    assert values["non_positive_jacobian_percent"] == 0
    assert values["sdlogj"] == pytest.approx(0, abs=1e-9)


def test_the_learning_rate_falls_as_published() -> None:
    module = RegistrationModule(OneShift(), learning_rate=2e-4, epochs=50)
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]
    assert optimizer.defaults["amsgrad"]
    for epoch in range(51):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(round(2e-4 * (1 - epoch / 50) ** 0.9, 8), abs=1e-15)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"similarity": "ssd"}, "similarity must be one of ncc, mi, mind"),
        ({"regularizer": "l1"}, "regularizer must be one of diffusion, bending"),
        ({"smoothness": -1.0}, "must not be negative"),
        ({"similarity_weight": 0.0}, "label_weight or correspondence_weight must be above 0"),
        ({"epochs": 0}, "positive"),
    ],
)
def test_wrong_options_are_named(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RegistrationModule(OneShift(), **options)


def test_the_similarity_can_be_left_out_of_the_loss(batch: dict) -> None:
    module = RegistrationModule(OneShift(), similarity_weight=0, label_weight=2.0)
    parts = module.losses(batch, *module(batch["moving"], batch["fixed"]))
    assert "similarity" not in parts
    torch.testing.assert_close(parts["loss"], 2 * parts["label_dice_loss"] + parts["roughness"])


def test_usual_values_of_later_options_are_not_recorded() -> None:
    module = RegistrationModule(OneShift(), width=None, norm="batch", similarity_weight=1.0)
    assert not {"width", "norm", "similarity_weight", "synthetic", "mixer"} & module.hparams.keys()


def test_labels_in_the_loss_need_labels(batch: dict) -> None:
    module = RegistrationModule(OneShift(), label_weight=1.0)
    del batch["fixed_labels"]
    with pytest.raises(ValueError, match="label_weight must be 0"):
        module.losses(batch, *module(batch["moving"], batch["fixed"]))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the affine fit, which has its own tests, and use a narrow network: they would take most of the time."""
    monkeypatch.setattr("voxelwave.registration.nestedmorph.WIDTHS", (16, 32, 64, 128))
    monkeypatch.setattr("voxelwave.registration.data.align_affine", lambda *args, **kwargs: np.eye(4))


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_the_exported_network_records_its_layout_and_options(tmp_path: Path) -> None:
    module = RegistrationModule(similarity="mi", spacing_mm=2.5, diffeomorphic=True, flow_head="quarter")
    export_network(tmp_path / "network.safetensors", module)
    options = read_training_options(tmp_path / "network.safetensors")
    assert options is not None
    assert (options["spacing_mm"], options["similarity"], options["orientation"]) == (2.5, "mi", "RAS")
    network = load_nestedmorph(tmp_path / "network.safetensors")
    assert network.diffeomorphic
    assert network.flow_head == options["flow_head"] == "quarter"
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, module.network.state_dict()[name])


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """Three subjects with T1w, labels and a diffusion series of 24^3 voxels of 4 mm; the atlas is beside them."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -46
    inside = np.sum((np.indices((24, 24, 24)) - 11.5) ** 2, axis=0) < 90
    bvals = [0, 1000, 1000]
    for number in range(4):
        smooth = gaussian_filter(np.random.default_rng(number).random((24, 24, 24)), 2) * inside
        t1 = Volume((1000 * smooth).astype(np.float32), affine)
        labels = Volume(np.digitize(smooth, [0.1, 0.5]).astype(np.int16), affine)
        name = "atlas" if number == 3 else f"bids/sub-{number}/anat/sub-{number}"
        write_volume(tmp_path / f"{name}_T1w.nii.gz", t1)
        write_volume(tmp_path / f"{name}_dseg.nii.gz", labels)
        if number < 3:
            dwi = tmp_path / f"bids/sub-{number}/dwi/sub-{number}_dwi.nii.gz"
            write_volume(dwi, Volume(np.stack([t1.array * s for s in (1, 0.5, 0.5)], axis=-1), affine))
            dwi.with_name(f"sub-{number}_dwi.bval").write_text(" ".join(map(str, bvals)))
            write_bvecs(dwi.with_name(f"sub-{number}_dwi.bvec"), np.eye(3))
    return tmp_path / "bids"


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
def test_every_shipped_configuration_trains_on_tiny_scans(config: Path, bids: Path, tmp_path: Path) -> None:
    options = yaml.safe_load(config.read_text())
    options |= {"size": (32, 32, 32), "spacing_mm": 4.0, "epochs": 1}
    if options["task"] == "atlas-to-patient":
        options["atlas"] = tmp_path / "atlas_T1w.nii.gz"
    if options["task"] == "patient-to-patient":  # with three subjects every split has one: no pair within a split
        a, b = (p for p in find_pairs(bids, "patient-to-patient")[:2])
        files = [a.moving, a.fixed, a.moving_labels, a.fixed_labels]
        rows = [",".join(map(str, [*files, split, split])) for split in ("train", "val")]
        pairs = tmp_path / "pairs.csv"
        pairs.write_text("\n".join(["moving,fixed,moving_labels,fixed_labels,subject,split", *rows]))
        assert b.subject == a.subject
    else:
        pairs = bids
    result = train(pairs, tmp_path / "out", TrainingSettings(**options), device="cpu")
    assert result.metric == ("val_loss" if options["task"] == "t1-dwi" else "val_dice")
    assert np.isfinite(result.value)
    load_nestedmorph(result.weights)
    record = json.loads((tmp_path / "out/training.json").read_text())
    assert record["options"]["similarity"] == options["similarity"]
    for checkpoint in (tmp_path / "out/checkpoints").iterdir():
        kept = torch.load(checkpoint, weights_only=True)
        assert kept["hyper_parameters"]["spacing_mm"] == 4.0
        load_nestedmorph(checkpoint)
        assert read_training_options(checkpoint) == read_training_options(result.weights)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
def test_a_resumed_training_continues_at_the_next_epoch(bids: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    one = TrainingSettings(size=(32, 32, 32), spacing_mm=4.0, similarity="ncc", epochs=1)
    two = replace(one, epochs=2)
    with pytest.raises(FileNotFoundError, match=r"--resume needs .*last\.ckpt"):
        train(bids, out, one, device="cpu", resume=True)
    train(bids, out, one, device="cpu")
    first = torch.load(out / "checkpoints/last.ckpt", weights_only=True)
    del first["hyper_parameters"]["flow_head"]  # as written by version 0.1.0
    torch.save(first, out / "checkpoints/last.ckpt")
    with pytest.raises(ValueError, match="choose another --output"):
        train(bids, out, two, device="cpu")
    with pytest.raises(ValueError, match=r"similarity \(ncc before, mi now\)"):
        train(bids, out, replace(two, similarity="mi"), device="cpu", resume=True)
    with pytest.raises(ValueError, match=r"flow_head \(published before, quarter now\)"):
        train(bids, out, replace(two, flow_head="quarter"), device="cpu", resume=True)
    with pytest.raises(ValueError, match=r"mixer \(None before, softmax now\)"):
        train(bids, out, replace(two, mixer="softmax"), device="cpu", resume=True)
    train(bids, out, two, device="cpu", resume=True)
    second = torch.load(out / "checkpoints/last.ckpt", weights_only=True)
    assert (first["epoch"], second["epoch"]) == (0, 1)
    assert second["global_step"] == 2 * first["global_step"]


def test_training_needs_a_training_pair(bids: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='device must be "auto", "cpu" or "cuda"'):
        train(bids, tmp_path / "out", device="gpu")
    with pytest.raises(FileNotFoundError, match="no list of pairs"):
        train(tmp_path / "gone.csv", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore:.*validation_step.*")
def test_training_on_one_pair_lowers_the_loss_and_raises_dice(tmp_path: Path) -> None:
    """NestedMorph learns a shift of 4 mm on a grid of 32^3 within a few steps, and its weights can be used."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    inside = np.sum((np.indices((32, 32, 32)) - 15.5) ** 2, axis=0) < 150
    smooth = gaussian_filter(np.random.default_rng(0).random((32, 32, 32)), 2.5) * inside
    smooth = smooth / smooth.max()
    image, labels = smooth.astype(np.float32), np.digitize(smooth, [0.4, 0.75]).astype(np.int16)
    result = overfit(
        LabelledScan(Volume(np.roll(image, 1, axis=0), affine), Volume(np.roll(labels, 1, axis=0), affine)),
        LabelledScan(Volume(image, affine), Volume(labels, affine)),
        tmp_path,
        replace(OVERFIT, spacing_mm=4.0, size=(32, 32, 32), epochs=25),
        affine="none",
    )
    assert result.loss_after < result.loss_before - 0.02
    assert result.dice_after > result.dice_before + 0.02
    assert result.steps == 25
    written = json.loads((tmp_path / "overfit.json").read_text())
    assert len(written["loss"]) == 25
    assert written["dice_after"] == result.dice_after
    load_nestedmorph(result.weights)
    load_nestedmorph(tmp_path / "network.ckpt")
