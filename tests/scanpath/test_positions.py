import pytest
import torch
import torch.nn.functional as F

from voxelwave.scanpath.positions import distance_table


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 14])
@pytest.mark.parametrize("sigma", [1.5, 2.0, 2.5])
def test_cosines_of_a_table_are_gaussian_for_any_number_of_places(n, sigma):
    # eigenvectors of even and odd symmetry alternate; those of odd symmetry sum to 0
    table = F.normalize(distance_table(n, 16, sigma=sigma).double(), dim=1)
    place = torch.arange(n, dtype=torch.float64)
    gaussian = torch.exp(-(place.unsqueeze(1) - place).square() / (2 * sigma**2))
    torch.testing.assert_close(table @ table.T, gaussian, atol=1e-6, rtol=0)  # the table is float32


def test_rows_of_a_table_have_one_norm_and_a_seed_turns_them():
    table = distance_table(5, 16)
    torch.testing.assert_close(table.norm(dim=1), torch.full((5,), 4.0))
    assert torch.equal(table, distance_table(5, 16, seed=0))
    assert not torch.allclose(table, distance_table(5, 16, seed=1))


def test_a_table_with_fewer_channels_than_rows_is_the_nearest_of_that_rank():
    table = distance_table(9, 4)
    assert table.shape == (9, 4)
    assert torch.linalg.matrix_rank(table) == 4


@pytest.mark.parametrize(
    "wrong", [{"n": 0, "channels": 4}, {"n": 4, "channels": 0}, {"n": 4, "channels": 4, "sigma": 0}]
)
def test_an_impossible_table_is_refused(wrong):
    with pytest.raises(ValueError, match="at least 1 and sigma above 0"):
        distance_table(**wrong)
