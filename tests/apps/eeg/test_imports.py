"""Commands that use a trained network load no training library."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["diagnose", "work"])
def test_diagnosing_loads_neither_lightning_nor_braindecode(module):
    heavy = ["lightning", "monai", "braindecode", "torchaudio", "optuna", "sklearn", "matplotlib"]
    code = (
        f"import sys; import voxelwave.apps.eeg.{module}; from voxelwave.eeg.networks import build_network; "
        f"build_network('adhdeepnet', {{'F1': 2, 'D': 1}}); print([n for n in {heavy} if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_options_load_neither_torch_nor_mne():
    code = "import sys; import voxelwave.apps.eeg.options; print([n for n in ('torch', 'mne') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
