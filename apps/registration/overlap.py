"""Overlap of label maps before and after a registration."""

import numpy as np

from ...registration.metrics import dice, hd95_mm
from ...volumes import Volume


def overlap(warped: Volume, fixed: Volume, when: str) -> dict[str, float]:
    """Mean Dice and mean HD95 (mm) over the labels that both maps have, except the background.

    Args:
        warped: the moving labels on the fixed grid.
        fixed: the fixed labels.
        when: suffix of the names, "before" or "after".

    Returns:
        "dice_WHEN" and "hd95_mm_WHEN".

    Raises:
        ValueError: the maps differ in shape or have no label in common.
    """
    if warped.shape != fixed.shape:
        raise ValueError(f"fixed labels must have the fixed image's shape {warped.shape}, got {fixed.shape}")
    labels = sorted((set(np.unique(warped.array).tolist()) & set(np.unique(fixed.array).tolist())) - {0})
    if not labels:
        raise ValueError("the label maps must share at least one label, got none in common")
    scores = dice(warped.array, fixed.array, label_list=labels)
    distances = hd95_mm(warped.array, fixed.array, label_list=labels, spacing=fixed.spacing)
    return {
        f"dice_{when}": float(np.nanmean(list(scores.values()))),
        f"hd95_mm_{when}": float(np.nanmean(list(distances.values()))),
    }
