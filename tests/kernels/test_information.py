"""The compiled mutual information of samples under a linear map agrees with plain PyTorch, on any number of threads."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from voxelwave.kernels import information, native
from voxelwave.registration.linear import Samples, _compare, samples_of
from voxelwave.runs.threads import limited_threads
from voxelwave.volumes import Volume

pytestmark = pytest.mark.skipif(not native.levels(), reason="the compiled kernels were not built")


def _samples(shape: tuple[int, int, int], count: int, masked: bool) -> Samples:
    rng = np.random.default_rng(1)
    array = gaussian_filter(rng.standard_normal(shape), [1.5 if n > 1 else 0 for n in shape])
    image = Volume((array / array.std()).astype(np.float32), np.diag([4.0, 3.0, 5.0, 1.0]))
    mask = np.ones(shape, np.float32)
    mask[:, : shape[1] // 3] = 0
    return samples_of(image, image, spacing_mm=3, count=count, moving_mask=image.with_array(mask) if masked else None)


def _map(samples: Samples, shift: float) -> torch.Tensor:
    world = torch.eye(4, dtype=torch.float64)
    world[:2, :2] = torch.tensor([[0.98, -0.1], [0.12, 1.03]])
    world[:3, 3] = torch.tensor([shift, -shift / 2, 0.3])
    return world


def _by_torch(
    samples: Samples, world: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> tuple[float, float, torch.Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(information, "serves", lambda *images: False)
        return _compare(samples, world, "mi", with_slope=True)


@pytest.mark.parametrize("level", native.levels() or ["none"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("shape", "count"), [((20, 24, 18), 9000), ((1, 30, 26), 700), ((5, 9, 8), 300)])
def test_value_overlap_and_derivative_equal_those_of_pytorch(level, masked, shape, count, monkeypatch):
    samples = _samples(shape, count, masked)
    for shift in (0.0, 3.3, -20.0):
        world = _map(samples, shift)
        expected = _by_torch(samples, world, monkeypatch)
        with native.use_level(level):
            value, overlap, slope = _compare(samples, world, "mi", with_slope=True)
        assert value == pytest.approx(expected[0], abs=2e-6)
        assert overlap == pytest.approx(expected[1], abs=2e-6)
        torch.testing.assert_close(slope, expected[2], rtol=1e-3, atol=1e-5 * max(1.0, float(expected[2].abs().max())))


def test_results_have_the_same_bytes_on_any_number_of_threads():
    samples = _samples((20, 24, 18), 9000, True)
    world = _map(samples, 2.0)
    found = []
    for threads in (1, 2, 3):
        with limited_threads(threads):
            found.append(_compare(samples, world, "mi", with_slope=True))
    assert found[0][:2] == found[1][:2] == found[2][:2]
    assert torch.equal(found[0][2], found[1][2])
    assert torch.equal(found[0][2], found[2][2])


def test_without_overlap_the_value_is_1_and_the_derivative_0():
    samples = _samples((20, 24, 18), 900, False)
    value, overlap, slope = _compare(samples, _map(samples, 1e4), "mi", with_slope=True)
    assert (value, overlap) == (1.0, 0.0)
    assert not slope.any()
