"""Patches: their seeds, positions, neighbouring slices, degradations and epochs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torch import Tensor

from voxelwave.restoration.data import (
    Pair,
    PatchDataset,
    ValidationDataset,
    downsampled,
    load_clean,
    load_pairs,
)
from voxelwave.restoration.degradations import make_degradation
from voxelwave.restoration.epochs import RestorationData, Stage
from voxelwave.restoration.images import IntensityRange
from voxelwave.restoration.settings import TrainingSettings
from voxelwave.restoration.views import dihedral, neighbours, undo_dihedral
from voxelwave.volumes import Volume, write_volume

_UNIT = IntensityRange(0, 1)


def _plain(clean: Tensor, generator: torch.Generator, intensity_range: IntensityRange) -> Tensor:
    return clean.clone()


def test_an_item_depends_on_seed_and_number_alone() -> None:
    pairs = [Pair(torch.rand(3, 1, 20, 24, generator=torch.Generator().manual_seed(1)))]
    degrade = make_degradation("gaussian", sigma=[0.01, 0.2])
    whole = PatchDataset(pairs, patch=8, length=20, degrade=degrade, seed=5)
    later = PatchDataset(pairs, patch=8, length=5, degrade=degrade, seed=5, first=10)
    for i in range(5):
        for name in ("degraded", "clean"):
            torch.testing.assert_close(later[i][name], whole[10 + i][name], rtol=0, atol=0)
    other = PatchDataset(pairs, patch=8, length=5, degrade=degrade, seed=6)
    assert not torch.equal(other[0]["clean"], whole[0]["clean"])


def test_patches_are_cut_in_all_eight_views() -> None:
    image = torch.arange(100.0).view(1, 1, 10, 10)
    patches = PatchDataset([Pair(image)], patch=3, length=200, degrade=_plain)
    steps = set()
    for i in range(len(patches)):
        clean = patches[i]["clean"][0]
        steps.add((float(clean[0, 1] - clean[0, 0]), float(clean[1, 0] - clean[0, 0])))
    assert steps == {(a, b) for one, ten in ((1.0, 10.0), (10.0, 1.0)) for a in (one, -one) for b in (ten, -ten)}


def test_patches_of_a_pair_have_the_same_position_at_any_scale() -> None:
    clean = torch.rand(2, 1, 24, 30)
    (pair,) = downsampled([Pair(clean)], lambda x: torch.nn.functional.avg_pool2d(x, 3), 3)
    patches = PatchDataset([pair], patch=4, length=20)
    for i in range(20):
        item = patches[i]
        assert item["clean"].shape == (1, 12, 12)
        torch.testing.assert_close(torch.nn.functional.avg_pool2d(item["clean"], 3), item["degraded"])


def test_neighbouring_slices_become_channels_around_the_clean_one() -> None:
    stack = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 8, 8).contiguous()
    patches = PatchDataset([Pair(stack)], patch=4, length=30, degrade=_plain, slices=3)
    for i in range(30):
        item = patches[i]
        k = int(item["clean"][0, 0, 0])
        assert item["degraded"][:, 0, 0].tolist() == [max(k - 1, 0), k, min(k + 1, 4)]
    assert neighbours(1, 0, 5) == [0] * 5


def test_a_slice_that_is_repeated_keeps_its_noise() -> None:
    noise = make_degradation("gaussian", sigma=0.1)
    stack = torch.rand(2, 1, 8, 8)
    for single, expected in ((0.0, {(True, False), (False, True)}), (1.0, {(True, True)})):
        patches = PatchDataset([Pair(stack)], patch=4, length=8, degrade=noise, slices=3, single_slices=single)
        triples = [patches[i]["degraded"] for i in range(8)]
        assert {(torch.equal(x[0], x[1]), torch.equal(x[1], x[2])) for x in triples} == expected
    for item in ValidationDataset([Pair(stack)], degrade=noise, slices=3).items:
        assert torch.equal(*item["degraded"][:2]) != torch.equal(*item["degraded"][1:])
    with pytest.raises(ValueError, match="single_slices"):
        PatchDataset([Pair(stack)], patch=4, length=1, degrade=noise, slices=3, single_slices=1.5)


def test_a_blur_uses_the_pixels_of_the_margin() -> None:
    def blur(clean: Tensor, generator: torch.Generator, intensity_range: IntensityRange) -> Tensor:
        return torch.nn.functional.avg_pool2d(clean, 3, stride=1, padding=1)

    image = torch.rand(1, 1, 12, 12)
    whole = torch.nn.functional.avg_pool2d(image, 3, stride=1, padding=1)[0, 0, 1:-1, 1:-1].flatten()
    patches = PatchDataset([Pair(image[..., :, :])], patch=4, length=40, degrade=blur, margin=1)
    inner = 0
    for i in range(40):
        inner += all(torch.isclose(v, whole, atol=1e-6).any() for v in patches[i]["degraded"].flatten())
    assert inner > 5  # patches that do not touch the image's border are blurred as in the whole image


def test_margin_of_a_blur_reaches_training_and_validation() -> None:
    image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(2))
    degradation = {"kind": "gaussian-blur", "sigma_px": 1.5}
    whole = make_degradation(**degradation)(image[0], torch.Generator(), _UNIT)
    stages = [Stage(20, 1, 8)]
    data = RestorationData(
        [Pair(image)],
        [Pair(image)],
        stages=stages,
        settings=TrainingSettings(degradation=degradation, validation_crop=32),
    )
    assert data.margin == 6
    torch.testing.assert_close(data.validation[0]["degraded"], whole[:, 16:48, 16:48])
    torch.testing.assert_close(data.validation[0]["clean"], image[0, :, 16:48, 16:48])
    for patch in data.train_dataloader().dataset:
        distance = (patch["degraded"].flatten()[:, None] - whole.flatten()).abs().amin(1)
        assert float(distance.max()) < 1e-6  # each value is one of the whole blurred image, about 1e-4 apart
    other = RestorationData(
        [Pair(image)], [Pair(image)], stages=stages, settings=TrainingSettings(degradation=degradation, margin=0)
    )
    patch = other.train_dataloader().dataset[0]["degraded"]
    assert float((patch.flatten()[:, None] - whole.flatten()).abs().amin(1).max()) > 1e-6


def test_views_are_undone() -> None:
    image = torch.rand(2, 5, 7)
    seen = [dihedral(image, view) for view in range(8)]
    for view, moved in enumerate(seen):
        torch.testing.assert_close(undo_dihedral(moved, view), image, rtol=0, atol=0)
    square = torch.arange(9.0).view(1, 3, 3)
    assert len({tuple(dihedral(square, view).flatten().tolist()) for view in range(8)}) == 8


def test_gaussian_noise_has_the_level_that_was_drawn() -> None:
    clean = torch.zeros(1, 200, 200)
    noise = make_degradation("gaussian", sigma=0.1)(clean, torch.Generator().manual_seed(0), _UNIT)
    assert abs(float(noise.std()) - 0.1) < 0.002
    levels = [
        float(make_degradation("gaussian", sigma=[0.1, 0.3])(clean, torch.Generator().manual_seed(i), _UNIT).std())
        for i in range(20)
    ]
    assert min(levels) > 0.095
    assert max(levels) < 0.305
    assert np.ptp(levels) > 0.1


def test_validation_images_are_the_same_every_time() -> None:
    pairs = [Pair(torch.rand(9, 1, 20, 16))]
    degrade = make_degradation("gaussian", sigma=0.1)
    first, second = (ValidationDataset(pairs, degrade=degrade, seed=3, per_stack=4, crop=12) for _ in range(2))
    assert len(first) == 4
    for a, b in zip(first.items, second.items, strict=True):
        torch.testing.assert_close(a["degraded"], b["degraded"], rtol=0, atol=0)
        assert a["clean"].shape == (1, 12, 12)


def test_items_are_numbered_on_through_epochs_and_stages() -> None:
    data = RestorationData(
        [Pair(torch.rand(1, 1, 16, 16))],
        [Pair(torch.rand(1, 1, 16, 16))],
        stages=[Stage(5, 2, 8), Stage(4, 3, 4)],
        settings=TrainingSettings(epoch_steps=3, degradation={"kind": "gaussian", "sigma": 0.1}),
    )
    assert (data.steps, data.epochs) == (9, 4)
    assert [(steps, first) for _, steps, first in data._plan] == [(3, 0), (2, 6), (3, 10), (1, 19)]


def test_real_ct_pair_has_one_window_for_both(shared_data: Path) -> None:
    folder = shared_data / "restoration/ct_phantom"
    (pair,) = load_pairs(
        folder / "slabA_kernel-YA_thick-1mm.nii.gz",
        folder / "slabA_kernel-UB_thick-1mm_idose.nii.gz",
        intensity_range="hu:-1000,2000",
    )
    assert pair.degraded is not None
    assert pair.degraded.shape == pair.clean.shape
    # one scan: the sharp kernel adds noise, but changes the mean by at most a few HU of 3000
    assert abs(float(pair.degraded.mean() - pair.clean.mean())) < 5 / 3000
    assert float((pair.degraded - pair.clean).std()) > 10 / 3000
    assert abs(float(pair.clean.min())) < 0.02  # air, -1000 HU, is 0


def test_pairs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for name, shape, origin in (("a", (8, 8, 3), 0.0), ("b", (8, 8, 3), 9.0), ("c", (8, 6, 3), 0.0)):
        affine = np.eye(4)
        affine[0, 3] = origin
        write_volume(tmp_path / f"{name}.nii.gz", Volume(np.ones(shape, np.int16), affine))
    with pytest.raises(ValueError, match="same position"):
        load_pairs(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", intensity_range="0,2")
    with pytest.raises(ValueError, match="multiple"):
        load_pairs(tmp_path / "a.nii.gz", tmp_path / "c.nii.gz", intensity_range="0,2")
    with pytest.raises(ValueError, match="must be fixed"):
        load_pairs(tmp_path / "a.nii.gz", tmp_path / "a.nii.gz", intensity_range="auto")


def test_colour_becomes_luminance_and_patches_must_fit(tmp_path: Path) -> None:
    Pillow.fromarray(np.full((9, 9, 3), [255, 0, 0], np.uint8)).save(tmp_path / "red.png")
    (pair,) = load_clean(tmp_path, grey=True)
    torch.testing.assert_close(pair.clean, torch.full((1, 1, 9, 9), 0.299))
    with pytest.raises(ValueError, match=r"red\.png is \(9, 9\), smaller than patch"):
        PatchDataset([pair], patch=10, length=1, degrade=_plain)
