"""The restoration part of `voxelwave demo`: add noise to a real slice and restore it with the included weights."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from ...restoration.degradations import rician_noise
from ...restoration.metrics import psnr
from ...runs.files import atomic_path
from ...volumes import Volume, read_volume, write_volume
from ..restoration.options import Restore
from ..restoration.restore import restore
from .page import Shown

SLICE, NOISY, RESTORED = "flair_slice.nii.gz", "restoration/noisy.nii.gz", "restoration/restored.nii.gz"
SIGMA, SEED = 0.06, 0  # of the noise; sigma as a share of the brightest tissue
WEIGHTS = Path("denoise-mr")


def demo_restoration(output: Path) -> Shown:
    """Add Rician noise to a FLAIR slice, restore the file with the command, and show the images and the removed part.

    The figures compare the file that the command writes, without further steps, with the slice without added noise.

    Args:
        output: the folder of the demo, with the inputs in data/.
    """
    clean = read_volume(output / "data" / SLICE)
    white = float(np.percentile(clean.array, 99.5))
    generator = torch.Generator().manual_seed(SEED)
    noisy = rician_noise(torch.from_numpy(clean.array.astype(np.float32) / white), SIGMA, generator).numpy() * white
    write_volume(output / NOISY, Volume(noisy.round().astype(np.uint16), clean.affine))
    restore(Restore(input=output / NOISY, output=output / RESTORED, weights=WEIGHTS, threads=1))
    slices = [read_volume(path).array[..., 0].astype(np.float32) for path in (output / NOISY, output / RESTORED)]
    truth = clean.array[..., 0].astype(np.float32)
    brain = truth > 0
    figures = [psnr(x[brain][None, :], truth[brain][None, :], data_range=white) for x in slices]
    whole = [psnr(x, truth, data_range=white) for x in slices]
    print(
        f"  Rician noise, sigma {100 * SIGMA:g} % of {white:.0f}, seed {SEED}: PSNR in the brain {figures[0]:.2f} dB"
        f" before, {figures[1]:.2f} dB after; in the whole slice {whole[0]:.2f} and {whole[1]:.2f} dB"
    )
    panels = {
        "without added noise": truth / white,
        f"noisy, {figures[0]:.2f} dB in the brain": slices[0] / white,
        f"restored, {figures[1]:.2f} dB in the brain": slices[1] / white,
    }
    draw(output / "restoration.png", panels, (slices[0] - slices[1]) / white)
    return Shown(
        f"A FLAIR slice with added Rician noise (sigma {100 * SIGMA:g} % of the brightest tissue) is restored by the"
        f" included weights. Compared with the slice without added noise, the written file reaches {figures[1]:.2f} dB"
        f" in the brain ({figures[0]:.2f} before) and {whole[1]:.2f} dB in the whole slice ({whole[0]:.2f} before),"
        " where Rician noise also brightens the dark background; the network removes this bias, too.",
        "restoration.png",
        f"voxelwave restoration restore -i {output / NOISY} -o {output / RESTORED} --weights {WEIGHTS} --overwrite",
        {"noisy slice": NOISY, "restored slice": RESTORED, "report": "restoration/restored.restoration.json"},
    )


def draw(path: Path, panels: dict[str, np.ndarray], removed: np.ndarray) -> None:
    """Draw slices side by side, and their difference with more contrast.

    Args:
        path: the .png file to write.
        panels: title -> (H, W), where 0 is black and 1 white, on axes that point to the left and to the back.
        removed: (H, W), a difference of such slices.
    """
    figure = Figure(figsize=(3.2 * (len(panels) + 1), 4.6), layout="constrained")
    axes = figure.subplots(1, len(panels) + 1)
    for axis, (title, panel) in zip(axes, panels.items(), strict=False):
        axis.imshow(panel.T, cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=10)
    axes[-1].imshow(removed.T, cmap="gray", vmin=-3 * SIGMA, vmax=3 * SIGMA)
    axes[-1].set_title(f"noisy - restored, ±{3 * SIGMA:.2f}", fontsize=10)
    for axis in axes:
        axis.set_axis_off()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90)
