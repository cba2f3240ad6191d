"""The benchmark against ANTs SyN, on a small phantom with a known solution."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from voxelwave.registration.benchmark import known_field_benchmark
from voxelwave.registration.benchmark_labels import LabelledScan, label_benchmark
from voxelwave.volumes import Volume

AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
SHAPE = (36, 38, 34)


@pytest.fixture(scope="module", autouse=True)
def _short_search(fewer_samples):
    with fewer_samples():
        yield


def phantom() -> tuple[np.ndarray, np.ndarray]:
    """A textured ball without a skull, with three shells as labels 2, 3 and 1001."""
    axes = np.meshgrid(*[np.linspace(-1.3, 1.3, n) for n in SHAPE], indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    texture = gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 1.5)
    image = (radius < 1) * (2 + 4 * texture / texture.std() * 0.25 + 1.5 * (radius < 0.6))
    labels = np.select([radius < 0.4, radius < 0.7, radius < 1], [2, 1001, 3], 0)
    return np.clip(image, 0, None).astype(np.float32), labels.astype(np.int32)


@pytest.mark.slow
def test_a_known_field_is_found_and_measured_by_its_own_length():
    image, _ = phantom()
    t1, t2 = Volume(image, AFFINE), Volume(np.where(image > 0, 6 - image, 0).astype(np.float32), AFFINE)
    lines: list[str] = []
    (result,) = known_field_benchmark(t1, t2, seeds=(3,), methods=("field",), progress=lines.append)
    assert (result.method, result.seed) == ("field", 3)
    assert 1 < result.initial_mm < 8  # the longest vector is 8 mm long
    assert result.ratio == pytest.approx(result.error_mm / result.initial_mm)
    assert result.ratio < 0.8
    assert result.p95_mm > result.error_mm
    assert result.non_positive_jacobian_percent == 0
    assert len(lines) == 1


def test_images_on_two_grids_are_refused():
    image, _ = phantom()
    with pytest.raises(ValueError, match="must lie on one grid"):
        known_field_benchmark(Volume(image, AFFINE), Volume(image[1:], AFFINE))


@pytest.mark.slow
def test_labels_of_two_people_overlap_after_registration():
    image, labels = phantom()
    shifted = AFFINE.copy()
    shifted[:3, 3] = (9, -6, 3)  # the same ball at another position: the right alignment is perfect
    moving = LabelledScan(Volume(image, shifted), Volume(labels, shifted))
    fixed = LabelledScan(Volume(image, AFFINE), Volume(labels, AFFINE))
    lines: list[str] = []
    methods = ("diffeomorphic", "syn")
    results = label_benchmark(moving, fixed, labels=(2, 3, 99), methods=methods, progress=lines.append)
    assert tuple(result.method for result in results) == methods
    for result in results:
        assert set(result.dice_by_label) == {2, 3}  # 99 is in neither map; the parcel 1001 counts as cortex, 3
        assert result.dice == pytest.approx(np.mean(list(result.dice_by_label.values())))
        assert result.dice > 0.9, result.method
        assert result.cpu_seconds > 0
        assert result.non_positive_jacobian_percent == 0
    assert len(lines) == 2
    assert "Dice" in lines[0]
