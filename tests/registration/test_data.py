"""Pairs from lists and folders, split by subject, resampled to one grid and augmented with seeded randomness."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from voxelwave.registration.data import augmentation, pair_dataset, prepare
from voxelwave.registration.diffusion import write_bvecs
from voxelwave.registration.grids import training_grid, unit_range
from voxelwave.registration.pairs import Pair, find_pairs, read_pairs, split_by_subject
from voxelwave.registration.series import load_fixed
from voxelwave.registration.training import train
from voxelwave.volumes import Volume, VolumeWarning, write_volume

SHAPE = (24, 20, 16)
TURNED = np.array([[np.cos(0.1), -np.sin(0.1), 0], [np.sin(0.1), np.cos(0.1), 0], [0, 0, 1]])
OBLIQUE = np.eye(4)  # axes A, L, S
OBLIQUE[:3, :3] = TURNED @ [[0, -1.9, 0], [2, 0, 0], [0, 0, 2.9]]
OBLIQUE[:3, 3] = (20, -15, -20)


def image(seed: int = 0, affine: np.ndarray = OBLIQUE) -> Volume:
    smooth = gaussian_filter(np.random.default_rng(seed).random(SHAPE), 2)
    inside = np.sum((np.indices(SHAPE) - np.reshape(SHAPE, (3, 1, 1, 1)) / 2) ** 2, axis=0) < 49
    return Volume((1000 * smooth * inside).astype(np.float32), affine)


def labels(seed: int = 0, affine: np.ndarray = OBLIQUE) -> Volume:
    values = image(seed).array
    return Volume(np.digitize(values, [1, 480, 520]).astype(np.int16), affine)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three subjects with T1w, labels and a small diffusion series."""
    bvals = np.array([0, 0, *[1000] * 6])
    bvecs = np.vstack(
        [np.zeros((2, 3)), [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.8, 0], [0, 0.6, 0.8], [0.8, 0, 0.6]]]
    )
    for number in range(3):
        place = tmp_path / "bids" / f"sub-{number}"
        write_volume(place / f"anat/sub-{number}_T1w.nii.gz", image(number))
        write_volume(place / f"anat/sub-{number}_dseg.nii.gz", labels(number))
        series = np.stack([image(number).array * (1.0 if b == 0 else 0.5) for b in bvals], axis=-1)
        write_volume(place / f"dwi/sub-{number}_dwi.nii.gz", Volume(series, OBLIQUE))
        (place / f"dwi/sub-{number}_dwi.bval").write_text(" ".join(map(str, bvals)))
        write_bvecs(place / f"dwi/sub-{number}_dwi.bvec", bvecs)
    return tmp_path / "bids"


def write_table(folder: Path, text: str, name: str = "pairs.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_table_and_its_json_twin_give_the_same_pairs(folder: Path) -> None:
    t1, seg = "sub-0/anat/sub-0_T1w.nii.gz", "sub-0/anat/sub-0_dseg.nii.gz"
    row = {"moving": t1, "fixed": t1, "moving_labels": seg, "fixed_labels": "", "subject": "a", "split": "val"}
    table = write_table(folder, ",".join(row) + "\n" + ",".join(row.values()) + "\n")
    listed = write_table(folder, json.dumps([row]), "pairs.json")
    (pair,) = read_pairs(table)
    assert [pair] == read_pairs(listed)
    assert pair == Pair(folder / t1, folder / t1, "a", folder / seg, None, split="val")
    assert not pair.has_labels


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("moving,subject\na,b\n", r"pairs\.csv:1 has no column fixed"),
        ("moving,fixed,sbuject\na,b,c\n", r"pairs\.csv:1 has unknown columns sbuject"),
        ("moving,fixed\n{t1},{t1}\n{t1},gone.nii\n", r"pairs\.csv:3: fixed not found: .*gone\.nii"),
        ("moving,fixed\n{t1},\n", r"pairs\.csv:2: fixed is empty"),
        ("moving,fixed\n{t1}\n", r"pairs\.csv:2 must have 2 columns"),
        ("moving,fixed,split\n{t1},{t1},training\n", r"pairs\.csv:2: split must be one of train, val, test"),
        ("moving,fixed,contrast\n{t1},{t1},t2\n", r"pairs\.csv:2: contrast must be one of image, b0, fa, dwi"),
        ("moving,fixed\n", "must name at least one pair"),
    ],
)
def test_mistakes_in_a_table_are_named_with_their_line(folder: Path, text: str, words: str) -> None:
    table = write_table(folder, text.replace("{t1}", "sub-0/anat/sub-0_T1w.nii.gz"))
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        read_pairs(table)


def test_a_table_names_masks(folder: Path, tmp_path: Path) -> None:
    t1, seg = "sub-0/anat/sub-0_T1w.nii.gz", "sub-0/anat/sub-0_dseg.nii.gz"
    first = f"moving,fixed,moving_mask,fixed_mask\n{t1},{t1},{seg},\n"
    (pair,) = read_pairs(write_table(folder, first))
    assert (pair.moving_mask, pair.fixed_mask) == (folder / seg, None)
    assert not pair.has_labels
    with pytest.raises(FileNotFoundError, match=r"pairs\.csv:3: fixed_mask not found: .*gone\.nii"):
        read_pairs(write_table(folder, f"{first}{t1},{t1},,gone.nii\n"))
    masked = write_table(folder, f"moving,fixed,moving_mask,split\n{t1},{t1},{seg},val\n")
    with pytest.warns(UserWarning, match="masks in the list are not used"), pytest.raises(ValueError, match="got 1"):
        train(masked, tmp_path / "out", device="cpu")


def test_mistakes_in_a_json_list_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pairs\.json must be JSON: line 2:"):
        read_pairs(write_table(tmp_path, "[\n{]", "pairs.json"))
    with pytest.raises(ValueError, match="must hold a list of objects"):
        read_pairs(write_table(tmp_path, "{}", "pairs.json"))
    with pytest.raises(ValueError, match="entry 0 has no column fixed"):
        read_pairs(write_table(tmp_path, '[{"moving": "a"}]', "pairs.json"))
    with pytest.raises(ValueError, match=r"end in \.csv, \.tsv or \.json"):
        read_pairs(write_table(tmp_path, "", "pairs.txt"))
    with pytest.raises(FileNotFoundError, match="no list of pairs"):
        read_pairs(tmp_path / "gone.csv")


def test_a_folder_gives_pairs_within_and_between_subjects(folder: Path, tmp_path: Path) -> None:
    for scan in sorted(folder.rglob("*.nii.gz")):
        scan.with_name(f"._{scan.name}").write_bytes(b"of macOS")  # ignored, like all hidden files
    within = find_pairs(folder, "t1-dwi", contrast="fa")
    assert [(p.subject, p.contrast, p.fixed.name) for p in within] == [
        (f"sub-{n}", "fa", f"sub-{n}_dwi.nii.gz") for n in range(3)
    ]
    between = find_pairs(folder, "patient-to-patient")
    assert len(between) == 6
    assert all(p.subject != p.fixed_subject and p.has_labels for p in between)
    write_volume(tmp_path / "atlas_T1w.nii.gz", image(9))
    to_patients = find_pairs(folder, "atlas-to-patient", atlas=tmp_path / "atlas_T1w.nii.gz")
    assert [p.subject for p in to_patients] == ["sub-0", "sub-1", "sub-2"]
    with pytest.raises(ValueError, match="atlas must be given"):
        find_pairs(folder, "atlas-to-patient")
    with pytest.raises(ValueError, match='no pairs for task "t1-dwi"'):
        find_pairs(tmp_path, "t1-dwi")


def test_the_real_folder_gives_four_sessions_of_three_people(shared_data: Path) -> None:
    pairs = find_pairs(shared_data / "mri_t1_dwi", "t1-dwi")
    assert [p.subject for p in pairs] == ["sub-pose", "sub-pose", "sub-uih1", "sub-xa30"]


@pytest.mark.parametrize("n", [1, 2, 3, 10, 23])
def test_no_subject_is_in_two_splits(n: int) -> None:
    files = Path("a"), Path("b")
    pairs = [Pair(*files, f"s{i}", fixed_subject=f"s{j}") for i in range(n) for j in range(n)]
    splits = split_by_subject(pairs, seed=4)
    names = {split: {s for p in kept for s in (p.subject, p.fixed_subject)} for split, kept in splits.items()}
    assert sum(map(len, names.values())) == len(set.union(*names.values())) == n
    assert names["train"]
    assert bool(names["val"]) == (n >= 2)
    assert bool(names["test"]) == (n >= 3)
    assert splits == split_by_subject(pairs, seed=4)


def test_given_splits_are_checked_and_used() -> None:
    files = Path("a"), Path("b")
    pairs = [Pair(*files, "x", split="test"), Pair(*files, "y", split="train")]
    assert split_by_subject(pairs)["test"] == pairs[:1]
    with pytest.raises(ValueError, match="subject x must be in one split, got test and train"):
        split_by_subject([*pairs, Pair(*files, "x", split="train")])
    with pytest.raises(ValueError, match="for all pairs or for none"):
        split_by_subject([*pairs, Pair(*files, "z")])
    with pytest.raises(ValueError, match="sum to 1"):
        split_by_subject(pairs, fractions=(0.5, 0.1, 0.1))


def test_the_training_grid_is_isotropic_near_ras_and_covers_the_image() -> None:
    fixed = image()
    grid = training_grid(fixed, spacing_mm=2.5)
    np.testing.assert_allclose(grid.spacing, 2.5)
    assert grid.orientation == "RAS"
    corners = np.array([[i, j, k, 1] for i in (0, 23) for j in (0, 19) for k in (0, 15)]).T
    inside = (np.linalg.inv(grid.affine) @ fixed.affine @ corners)[:3]
    assert (inside > -1).all()
    assert (grid.shape > inside.T).all()


def test_cutting_off_content_gives_a_warning() -> None:
    assert training_grid(image(), spacing_mm=2, size=(32, 32, 32)).shape == (32, 32, 32)
    with pytest.warns(VolumeWarning, match=r"cuts off \d+ %"):
        training_grid(image(), spacing_mm=2, size=(8, 32, 32))
    with pytest.raises(ValueError, match="size must be three numbers"):
        training_grid(image(), spacing_mm=2, size=(8, 32))


def test_unit_range_keeps_the_background_and_survives_a_bright_voxel() -> None:
    volume = image()
    volume.array[12, 10, 8] = 1e6
    scaled = unit_range(volume).array
    assert scaled.min() == 0
    assert scaled.max() == 1
    assert (scaled[volume.array == 0] == 0).all()
    assert np.median(scaled[volume.array > 0]) > 0.5
    with pytest.raises(ValueError, match="must not be constant"):
        unit_range(volume.with_array(np.full(SHAPE, 3.0)))


def test_contrasts_of_a_series_and_the_files_they_need(folder: Path) -> None:
    pair = find_pairs(folder, "t1-dwi")[0]
    np.testing.assert_allclose(load_fixed(pair).array, image(0).array, rtol=1e-6)
    np.testing.assert_allclose(
        load_fixed(Pair(pair.moving, pair.fixed, "a", contrast="dwi")).array, image(0).array / 2, rtol=1e-6
    )
    with pytest.raises(ValueError, match="is 4-D"):
        load_fixed(Pair(pair.moving, pair.fixed, "a"))
    (folder / "sub-0/dwi/sub-0_dwi.bvec").unlink()
    with pytest.raises(FileNotFoundError, match=r'contrast "fa" of .* needs sub-0_dwi\.bvec'):
        load_fixed(Pair(pair.moving, pair.fixed, "a", contrast="fa"))


def test_images_and_labels_of_different_grids_coincide_on_the_training_grid(tmp_path: Path) -> None:
    """The same content, stored with flipped and swapped axes, gives the same item."""
    moving, seg = image(), labels()
    flip = np.array([[0, 0, 1, 0], [0, -1, 0, SHAPE[1] - 1], [1, 0, 0, 0], [0, 0, 0, 1.0]])  # new voxel -> old voxel
    for name, volume in (("m", moving), ("seg", seg)):
        write_volume(tmp_path / f"{name}.nii.gz", volume)
        write_volume(
            tmp_path / f"{name}_flipped.nii.gz",
            Volume(np.ascontiguousarray(volume.array.transpose(2, 1, 0)[:, ::-1]), volume.affine @ flip),
        )
    pair = Pair(
        *(tmp_path / f"{n}.nii.gz" for n in ("m_flipped", "m")),
        "a",
        *(tmp_path / f"{n}.nii.gz" for n in ("seg_flipped", "seg")),
    )
    item = prepare(pair, spacing_mm=2.5, size=(24, 24, 24), affine="none")
    assert item["moving"].shape == item["fixed_labels"].shape == (1, 24, 24, 24)
    assert item["fixed_labels"].dtype == torch.int64
    assert item["spacing"].tolist() == [2.5] * 3
    torch.testing.assert_close(item["moving"], item["fixed"], atol=2e-3, rtol=0)
    different = (item["moving_labels"] != item["fixed_labels"]).float().mean()
    assert different < 1e-3  # ties between two equally near voxels
    assert set(item["fixed_labels"].unique().tolist()) == {0, 1, 2, 3}


def test_labels_are_flipped_with_the_image_and_the_seed_repeats_it(folder: Path) -> None:
    pair = find_pairs(folder, "patient-to-patient")[0]
    item = prepare(pair, spacing_mm=3, affine="none")
    item["moving"] = item["moving_labels"].float() / 3  # labels that are visible in the image
    item["fixed"] = item["fixed_labels"].float() / 3
    draws = []
    for seed in (1, 1, 2):
        changed = augmentation(labels=True).set_random_state(seed)(dict(item))
        draws.append(changed)
        assert type(changed["moving"]) is torch.Tensor
        assert changed["moving_labels"].dtype == torch.int64
        for name in ("moving", "fixed"):
            shown = changed[f"{name}_labels"] > 0
            agree = ((changed[name] > 1 / 6) == shown).float().mean()  # gamma moves the edge of a blurred image a bit
            assert agree > 0.97
    for name in ("moving", "fixed", "moving_labels", "fixed_labels"):
        torch.testing.assert_close(draws[0][name], draws[1][name])
    assert not torch.equal(draws[0]["moving"], draws[2]["moving"])


def test_the_data_set_prepares_once_and_validation_items_never_change(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = find_pairs(folder, "patient-to-patient")[:2]
    for cache_dir in (None, tmp_path / "cache"):
        calls: list[str] = []
        monkeypatch.setattr(
            "voxelwave.registration.data.prepare",
            lambda pair, **options: calls.append(pair.subject) or prepare(pair, **options),  # noqa: B023
        )
        data = pair_dataset(pairs, spacing_mm=3, affine="none", cache_dir=cache_dir)
        torch.testing.assert_close(data[0]["moving"], data[0]["moving"])
        _ = data[1]
        first, second = (
            pair_dataset(pairs, spacing_mm=3, affine="none", augment=True, seed=3, cache_dir=cache_dir)
            for _ in range(2)
        )
        draws = [first[0]["moving"], first[0]["moving"]]
        assert not torch.equal(*draws)
        torch.testing.assert_close([second[0]["moving"], second[0]["moving"]], draws, rtol=0, atol=0)
        if cache_dir is not None:
            assert len(calls) == 2
            pair_dataset(pairs, spacing_mm=4, affine="none", cache_dir=cache_dir)[0]
            assert len(calls) == 3  # other options give another item


def test_pairs_with_and_without_labels_do_not_mix(folder: Path) -> None:
    first, second = find_pairs(folder, "patient-to-patient")[:2]
    bare = Pair(second.moving, second.fixed, "bare")
    with pytest.raises(ValueError, match="got bare without them"):
        pair_dataset([first, bare], spacing_mm=3)
    with pytest.raises(ValueError, match="at least one pair"):
        pair_dataset([], spacing_mm=3)
