# %% [markdown]
# # Remove noise
#
# A FLAIR slice without visible noise gets Rician noise with a standard deviation of 20, which the included weights then remove. They are not told the level.

# %%
import numpy as np

from voxelwave.restoration import psnr, restore
from voxelwave.volumes import Volume, read_volume

clean = read_volume("voxelwave-demo/data/flair_slice.nii.gz")
noise = 20 * np.random.default_rng(0).standard_normal((2, *clean.array.shape))
noisy = Volume(np.hypot(clean.array + noise[0], noise[1]).astype(np.float32), clean.affine)
restored = restore(noisy)

# %% [markdown]
# The brain is measured, not the background: there the mean of Rician noise is above zero, which the network keeps.

# %%
brain = clean.array > 0
for name, image in {"noisy": noisy, "restored": restored}.items():
    print(f"{name}: {psnr(image.array[brain][None], clean.array[brain][None], data_range=372):.2f} dB")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 3, figsize=(9, 4), layout="constrained")
for axis, (name, image) in zip(axes, {"clean": clean, "noisy": noisy, "restored": restored}.items(), strict=True):
    axis.imshow(image.array[:, :, 0].T, cmap="gray", vmin=0, vmax=372)
    axis.set(title=name, xticks=[], yticks=[])

# %% [markdown]
# `restore` also takes a 2-D array, with the intensities that mean 0 and 1.

# %%
restore(noisy.array[:, :, 0], intensity_range="0,400").shape
