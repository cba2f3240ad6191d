"""The restoration part of `voxelwave demo`: add noise to a real slice and remove it with the included weights."""

from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from ...restoration.degradations import rician_noise
from ...restoration.images import choose_range, read_image
from ...restoration.inference import restore
from ...restoration.metrics import psnr
from ...restoration.rician import without_rician_bias
from ...restoration.weights import load_weights
from ...runs.files import atomic_path

SIGMA, SEED = 0.08, 0  # of the noise; sigma as a share of the intensity range
WEIGHTS = "denoise-grey"


def demo_restoration(output: Path) -> None:
    """Add Rician noise to a slice of the FLAIR scan, restore it, and show the images and the removed part.

    The network estimates the mean of the noisy magnitudes; the Rician bias of that mean is then removed by a formula.
    The function writes restoration.png (clean, noisy, restored, removed) and prints the PSNR before and after.

    Args:
        output: the folder to write to.
    """
    with as_file(files(__package__) / "data" / "flair.nii.gz") as path:
        image = read_image(path)
    intensity_range = choose_range(image, f"0,{np.percentile(image.stack, 99.9):.0f}")
    most_brain = int((image.stack > 0).sum((1, 2, 3)).argmax())
    clean = intensity_range.to_unit(image.stack[most_brain])  # (1, H, W)
    noisy = rician_noise(torch.from_numpy(clean), SIGMA, torch.Generator().manual_seed(SEED)).numpy()
    model, _ = load_weights(WEIGHTS)
    restored = without_rician_bias(restore(model, noisy), SIGMA)
    before, after = (psnr(x, clean, data_range=1.0) for x in (noisy, restored))
    print(
        f"Restoration: a FLAIR slice with Rician noise (sigma {100 * SIGMA:g} % of {intensity_range}, seed {SEED})\n"
        f"  PSNR {before:.2f} dB before, {after:.2f} dB after, data_range {intensity_range.span:g}; see"
        f" {output / 'restoration.png'}"
    )
    panels = {
        "clean": clean[0],
        f"noisy, {before:.2f} dB": noisy[0],
        f"restored, {after:.2f} dB": restored[0],
    }
    draw(output / "restoration.png", panels, noisy[0] - restored[0])


def draw(path: Path, panels: dict[str, np.ndarray], removed: np.ndarray) -> None:
    """Draw slices side by side, and their difference with more contrast.

    Args:
        path: the .png file to write.
        panels: title -> (H, W), where 0 is black and 1 white.
        removed: (H, W), a difference of such slices.
    """
    figure = Figure(figsize=(3.2 * (len(panels) + 1), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels) + 1)
    for axis, (title, panel) in zip(axes, panels.items(), strict=False):
        axis.imshow(panel.T, cmap="gray", vmin=0, vmax=1, origin="lower")
        axis.set_title(title, fontsize=10)
    axes[-1].imshow(removed.T, cmap="gray", vmin=-3 * SIGMA, vmax=3 * SIGMA, origin="lower")
    axes[-1].set_title(f"noisy - restored, ±{3 * SIGMA:.2f}", fontsize=10)
    for axis in axes:
        axis.set_axis_off()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
