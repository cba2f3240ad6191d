# %% [markdown]
# # Diagnose EEG recordings
#
# Synthetic recordings, half of which contain a rhythm of 10 Hz. The included weights know this rhythm and no disease.

# %%
from pathlib import Path

from voxelwave.eeg import diagnose, load_network, read_recording
from voxelwave.eeg.synthetic import write_synthetic_study

write_synthetic_study(Path("study"), subjects=4, seconds=20, difference_uv=8)
files = sorted(Path("study").glob("*.fif"))
read_recording(files[0])

# %% [markdown]
# A network is loaded once and reads any number of recordings. Each is cut and scaled as the recordings of the training were.

# %%
weights = load_network("rhythm-demo")
for file in files:
    found = diagnose(file, weights)
    print(f"{file.name}: {found.decision}, probability {found.probability:.3f}")

# %% [markdown]
# `found.recording.notes` lists what the reader changed or could not determine.

# %%
for note in found.recording.notes:
    print(note)
