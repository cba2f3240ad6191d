"""ONNX files carry their description, and a file that computes something else is not written."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from voxelwave.runs import onnx_file
from voxelwave.runs.onnx_file import Exportable, Size, write_onnx

onnx = pytest.importorskip("onnx", reason='needs pip install "voxelwave[export]"')
pytest.importorskip("onnxscript", reason='needs pip install "voxelwave[export]"')
pytest.importorskip("onnxruntime", reason='needs pip install "voxelwave[export]"')


def _exportable() -> Exportable:
    def example(sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
        return (torch.rand(sizes["rows"], 3, generator=torch.Generator().manual_seed(0)),)

    return Exportable(
        network=nn.Linear(3, 2).eval(),
        inputs={"x": ("rows", 3)},
        outputs=("y",),
        sizes={"rows": Size(least=4, multiple=2, meaning="rows of a table")},
        example=example,
        tried=({"rows": 4}, {"rows": 10}),
        preprocessing={"x": "any numbers"},
    )


def test_names_sizes_and_description_are_in_the_file_and_results_are_checked(tmp_path: Path) -> None:
    written = write_onnx(tmp_path / "m.onnx", _exportable())
    assert written.difference is not None
    assert written.difference < 1e-6
    model = onnx.load(tmp_path / "m.onnx")
    assert [each.name for each in (*model.graph.input, *model.graph.output)] == ["x", "y"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "2*rows_by_2"
    facts = {each.key: each.value for each in model.metadata_props}
    assert json.loads(facts["voxelwave.sizes"]) == {"rows": "rows of a table: at least 4, a multiple of 2"}
    assert json.loads(facts["voxelwave.preprocessing"]) == {"x": "any numbers"}


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_difference", lambda path, exportable: 0.5)
    with pytest.raises(ValueError, match="onnxruntime differs from PyTorch by 5"):
        write_onnx(tmp_path / "m.onnx", _exportable())
    assert list(tmp_path.iterdir()) == []
