"""`voxelwave registration train`."""

from pathlib import Path
from typing import Literal


def train(
    *,
    pairs: Path,
    output: Path,
    task: Literal["t1-dwi", "atlas-to-patient", "patient-to-patient"] = "t1-dwi",
    contrast: Literal["image", "b0", "fa", "dwi"] = "b0",
    atlas: Path | None = None,
    spacing_mm: float = 2.0,
    size: tuple[int, int, int] = (96, 96, 96),
    similarity: Literal["ncc", "mi", "mind"] = "mi",
    smoothness: float = 1.0,
    label_weight: float = 0.0,
    diffeomorphic: bool = False,
    learning_rate: float = 1e-4,
    epochs: int = 500,
    batch_size: int = 1,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 0,
    resume: bool = False,
) -> None:
    """Train NestedMorph on pairs of scans and keep the best weights.

    Subjects are shared out to train (80 %), val and test (10 % each). The best epoch has the highest Dice on val, or
    without label maps the lowest loss.

    Args:
        pairs: a list (.csv, .tsv, .json with columns moving, fixed and, where known, moving_labels, fixed_labels,
            subject, split), or a BIDS-like folder (sub-*/anat/*_T1w.nii.gz, sub-*/dwi/*_dwi.nii.gz).
        output: the folder to write to: network.safetensors (for register --weights), checkpoints, logs, cache.
        task: of a folder: which images make a pair. A list says it.
        contrast: of a folder's diffusion series: mean b0, mean of the weighted volumes (dwi), or fa.
        atlas: the atlas image, for atlas-to-patient.
        spacing_mm: spacing of the grid that the network sees, the same along all axes.
        size: voxels of that grid; scans are cropped or padded to it.
        similarity: local correlation, mutual information or MIND.
        smoothness: weight of the regulariser on the displacement.
        label_weight: weight of the soft Dice loss over the label maps.
        diffeomorphic: the network's output is a velocity field, integrated by scaling and squaring.
        learning_rate: of the first epoch; it decays to 0.
        epochs: how often each pair is seen.
        batch_size: pairs per step.
        device: auto takes a GPU if there is one.
        seed: of weights, shares, augmentation and order.
        resume: go on from the last checkpoint in OUTPUT.
    """
    from ...registration.training import train as train_network

    result = train_network(
        pairs,
        output,
        task=task,
        contrast=contrast,
        atlas=atlas,
        spacing_mm=spacing_mm,
        size=size,
        similarity=similarity,
        smoothness=smoothness,
        label_weight=label_weight,
        diffeomorphic=diffeomorphic,
        learning_rate=learning_rate,
        epochs=epochs,
        batch_size=batch_size,
        device=device,
        seed=seed,
        resume=resume,
    )
    print(f"best {result.metric} {result.value:.4g}; weights: {result.weights}")
    for name, value in result.test.items():
        print(f"  {name:<32}{value:.4g}")
