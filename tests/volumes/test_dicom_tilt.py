"""Volumes with a tilted gantry are straightened on request; slices that form no volume are refused with the reason."""

import numpy as np
import pytest

from voxelwave.apps.registration.scans import writes_dicom
from voxelwave.restoration.images import check_target, read_image
from voxelwave.volumes import VolumeWarning, read_volume

ROWS, COLUMNS, SLICES = 24, 20, 6


def _world_values(step, *, k):
    """A smooth function of the position, for slice k of the axial series that `write_classic` writes."""
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    x = -10 + 1.5 * columns + k * step[0]
    y = -20 + 2.0 * rows + k * step[1]
    return np.round(2000 + 20 * x - 30 * y + 3 * (5 + k * step[2])).astype(np.uint16)


@pytest.mark.parametrize("step", [(0.0, 0.8, 3.0), (0.0, -1.3, 3.0), (0.7, 0.4, 3.0), (-0.6, 0.0, 2.0)])
def test_a_tilted_stack_is_straightened_on_demand(tmp_path, write_classic, step):
    stored = np.stack([_world_values(step, k=k) for k in range(SLICES)])
    write_classic(tmp_path / "in", stored, step=step)
    with pytest.raises(ValueError, match=r"\(gantry tilt\); `register`, `apply` and `restore` straighten them with"):
        read_volume(tmp_path / "in")
    with pytest.warns(VolumeWarning, match="are straightened by interpolation"):
        volume = read_volume(tmp_path / "in", fix_tilt=True)
    # the affine is that of an ordinary axial stack
    np.testing.assert_allclose(np.abs(volume.affine[:3, :3]), np.diag([1.5, 2.0, step[2]]), atol=1e-6)
    checked = 0
    for index in np.ndindex(volume.shape):
        place = volume.affine @ [*index, 1]
        x, y, z = -place[0], -place[1], place[2]
        k = index[2]
        within = 0 <= (x + 10 - k * step[0]) / 1.5 <= COLUMNS - 1 and 0 <= (y + 20 - k * step[1]) / 2 <= ROWS - 1
        if within:
            assert abs(volume.array[index] - (2000 + 20 * x - 30 * y + 3 * z)) <= 0.51
            checked += 1
    # every slice is complete, except for half a pixel at each end
    assert checked >= SLICES * (ROWS - 1) * (COLUMNS - 1)


def test_a_straight_stack_is_not_changed_by_fixing_a_tilt(tmp_path, write_classic):
    write_classic(tmp_path / "in", np.stack([_world_values((0, 0, 3), k=k) for k in range(SLICES)]))
    plain, fixed = read_volume(tmp_path / "in"), read_volume(tmp_path / "in", fix_tilt=True)
    assert plain.array.dtype == fixed.array.dtype
    np.testing.assert_array_equal(plain.array, fixed.array)
    np.testing.assert_array_equal(plain.affine, fixed.affine)


def _places(tmp_path, write_classic, positions):
    stored = np.zeros((len(positions), 4, 5), np.uint16)

    def edit(image, k):
        image.ImagePositionPatient = [float(v) for v in positions[k]]

    write_classic(tmp_path / "in", stored, edit=edit)
    return tmp_path / "in"


@pytest.mark.parametrize("above", [0.0, 12.0])
@pytest.mark.parametrize("fix_tilt", [False, True])
def test_parallel_stacks_side_by_side_are_counted(tmp_path, write_classic, above, fix_tilt):
    positions = [(0, 0, 3 * k) for k in range(4)] + [(25, 0, above + 3 * k) for k in range(4)]
    folder = _places(tmp_path, write_classic, positions)
    with pytest.raises(ValueError, match="got 2 parallel ones side by side, of 4 and 4 images"):
        read_volume(folder, fix_tilt=fix_tilt)


@pytest.mark.parametrize("gap", [4.2, 1.7])
def test_two_stacks_one_behind_the_other_are_counted(tmp_path, write_classic, gap):
    heights = [3.0 * k for k in range(4)]
    folder = _places(tmp_path, write_classic, [(0, 0, z) for z in [*heights, *(9.0 + gap + z for z in heights[:3])]])
    with pytest.raises(ValueError, match="two parallel stacks of 4 and 3 slices"):
        read_volume(folder)


def test_slices_that_shift_unevenly_are_no_tilt(tmp_path, write_classic):
    folder = _places(tmp_path, write_classic, [(float(k * k), 0, 3 * k) for k in range(5)])
    with pytest.raises(ValueError, match=r"shift sideways by up to 16\.0 mm, unevenly"):
        read_volume(folder, fix_tilt=True)


@pytest.mark.filterwarnings("ignore::voxelwave.volumes.VolumeWarning")
def test_a_straightened_series_gives_no_dicom_result(tmp_path, write_classic):
    step = (0.0, 0.8, 3.0)
    write_classic(tmp_path / "in", np.stack([_world_values(step, k=k) for k in range(SLICES)]), step=step)
    image = read_image(tmp_path / "in", fix_tilt=True)
    with pytest.raises(ValueError, match=r"had a tilted gantry, .* give a \.nii\.gz output"):
        check_target(tmp_path / "out", image)
    check_target(tmp_path / "out.nii.gz", image)
    assert not writes_dicom(tmp_path / "in", tmp_path / "in", always=False, fix_tilt=True)
    with pytest.raises(ValueError, match="--dicom cannot write what --fix-tilt straightens"):
        writes_dicom(tmp_path / "in", tmp_path / "in", always=True, fix_tilt=True)
