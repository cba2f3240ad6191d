"""What the four trainings show: our own lines, and none of Lightning's advertisements, tips and lists of hardware."""

import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from voxelwave.eeg.synthetic import write_synthetic_study
from voxelwave.scanpath.own_files import write_scanpaths
from voxelwave.scanpath.planted import planted_dataset
from voxelwave.volumes import Volume, write_volume

# the trainings run in one process, as PyTorch takes seconds to load; the network of the registration is made narrow
_PROGRAM = """
import numpy as np, sys
import voxelwave.registration.data, voxelwave.registration.nestedmorph
from voxelwave.apps.cli import main
voxelwave.registration.nestedmorph.WIDTHS = (16, 32, 64, 128)
voxelwave.registration.data.align_affine = lambda *arguments, **options: np.eye(4)
for field, command in (
    ("registration", "--pairs pairs.csv --size 32,32,32 --spacing-mm 3 --epochs 1 --similarity ncc"),
    ("restoration", "images images --config restoration.yaml"),
    ("eeg", "study --config eeg.yaml --epochs 1"),
    ("scanpath", "scenes.json --config scanpath.yaml --epochs 1"),
):
    assert main([field, "train", *command.split(), "-o", f"out/{field}", "--device", "cpu"]) == 0, field
    print("trained:", field)
"""
_SIZES = {
    "restoration": {
        "degradation": {"kind": "gaussian", "sigma": 0.1},
        "stages": [{"steps": 1, "batch": 1, "patch": 16}],
        "validation_crop": 32,
    },
    "eeg": {
        "settings": {"F1": 2, "D": 2, "kernel_length": 16, "lr": 5e-3, "max_norm": 5.0},
        "windows": {"seconds": 2.0, "sfreq": 64.0},
    },
    "scanpath": {
        "network": {"d_appearance": 4, "d_position": 12, "layers": 1, "feed_forward": 16, "steps": 64},
        "appearance": "features",
    },
}
CHATTER = ("GPU", "TPU", "HPU", "LOCAL_RANK", "litlogger", "Tip", "Trainer", "num_workers", "lightning", "Warning")


@pytest.mark.slow
def test_no_training_shows_the_chatter_of_libraries(tmp_path, tiny_module):
    rng = np.random.default_rng(0)
    for name in ("moving", "fixed"):
        write_volume(tmp_path / f"{name}.nii.gz", Volume(rng.random((32, 32, 32)).astype(np.float32), np.eye(4)))
    rows = [f"moving.nii.gz,fixed.nii.gz,person-{part},{part}" for part in ("train", "val", "test")]
    (tmp_path / "pairs.csv").write_text("\n".join(["moving,fixed,subject,split", *rows]))
    (tmp_path / "images").mkdir()
    Image.fromarray(rng.integers(0, 256, (48, 48), dtype=np.uint8)).save(tmp_path / "images" / "a.png")
    write_synthetic_study(tmp_path / "study", subjects=10, seconds=10, difference_uv=10, seed=1)
    write_scanpaths(planted_dataset(12, paths=2, seed=1, most=11), tmp_path / "scenes.json")
    sizes = {**_SIZES, "restoration": {**_SIZES["restoration"], "module": tiny_module}}
    for field, content in sizes.items():
        (tmp_path / f"{field}.yaml").write_text(yaml.safe_dump(content))
    run = subprocess.run([sys.executable, "-P", "-c", _PROGRAM], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("trained: ") == 4
    shown = run.stdout + run.stderr
    assert [line for line in shown.splitlines() if any(word in line for word in CHATTER)] == []
