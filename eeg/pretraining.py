"""Pre-training of an EEG network under a growing mask: a partly hidden signal must be recognised among others.

An idea after Mask & Match (arXiv 2508.06107). In each batch, a growing share (10 to 60 %) of the time is hidden in one
view of each window or recording; its features must be nearest to those of the whole signal among all of the batch. No
labels are used.
"""

import numpy as np
import torch
from torch import Tensor, nn

from ..runs.pretraining import contrastive_loss, hidden_spans, mask_ratio
from .adhdeepnet import ADHDeepNet
from .long_recording import LongRecordingNet
from .module import WindowData
from .networks import LONG_RECORDING
from .recording_data import RecordingData
from .whole_recordings import AT_ONCE

NETWORKS = ("adhdeepnet", LONG_RECORDING)
_SPANS = 16  # parts of a window; a recording is hidden second by second


def pretrain(
    network: nn.Module,
    data: WindowData | RecordingData,
    *,
    epochs: int,
    batch: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    device: str = "cpu",
) -> list[float]:
    """Pre-train a network, which is then on the CPU and in training mode; return the mean loss of each epoch.

    Args:
        network: an ADHDeepNet or a LongRecordingNet.
        data: the training part; labels and noise are not used.
        epochs: number of epochs; the hidden share grows over all of them.
        batch: windows per step; of recordings at most 8.
        lr: learning rate of AdamW.
        seed: of order, masks, the projection and, for ADHDeepNet, dropout.
        device: "cpu" or "cuda".

    Raises:
        ValueError: the network is another one, there is no pair to match, or the loss is not finite.
    """
    last = _last_layer(network)
    count = len(data.x)
    if count < 2:
        raise ValueError(f"pre-training needs at least 2 windows or recordings to match, got {count}")
    size = max(2, min(batch, AT_ONCE, count) if isinstance(data, RecordingData) else min(batch, count))
    found: list[float] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = last.in_features
        projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)).to(device)
        # the mask takes the place of dropout, which must stay for a network whose batch norms need the training mode
        network.to(device).train(isinstance(network, ADHDeepNet))
        optimizer = torch.optim.AdamW([*network.parameters(), *projection.parameters()], lr, weight_decay=1e-4)
        masks = torch.Generator().manual_seed(seed)
        steps = epochs * (count // size)
        for epoch in range(epochs):
            order = np.random.default_rng([seed, epoch]).permutation(count)
            losses: list[float] = []
            for start in range(0, count - size + 1, size):
                given = data[order[start : start + size].tolist()]
                x, samples = given["x"].to(device), given.get("samples")
                ratio = mask_ratio(epoch * (count // size) + len(losses), steps)
                part = projection(_features(network, last, _hidden(network, x, samples, ratio, masks), samples))
                whole = projection(_features(network, last, x, samples))
                loss = contrastive_loss(part, whole)
                if not torch.isfinite(loss):
                    raise ValueError("the loss of the pre-training is not finite; a smaller lr may help")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                if isinstance(network, ADHDeepNet):
                    network.constrain()
                losses.append(float(loss.detach()))
            found.append(float(np.mean(losses)))
        network.cpu().train()
    return found


def _last_layer(network: nn.Module) -> nn.Linear:
    if isinstance(network, ADHDeepNet):
        return network.classify
    if isinstance(network, LongRecordingNet):
        return network.final_layer
    raise ValueError(
        f"pre-training under a mask is for {' and '.join(NETWORKS)}, got a network of {type(network).__name__}"
    )


def _features(network: nn.Module, last: nn.Linear, x: Tensor, samples: Tensor | None) -> Tensor:
    """The input (B, width) of the last layer."""
    kept: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda module, given: kept.append(given[0]))
    try:
        network(x) if samples is None else network(x, samples)
    finally:
        handle.remove()
    return kept[0]


def _hidden(network: nn.Module, x: Tensor, samples: Tensor | None, ratio: float, generator: torch.Generator) -> Tensor:
    """The signals (B, channels, times) with a share of the time set to 0 on all channels."""
    times = x.shape[-1]
    span = network.second if isinstance(network, LongRecordingNet) else -(-times // _SPANS)
    parts = -(-times // span)
    ends = torch.full((len(x),), times) if samples is None else samples
    valid = torch.arange(parts) * span < ends.unsqueeze(1)
    hidden = hidden_spans(valid, ratio, generator).repeat_interleave(span, 1)[:, :times]
    return x.masked_fill(hidden.unsqueeze(1).to(x.device), 0.0)
