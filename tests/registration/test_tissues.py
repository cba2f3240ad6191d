"""Tissues in scans of any contrast: synthetic images, the network, the guided filter, and registration by tissues."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from voxelwave.registration import RegistrationSettings, register
from voxelwave.registration.network_files import read_network
from voxelwave.registration.synthetic import LabelMap, label_map, synthetic_scan
from voxelwave.registration.tissue_settings import TissueTrainingSettings
from voxelwave.registration.tissue_training import SyntheticScans, TissueModule, tissue_loss, train_tissues
from voxelwave.registration.tissues import (
    TISSUES,
    TissueNet,
    TrainedTissueNet,
    guided,
    in_one_contrast,
    read_tissue_net,
    save_tissue_net,
    tissue_classes,
)
from voxelwave.registration.weights_method import method_of_weights
from voxelwave.runs.catalogue import find_weights
from voxelwave.runs.weight_file import write_weights
from voxelwave.volumes import AffineTransform, Volume, compose_to_field, read_volume, resample, write_volume

from .test_synthetic import ellipsoids

SIZE, SPACING = (24, 20, 28), 6.0
TINY = TissueTrainingSettings(size=(16, 16, 16), spacing_mm=10.0, width=8, epochs=2, epoch_steps=3)


@pytest.fixture(scope="module")
def head() -> LabelMap:
    return label_map(ellipsoids(), name="head")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five heads, each a little different."""
    for number in range(5):
        write_volume(tmp_path / f"maps/head-{number}.nii.gz", ellipsoids(0.05 * number))
    return tmp_path / "maps"


def scan(head: LabelMap, number: int, seed: int = 0) -> dict[str, torch.Tensor]:
    return dict(synthetic_scan(head, size=SIZE, spacing_mm=SPACING, seed=seed, number=number))


def test_a_scan_depends_on_its_seed_and_number_only(head):
    again, other, reseeded = scan(head, 3), scan(head, 4), scan(head, 3, seed=1)
    assert all(torch.equal(value, again[name]) for name, value in scan(head, 3).items())
    assert not torch.equal(again["image"], other["image"])
    assert not torch.equal(again["image"], reseeded["image"])


def test_each_sample_of_a_voxel_lies_in_one_tissue(head):
    for number in range(6):
        item = scan(head, number)
        assert item["image"].shape == (1, *SIZE)
        assert 0 <= item["image"].min() < item["image"].max() <= 1
        assert item["tissues"].shape == (len(TISSUES), *SIZE)
        assert (item["tissues"].sum(dim=0, dtype=torch.int32) == 8).all()


def test_no_tissue_is_expected_where_the_image_lacks_it(head):
    """Images without the tissue around the brain are 0 there, and its voxels are outside."""
    found = [scan(head, number) for number in range(20)]
    brains = [item for item in found if (item["image"] == 0).float().mean() > 0.4]
    assert 5 <= len(brains) <= 15
    for item in brains:
        assert (item["image"][0, item["tissues"][0] == 8] == 0).all()
        assert item["tissues"][0, item["image"][0] == 0].float().mean() / 8 > 0.95  # the rest is partial volume


def test_labels_belong_to_one_tissue_each():
    labels = [label for tissue in TISSUES for label in tissue.labels]
    assert len(labels) == len(set(labels))
    assert tissue_classes([0, 2, 41, 3, 10, 85, 515]) == [0, 1, 1, 2, 4, 1, 0]


@pytest.mark.parametrize("size", [(16, 16, 16), (13, 22, 9)])
def test_the_network_gives_logits_on_the_grid_of_the_scan(size, generator):
    network = TissueNet(width=8, stages=3)
    given = torch.rand(2, 1, *size, generator=generator)
    logits = network(given)
    assert logits.shape == (2, len(TISSUES), *size)
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(network(given[1:]), logits[1:], rtol=1e-4, atol=1e-4)


def test_the_loss_is_lowest_for_the_right_tissues(head):
    tissues = scan(head, 0)["tissues"][None]
    right = (tissues / 8).clamp(min=1e-4).log()
    loss, dice = tissue_loss(right, tissues)
    assert dice.min() > 0.97
    for wrong in (right.roll(1, dims=1), torch.zeros_like(right), right.roll(2, dims=3)):
        assert tissue_loss(wrong, tissues)[0] > loss + 0.1


def brain(seed: int = 0, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """The tissue of each voxel of a folded brain, (D, H, W), and a mask of it."""
    rng = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*[np.linspace(-1.2, 1.2, size)] * 3, indexing="ij"))
    radius = np.linalg.norm(places, axis=0)
    folds = gaussian_filter(rng.normal(size=radius.shape), 4.0)
    depth = radius + 0.1 * folds / folds.std()
    tissue = np.select([radius > 1, depth > 0.97, depth > 0.8, depth < 0.3], [0, 3, 2, 3], 1)
    return tissue, radius <= 1


def shown(tissue: np.ndarray, contrast: str, seed: int = 0) -> Volume:
    """A scan of 2 mm voxels in a contrast, with noise."""
    greys = {"T1": [0, 1.0, 0.6, 0.12], "T2": [0, 0.3, 0.5, 1.0], "FLAIR": [0, 0.7, 0.95, 0.2]}[contrast]
    image = gaussian_filter(np.array(greys)[tissue], 0.5)
    image += np.random.default_rng(seed).normal(scale=0.02, size=image.shape)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    return Volume((image.clip(0.03, 2) * (tissue > 0)).astype(np.float32), affine)


class Knows(nn.Module):
    """A network that knows the tissues of each image, but only roughly."""

    def __init__(self, *known: tuple[Volume, np.ndarray]):
        super().__init__()
        self.known = known

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        fits = [np.corrcoef(given[0, 0].numpy().ravel(), image.array.ravel())[0, 1] for image, _ in self.known]
        tissue = self.known[int(np.argmax(fits))][1]
        shares = [gaussian_filter((tissue == k).astype(np.float32), 1.5) for k in range(len(TISSUES))]
        return torch.from_numpy(np.stack(shares)).clamp(min=1e-4).log()[None]


def knowing(*known: tuple[Volume, np.ndarray]) -> TrainedTissueNet:
    return TrainedTissueNet(Knows(*known), 2.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("contrast", "before", "after"), [("T1", 1.0, 0.97), ("T2", -0.95, 0.95), ("FLAIR", 0.56, 0.92)]
)
def test_every_contrast_becomes_that_of_t1w(contrast, before, after):
    tissue, inside = brain()
    given = shown(tissue, contrast)
    found = in_one_contrast(knowing((given, tissue)), given)
    assert found.array.shape == given.array.shape
    np.testing.assert_array_equal(found.affine, given.affine)
    assert (found.array[~inside] == 0).all()
    wanted = gaussian_filter(np.array([tissue.grey for tissue in TISSUES])[tissue], 0.5)[inside]
    assert np.corrcoef(given.array[inside], wanted)[0, 1] == pytest.approx(before, abs=0.02)
    assert np.corrcoef(found.array[inside], wanted)[0, 1] > after


def test_the_result_has_finer_detail_than_the_tissues():
    tissue, inside = brain()
    given = shown(tissue, "T1")
    greys = np.array([tissue.grey for tissue in TISSUES])[tissue]

    def detail(image: np.ndarray) -> np.ndarray:
        return (image - gaussian_filter(image, 2.0))[inside]

    found, wanted = in_one_contrast(knowing((given, tissue)), given).array, gaussian_filter(greys, 0.5)
    of_tissues = gaussian_filter(greys, 1.5)
    found_fits, tissues_fit = (np.corrcoef(detail(image), detail(wanted))[0, 1] for image in (found, of_tissues))
    assert found_fits > tissues_fit + 0.03


def test_the_filter_gives_functions_of_the_guide_back(generator):
    guide = (0.1 + 0.9 * torch.rand(20, 22, 18, generator=generator)).numpy()
    for wanted in (0.9 - 0.5 * guide, 1 - 4 * (guide - 0.5) ** 2):
        offset, slope, square = guided(wanted, guide, sigma=2.0)
        np.testing.assert_allclose(offset + slope * guide + square * guide**2, wanted, atol=0.06)


def test_background_has_no_weight_in_the_filter(generator):
    guide = (0.1 + 0.9 * torch.rand(20, 20, 20, generator=generator)).numpy()
    guide[10:] = 0
    wanted = 0.5 * guide
    before = guided(wanted, guide, sigma=2.0)
    wanted[10:] = 7.0
    for part, other in zip(before, guided(wanted, guide, sigma=2.0), strict=True):
        np.testing.assert_allclose(part[:10], other[:10], atol=0.02)


def test_weights_are_read_as_they_were_written(tmp_path, generator):
    network = TissueNet(width=8, stages=3).eval()
    save_tissue_net(tmp_path / "n.safetensors", TrainedTissueNet(network, 2.5), {"data": "none"})
    read = read_network(tmp_path / "n.safetensors")
    assert isinstance(read, TrainedTissueNet)
    assert read.spacing_mm == 2.5
    given = torch.rand(1, 1, 12, 12, 12, generator=generator)
    torch.testing.assert_close(read.network(given), network(given), rtol=0, atol=0)
    assert method_of_weights(tmp_path / "n.safetensors") == "tissues"
    assert method_of_weights(None) == "field"
    assert method_of_weights(tmp_path / "gone.safetensors") == "nestedmorph"


@pytest.mark.parametrize(
    "record",
    [
        {"width": 16, "stages": 3, "spacing_mm": 2.0},
        {"width": 8, "stages": 3, "spacing_mm": 0.0},
        {"width": 9, "stages": 3, "spacing_mm": 2.0},
        {"width": 8, "stages": 3},
        {"width": 10**9, "stages": 3, "spacing_mm": 2.0},
    ],
)
def test_damaged_weights_are_refused(record, tmp_path):
    state = TissueNet(width=8, stages=3).state_dict()
    write_weights(tmp_path / "n.safetensors", state, {"tissue_network": json.dumps(record)})
    with pytest.raises(ValueError, match=r"n\.safetensors"):
        read_tissue_net(tmp_path / "n.safetensors")


def test_weights_of_another_network_are_refused(tmp_path):
    write_weights(tmp_path / "n.safetensors", {"a": torch.zeros(3)}, {})
    with pytest.raises(ValueError, match="does not hold a network that finds tissues"):
        read_tissue_net(tmp_path / "n.safetensors")


def moved(tissue: np.ndarray, mm: float) -> tuple[np.ndarray, np.ndarray]:
    """The tissues after a smooth displacement, and the displacement (D, H, W, 3) in mm by which they are found."""
    grid = Volume(tissue.astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    rng = np.random.default_rng(5)
    vectors = np.stack([gaussian_filter(rng.normal(size=tissue.shape), 8.0) for _ in range(3)], axis=-1)
    vectors *= mm / np.linalg.norm(vectors, axis=-1).max()
    field = compose_to_field([AffineTransform(np.eye(4))], grid)
    field = replace(field, vectors_mm=vectors.astype(np.float32))
    return resample(grid, grid, field, order="nearest").array.astype(int), vectors


@pytest.mark.slow
def test_scans_of_two_contrasts_are_registered_by_their_tissues():
    tissue, inside = brain()
    warped, vectors = moved(tissue, 6.0)
    moving, fixed = shown(tissue, "T2"), shown(warped, "T1", seed=1)
    lines: list[str] = []
    network = knowing((moving, tissue), (fixed, warped))
    found = register(moving, fixed, network=network, progress=lines.append)
    assert found.choice.similarity == "mi, and ncc of tissues"
    assert any(line.startswith("tissues") for line in lines)
    assert [stage.kept for stage in found.choice.stages] == [True]
    error = np.linalg.norm(found.forward.vectors_mm - vectors, axis=-1)[inside].mean()
    assert error < 0.7 * np.linalg.norm(vectors, axis=-1)[inside].mean()


@pytest.mark.slow
def test_scans_of_one_contrast_need_no_network():
    tissue, _ = brain()
    warped, _ = moved(tissue, 6.0)
    moving, fixed = shown(tissue, "T1"), shown(warped, "T1", seed=1)
    lines: list[str] = []
    found = register(moving, fixed, network=knowing(), progress=lines.append)
    plain = register(moving, fixed)
    np.testing.assert_array_equal(found.forward.vectors_mm, plain.forward.vectors_mm)
    assert "  the scans have one contrast: the network is not needed" in lines


def test_a_network_of_another_method_is_refused():
    tissue, _ = brain()
    scan = shown(tissue, "T1")
    other = scan.with_array(scan.array[::-1].copy())
    for settings in (RegistrationSettings(method="nestedmorph"), RegistrationSettings(method="field")):
        with pytest.raises(ValueError, match="must have its own network"):
            register(scan, other, settings, network=knowing())
    with pytest.raises(ValueError, match="got none"):
        register(scan, other, RegistrationSettings(method="tissues"))


def test_validation_scans_end(head):
    scans = SyntheticScans([head], size=SIZE, spacing_mm=SPACING, seed=0, count=2)
    assert len(list(scans)) == 2
    with pytest.raises(IndexError):
        scans[2]


def test_a_training_begins_with_the_given_weights(tmp_path):
    network = TissueNet(width=8)
    save_tissue_net(tmp_path / "n.safetensors", TrainedTissueNet(network, 2.0), {})
    options = {"start_from": str(tmp_path / "n.safetensors"), "width": 8}
    module = TissueModule(options, [])
    for name, value in network.state_dict().items():
        assert torch.equal(module.network.state_dict()[name], value)
        assert torch.equal(module.average.state_dict()[name], value)
    with pytest.raises(ValueError, match="same layout"):
        TissueModule(options | {"width": 16}, [])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
def test_a_resumed_training_gives_the_weights_of_an_uninterrupted_one(folder, tmp_path, monkeypatch):
    whole = read_tissue_net(train_tissues(folder, tmp_path / "whole", TINY, device="cpu"))
    draw = SyntheticScans.__getitem__

    def until_the_power_fails(scans, number):
        if number == 4 and scans.count is None:  # in the second epoch
            raise RuntimeError("the power fails")
        return draw(scans, number)

    monkeypatch.setattr(SyntheticScans, "__getitem__", until_the_power_fails)
    with pytest.raises(RuntimeError, match="the power fails"):
        train_tissues(folder, tmp_path / "parts", TINY, device="cpu")
    monkeypatch.setattr(SyntheticScans, "__getitem__", draw)
    with pytest.raises(ValueError, match="must keep its options"):
        train_tissues(folder, tmp_path / "parts", replace(TINY, seed=1), device="cpu", resume=True)
    resumed = read_tissue_net(train_tissues(folder, tmp_path / "parts", TINY, device="cpu", resume=True))
    for one, other in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    record = json.loads((tmp_path / "parts/training.json").read_text())
    assert record["maps"] == ["head-0.nii.gz", "head-1.nii.gz"]
    assert record["metrics"]["val_loss"] > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
def test_images_that_another_process_draws_give_the_same_weights(folder, tmp_path):
    found = [
        train_tissues(folder, tmp_path / str(workers), replace(TINY, workers=workers), device="cpu").read_bytes()
        for workers in (0, 1)
    ]
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_few_steps_lower_the_loss_of_a_scan(head):
    torch.manual_seed(0)
    module = TissueModule({"width": 8, "learning_rate": 3e-3}, [])
    item = {name: value[None] for name, value in scan(head, 1).items()}
    optimizer = module.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = 3e-3  # without the first steps of the schedule
    losses = []
    for _ in range(30):
        loss, _ = tissue_loss(module.network(item["image"]), item["tissues"])
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.slow
def test_the_shipped_weights_find_the_tissues_of_a_person_who_took_no_part(shared_data):
    trained = read_tissue_net(find_weights("brain-any-contrast", "registration"))
    (file,) = (shared_data / "mri_t1_labels/synthseg_labels").glob("training_seg_13*")
    person = label_map(read_volume(file, ndim=3))
    scores = []
    for number in range(3):  # three contrasts
        item = synthetic_scan(person, size=(80, 96, 80), spacing_mm=trained.spacing_mm, seed=12, number=number)
        with torch.inference_mode():
            _, dice = tissue_loss(trained.network(item["image"][None]), item["tissues"][None])
        scores.append(dice[0])
    assert torch.stack(scores).mean(dim=0).min() > 0.7
    assert torch.stack(scores).mean() > 0.82
