"""Comparisons of the restoration benchmark, with tiny networks."""

import pytest
import torch

from voxelwave.restoration.benchmark import PARTS, Measured, Setting, compare_scans, measure_part
from voxelwave.restoration.mair import MaIR
from voxelwave.restoration.scan_block import DirectionalScan
from voxelwave.runs.catalogue import find_weights

TINY = {"in_channels": 1, "scale": 1, "upsampler": None, "width": 8, "depths": [1], "states": 1, "stripe_width": 4}


def test_both_scans_give_one_result_and_the_compiled_one_stays_selected(generator: torch.Generator) -> None:
    model = MaIR(**TINY).eval()
    compiled, plain, difference = compare_scans(
        model, torch.rand(1, 1, 9, 7, generator=generator), repeats=2, plain_repeats=1
    )
    assert (len(compiled), len(plain)) == (2, 1)
    assert difference < 1e-5  # float32 sums in a different order
    assert not any(m.plain for m in model.modules() if isinstance(m, DirectionalScan))


def test_parts_on_real_images_need_data() -> None:
    with pytest.raises(ValueError, match="need data, the folder of real images"):
        PARTS["set12"](Setting(find_weights("denoise-grey", "restoration")))


def test_a_part_leaves_the_number_of_threads_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()

    def part(setting: Setting) -> Measured:
        torch.set_num_threads(before + 1)
        return Measured([("title", [{"seed": setting.seed}])], {})

    monkeypatch.setitem(PARTS, "speed", part)
    assert measure_part("speed", Setting(find_weights("denoise-grey", "restoration"), seed=3)).tables == [
        ("title", [{"seed": 3}])
    ]
    assert torch.get_num_threads() == before
