"""Prediction of whole recordings: the windows of each are joined, padded to one length, and predicted at once."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..runs.finite import check_finite

AT_ONCE = 8  # recordings per pass


def joined(x: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Join windows (n, channels, times) of a recording to (channels, samples), with each sample once.

    Samples that a window shares with the previous window are used once; bad spans between windows are missing.

    Args:
        x: windows in the order of the recording.
        start: (n,) first sample of each window.

    Example:
        >>> joined(np.array([[[1, 2, 3]], [[3, 4, 5]], [[7, 8, 9]]]), np.array([0, 2, 6])).tolist()
        [[1, 2, 3, 4, 5, 7, 8, 9]]
    """
    ends = np.concatenate([start[:1], start[:-1] + x.shape[2]])
    return np.concatenate([window[:, max(0, end - a) :] for window, a, end in zip(x, start, ends, strict=True)], axis=1)


def filled_up(recordings: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Pad recordings (channels, samples) with zeros to one tensor (n, channels, most samples); return also lengths."""
    samples = torch.tensor([x.shape[1] for x in recordings])
    x = torch.zeros(len(recordings), recordings[0].shape[0], int(samples.max()))
    for row, recording in zip(x, recordings, strict=True):
        row[:, : recording.shape[1]] = torch.from_numpy(recording)
    return x, samples


@torch.inference_mode()
def predict_recordings(network: nn.Module, recordings: Sequence[np.ndarray]) -> np.ndarray:
    """Probability of the positive class of each recording, (n,) float64.

    Args:
        network: a network that returns logits (n, 2) of whole recordings.
        recordings: (channels, samples) of each recording, scaled as in training.
    """
    network.eval()
    found = []
    for first in range(0, len(recordings), AT_ONCE):
        x, samples = filled_up(recordings[first : first + AT_ONCE])
        check_finite(x, "samples of the recording, filtered and scaled,")
        found.append(network(x, samples).double().softmax(1)[:, 1])
    probability = torch.cat(found)
    check_finite(probability, "probabilities")
    return probability.numpy()
