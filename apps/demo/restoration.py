"""The restoration part of `voxelwave demo`: noise is added to a real slice and taken out by the shipped weights."""

from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# torch and its friends load in the functions, so that --help answers at once

SIGMA, SEED = 0.08, 0  # of the noise, as a share of the intensity range
WEIGHTS = "denoise-grey"


def demo_restoration(output: Path) -> None:
    """Add Rician noise to a slice of the FLAIR scan, restore it, and show what was there, what came out and the rest.

    The network gives the mean of the noisy magnitudes; what the noise added to that mean is taken out by formula.
    Writes restoration.png (clean, noisy, restored, and what was taken out) and prints the PSNR before and after.

    Args:
        output: the folder to write into.
    """
    import numpy as np
    import torch

    from ...restoration.degradations import rician_noise
    from ...restoration.images import choose_range, read_image
    from ...restoration.inference import restore
    from ...restoration.metrics import psnr
    from ...restoration.rician import without_rician_bias
    from ...restoration.weights import load_weights

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


def draw(path: Path, panels: "dict[str, np.ndarray]", removed: "np.ndarray") -> None:
    """Write a picture of slices side by side and of what was removed, brighter.

    Args:
        path: the .png to write.
        panels: title -> (H, W) with 0 black and 1 white.
        removed: (H, W), a difference of such slices.
    """
    from matplotlib.figure import Figure

    from ...runs.files import atomic_path

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
