"""Commands that use a trained network do not load a training library."""

import subprocess
import sys

SHAPE = {"n_chans": 5, "n_times": 200, "n_outputs": 2, "sfreq": 100.0}


def test_diagnosing_loads_neither_lightning_nor_braindecode():
    heavy = ["lightning", "monai", "braindecode", "torchaudio", "optuna", "sklearn", "matplotlib"]
    code = (
        "import sys, voxelwave.apps.eeg.diagnose, voxelwave.apps.eeg.work, torch; before = torch.version.cuda; "
        "from voxelwave.eeg.networks import build_network; "
        f"[build_network(name, {SHAPE}) for name in ('adhdeepnet', 'eegnet', 'shallow')]; "
        f"assert torch.version.cuda == before; print([n for n in {heavy} if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_options_load_neither_torch_nor_mne():
    code = "import sys; import voxelwave.apps.eeg.options; print([n for n in ('torch', 'mne') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
