"""Weights are found by name, and only the file that the catalogue describes is used."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from voxelwave.apps import cli
from voxelwave.runs.catalogue import check_hash, find_weights, list_weights
from voxelwave.runs.exit import DONE, ERROR


def _offer(folder: Path, name: str, content: bytes = b"weights", **changed: str | list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.safetensors"
    file.write_bytes(content)
    entry: dict[str, object] = dict.fromkeys(["task", "data", "licence", "figures", "not_for"], "words")
    entry |= {"field": "restoration", "sha256": hashlib.sha256(content).hexdigest(), **changed}
    (folder / f"{name}.catalogue.json").write_text(json.dumps(entry))
    return file


@pytest.mark.parametrize("entry", list_weights(), ids=lambda entry: entry.name)
def test_shipped_files_have_the_hash_of_their_entry_and_a_card(entry):
    check_hash(entry)
    assert entry.card.is_file()
    assert entry.size < 8 << 20


def test_weights_of_a_users_folder_are_found_for_their_field_only(tmp_path, monkeypatch):
    file = _offer(tmp_path / "mine", "sharp")
    monkeypatch.setenv("VOXELWAVE_WEIGHTS", str(tmp_path / "mine"))
    assert find_weights("sharp", "restoration") == file
    with pytest.raises(FileNotFoundError, match="sharp"):
        find_weights("sharp", "eeg")


def test_weights_of_another_distribution_are_found(tmp_path, monkeypatch):
    package = tmp_path / "voxelwave_large"
    file = _offer(package, "large")
    (package / "__init__.py").touch()
    info = tmp_path / "voxelwave_large-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: voxelwave-large\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[voxelwave.weights]\nlarge = voxelwave_large\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_weights("large", "restoration") == file
    assert "voxelwave_large" not in sys.modules  # found without running its code


def test_a_replaced_file_is_refused(tmp_path, monkeypatch):
    _offer(tmp_path, "sharp", sha256="0" * 64)
    monkeypatch.setenv("VOXELWAVE_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"sharp.*damaged or was replaced"):
        find_weights("sharp", "restoration")


def test_a_damaged_entry_is_named(tmp_path, monkeypatch):
    _offer(tmp_path, "sharp")
    (tmp_path / "sharp.catalogue.json").write_text("{")
    monkeypatch.setenv("VOXELWAVE_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"sharp\.catalogue\.json"):
        list_weights()


def test_modalities_that_are_ruled_out_are_a_list(tmp_path, monkeypatch):
    monkeypatch.setenv("VOXELWAVE_WEIGHTS", str(tmp_path))
    _offer(tmp_path, "sharp", not_for_modalities=["CT", "PT"], for_modalities=["MR"])
    assert next(entry for entry in list_weights() if entry.name == "sharp").not_for_modalities == ("CT", "PT")
    assert next(entry for entry in list_weights() if entry.name == "sharp").for_modalities == ("MR",)
    _offer(tmp_path, "sharp", not_for_modalities="CT")  # would rule out "C" and "T"
    with pytest.raises(ValueError, match=r"sharp\.catalogue\.json .* must be a list"):
        list_weights()


def test_limits_of_an_entry_are_read_and_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("VOXELWAVE_WEIGHTS", str(tmp_path))
    _offer(tmp_path, "sharp", pixel_mm=[0.4, 2], magnitudes=True)
    entry = next(entry for entry in list_weights() if entry.name == "sharp")
    assert (entry.pixel_mm, entry.magnitudes) == ((0.4, 2.0), True)
    _offer(tmp_path, "sharp", pixel_mm=2)
    with pytest.raises(ValueError, match=r"sharp\.catalogue\.json .* smallest and the largest pixel size"):
        list_weights()


def test_a_path_stays_a_path(tmp_path):
    assert find_weights(tmp_path / "own.safetensors", "eeg") == tmp_path / "own.safetensors"


def test_the_command_lists_names_and_limits(capsys):
    assert cli.main(["weights"]) == DONE
    shown = capsys.readouterr().out
    assert "denoise-grey  (restoration, 2.2 MB)" in shown
    assert "not for  CT" in shown
    assert cli.main(["weights", "planted-observer"]) == DONE
    assert "# planted-observer" in capsys.readouterr().out
    assert "sizes" not in shown
    assert cli.main(["weights", "nothing"]) == ERROR


def test_the_command_lists_the_sizes_of_weights_that_have_several(tmp_path, monkeypatch, capsys):
    sizes = json.dumps({"small": {"width": 4}, "medium": {"width": 8}})
    file = _offer(tmp_path, "nested", save({"weight": np.zeros(1)}, {"sizes": sizes}))
    monkeypatch.setenv("VOXELWAVE_WEIGHTS", str(tmp_path))
    assert cli.main(["weights", "nested"]) == DONE
    assert "sizes    small, medium, full" in capsys.readouterr().out
    for damaged in ("3", '"ab"', "[1]"):
        _offer(tmp_path, "nested", save({"weight": np.zeros(1)}, {"sizes": damaged}))
        assert cli.main(["weights", "nested"]) == ERROR
        assert "the sizes in nested.safetensors must be a mapping" in capsys.readouterr().err
    _offer(tmp_path, "nested", b"no weights")
    assert cli.main(["weights", "nested"]) == ERROR
    assert f"{file} is not a readable safetensors file" in capsys.readouterr().err
