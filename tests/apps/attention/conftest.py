"""A small study for the commands on attention."""

import mne
import numpy as np
import pytest
import torch

from voxelwave.eeg.networks import ModelCard, build_network, save_network


@pytest.fixture
def study(tmp_path):
    """A study of 12 people, and weights of long_recording that know two of them."""
    info = mne.create_info(["Cz", "Pz"], 64.0, "eeg")
    rows = ["subject\tfile\tlabel"]
    for person in range(12):
        rng = np.random.default_rng(person)
        raw = mne.io.RawArray(1e-5 * rng.standard_normal((2, 64 * 15)), info, verbose="error")
        raw.save(tmp_path / f"p{person}_raw.fif", verbose="error")
        rows.append(f"p{person}\tp{person}_raw.fif\t{'case' if person % 2 else 'control'}")
    (tmp_path / "subjects.tsv").write_text("\n".join(rows) + "\n")
    torch.manual_seed(0)
    arguments = {"n_chans": 2, "n_outputs": 2, "sfreq": 64.0, "dim": 8, "heads": 2, "depth": 1, "filters": 2}
    windows = {"seconds": 3.0, "scaling": "window", "band": None}
    card = ModelCard(
        "long_recording", arguments, ("control", "case"), ("Cz", "Pz"), 64.0, windows, subjects=("p0", "p1")
    )
    save_network(tmp_path / "weights", build_network("long_recording", arguments), card)
    return tmp_path
