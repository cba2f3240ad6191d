"""NestedMorph beside the plain form of the published network: equal results and gradients; files with the published."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from voxelwave.registration.benchmark_peer import peer_cost_table, published_network
from voxelwave.registration.nestedmorph import NestedMorph
from voxelwave.registration.nestedmorph_plain import PlainNestedMorph

PUBLISHED = """
from voxelwave.registration.nestedmorph_plain import PlainNestedMorph

class NestedMorph(PlainNestedMorph):
    def __init__(self, inshape, use_gpu=False):
        super().__init__()
        assert len(inshape) == 3
"""


def both(generator: torch.Generator) -> tuple[NestedMorph, PlainNestedMorph]:
    """Two networks in float64 with the same parameters and running statistics, of which none is 0 or 1."""
    ours, plain = NestedMorph(official=True).double(), PlainNestedMorph().double()
    for name, tensor in ours.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.5
            scale = 3.0 if name.startswith("flow") else tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.2
            tensor.copy_(scale * noise + (1.0 if name.endswith(("var", "norm.weight", "bn.weight")) else 0.0))
    plain.load_state_dict(ours.state_dict(), strict=True)
    return ours, plain


@pytest.mark.slow
def test_results_and_gradients_are_those_of_the_plain_form(generator):
    ours, plain = both(generator)
    # two pairs, since for one the backward pass of PyTorch's BatchNorm3d is wrong in some orders of memory, which
    # `NestedMorph` avoids and the plain form does not
    moving, fixed = torch.rand(2, 2, 1, 32, 64, 32, generator=generator, dtype=torch.float64)
    for training in (False, True):
        ours.train(training), plain.train(training)
        results = ours(moving, fixed), plain((moving, fixed))
        assert results[0][1].abs().max() > 0.5
        for found, expected in zip(*results, strict=True):
            assert_close(found, expected, rtol=1e-9, atol=1e-10)
    target = torch.randn(results[0][1].shape, generator=generator, dtype=torch.float64)
    for _, displacement in results:
        (displacement * target).mean().backward()
    expected = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.grad is None:
            assert expected[name].grad is None
        else:
            assert_close(parameter.grad, expected[name].grad, rtol=1e-7, atol=1e-11, msg=lambda text, n=name: n + text)


@pytest.mark.slow
def test_the_comparison_names_its_peer_and_measures_both(tmp_path: Path):
    cases = (((32, 32, 32), "forward", 1), ((32, 32, 32), "forward + backward", 1))
    lines: list[str] = []
    rows = peer_cost_table(cases, progress=lines.append)
    assert [(row.peer, row.mode) for row in rows] == [("plain", case[1]) for case in cases]
    assert len(lines) == 2
    for row in rows:
        assert row.ratio == pytest.approx(row.cpu_seconds / row.peer_cpu_seconds)
        assert row.largest_displacement > 0.5
        assert 0 < row.difference < 1e-3
        assert row.difference_float64 is not None
        assert row.difference_float64 < 1e-11
    (tmp_path / "models.py").write_text(PUBLISHED)
    (row,) = peer_cost_table(cases[:1], published=tmp_path / "models.py")
    assert row.peer == "published"


@pytest.mark.parametrize(
    ("name", "code", "complaint"),
    [
        ("models.py", "import nobody_has_it", "ModuleNotFoundError: No module named 'nobody_has_it"),
        ("models.py", "x = 1", "AttributeError: .*no attribute 'NestedMorph'"),
        ("models.py", "import torch\nNestedMorph = lambda size: torch.nn.Linear(1, 1)", "RuntimeError: .*Missing key"),
        ("models.txt", PUBLISHED, r"ValueError: it must end in \.py"),
    ],
)
def test_another_file_is_refused_in_one_line(name, code, complaint, tmp_path):
    (tmp_path / name).write_text(code)
    with pytest.raises(ValueError, match=complaint) as caught:
        published_network(tmp_path / name)
    assert "\n" not in str(caught.value)
