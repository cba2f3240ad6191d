"""The page of a batch shows the content of the manifest in the right places, and nothing that identifies a person."""

import base64
import gzip
import importlib.util
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from voxelwave.apps import cli
from voxelwave.apps.batch.page import write_index
from voxelwave.apps.batch.preview import block_mean, write_preview
from voxelwave.apps.batch.preview_files import LONGEST_SIDE, MOST_VOXELS, PICTURE, SCRIPT
from voxelwave.runs.exit import DONE, ERROR
from voxelwave.volumes import Volume, read_volume, write_volume
from voxelwave.volumes.dicom_write import write_derived_series

from ..html import html_faults

_BLOB_MM = np.array([-22.0, 25.0, 14.0])  # on the patient's left, in front, above


def _image(blob_mm: np.ndarray = _BLOB_MM, *, left_first: bool = True) -> Volume:
    """A dim ball with a bright blob; `left_first` gives the direction of the first axis."""
    affine = np.diag([2.0 if left_first else -2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = [-40 if left_first else 40, -46, -36]
    index = np.stack(np.meshgrid(*map(np.arange, (41, 47, 37)), indexing="ij"), axis=-1)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    ball = 300.0 * (np.linalg.norm(points, axis=-1) < 34)
    return Volume((ball + 1200 * (np.linalg.norm(points - blob_mm, axis=-1) < 7)).astype(np.int16), affine)


def _case(kind: str, *inputs: Path, name: str = "a", roles: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(kind=kind, inputs=inputs, roles=roles, identifier=name)


def _content(folder: Path) -> dict[str, Any]:
    """The data that the page hands to its script."""
    text = (folder / SCRIPT).read_text()
    assert text.startswith("voxelwavePreview(")
    name, _, content = text.removeprefix("voxelwavePreview(").removesuffix(");\n").partition(", ")
    assert json.loads(name) == "a"
    return json.loads(content)


def _manifest(output: Path, *lines: dict[str, Any]) -> None:
    full = [{"status": "done", "kind": "nifti", "metrics": {}, "warnings": [], "error": None, **line} for line in lines]
    (output / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in full))


def _shown(folder: Path, role: str) -> nib.Nifti1Image:
    (one,) = [one for one in _content(folder)["volumes"] if one["role"] == role]
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(one["data"])))


def test_a_pair_is_shown_with_its_places_and_values(tmp_path: Path) -> None:
    fixed, moving = _image(), _image(_BLOB_MM - 6, left_first=False)
    for name, volume in {"fixed": fixed, "moving": moving, "warped": fixed}.items():
        write_volume(tmp_path / f"{name}.nii.gz", volume)
    case = _case("pair", tmp_path / "moving.nii.gz", tmp_path / "fixed.nii.gz", roles=("moving", "fixed"))
    assert write_preview(case, tmp_path) == []
    roles = {"fixed": fixed, "moving (input)": moving, "warped (result)": fixed}
    assert [one["role"] for one in _content(tmp_path)["volumes"]] == list(roles)
    for role, volume in roles.items():
        shown = _shown(tmp_path, role)
        np.testing.assert_allclose(shown.affine, volume.affine, atol=1e-5)
        window = np.clip(volume.array, 0, np.percentile(volume.array, 99.8))
        assert np.abs(shown.get_fdata() - window).max() < 1500 / 254


def test_the_same_case_gives_the_same_bytes(tmp_path: Path) -> None:
    write_volume(tmp_path / "in.nii.gz", _image())
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_volume(tmp_path / name / "a.nii.gz", _image(_BLOB_MM + 3))
        write_preview(_case("nifti", tmp_path / "in.nii.gz"), tmp_path / name)
        written.append([(tmp_path / name / file).read_bytes() for file in (SCRIPT, PICTURE)])
    assert written[0] == written[1]


def test_previews_of_large_images_are_bounded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    large = Volume(rng.integers(0, 4000, (150, 210, 97)).astype(np.int16), np.diag([1.0, 1.0, 2.5, 1.0]))
    small, step = block_mean(large)
    assert small.array.size <= MOST_VOXELS
    assert step[2] == 1
    # the same positions: the mean of a linear ramp over the world is that ramp
    ramp = large.with_array((np.arange(150.0)[:, None, None] + np.zeros((150, 210, 97))).astype(np.float32))
    reduced, _ = block_mean(ramp)
    x = reduced.affine[0, 0] * np.arange(reduced.shape[0]) + reduced.affine[0, 3]
    np.testing.assert_allclose(reduced.array[:, 0, 0], x, atol=1e-4)
    for name in ("in", "a"):
        write_volume(tmp_path / f"{name}.nii.gz", large)
    (tmp_path / "out").mkdir()
    (tmp_path / "a.nii.gz").rename(tmp_path / "out/a.nii.gz")
    write_preview(_case("nifti", tmp_path / "in.nii.gz"), tmp_path / "out")
    assert (tmp_path / "out" / SCRIPT).stat().st_size < 2 * 1.5 * MOST_VOXELS  # noise cannot be compressed

    picture = Image.fromarray(rng.integers(0, 255, (1500, 1200), dtype=np.uint8))
    picture.save(tmp_path / "in.png")
    (tmp_path / "picture").mkdir()
    picture.save(tmp_path / "picture/a.png")
    write_preview(_case("image", tmp_path / "in.png"), tmp_path / "picture")
    for one in _content(tmp_path / "picture")["pictures"]:
        shown = Image.open(io.BytesIO(base64.b64decode(one["data"].partition(",")[2])))
        assert max(shown.size) <= LONGEST_SIDE


def test_nothing_of_a_header_comes_into_the_page(write_ct: Callable[..., None], tmp_path: Path) -> None:
    write_ct(tmp_path / "in", slices=5)
    folder = tmp_path / "out" / "a"
    folder.mkdir(parents=True)
    write_derived_series(folder / "series", read_volume(tmp_path / "in"), tmp_path / "in", "derived")
    write_preview(_case("dicom", tmp_path / "in"), folder)
    _manifest(tmp_path / "out", {"case": "a", "kind": "dicom", "description": "Phantom^Head", "patient": "p1"})
    page = write_index(tmp_path / "out").read_text()
    images = b"".join(gzip.decompress(base64.b64decode(one["data"])) for one in _content(folder)["volumes"])
    for text in (page, (folder / SCRIPT).read_text(), images.decode("latin-1")):
        assert "Phantom" not in text
        assert str(tmp_path) not in text


def test_a_case_without_an_image_to_show_says_so(tmp_path: Path) -> None:
    write_volume(tmp_path / "in.nii.gz", _image())
    (tmp_path / "out").mkdir()
    (warning,) = write_preview(_case("nifti", tmp_path / "in.nii.gz"), tmp_path / "out")
    assert warning.startswith("no preview: ")
    assert not any((tmp_path / "out").iterdir())


def test_the_page_tells_what_the_manifest_says(tmp_path: Path) -> None:
    trap = '<script>alert("x")</script>'
    _manifest(
        tmp_path,
        {"case": "good", "metrics": {"dice": 0.75, "range": trap}, "outputs": ["good/a #1?.nii.gz"], "seconds": 1.5},
        {"case": "bad", "status": "failed", "error": trap, "warnings": ["odd & ends"]},
        {"case": "no", "status": "failed", "error": "refused: made for CT"},
    )
    page = write_index(tmp_path).read_text()
    assert trap not in page
    assert "&lt;script&gt;" in page
    assert "odd &amp; ends" in page
    assert 'href="good/a%20%231%3F.nii.gz"' in page
    assert 'data-value="0.75"' in page
    assert "1 done" in page
    assert "1 failed" in page
    assert "1 refused" in page
    assert not (tmp_path / "index_files").exists()  # no viewer if there is no image to view
    assert write_index(tmp_path).read_text() == page


def test_the_command_makes_the_page_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["batch", "page", str(tmp_path)]) == ERROR
    assert "manifest.jsonl" in capsys.readouterr().err
    _manifest(tmp_path, {"case": "a"})
    assert cli.main(["batch", "page", str(tmp_path)]) == DONE
    assert (tmp_path / "index.html").is_file()


def test_the_page_is_valid_html(tmp_path: Path) -> None:
    _manifest(tmp_path, {"case": "a"})
    assert html_faults(write_index(tmp_path)) == []


def test_the_viewer_ships_with_its_licence() -> None:
    folder = Path(cli.__file__).parent / "batch" / "template"
    assert "BSD 2-Clause License" in (folder / "niivue.LICENSE.txt").read_text()
    assert (folder / "niivue.umd.js").stat().st_size > 1_000_000


# in a browser


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results written by hand: a pair, a picture, a recording, a failure."""
    inputs, output = tmp_path_factory.mktemp("inputs"), tmp_path_factory.mktemp("results")
    for name in ("pair", "picture", "recording"):
        (output / name).mkdir()
    write_volume(inputs / "fixed.nii.gz", _image())
    write_volume(inputs / "moving.nii.gz", _image(_BLOB_MM + np.array([9, -9, 0]), left_first=False))
    write_volume(output / "pair/warped.nii.gz", _image(left_first=False))  # the same position with other axes
    paths = (inputs / "moving.nii.gz", inputs / "fixed.nii.gz")
    write_preview(_case("pair", *paths, name="pair", roles=("moving", "fixed")), output / "pair")
    Image.fromarray(np.full((40, 60), 30, np.uint8)).save(inputs / "in.png")
    Image.fromarray(np.full((40, 60), 220, np.uint8)).save(output / "picture/picture.png")
    write_preview(_case("image", inputs / "in.png", name="picture"), output / "picture")
    windows = [{"subject": "recording", "start_s": 4.0 * n, "probability": n / 10} for n in range(7)]
    (output / "recording/diagnosis.json").write_text(json.dumps({"window": windows}))
    write_preview(_case("eeg", inputs / "none", name="recording"), output / "recording")
    _manifest(
        output,
        {"case": "pair", "kind": "pair", "metrics": {"nmi_after": 1.25}},
        {"case": "picture", "kind": "image", "warnings": ["a note"]},
        {"case": "recording", "kind": "eeg", "metrics": {"probability": 0.3}},
        {"case": "worse", "status": "failed", "error": "cut off"},
    )
    write_index(output)
    return output


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("browser", Path(__file__).parents[1] / "browser.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.PROGRAM is None:
        pytest.skip("needs Chromium")
    with module.Browser() as running:
        yield running


def _open(browser: Any, results: Path, case: str) -> None:
    browser.open(results / "index.html")
    browser.click(f'tr[data-case="{case}"] button.open')
    browser.wait("document.getElementById('viewer').dataset.state === 'ready'")


def _slide(browser: Any, role: str, share: float) -> None:
    """Press the mouse on a slider, at the fraction `share` of its length."""
    x, y, width, height = browser.run(
        f"(() => {{const r = document.querySelector('input[data-role={json.dumps(role)}]').getBoundingClientRect();"
        " return [r.x, r.y, r.width, r.height]; })()"
    )
    browser.press(x + width * share, y + height / 2)


def _pixels(browser: Any) -> np.ndarray:
    browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
    return np.asarray(Image.open(io.BytesIO(browser.picture())).convert("RGB")).astype(int)


def _axial_slice(browser: Any) -> np.ndarray:
    """The part of the window that shows the axial slice, (rows, columns, 3)."""
    left, top, width, height = browser.run(
        "(() => {const s = voxelwaveViewer.screenSlices.find((one) => one.axCorSag === 0).leftTopWidthHeight;"
        " const c = voxelwaveViewer.canvas, r = c.getBoundingClientRect(), f = r.width / c.width;"
        " return [r.x + s[0] * f, r.y + s[1] * f, s[2] * f, s[3] * f]; })()"
    )
    return _pixels(browser)[round(top) : round(top + height), round(left) : round(left + width)]


def _centre(chosen: np.ndarray) -> np.ndarray:
    """The mean position of the chosen pixels, as fractions of height and width."""
    assert chosen.sum() > 30
    return np.argwhere(chosen).mean(axis=0) / chosen.shape


def test_the_overlay_lies_on_the_fixed_image_with_right_and_left_right(browser: Any, results: Path) -> None:
    _open(browser, results, "pair")
    place = ", ".join(map(str, _BLOB_MM))
    browser.run(
        f"voxelwaveViewer.scene.crosshairPos = voxelwaveViewer.mm2frac([{place}]);"
        " voxelwaveViewer.setCrosshairWidth(0); voxelwaveViewer.drawScene(); 0"
    )
    _slide(browser, "fixed", 0.999)
    _slide(browser, "moving (input)", 0.001)
    _slide(browser, "warped (result)", 0.001)
    assert browser.run("voxelwaveViewer.volumes.map((one) => one.opacity)") == [1, 0, 0]
    below = _axial_slice(browser)
    red, blue = below[..., 0], below[..., 2]
    assert np.abs(red - blue).max() < 60  # grey, except for the letters
    bright = _centre(red > 180)
    # the patient's left is drawn on the right, and the front at the top
    np.testing.assert_allclose(bright, [(46 - _BLOB_MM[1]) / 94, (40 - _BLOB_MM[0]) / 82], atol=0.02)

    _slide(browser, "warped (result)", 0.999)
    above = _axial_slice(browser)
    red, blue = above[..., 0], above[..., 2]
    coloured = (red > 150) & (blue < red - 30)
    np.testing.assert_allclose(_centre(coloured), bright, atol=0.01)

    _slide(browser, "warped (result)", 0.5)
    assert 0.45 < browser.run("voxelwaveViewer.volumes[2].opacity") < 0.55
    between = _axial_slice(browser)
    row, column = (bright * below.shape[:2]).astype(int)
    np.testing.assert_allclose(between[row, column], (below[row, column] + above[row, column]) / 2, atol=12)

    _slide(browser, "warped (result)", 0.001)
    _slide(browser, "moving (input)", 0.999)  # the previous position: 9 mm further back, to the right
    moved = _centre(_axial_slice(browser)[..., 0] > 180)
    assert moved[0] > bright[0] + 0.05
    assert moved[1] < bright[1] - 0.05
    assert browser.problems() == []


def test_pictures_and_recordings_open_too(browser: Any, results: Path) -> None:
    _open(browser, results, "picture")
    colour = "getComputedStyle(document.querySelectorAll('#stage img')[1]).opacity"
    assert float(browser.run(colour)) == 1
    _slide(browser, "result", 0.25)
    assert 0.2 < float(browser.run(colour)) < 0.3
    browser.click("#next")
    browser.wait("document.querySelectorAll('#stage rect').length === 7")
    assert browser.run("document.getElementById('viewer-name').textContent") == "recording"
    heights = browser.run("[...document.querySelectorAll('#stage rect')].map((r) => r.getBoundingClientRect().height)")
    np.testing.assert_allclose(heights[6] / heights[1], 6, rtol=0.05)
    browser.click("#next")  # past the failed case, and back to the first
    browser.wait("document.getElementById('viewer-name').textContent === 'pair'")
    browser.wait("document.getElementById('viewer').dataset.state === 'ready'")
    assert browser.problems() == []


def test_rows_are_sorted_and_filtered(browser: Any, results: Path) -> None:
    browser.open(results / "index.html")
    names = "[...document.querySelectorAll('#cases tbody tr')].filter((r) => !r.hidden).map((r) => r.dataset.case)"
    assert browser.run(names) == ["pair", "picture", "recording", "worse"]
    for value, expected in {"failed": ["worse"], "warnings": ["picture"]}.items():
        browser.run(f"document.getElementById('status').value = '{value}'; applyFilter()")
        assert browser.run(names) == expected
    browser.run("document.getElementById('status').value = ''; applyFilter()")
    browser.click("#cases thead th:nth-child(2) button")
    assert browser.run(names) == ["pair", "picture", "recording", "worse"]
    browser.click("#cases thead th:nth-child(2) button")
    assert browser.run(names) == ["worse", "recording", "picture", "pair"]
    assert browser.problems() == []
