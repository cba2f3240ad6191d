"""Points through transforms, and files of points."""

import nibabel as nib
import numpy as np
import pytest

from voxelwave.volumes import AffineTransform, CompositeTransform, DisplacementField, VolumeWarning
from voxelwave.volumes.point_files import read_points, write_points


def wave(shape=(24, 24, 24)) -> DisplacementField:
    z = np.arange(shape[2]) / 4
    vectors = np.zeros((*shape, 3), np.float32)
    vectors[..., 0] = 2 * np.sin(z)
    vectors[..., 1] = 1.0
    return DisplacementField(vectors, np.diag([2.0, 2.0, 2.0, 1.0]))


TURN = AffineTransform(np.array([[0.0, -1, 0, 30], [1, 0, 0, 2], [0, 0, 1, 1], [0, 0, 0, 1.0]]))


@pytest.mark.parametrize(
    "transform", [wave(), TURN, CompositeTransform((wave(), TURN)), CompositeTransform((TURN, wave()))]
)
def test_unmap_is_the_inverse_of_map(transform):
    points = np.random.default_rng(0).uniform(14, 26, (50, 3))
    there = transform.map(points)
    assert np.isfinite(there).all()
    np.testing.assert_allclose(transform.unmap(there), points, atol=0.05)


def test_a_point_that_the_field_does_not_reach_is_nan():
    places = wave().unmap(np.array([[20.0, 20, 20], [500.0, 0, 0]]))
    assert np.isfinite(places[0]).all()
    assert np.isnan(places[1]).all()


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_other_columns_of_a_table_are_kept(suffix, tmp_path):
    mark = "," if suffix == ".csv" else "\t"
    rows = [["label", "X", "y", "z", "note"], ["a", "1", "2", "3", "left"], ["b", "4.5", "-5", "6e1", ""]]
    file = tmp_path / f"in{suffix}"
    file.write_text("\n".join(mark.join(row) for row in rows) + "\n\n")
    points = read_points(file)
    assert points.coordinates.tolist() == [[1, 2, 3], [4.5, -5, 60]]
    write_points(tmp_path / f"out{suffix}", points, points.coordinates + np.array([[1, 0, 0], [np.nan] * 3]))
    written = [line.split(mark) for line in (tmp_path / f"out{suffix}").read_text().splitlines()]
    assert written == [rows[0], ["a", "2.0000", "2.0000", "3.0000", "left"], ["b", "", "", "", ""]]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "it is empty"),
        ("x,y\n1,2\n", "without z"),
        ("x,y,z\n", "holds no points"),
        ("x,y,z\n1,2\n", "a number in x, y and z"),
        ("x,y,z\n1,2,three\n", "a number in x, y and z"),
        ("x,y,z\n1,2,nan\n", "finite coordinates"),
        ("x,y,z\n,,\n", "holds no points"),
        ("x,y,z\n1,,3\n", "a number in x, y and z"),
        ("x;y;z\n1;2;3\n", "separated by commas, got the header 'x;y;z' without x, y, z"),
    ],
)
def test_a_wrong_table_is_explained(content, complaint, tmp_path):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ValueError, match=complaint):
        read_points(tmp_path / "a.csv")


def surface(path, coordinates, meta=None):
    arrays = [
        nib.gifti.GiftiDataArray(np.asarray(coordinates, np.float32), "NIFTI_INTENT_POINTSET", meta=meta or {}),
        nib.gifti.GiftiDataArray(np.array([[0, 1, 2]], np.int32), "NIFTI_INTENT_TRIANGLE"),
    ]
    nib.save(nib.gifti.GiftiImage(darrays=arrays), path)


def test_a_surface_keeps_its_triangles(tmp_path):
    surface(tmp_path / "a.surf.gii", np.eye(3))
    points = read_points(tmp_path / "a.surf.gii")
    write_points(tmp_path / "b.surf.gii", points, points.coordinates + 5)
    moved, triangles = (array.data for array in nib.load(tmp_path / "b.surf.gii").darrays)
    np.testing.assert_array_equal(moved, np.eye(3, dtype=np.float32) + 5)
    assert triangles.tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match="outside the transform"):
        write_points(tmp_path / "c.surf.gii", points, np.full((3, 3), np.nan))


def test_a_surface_of_freesurfer_is_noted_and_a_damaged_one_refused(tmp_path):
    surface(tmp_path / "a.surf.gii", np.eye(3), {"VolGeomC_R": "4.5"})
    with pytest.warns(VolumeWarning, match="--to-scanner"):
        read_points(tmp_path / "a.surf.gii")
    (tmp_path / "b.gii").write_text("<GIFTI")
    with pytest.raises(ValueError, match="not a readable GIFTI"):
        read_points(tmp_path / "b.gii")
