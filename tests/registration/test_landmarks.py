"""Brain and ventricles of a phantom head, found in its T1w and its b0 contrast."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from voxelwave.registration.landmarks import BRAIN, VENTRICLES, above_base, segmented_b0, segmented_t1
from voxelwave.registration.metrics import dice
from voxelwave.volumes import Volume

SPACING = 2.0
SHAPE = (80, 96, 84)
TISSUES = ("air", "scalp", "skull", "fluid", "grey", "white")
T1 = dict(zip(TISSUES, (0.0, 1.5, 0.35, 0.3, 0.7, 1.0), strict=True))
B0 = dict(zip(TISSUES, (0.0, 0.1, 0.05, 2.0, 1.0, 0.8), strict=True))


def head() -> tuple[np.ndarray, np.ndarray]:
    """Nested ellipsoids, as indices into TISSUES, and a mask of the two ventricles."""
    x, y, z = (np.arange(n)[:, None, None] * SPACING - n * SPACING / 2 for n in SHAPE)
    y, z = y.reshape(1, -1, 1), z.reshape(1, 1, -1)
    radius = np.sqrt((x / 70) ** 2 + (y / 85) ** 2 + (z / 75) ** 2)  # 1 at the skin
    tissue = np.zeros(SHAPE, int)
    for index, outer in ((1, 1.0), (2, 0.95), (3, 0.9), (4, 0.8), (5, 0.66)):
        tissue[radius < outer] = index
    sides = [((x - side * 10) / 7) ** 2 + (y / 28) ** 2 + ((z - 8) / 9) ** 2 < 1 for side in (-1, 1)]
    ventricles = sides[0] | sides[1]
    return np.where(ventricles, 3, tissue), ventricles


def image(contrast: dict[str, float], tissue: np.ndarray, noise: float) -> Volume:
    values = np.array(list(contrast.values()), np.float32)[tissue]
    values = gaussian_filter(values, 0.5) + np.random.default_rng(0).normal(0, noise, SHAPE)
    return Volume(np.abs(values).astype(np.float32), np.diag([SPACING, SPACING, SPACING, 1.0]))


@pytest.mark.parametrize(("segmented", "contrast"), [(segmented_t1, T1), (segmented_b0, B0)])
def test_brain_and_ventricles_are_found_in_each_contrast(segmented, contrast):
    tissue, ventricles = head()
    found = segmented(image(contrast, tissue, noise=0.03))
    truth = np.where(ventricles, VENTRICLES, (tissue >= 4) * BRAIN).astype(np.uint8)
    above = above_base(found.with_array(truth))
    brains = [((labels >= BRAIN) & above).astype(np.uint8) for labels in (found.array, truth)]
    assert dice(*brains, label_list=[1])[1] > 0.93
    assert dice(found.array, truth, label_list=[VENTRICLES])[VENTRICLES] > 0.8


def test_an_atlas_keeps_tissue_beside_the_brain_out():
    tissue, _ = head()
    tissue[:18, 30:66, 30:54] = 4  # a bright block from the skin through the skull to the brain
    scan = image(T1, tissue, noise=0.03)
    truth = (tissue >= 4) & (np.arange(SHAPE[0])[:, None, None] >= 18)
    alone, limited = (segmented_t1(scan, atlas=atlas).array >= BRAIN for atlas in (None, scan.with_array(truth)))
    beside = np.zeros(SHAPE, bool)
    beside[:16] = True
    assert (alone & beside).sum() > 2000
    assert (limited & beside).sum() < 100
    np.testing.assert_array_equal(alone[40:], limited[40:])


def test_above_base_follows_the_patient_not_the_index():
    labels = np.zeros((4, 4, 10), np.uint8)
    labels[1:3, 1:3, 4:7] = VENTRICLES
    upright = Volume(labels, np.eye(4))
    upside_down = Volume(labels[:, :, ::-1].copy(), np.diag([1.0, 1.0, -1.0, 1.0]))
    assert above_base(upright)[0, 0].tolist() == [False] * 4 + [True] * 6
    np.testing.assert_array_equal(above_base(upside_down)[:, :, ::-1], above_base(upright))
