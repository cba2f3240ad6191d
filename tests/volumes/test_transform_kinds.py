"""Files with unsupported transforms are refused: lists, B-splines and nonlinear kinds."""

from pathlib import Path

import numpy as np
import pytest

from voxelwave.volumes import read_transform

HEAD = "#Insight Transform File V1.0\n"


def _shift(number: int, kind: str = "AffineTransform") -> str:
    return (
        f"#Transform {number}\nTransform: {kind}_double_3_3\n"
        f"Parameters: 1 0 0 0 1 0 0 0 1 {number + 1} 0 0\nFixedParameters: 0 0 0\n"
    )


@pytest.mark.parametrize("suffix", [".txt", ".tfm"])
@pytest.mark.parametrize("count", [2, 5])
def test_one_transform_per_volume_is_no_chain(tmp_path: Path, suffix: str, count: int) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text(HEAD + "".join(_shift(i) for i in range(count)))
    with pytest.raises(ValueError, match=f"a list of {count}"):
        read_transform(path)


def test_one_transform_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(HEAD + _shift(1))
    moved = read_transform(tmp_path / "a.txt").map(np.zeros((1, 3)))
    np.testing.assert_allclose(moved, [[-2, 0, 0]], atol=1e-6)


@pytest.mark.parametrize("kind", ["BSplineTransform", "ThinPlateSplineKernelTransform", "AzimuthElevationTransform"])
def test_other_kinds_are_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.tfm").write_text(HEAD + _shift(0, kind))
    with pytest.raises(ValueError, match=kind):
        read_transform(tmp_path / "a.tfm")


@pytest.mark.parametrize("suffix", [".h5", ".tfm"])
def test_a_b_spline_in_a_composite_is_refused(tmp_path: Path, suffix: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    spline = sitk.BSplineTransformInitializer(sitk.Image(8, 8, 8, sitk.sitkFloat32), [3, 3, 3])
    path = str(tmp_path / f"a{suffix}")
    sitk.WriteTransform(sitk.CompositeTransform([sitk.AffineTransform(3), spline]), path)
    with pytest.raises(ValueError, match="BSplineTransform"):
        read_transform(path)
