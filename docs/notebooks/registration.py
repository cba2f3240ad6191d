# %% [markdown]
# # Align two scans
#
# An atlas is moved onto a patient, and its labels with it. The images are those of `voxelwave demo`, which writes them to `voxelwave-demo/data`.

# %%
from voxelwave.registration import register
from voxelwave.volumes import read_volume, resample

moving, fixed = (read_volume(f"voxelwave-demo/data/{name}.nii.gz") for name in ("atlas", "sub-01_T1w"))
fixed

# %% [markdown]
# `register` does what the command does: an affine alignment from many starting points, then the refinement of a dense displacement field.

# %%
result = register(moving, fixed)
print({name: round(value, 3) for name, value in result.metrics.items()})
result.warped

# %% [markdown]
# `result.forward` maps points of the fixed image to the moving image (RAS+ mm), `result.inverse` the reverse. A label map goes through the same
# transform, with nearest-neighbour interpolation.

# %%
labels = resample(read_volume("voxelwave-demo/data/atlas_labels.nii.gz"), fixed, result.forward, order="nearest")
labels

# %% [markdown]
# `write_volume("labels.nii.gz", labels)` writes the result, and `RegistrationSettings` holds the options of the command.
