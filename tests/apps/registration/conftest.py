"""Small scans that the tests of the registration commands share."""

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from voxelwave.apps import cli
from voxelwave.runs.exit import DONE
from voxelwave.volumes import Volume, write_volume


@pytest.fixture(autouse=True)
def _short_search(fewer_samples, request):
    if "bytes" in request.node.name:  # what a user gets
        yield
        return
    with fewer_samples():
        yield


@pytest.fixture(scope="session")
def scans(tmp_path_factory) -> Path:
    """A blob with two halves as labels, and the same blob 4 mm to the left in a 4-D series with b-values."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(3)
    shape = (36, 40, 28)
    axes = np.meshgrid(*[np.linspace(-1.5, 1.5, n) for n in shape], indexing="ij")
    head = sum(a**2 for a in axes) < 1
    image = (head * (1000 + 4000 * gaussian_filter(rng.normal(size=shape), 2))).astype(np.int16)
    labels = (head * np.where(axes[0] > 0, 2, 1)).astype(np.int16)
    affine = np.diag([2.0, 2.0, 2.5, 1.0])
    shifted = affine.copy()
    shifted[0, 3] = -4.0
    write_volume(folder / "fixed.nii.gz", Volume(image, affine))
    write_volume(folder / "fixed_labels.nii.gz", Volume(labels, affine))
    write_volume(folder / "moving.nii.gz", Volume(image, shifted))
    write_volume(folder / "moving_labels.nii.gz", Volume(labels, shifted))
    write_volume(folder / "series.nii.gz", Volume(np.stack([image, image // 2, image // 3], -1), shifted))
    (folder / "series.bval").write_text("0 1000 1000\n")
    (folder / "series.bvec").write_text("0 1 0\n0 0 1\n0 0 0\n")
    return folder


@pytest.fixture(scope="session")
def result(scans, fewer_samples, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("result")
    words = ["registration", "register", str(scans / "moving.nii.gz"), str(scans / "fixed.nii.gz"), "-o", str(out)]
    labels = [
        "--moving-labels",
        str(scans / "moving_labels.nii.gz"),
        "--fixed-labels",
        str(scans / "fixed_labels.nii.gz"),
    ]
    with fewer_samples():
        assert cli.main([*words, *labels]) == DONE
    return out
