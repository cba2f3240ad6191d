"""Whole recordings as one item each, for the network that reads them at once."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..runs.training import Batches
from .whole_recordings import AT_ONCE, filled_up, joined
from .windows import Scaler, Windows

Batch = dict[str, Tensor]


class RecordingData(Dataset[Batch]):
    """Batches of recordings from lists of indices; the shorter recordings of a batch are padded with zeros.

    With noise levels, index i is copy i // n of recording i % n, as in `WindowData`.

    Args:
        windows: the windows of the study.
        subjects: indices of the subjects, one recording each.
        scaler: a scaler fitted on the training windows, if the windows are not scaled yet.
        levels: standard deviations of the noise on the copies.

    Raises:
        ValueError: a recording is shorter than a second.
    """

    def __init__(
        self,
        windows: Windows,
        subjects: Sequence[int],
        scaler: Scaler | None,
        *,
        levels: Sequence[float] = (0.0,),
    ) -> None:
        self.subjects = list(subjects)
        self.x: list[np.ndarray] = []
        for subject in self.subjects:
            rows = windows.rows([subject])
            x = windows.x[rows] if scaler is None else scaler.apply(windows.x[rows])
            recording = joined(x, windows.start[rows])
            if recording.shape[1] < round(windows.sfreq):
                raise ValueError(
                    f"{windows.subjects[subject]} must have a second of EEG in windows to be read as a whole, "
                    f"got {recording.shape[1] / windows.sfreq:.2f} s"
                )
            self.x.append(recording)
        self.subject = torch.tensor(self.subjects)
        self.label = torch.from_numpy(windows.labels)[self.subject]
        self.levels = torch.tensor(list(levels), dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.x) * len(self.levels)

    def __getitem__(self, indices: list[int]) -> Batch:
        index = torch.tensor(indices)
        row = index % len(self.x)
        x, samples = filled_up([self.x[i] for i in row.tolist()])
        return {
            "x": x,
            "samples": samples,
            "label": self.label[row],
            "subject": self.subject[row],
            "noise": self.levels[index // len(self.x)],
            "row": index,
        }

    def loader(self, batch: int, *, shuffle: Callable[[], np.random.Generator] | None = None) -> DataLoader[Batch]:
        """Batches in order; with `shuffle`, in an order drawn by the generator that it gives for each epoch."""
        if batch < 2:
            raise ValueError(f"batch must be at least 2, got {batch}")
        return DataLoader(self, sampler=Batches(len(self), min(batch, AT_ONCE), shuffle), batch_size=None)
