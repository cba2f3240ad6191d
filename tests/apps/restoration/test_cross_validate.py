"""`restoration cross-validate`: settings from the other images, held-out figures, resumption, a page of images."""

import csv
import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from scipy.ndimage import gaussian_filter

from voxelwave.apps import cli
from voxelwave.runs.exit import ERROR, USAGE


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Eight smooth pictures; the last one is a copy of the first under another name."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(8):
        smooth = gaussian_filter(np.random.default_rng(number % 7).normal(size=(40, 36)), 4)
        pixels = 128 + 90 * smooth / np.abs(smooth).max()
        Pillow.fromarray(pixels.astype(np.uint8)).save(folder / f"p{number}.png")
    return folder


def _words(images: Path, output: Path, *more: str) -> list[str]:
    words = ["restoration", "cross-validate", str(images), "-o", str(output), "--sigma", "25", "--folds", "3"]
    return [*words, "--methods", "[tv, wavelet]", "--strengths", "[0.1, 1.0]", "--seed", "4", *more]


@pytest.fixture(scope="module")
def run(images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    assert cli.main(_words(images, folder)) == 0
    return folder


def _results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_every_image_is_held_out_once_and_the_copy_is_kept_with_its_original(run):
    results = _results(run)
    fold = {row["unit"]: row["fold"] for row in results["units"]}
    assert len(fold) == 8
    assert fold["p0.png"] == fold["p7.png"]
    assert results["flow"]["groups"] == 7
    assert any(row["outcome"] == "warning" and "p0.png and p7.png" in row["detail"] for row in results["audit"])


def test_settings_are_those_that_are_best_on_the_other_folds(run):
    results, plan = _results(run), json.loads((run / "plan.json").read_text())
    grid = plan["options"]["settings"]
    for model in results["models"]:
        for split, fold in zip(plan["splits"], model["per_fold"], strict=True):
            means = []
            for number in range(len(grid[model["name"]])):
                cells = [run / "cells" / f"{model['name']}-s{number}-u{unit}" for unit in split["train"]]
                found = [json.loads((cell / "result.json").read_text())["figures"]["psnr"] for cell in cells]
                means.append(np.mean(found))
            assert fold["settings"] == grid[model["name"]][int(np.argmax(means))]
            assert fold["training_score"] == pytest.approx(max(means))
    tv = next(model for model in results["models"] if model["name"] == "tv")
    assert all(fold["settings"] == {"strength": 1.0} for fold in tv["per_fold"])  # 0.1 leaves the noise


def test_denoising_of_smooth_images_beats_doing_nothing(run):
    results = _results(run)
    row = next(r for r in results["comparisons"] if (r["b"], r["metric"]) == ("input", "psnr"))
    assert row["a"] == "tv"
    assert row["difference"] > 3
    assert row["interval"][0] > 0
    assert row["p_holm"] >= row["p"]


def test_the_page_speaks_of_images_and_people_only(run):
    page = (run / "report.html").read_text()
    for words in ("window", "subject", "recording", "AUC", "epoch"):
        assert words not in page.split("</style>")[1].split("<script>")[0]
    assert "no person is in two of them" in page
    assert 'id="audit"' in page
    assert "p3.png" in page
    with (run / "units.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 8 * 3


def test_the_same_command_again_measures_only_what_is_missing(run, images, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    folder = tmp_path / "run"
    shutil.rmtree(folder / "cells" / "tv-s1-u3")
    times = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/result.json")}
    assert cli.main(_words(images, folder)) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    same = [{k: v for k, v in _results(f).items() if k not in ("created", "seconds", "command")} for f in (run, folder)]
    assert same[0] == same[1]


def test_the_report_is_written_again(run, tmp_path):
    assert cli.main(["report", str(run), "-o", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text() == (run / "report.html").read_text()


def test_a_network_is_the_method_of_the_headline(folder, images, tmp_path):
    words = _words(images, tmp_path / "run", "--weights", str(folder / "w.safetensors"))
    assert cli.main([*words, "--methods", "[tv]", "--strengths", "[1.0]"]) == 0
    results = _results(tmp_path / "run")
    assert [model["name"] for model in results["models"]] == ["network", "tv", "input"]
    assert any(row["outcome"] == "not checked" for row in results["audit"])


def test_images_of_a_person_stay_together(images, tmp_path):
    table = tmp_path / "people.tsv"
    table.write_text("file\tperson\n" + "".join(f"p{k}.png\tperson{k // 2}\n" for k in range(8)))
    assert cli.main(_words(images, tmp_path / "run", "--people", str(table), "--methods", "[tv]")) == 0
    rows = {row["unit"]: row for row in _results(tmp_path / "run")["units"]}
    for k in range(0, 8, 2):
        assert rows[f"p{k}.png"]["fold"] == rows[f"p{k + 1}.png"]["fold"]


@pytest.mark.parametrize(
    ("more", "complaint", "code"),
    [
        (["--folds", "9"], "outer must be from 2 to 7, the number of groups", ERROR),
        (["--folds", "1"], "--folds must be at least 2", USAGE),
        (["--strengths", "[0]"], "--strengths must be factors above 0", USAGE),
        (["--methods", "[magic]"], "methods must be of nlm, wavelet", ERROR),
        (["--people", "{images}/people.tsv"], "no table of people", ERROR),
    ],
)
def test_wrong_options_are_refused_in_one_line(more, complaint, code, images, tmp_path, capsys):
    words = _words(images, tmp_path / "run", *(word.format(images=images) for word in more))
    assert cli.main(words) == code
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_axe_finds_no_barrier_on_the_page(run, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    browser = importlib.import_module("browser")
    if browser.PROGRAM is None or browser.AXE is None:
        pytest.skip("needs Chromium and axe-core")
    with browser.Browser() as page:
        page.open(run / "report.html")
        assert page.barriers() == []
        page.open(run / "report.html")
        assert page.barriers("dark") == []
        assert page.problems() == []
