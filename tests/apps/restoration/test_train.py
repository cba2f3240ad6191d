"""The train command: messages and files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image as Pillow

from voxelwave.apps import cli
from voxelwave.apps.cli import main
from voxelwave.runs.exit import DONE, ERROR, USAGE
from voxelwave.volumes import Volume, write_volume

NETWORK = {"arguments": {"stripe_width": 4, "in_channels": 1, "width": 8, "depths": [1], "scale": 1, "upsampler": None}}
_CONFIGURATIONS = Path(cli.__file__).parent / "configs/restoration"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"module": {}}, "arguments of MaIR do not fit: missing 1 required keyword-only argument: 'stripe_width'"),
        ({"module": {"nets": "MaIR"}}, "module takes network, arguments,"),
        ({"module": {"arguments": {"stripe_width": 4, "wide": 8}}}, "unexpected keyword argument 'wide'"),
        ({"module": NETWORK, "degradation": {"sigma": 0.1}}, "degradation must be one of gaussian, rician"),
        (
            {"module": NETWORK, "degradation": {"kind": ["gaussian"], "sigma": 0.1}},
            "degradation must be one of gaussian",
        ),
        ({"stages": [{"steps": 1, "batches": 1, "patch": 8}]}, "a stage takes steps, batch, patch"),
        ({"module": {"arguments": {"stripe_width": 4, "in_channels": 3}}}, "has 1 channel(s)"),
    ],
)
def test_training_names_what_does_not_fit(
    folder: Path, capsys: pytest.CaptureFixture[str], options: dict, reason: str
) -> None:
    (folder / "train.yaml").write_text(json.dumps({"degradation": {"kind": "gaussian", "sigma": 0.1}, **options}))
    images = str(folder / "in")
    command = ["restoration", "train", images, images, "-o", str(folder / "out"), "--device", "cpu"]
    assert main([*command, "--config", str(folder / "train.yaml")]) == ERROR
    assert reason in capsys.readouterr().err


def test_degraded_partners_are_given_for_both_parts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = str(folder / "in")
    command = ["restoration", "train", images, images, "-o", str(folder / "out"), "--train-degraded", images]
    assert main(command) == USAGE
    assert "--train-degraded and --validation-degraded must be given together" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", sorted(_CONFIGURATIONS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configuration_trains(path: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(path.read_text())
    settings["stages"] = [{"steps": 1, "batch": 1, "patch": 16}]
    settings["module"]["arguments"] |= {
        "width": 8,
        "depths": [1] * len(settings["module"]["arguments"].get("depths", [1])),
    }
    if "sizes" in settings["module"]:
        settings["module"]["sizes"] = {"small": {"width": 4}, "medium": {"width": 6}}
    settings["module"].pop("start_from", None)  # weights of the full width do not fit
    settings["validation_crop"] = 32
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(settings))
    rng = np.random.default_rng(0)
    words = ["restoration", "train"]
    kind = settings.get("degradation", {}).get("kind")
    if kind in ("ct", "rician") or (kind is None and not settings["module"]["network"].startswith("mair-s")):
        scan = str(tmp_path / "scan.nii.gz")
        low = 0 if kind == "rician" else -900
        write_volume(scan, Volume(rng.integers(low, 1900, (40, 40, 4)).astype(np.int16), np.eye(4)))
        words += [scan, scan]
        if kind is None:
            words += ["--train-degraded", scan, "--validation-degraded", scan]
    else:
        for part in ("train", "validation"):
            (tmp_path / part).mkdir()
            Pillow.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(tmp_path / part / "a.png")
        words += [str(tmp_path / "train"), str(tmp_path / "validation")]
    command = [*words, "-o", str(tmp_path / "out"), "--config", str(tmp_path / "short.yaml"), "--device", "cpu"]
    assert main(command) == DONE
    assert (tmp_path / "out/weights.safetensors").is_file()


@pytest.mark.filterwarnings("ignore")
def test_a_training_on_archives_is_continued_and_recorded_as_theirs(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (24, 20), np.uint8)
    Pillow.fromarray(picture).save(tmp_path / "in/a.png")
    archives = [shutil.make_archive(str(tmp_path / "x"), form, tmp_path / "in") for form in ("zip", "tar")]
    words = ["restoration", "train", *archives, "-o", str(tmp_path / "out"), "--module", json.dumps(NETWORK)]
    words += ["--degradation", '{"kind": "gaussian", "sigma": 0.1}', "--epoch-steps", "2", "--device", "cpu"]
    for steps, more in ((2, []), (4, ["--resume"])):
        stages = json.dumps([{"steps": steps, "batch": 1, "patch": 8}])
        assert main([*words, "--stages", stages, *more]) == DONE
        record = json.loads((tmp_path / "out/record.json").read_text())
        assert record["metrics"]["steps"] == steps
        assert [record["inputs"][f"{part}_images"]["path"] for part in ("train", "validation")] == archives
