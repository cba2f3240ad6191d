"""`registration cross-validate`: no person on both sides, settings from other people, and a page in words of pairs."""

import importlib
import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from voxelwave.apps import cli
from voxelwave.apps.registration.cross_validate import folds_by_person
from voxelwave.runs.exit import ERROR, USAGE
from voxelwave.volumes import Volume, write_volume


def _sides(people, found):
    for split in found.splits:
        yield tuple({name for unit in split[part] for name in people[found.listed[unit]]} for part in ("train", "test"))


def test_no_person_is_on_both_sides_when_every_person_is_paired_with_every_other():
    people = list(permutations("abcdefghij", 2))
    found = folds_by_person(people, folds=3, seed=0)
    for train, test in _sides(people, found):
        assert not train & test
        assert train
        assert test
    assert found.left_out == len(people) - len(found.listed) > 0
    assert sorted(unit for split in found.splits for unit in split["test"]) == list(range(len(found.listed)))


def test_pairs_of_one_person_and_separate_chains_are_all_kept():
    people = [("a", "a"), ("b", "b"), ("c", "d"), ("d", "e"), ("f", "f"), ("g", "a")]
    found = folds_by_person(people, folds=3, seed=1)
    assert found.left_out == 0
    assert found.groups[2] == found.groups[3]
    assert found.groups[0] == found.groups[5]
    for train, test in _sides(people, found):
        assert not train & test


def test_too_few_people_are_refused():
    with pytest.raises(ValueError, match="3 folds of pairs need 6 people or more, got 4"):
        folds_by_person(list(permutations("abcd", 2)), folds=3, seed=0)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Four people, each with a scan and the same scan 6 mm aside, with labels."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = ["moving,fixed,moving_labels,fixed_labels,subject"]
    axes = np.meshgrid(*[np.linspace(-1.5, 1.5, n) for n in (24, 28, 20)], indexing="ij")
    head = sum(a**2 for a in axes) < 1
    labels = (head * np.where(axes[0] > 0, 2, 1)).astype(np.int16)
    for person in "abcd":
        noise = np.random.default_rng(ord(person)).normal(size=head.shape)
        image = (head * (1000 + 4000 * gaussian_filter(noise, 2))).astype(np.int16)
        affine = np.diag([3.0, 3.0, 3.5, 1.0])
        moved = affine.copy()
        moved[0, 3] = -6.0
        for name, at in (("fixed", affine), ("moving", moved)):
            write_volume(folder / f"{person}_{name}.nii.gz", Volume(image, at))
            write_volume(folder / f"{person}_{name}_labels.nii.gz", Volume(labels, at))
        names = [f"{person}_{name}.nii.gz" for name in ("moving", "fixed", "moving_labels", "fixed_labels")]
        lines.append(",".join([*names, person]))
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.csv"


def _words(pairs: Path, output: Path, *more: str) -> list[str]:
    space = "{effort: [fast], similarity: [ncc], transform: [rigid, affine]}"
    words = ["registration", "cross-validate", str(pairs), "-o", str(output), "--folds", "2", "--space", space]
    return [*words, "--seed", "1", *more]


@pytest.fixture
def short_search(monkeypatch):
    """Linear searches from few starts and without a look at the mirror image; the scans are 6 mm apart, not turned."""
    affine, register = (importlib.import_module(f"voxelwave.registration.{name}") for name in ("affine", "register"))
    monkeypatch.setattr(affine, "_LEVELS", ((8.0, 500), (4.0, 1500), (2.0, 3000)))
    monkeypatch.setattr(affine, "_TURNS", affine._RIGHT_ANGLES)
    monkeypatch.setattr(affine, "_TRIED", 1)
    monkeypatch.setattr(register, "warn_if_mirrored", lambda *args, **kwargs: None)


@pytest.mark.slow
@pytest.mark.usefixtures("short_search")
def test_alignment_of_shifted_scans_beats_none_and_the_run_is_resumed(pairs, tmp_path):
    folder = tmp_path / "run"
    assert cli.main(_words(pairs, folder)) == 0
    results = json.loads((folder / "results.json").read_text())
    means = {model["name"]: model["metrics"]["dice"]["mean"] for model in results["models"]}
    assert list(means) == ["register", "affine", "unaligned"]
    assert means["register"] > 0.9 > means["unaligned"]
    assert all(fold["settings"]["transform"] in ("rigid", "affine") for fold in results["models"][0]["per_fold"])
    assert {row["group"] for row in results["units"]} == set("abcd")
    page = (folder / "report.html").read_text().split("</style>")[1].split("<script>")[0]
    for words in ("window", "subject", "recording", "AUC", "epoch"):
        assert words not in page
    assert "HD95, mm (lower)" in page
    times = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/result.json")}
    assert len(times) == 4 * 4
    assert cli.main(_words(pairs, folder)) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/result.json")} == times


@pytest.mark.parametrize(
    ("more", "complaint", "code"),
    [
        (["--space", "{colour: [red]}"], "space must name some of similarity, effort", ERROR),
        (["--space", "{network: [true]}"], "space: network true needs --weights", ERROR),
        (["--folds", "1"], "--folds must be at least 2", USAGE),
        (["--method", "syn"], "--method is a setting of --space here", USAGE),
        (["--folds", "7"], "7 folds of pairs need 14 people or more, got 4", ERROR),
    ],
)
def test_wrong_options_are_refused_in_one_line(more, complaint, code, pairs, tmp_path, capsys):
    assert cli.main(_words(pairs, tmp_path / "run", *more)) == code
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_pairs_without_labels_are_refused(pairs, tmp_path, capsys):
    text = pairs.read_text().splitlines()
    bare = pairs.with_name("bare.csv")
    bare.write_text("\n".join(",".join(line.split(",")[:2]) for line in text) + "\n")
    assert cli.main(_words(bare, tmp_path / "run")) == ERROR
    assert "every pair needs moving_labels and fixed_labels" in capsys.readouterr().err
