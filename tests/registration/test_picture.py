"""The picture of a registration: proportions and directions of slices, sides and units."""

import warnings

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image
from scipy.ndimage import label

from voxelwave.registration.picture import draw_registration
from voxelwave.registration.planar import laid_over
from voxelwave.volumes import AffineTransform, DisplacementField, Volume


def slice_with_disc(across: int, spacing: tuple[float, float], *, flipped: bool = False) -> Volume:
    """A disc of 12 mm radius, 20 mm above and 10 mm to the left (in the drawing) of the middle of a slice of 80 mm."""
    in_plane = [k for k in range(3) if k != across]
    sizes = [round(80 / length) for length in spacing]
    places = np.meshgrid(
        *[(np.arange(n) - (n - 1) / 2) * length for n, length in zip(sizes, spacing, strict=True)], indexing="ij"
    )
    affine = np.eye(4)
    for axis, length, place in zip(in_plane, spacing, places, strict=True):
        affine[axis, axis] = length
        affine[axis, 3] = place.flat[0]
    x, y = places
    array = 0.1 * (np.maximum(abs(x), abs(y)) < 38) + np.clip(1.3 - np.hypot(x + 10, y - 20) / 12, 0, 0.9)
    array = np.expand_dims(array.astype(np.float32), across)
    if flipped:  # rows that go down, as in a photograph, and columns that come first
        last = affine @ [*(0 if k != in_plane[1] else sizes[1] - 1 for k in range(3)), 1]
        array = np.flip(array, in_plane[1])
        affine[:, in_plane[1]] *= -1
        affine[:3, 3] = last[:3]
        array = np.swapaxes(array, *in_plane)
        affine[:, in_plane] = affine[:, in_plane[::-1]]
    return Volume(np.ascontiguousarray(array), affine)


def disc_in_panel(path, number: int) -> tuple[np.ndarray, float, float]:
    """The middle of the largest bright region of a panel as a fraction of its size, and the region's two lengths."""
    grey = np.asarray(Image.open(path).convert("L")).astype(float)
    width = grey.shape[1] // 4
    panel = grey[:, number * width : (number + 1) * width]
    regions, _ = label(panel > 60)
    sizes = np.bincount(regions.ravel())[1:]
    rows, columns = np.nonzero(regions == 1 + sizes.argmax())
    middle = np.array([columns.mean() / panel.shape[1], 1 - rows.mean() / panel.shape[0]])
    return middle, float(np.ptp(columns)) + 1, float(np.ptp(rows)) + 1


def nothing(fixed: Volume) -> DisplacementField:
    return DisplacementField(np.zeros((*fixed.shape, 3), np.float32), fixed.affine)


@pytest.mark.parametrize("across", [0, 1, 2])
@pytest.mark.parametrize(("spacing", "flipped"), [((0.5, 2.0), False), ((4.0, 1.0), True), ((1.0, 1.0), True)])
def test_a_slice_is_drawn_upright_with_true_proportions(across, spacing, flipped, tmp_path):
    fixed = slice_with_disc(across, spacing, flipped=flipped)
    draw_registration(tmp_path / "p.png", fixed=fixed, moving=fixed, warped=fixed, forward=nothing(fixed))
    middle, width, height = disc_in_panel(tmp_path / "p.png", 0)
    assert width == pytest.approx(height, rel=0.15)  # pixels of 4 mm on a disc of 24 mm
    assert middle[0] < 0.48  # to the left
    assert middle[1] > 0.5  # and above, although the title takes the top


def test_a_slice_at_another_position_is_seen_before_the_registration(tmp_path):
    fixed = slice_with_disc(2, (1.0, 1.0))
    shifted = fixed.affine.copy()
    shifted[:3, 3] += (6, 0, 30)  # 30 mm off the plane
    moving = Volume(fixed.array, shifted)
    draw_registration(tmp_path / "p.png", fixed=fixed, moving=moving, warped=fixed, forward=nothing(fixed))
    (still, moved) = (disc_in_panel(tmp_path / "p.png", number)[0] for number in (0, 1))
    assert 0.02 < moved[0] - still[0] < 0.1
    start = laid_over(moving, fixed)
    assert isinstance(start, AffineTransform)
    np.testing.assert_allclose(start.map(np.array([[3.0, 4.0, 0.0]])), [[3.0, 4.0, 30.0]], atol=1e-6)


def test_slices_of_different_planes_are_laid_over_each_other():
    axial, coronal = slice_with_disc(2, (1.0, 2.0)), slice_with_disc(1, (2.0, 1.0))
    (place,) = laid_over(axial, coronal).map(np.array([[5.0, 0.0, -7.0]]))
    np.testing.assert_allclose(np.abs(place), [5.0, 7.0, 0.0], atol=1e-6)  # in the axial plane, as far from its middle


def test_sides_and_millimetres_are_left_out_for_a_photograph(tmp_path, monkeypatch):
    written: list[str] = []
    text = "matplotlib.axes.Axes.text"
    monkeypatch.setattr(text, lambda self, x, y, s, **kwargs: written.append(s))
    fixed = slice_with_disc(2, (1.0, 1.0))
    images = {"fixed": fixed, "moving": fixed, "warped": fixed, "forward": nothing(fixed)}
    draw_registration(tmp_path / "a.png", **images)
    draw_registration(tmp_path / "b.png", **images, sides=False, unit="pixels")
    assert written == ["20 mm", "L", "R", "A", "20 pixels"]


def test_a_slab_has_low_rows_with_the_letters_beside_them(tmp_path, monkeypatch):
    disc = slice_with_disc(2, (1.0, 1.0)).array
    slab = Volume(np.repeat(disc, 8, axis=2), np.eye(4))
    cube = Volume(np.repeat(disc, 80, axis=2), np.eye(4))
    inside: list[str] = []
    beside: list[str] = []

    def kept(letters, draw, place):
        def drawn(self, *given, **words):
            letters.append(given[place])
            return draw(self, *given, **words)

        return drawn

    monkeypatch.setattr(Axes, "text", kept(inside, Axes.text, 2))
    monkeypatch.setattr(Axes, "annotate", kept(beside, Axes.annotate, 0))
    heights = []
    for volume in (cube, slab):
        images = {"fixed": volume, "moving": volume, "warped": volume, "forward": nothing(volume)}
        draw_registration(tmp_path / "p.png", **images)
        heights.append(Image.open(tmp_path / "p.png").size[1])
        if volume is cube:
            assert not beside
    assert heights[1] < 0.65 * heights[0]
    assert beside == ["L", "R", "S", "P", "A", "S"]
    assert [text for text in inside if len(text) == 1] == ["L", "R", "A", "L", "R", "S", "P", "A", "S", "L", "R", "A"]


def test_drawing_repeats_no_note_about_a_file(tmp_path):
    disc = slice_with_disc(2, (1.0, 1.0)).array
    ct = Volume((np.repeat(disc, 20, axis=2) * 2000 - 1000).astype(np.float32), np.eye(4), tmp_path / "ct.nii.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_registration(tmp_path / "p.png", fixed=ct, moving=ct, warped=ct, forward=nothing(ct))
