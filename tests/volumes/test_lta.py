"""FreeSurfer's .lta files."""

import nibabel as nib
import numpy as np
import pytest

from voxelwave.volumes import AffineTransform, Volume, read_transform
from voxelwave.volumes.lta import read_lta, write_lta

TURN = np.array([[0.9, -0.2, 0.1, 5.0], [0.2, 1.1, 0.0, -3.0], [0.0, 0.1, 1.0, 8.0], [0, 0, 0, 1]])


def oblique(shape: tuple[int, int, int], seed: int) -> Volume:
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return Volume(np.zeros(shape, np.float32), nib.affines.from_matvec(q * [1.0, 2.0, 3.0], rng.normal(size=3) * 20))


@pytest.mark.parametrize("described", [True, False])
def test_a_written_file_is_read_back(described, tmp_path):
    images = {"moving": oblique((10, 12, 14), 0), "fixed": oblique((8, 9, 11), 1)} if described else {}
    write_lta(tmp_path / "a.lta", AffineTransform(TURN), **images)
    np.testing.assert_allclose(read_transform(tmp_path / "a.lta").matrix, TURN, atol=1e-9)


def test_the_file_maps_the_source_to_the_destination(tmp_path):
    write_lta(tmp_path / "a.lta", AffineTransform(TURN))
    lines = (tmp_path / "a.lta").read_text().splitlines()
    start = lines.index("1 4 4") + 1
    matrix = np.array([line.split() for line in lines[start : start + 4]], float)
    np.testing.assert_allclose(matrix @ TURN, np.eye(4), atol=1e-12)


def test_the_geometry_is_that_of_freesurfer(tmp_path):
    """The centre is the place of voxel n / 2, as `mri_info` shows it and nibabel writes it to an MGH header."""
    moving = oblique((10, 12, 14), 0)
    write_lta(tmp_path / "a.lta", AffineTransform(TURN), moving=moving, fixed=moving)
    text = (tmp_path / "a.lta").read_text()
    header = nib.MGHImage(moving.array, moving.affine).header
    for name, row in (("xras", 0), ("yras", 1), ("zras", 2)):
        line = next(line for line in text.splitlines() if line.startswith(name))
        np.testing.assert_allclose([float(x) for x in line.split("=")[1].split()], header["Mdc"][row], atol=1e-6)
    line = next(line for line in text.splitlines() if line.startswith("cras"))
    np.testing.assert_allclose([float(x) for x in line.split("=")[1].split()], header["Pxyz_c"], atol=1e-4)


def test_a_transform_between_voxels_uses_both_geometries(tmp_path):
    moving, fixed = oblique((10, 12, 14), 0), oblique((8, 9, 11), 1)
    write_lta(tmp_path / "a.lta", AffineTransform(TURN), moving=moving, fixed=fixed)
    voxels = (
        np.linalg.inv(fixed.affine) @ np.linalg.inv(TURN) @ moving.affine
    )  # of the source to those of the destination
    lines = (tmp_path / "a.lta").read_text().splitlines()
    start = lines.index("1 4 4") + 1
    lines[0], lines[start : start + 4] = "type      = 0", [" ".join(map(repr, row.tolist())) for row in voxels]
    (tmp_path / "b.lta").write_text("\n".join(lines) + "\n")
    np.testing.assert_allclose(read_lta(tmp_path / "b.lta").matrix, TURN, atol=1e-6)
    (tmp_path / "c.lta").write_text("\n".join(line.replace("valid = 1", "valid = 0") for line in lines) + "\n")
    with pytest.raises(ValueError, match="needs the geometry of both volumes"):
        read_lta(tmp_path / "c.lta")


@pytest.mark.parametrize("content", ["", "type = 1\n", "type = 14\nnxforms = 1\n1 4 4\n" + "1 0 0 0\n" * 4, "\0\xff"])
def test_other_content_is_refused_in_one_line(content, tmp_path):
    (tmp_path / "a.lta").write_text(content)
    with pytest.raises(ValueError, match=r"a\.lta"):
        read_lta(tmp_path / "a.lta")


def test_a_singular_matrix_is_refused(tmp_path):
    (tmp_path / "a.lta").write_text("type = 1\nnxforms = 1\n1 4 4\n" + "1 0 0 0\n" * 3 + "0 0 0 1\n")
    with pytest.raises(ValueError, match="must be invertible"):
        read_lta(tmp_path / "a.lta")


def test_a_matrix_of_huge_numbers_is_refused() -> None:
    huge = np.eye(4)
    huge[1, 2] = 1e308
    with pytest.raises(ValueError, match="must hold numbers below"):
        AffineTransform(huge)
