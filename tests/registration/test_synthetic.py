"""Synthetic pairs: drawn from a seed, of two contrasts, without folds, with labels that follow the deformation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from voxelwave.registration.module import RegistrationModule, correspondence_error
from voxelwave.registration.nestedmorph_files import load_nestedmorph, read_training_options
from voxelwave.registration.synthetic import (
    PEAK_MM,
    Acquired,
    LabelMap,
    Spread,
    _voxels,
    acquire,
    dense,
    label_map,
    random_acquisition,
    random_contrast,
    random_displacement,
    random_image,
    random_places,
    read_label_maps,
    scored_labels,
    synthetic_pair,
)
from voxelwave.registration.synthetic_data import EpochNumbers, SyntheticPairs, ValidationPairs, held_out
from voxelwave.registration.training import train
from voxelwave.registration.training_settings import TrainingSettings
from voxelwave.registration.warp import jacobian_determinant, voxel_grid, warp
from voxelwave.runs.generators import item_generator
from voxelwave.volumes import Volume, write_volume

SIZE, SPACING = (24, 20, 28), 6.0
CONFIG = Path(__file__).parents[2] / "apps/configs/registration/nestedmorph_any_contrast.yaml"


def ellipsoids(turn: float = 0.0) -> Volume:
    """A head of nested ellipsoids, 30 x 36 x 32 voxels of 5 mm, with axes L, I, A."""
    shape = (30, 32, 36)
    x, z, y = ((np.indices(shape).T - np.array(shape) / 2 + 0.5) * 5.0).T  # mm to the left, down and to the front
    x, left = x + turn * y, x > 0

    def inside(a: float, b: float, c: float) -> np.ndarray:
        return (x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2 < 1

    labels = np.zeros(shape, np.int16)
    labels[inside(68, 82, 74)] = 515
    labels[inside(62, 76, 68)] = 24
    for right_label, left_label, axes in [
        (42, 3, (58, 70, 62)),
        (41, 2, (46, 58, 50)),
        (49, 10, (34, 40, 30)),
        (43, 4, (22, 30, 20)),
        (163, 136, (10, 12, 10)),
    ]:
        labels[inside(*axes)] = np.where(left, left_label, right_label)[inside(*axes)]
    affine = np.array([[-5.0, 0, 0, 70], [0, 0, 5, -90], [0, -5, 0, 80], [0, 0, 0, 1]])
    return Volume(labels, affine)


@pytest.fixture(scope="module")
def head() -> LabelMap:
    return label_map(ellipsoids(), name="head")


def pair(head: LabelMap, number: int, seed: int = 0) -> dict:
    return dict(synthetic_pair(head, size=SIZE, spacing_mm=SPACING, seed=seed, number=number))


TENSORS = (
    *("moving", "fixed", "moving_labels", "fixed_labels", "spacing"),
    *("moving_places", "fixed_places", "fixed_head"),
)


def test_a_pair_depends_on_its_seed_and_number_only(head: LabelMap) -> None:
    first, again = pair(head, 3), pair(head, 3)
    for name in TENSORS:
        torch.testing.assert_close(again[name], first[name], rtol=0, atol=0)
    for other in (pair(head, 4), pair(head, 3, seed=1)):
        assert all(not torch.equal(other[name], first[name]) for name in TENSORS[:4])


def test_items_are_like_those_of_scans(head: LabelMap) -> None:
    for number in range(12):
        item = pair(head, number)
        for image in ("moving", "fixed"):
            values, labels = item[image], item[f"{image}_labels"]
            assert values.shape == labels.shape == (1, *SIZE)
            assert (values.dtype, labels.dtype) == (torch.float32, torch.int64)
            assert values.isfinite().all()
            assert values.min() == 0
            assert values.max() == 1
            assert set(labels.unique().tolist()) == {0, 2, 3, 4, 10, 24, 41, 42, 43, 49}
        torch.testing.assert_close(item["spacing"], torch.full((3,), SPACING))
        assert item["subject"] == "head"


def _explained(image: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of the variance of the labelled voxels that the means of the labels explain."""
    values, which = image[labels > 0].double(), labels[labels > 0]
    within = sum(float(((values[which == n] - values[which == n].mean()) ** 2).sum()) for n in which.unique())
    return 1 - within / float(((values - values.mean()) ** 2).sum())


@pytest.fixture
def far_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of a pair differ more than those of a training."""
    monkeypatch.setattr("voxelwave.registration.synthetic._APART", Spread(degrees=4, share=0.04, shift_mm=3))
    monkeypatch.setattr("voxelwave.registration.synthetic.PEAK_MM", 12.0)


@pytest.mark.usefixtures("far_apart")
def test_images_show_their_own_labels_in_two_contrasts(head: LabelMap) -> None:
    own, other, correlations = [], [], []
    for number in range(20):
        item = pair(head, number)
        own.append(_explained(item["moving"], item["moving_labels"]))
        other.append(_explained(item["moving"], item["fixed_labels"]))
        means = [
            [float(item[i][item[f"{i}_labels"] == n].mean()) for n in (2, 3, 4, 10, 41, 42, 43, 49)]
            for i in ("moving", "fixed")
        ]
        correlations.append(np.corrcoef(means)[0, 1])
    assert np.mean(own) > np.mean(other) + 0.1
    assert np.mean(np.array(own) > other) > 0.8
    assert min(correlations) < -0.3
    assert np.mean(correlations) < 0.6


@pytest.mark.parametrize("number", range(6))
def test_displacements_are_smooth_and_do_not_fold(number: int) -> None:
    displacement = dense(random_displacement(SIZE, SPACING, item_generator(0, number)), SIZE) / SPACING
    assert 0.1 < displacement.norm(dim=0).max() * SPACING <= PEAK_MM + 1e-3
    assert jacobian_determinant(displacement[None]).min() > 0
    places = dense(random_places(SIZE, SPACING, item_generator(0, number)), SIZE) / SPACING
    assert jacobian_determinant(places[None] - voxel_grid(SIZE)).min() > 0


def test_a_small_grid_is_interpolated_linearly_at_every_sample() -> None:
    small = voxel_grid((8, 9, 10))[0]
    factor = torch.tensor([15 / 7, 17 / 8, 19 / 9]).view(3, 1, 1, 1)  # the corners are the same
    torch.testing.assert_close(dense(small, (16, 18, 20)) * factor, voxel_grid((16, 18, 20))[0])
    halves = dense(small, (16, 18, 20), 2)[0, :4, 0, 0] * 15 / 7
    torch.testing.assert_close(halves, torch.tensor([-0.25, 0.25, 0.75, 1.25]))


def test_labels_follow_the_deformation(monkeypatch: pytest.MonkeyPatch) -> None:
    head, drawn = label_map(ellipsoids(0.3)), []
    monkeypatch.setattr("voxelwave.registration.synthetic._POSE", Spread(degrees=0, share=0, shift_mm=0))
    monkeypatch.setattr(
        "voxelwave.registration.synthetic.random_places",
        lambda *args: drawn.append(random_places(*args)) or drawn[-1],
    )
    item = pair(head, 5)
    table = scored_labels(head.indices, head.numbers)[None, None]
    agreement = []
    for name, places in zip(("moving", "fixed"), drawn, strict=True):
        points = dense(places, SIZE) / head.spacing.view(3, 1, 1, 1)
        for sign in (1, -1):  # as they are, or mirrored
            at = points * torch.tensor([sign, 1, 1]).view(3, 1, 1, 1) + head.centre.view(3, 1, 1, 1)
            warped = warp(table, at[None] - voxel_grid(SIZE), mode="nearest")[0]
            if sign < 0:
                side = {0: 0, 24: 24, 2: 41, 3: 42, 4: 43, 10: 49}
                side |= {right: left for left, right in side.items()}
                warped = warped.clone().apply_(side.__getitem__)
            agreement.append(float((warped == item[f"{name}_labels"]).double().mean()))
    used = int(agreement[1] > agreement[0])  # both images of a pair are mirrored, or none
    assert agreement[used::2] == pytest.approx([1, 1], abs=2e-3)  # halves may be rounded otherwise
    assert max(agreement[1 - used :: 2]) < 0.95


def test_places_are_those_that_the_images_show(head: LabelMap) -> None:
    """Labels looked up at the places are those of the item, and the same place has the same label in both images."""
    for number in (0, 1):
        item = pair(head, number)
        for name in ("moving", "fixed"):
            found = [
                scored_labels(torch.take(head.indices, _voxels(head, item[f"{name}_places"], mirrored)), head.numbers)
                for mirrored in (False, True)
            ]
            assert any(torch.equal(labels > 0, item[f"{name}_labels"][0] > 0) for labels in found)
        assert bool((item["fixed_head"] >= (item["fixed_labels"] > 0)).all())


def test_the_error_of_correspondence_is_a_distance_in_mm(head: LabelMap) -> None:
    item = pair(head, 0)
    batch = {name: item[name][None] for name in TENSORS}
    still = torch.zeros(1, 3, *SIZE)
    batch["moving_places"] = batch["fixed_places"]
    assert float(correspondence_error(batch, still)) == pytest.approx(0, abs=0.05)
    grid = torch.stack(torch.meshgrid(*[torch.arange(n) * SPACING for n in SIZE], indexing="ij"))[None]
    batch["moving_places"], batch["fixed_places"] = grid, grid + torch.tensor([3.0, 0, 4]).view(1, 3, 1, 1, 1)
    assert float(correspondence_error(batch, still)) == pytest.approx(5, abs=0.05)
    batch["fixed_head"] *= 0
    batch["fixed_head"][..., 4:-4, 4:-4, 4:-4] = 1  # whose true places lie within the moving image
    batch["fixed_labels"] = batch["fixed_head"]
    true = (torch.tensor([3.0, 0, 4]) / SPACING).view(1, 3, 1, 1, 1).expand_as(still)
    assert float(correspondence_error(batch, true)) == pytest.approx(0, abs=0.05)


def test_both_images_can_have_one_contrast(head: LabelMap) -> None:
    """The mean brightness of each label then hardly differs between the images, apart from bias and gamma."""
    options = {"size": SIZE, "spacing_mm": SPACING, "seed": 0}
    correlations: dict[bool, list[float]] = {True: [], False: []}
    for number in range(12):
        for one_contrast, found in correlations.items():
            item = synthetic_pair(head, **options, number=number, one_contrast=one_contrast)
            means = [
                [float(item[name][item[f"{name}_labels"] == label].mean()) for label in (2, 3, 4, 41, 42)]  # type: ignore[literal-required]
                for name in ("moving", "fixed")
            ]
            found.append(float(np.corrcoef(means)[0, 1]))
        torch.testing.assert_close(item["moving"], pair(head, number)["moving"], rtol=0, atol=0)
    assert np.median(correlations[True]) > 0.9
    assert np.median(correlations[False]) < 0.6
    pairs = SyntheticPairs([head], size=SIZE, spacing_mm=SPACING, seed=0, alike=1)
    torch.testing.assert_close(pairs[1]["fixed"], pair(head, 1)["fixed"], rtol=0, atol=0)
    assert not torch.equal(pairs[0]["fixed"], pair(head, 0)["fixed"])


def test_partial_volume_is_the_mean_of_the_samples(head: LabelMap, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a contrast that is the label itself, voxels inside a label have its value, those on an edge lie between."""
    monkeypatch.setattr("voxelwave.registration.synthetic.acquire", lambda image, *args: image)
    monkeypatch.setattr("voxelwave.registration.synthetic._bias", lambda *args: torch.ones(()))
    samples = torch.zeros(16, 16, 16, dtype=torch.uint8)
    samples[5:] = 1
    image = random_image(
        samples[::2, ::2, ::2],
        samples,
        contrast=(torch.tensor([0.0, 1]), torch.zeros(2)),
        spacing_mm=1.0,
        brain_only=False,
        generator=item_generator(0, 0),
    )
    torch.testing.assert_close(image[[0, 1, 3, 7], 0, 0], torch.tensor([0.0, 0, 1, 1]))
    assert 0.2 < image[2].unique().item() < 0.9  # half of the voxel, after a gamma


def test_choroid_plexus_is_part_of_the_ventricle_and_the_head_is_not_scored() -> None:
    numbers = (0, 4, 5, 24, 43, 136, 137, 163, 164, 515)
    indices = torch.arange(len(numbers), dtype=torch.uint8)
    assert scored_labels(indices, numbers).tolist() == [0, 4, 0, 24, 43, 4, 4, 43, 43, 0]
    assert scored_labels(indices, numbers, mirrored=True).tolist() == [0, 43, 0, 24, 4, 43, 43, 4, 4, 0]


def test_contrasts_leave_out_the_tissue_around_the_brain() -> None:
    numbers = (0, 2, 3, 41, 42, 515)
    for number in range(10):
        mean, spread = random_contrast(numbers, brain_only=True, generator=item_generator(0, number))
        assert mean[[0, 5]].tolist() == spread[[0, 5]].tolist() == [0, 0]
        assert (mean[1:5] > 0).all()
    pairs = [random_contrast(numbers, brain_only=False, generator=item_generator(1, n))[0] for n in range(40)]
    alike = np.mean([bool(mean[1] == mean[3]) for mean in pairs])
    assert 0.4 < alike < 0.95  # left and right are often, but not always, alike
    assert 0.5 < np.mean([bool(mean[0] == 0) for mean in pairs]) < 1


def test_thick_slices_and_slabs_occur() -> None:
    drawn = [random_acquisition(SIZE, SPACING, item_generator(0, n)) for n in range(200)]
    thick = [d for d in drawn if d.thickness_mm is not None]
    cut = [d for d in drawn if d.slab[1] - d.slab[0] < SIZE[d.slab_axis]]
    assert 50 < len(thick) < 110
    assert 20 < len(cut) < 65
    assert {d.axis for d in thick} == {d.slab_axis for d in cut} == {0, 1, 2}
    assert all(d.thickness_mm is not None and SPACING <= d.thickness_mm <= 12 for d in thick)
    assert all(0 <= d.slab[0] < d.slab[1] <= SIZE[d.slab_axis] for d in drawn)


def test_thick_slices_are_joined_by_lines_and_slabs_are_empty_outside() -> None:
    image = torch.rand(25, 20, 16, generator=torch.Generator().manual_seed(0)) + 1
    thick = acquire(image, Acquired(8.0, 0, (0, 16), 2), 2.0, item_generator(0, 0))
    bends = thick.diff(n=2, dim=0).abs().amax((1, 2)) > 1e-4
    assert bends.nonzero().flatten().tolist() == [3, 7, 11, 15, 19]  # a slice at every fourth voxel
    slab = acquire(image, Acquired(None, 0, (3, 15), 2), 2.0, item_generator(0, 0))
    assert (slab.amax((0, 1)) > 0).tolist() == [3 <= at < 15 for at in range(16)]


def test_label_maps_are_turned_to_ras_and_cropped() -> None:
    head = label_map(ellipsoids())
    canonical = ellipsoids().array[::-1, ::-1].transpose(0, 2, 1)  # L, I, A -> R, A, S
    assert [head.numbers[int(head.indices[at])] for at in ((14, 17, 15), (1, 17, 15))] == [136, 515]
    inner = head.indices[1:-1, 1:-1, 1:-1].numpy()
    box = np.argwhere(canonical > 0)
    cropped = canonical[tuple(slice(a, b + 1) for a, b in zip(box.min(0), box.max(0), strict=True))]
    np.testing.assert_array_equal(np.array(head.numbers)[inner], cropped)
    assert not head.indices[[0, -1]].any()
    torch.testing.assert_close(head.centre, (torch.tensor(head.indices.shape) - 1) / 2)
    torch.testing.assert_close(head.spacing, torch.full((3,), 5.0))


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda a: a + 0.5, "must hold whole numbers from 0"), (lambda a: a * 0 + 600, "FreeSurfer's numbers")],
)
def test_other_images_are_refused(change, words) -> None:
    head = ellipsoids()
    with pytest.raises(ValueError, match=words):
        label_map(head.with_array(change(head.array)), name="a.nii.gz")


def test_a_grid_that_is_too_small_is_named(head: LabelMap) -> None:
    with pytest.raises(ValueError, match="size must be at least 8 along each axis"):
        synthetic_pair(head, size=(4, 24, 24), spacing_mm=2.0, seed=0, number=0)


def test_epochs_continue_the_numbers_of_the_items() -> None:
    numbers = EpochNumbers(3)
    assert list(numbers) == [0, 1, 2]
    numbers.set_epoch(4)
    assert list(numbers) == [12, 13, 14]


def test_the_last_three_maps_are_held_out(head: LabelMap) -> None:
    maps = [replace(head, name=str(n)) for n in range(5)]
    training, validation = held_out(maps)
    assert ([m.name for m in training], [m.name for m in validation]) == (["0", "1"], ["2", "3", "4"])
    with pytest.raises(ValueError, match="must hold more than 3 label maps"):
        held_out(maps[:3])
    pairs = SyntheticPairs(training, size=SIZE, spacing_mm=SPACING, seed=0)
    assert [pairs[n]["subject"] for n in range(3)] == ["0", "1", "0"]
    fixed = ValidationPairs(validation, size=SIZE, spacing_mm=SPACING)
    assert [fixed[n]["subject"] for n in (0, 1, 2, 11)] == ["2", "3", "4", "4"]
    assert len(list(fixed)) == 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five heads, each a little different."""
    for number in range(5):
        write_volume(tmp_path / f"maps/head-{number}.nii.gz", ellipsoids(0.05 * number))
    (tmp_path / "maps/._head-0.nii.gz").write_bytes(b"of another system")
    return tmp_path / "maps"


def test_label_maps_of_a_folder_are_read_by_name(folder: Path, tmp_path: Path) -> None:
    assert [labels.name for labels in read_label_maps(folder)] == [f"head-{n}.nii.gz" for n in range(5)]
    with pytest.raises(FileNotFoundError, match="no label maps"):
        read_label_maps(tmp_path / "gone")


def _settings(folder: Path) -> TrainingSettings:
    options = yaml.safe_load(CONFIG.read_text())
    tiny = {"size": (32, 32, 32), "spacing_mm": 6.0, "epochs": 2, "epoch_steps": 1, "accumulate": 2, "width": 16}
    return TrainingSettings(**options | tiny, synthetic=folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
def test_a_training_whose_images_another_process_draws_gives_the_same_weights(folder: Path, tmp_path: Path) -> None:
    settings = _settings(folder)
    for workers in (0, 1):
        train(None, tmp_path / str(workers), replace(settings, workers=workers), device="cpu")
    one, other = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for name in ("0", "1")
    )
    torch.testing.assert_close(other, one, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
def test_a_resumed_training_gives_the_weights_of_an_uninterrupted_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(folder)
    whole = train(None, tmp_path / "whole", settings, device="cpu")
    seen: list[int] = []
    draw = SyntheticPairs.__getitem__

    def until_the_power_fails(pairs: SyntheticPairs, number: int):
        if number == 3:  # in the second epoch, of the items 2 and 3
            raise RuntimeError("the power fails")
        return draw(pairs, number)

    def noted(pairs: SyntheticPairs, number: int):
        seen.append(number)
        return draw(pairs, number)

    monkeypatch.setattr(SyntheticPairs, "__getitem__", until_the_power_fails)
    with pytest.raises(RuntimeError, match="the power fails"):
        train(None, tmp_path / "out", settings, device="cpu")
    monkeypatch.setattr(SyntheticPairs, "__getitem__", noted)
    for change, words in (
        ({"seed": 1}, r"seed \(0 before, 1 now\)"),
        ({"accumulate": 1}, r"accumulate \(2 before, 1 now\)"),
        ({"width": None}, r"width \(16 before, None now\)"),
    ):
        with pytest.raises(ValueError, match=words):
            train(None, tmp_path / "out", replace(settings, **change), device="cpu", resume=True)
    resumed = train(None, tmp_path / "out", settings, device="cpu", resume=True)
    assert [number for number in seen if number < 1000] == [2, 3]
    last, again = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "out")
    )
    torch.testing.assert_close(again, last, rtol=0, atol=0)
    assert resumed.value == whole.value
    assert whole.metric == "val_dice"
    assert whole.subjects["val"] == [f"head-{n}.nii.gz" for n in (2, 3, 4)]
    network = load_nestedmorph(whole.weights)
    assert (network.width, network.norm, network.flow_head, network.diffeomorphic) == (16, "group", "quarter", True)
    options = read_training_options(whole.weights)
    assert options is not None
    assert options["synthetic"]["maps"] == ["head-0.nii.gz", "head-1.nii.gz"]


@pytest.mark.slow
@pytest.mark.usefixtures("far_apart")
@pytest.mark.parametrize(("weight", "most"), [("label_weight", 0.9), ("correspondence_weight", 0.4)])
def test_a_few_steps_lower_the_loss_of_a_pair(head: LabelMap, weight: str, most: float) -> None:
    torch.manual_seed(0)
    item = synthetic_pair(head, size=(32, 32, 32), spacing_mm=6.0, seed=0, number=1)
    batch = {name: item[name][None] for name in TENSORS}  # type: ignore[literal-required]
    module = RegistrationModule(
        similarity_weight=0, width=16, norm="group", flow_head="quarter", diffeomorphic=True, **{weight: 1.0}
    )
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    losses = []
    for _ in range(15):
        loss = module.losses(batch, *module(batch["moving"], batch["fixed"]))["loss"]
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < most * losses[0]
