"""ADHDeepNet and LongRecordingNet as models of braindecode, for its `EEGClassifier` and other tools.

Importing this module registers both under their names, so that `EEGClassifier("ADHDeepNet", ...)` finds them. It also
imports braindecode, which is optional and takes seconds to load; nothing else in the package does.
"""

from collections.abc import Callable
from typing import Any

import torch
from braindecode.models.base import EEGModuleMixin
from braindecode.models.util import models_dict
from torch import Tensor, nn

from . import adhdeepnet, long_recording

SFREQ = 128.0  # Hz; the rate of the published ADHDeepNet, if none is given


class _WithHead:
    """The last layer of both models, which stands beside the network."""

    n_chans: int  # properties of braindecode
    n_times: int
    n_outputs: int
    sfreq: float
    _set_n_outputs: Callable[[int], None]
    final_layer: nn.Linear

    def reset_head(self, n_outputs: int) -> None:
        """Replace the last layer by a new one with this number of outputs."""
        self._set_n_outputs(n_outputs)
        self.final_layer = _like(self.final_layer, n_outputs)


class ADHDeepNet(_WithHead, EEGModuleMixin, nn.Module, license="apache-2.0"):  # type: ignore[call-arg]
    """ADHDeepNet (Amini et al., arXiv 2509.08779) with the arguments of braindecode.

    It computes the same as `voxelwave.eeg.ADHDeepNet`, whose weights `load_state_dict` takes. The norms of the spatial
    filters and of the weights of each output are limited before each training step and before evaluation.

    Parameters
    ----------
    F1 : int
        Number of temporal filters.
    D : int
        Number of spatial filters for each temporal filter.
    kernel_length : int
        Samples of a temporal filter.
    se_nodes : int
        Width of the squeeze-and-excitation.
    drop_prob : float
        Probability of both dropouts.
    max_norm : float
        Largest norm of a spatial filter and of the weights of an output.

    References
    ----------
    Amini et al., arXiv 2509.08779.
    """

    def __init__(
        self,
        n_outputs: int | None = None,
        n_chans: int | None = None,
        chs_info: list[dict[str, Any]] | None = None,
        n_times: int | None = None,
        input_window_seconds: float | None = None,
        sfreq: float | None = None,
        F1: int = 64,
        D: int = 4,
        kernel_length: int = 16,
        se_nodes: int = 16,
        drop_prob: float = 0.5,
        max_norm: float = 0.25,
    ) -> None:
        super().__init__(
            n_outputs=n_outputs,
            n_chans=n_chans,
            chs_info=chs_info,
            n_times=n_times,
            input_window_seconds=input_window_seconds,
            sfreq=sfreq,
        )
        self.max_norm = max_norm
        self.network = adhdeepnet.ADHDeepNet(
            self.n_chans,
            self.n_times,
            self.n_outputs,
            SFREQ if sfreq is None else sfreq,
            F1=F1,
            D=D,
            kernel_length=kernel_length,
            se_nodes=se_nodes,
            drop_prob=drop_prob,
            max_norm=max_norm,
        )
        self.mapping = _mapping(self.network, "classify")
        self.final_layer = self.network.classify
        self.network.add_module("classify", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, n_outputs) of windows (batch, n_chans, n_times)."""
        if self.training:
            self._constrain()
        logits: Tensor = self.final_layer(self.network(x))
        return logits

    def train(self, mode: bool = True) -> "ADHDeepNet":
        """Switch to training or evaluation."""
        if not mode and self.training:
            self._constrain()  # the last training step changed the weights
        super().train(mode)
        return self

    def reset_head(self, n_outputs: int) -> None:
        """Replace the last layer by a new one with this number of outputs."""
        super().reset_head(n_outputs)
        adhdeepnet.glorot_uniform(self.final_layer)

    @torch.no_grad()
    def _constrain(self) -> None:
        adhdeepnet.limit_norm(self.network.spatial.weight, dim=2, limit=self.max_norm)
        adhdeepnet.limit_norm(self.final_layer.weight, dim=1, limit=self.max_norm)


class LongRecordingNet(_WithHead, EEGModuleMixin, nn.Module, license="apache-2.0"):  # type: ignore[call-arg]
    """A network that reads whole recordings of any length, with the arguments of braindecode.

    It computes the same as `voxelwave.eeg.LongRecordingNet`, whose weights `load_state_dict` takes. All recordings of a
    batch have one length, which may differ from `n_times`; an incomplete last second is left out.

    Parameters
    ----------
    mixer : str
        Mechanism of the layers, such as "recurrent".
    dim : int
        Channels of the token of a second.
    heads : int
        Heads of each layer.
    depth : int
        Number of layers.
    filters : int
        Number of temporal filters.
    components : int
        Number of spatial filters.
    electrode_hops : int or None
        If given, electrodes attend to their neighbours within this number of steps in training; needs ``chs_info``.
    drop_prob : float
        Probability of the dropout.
    drop_seconds : float
        Share of the seconds that are hidden in training.
    """

    def __init__(
        self,
        n_outputs: int | None = None,
        n_chans: int | None = None,
        chs_info: list[dict[str, Any]] | None = None,
        n_times: int | None = None,
        input_window_seconds: float | None = None,
        sfreq: float | None = None,
        mixer: str = "recurrent",
        dim: int = 32,
        heads: int = 4,
        depth: int = 2,
        filters: int = 8,
        components: int = 8,
        electrode_hops: int | None = None,
        drop_prob: float = 0.3,
        drop_seconds: float = 0.2,
    ) -> None:
        super().__init__(
            n_outputs=n_outputs,
            n_chans=n_chans,
            chs_info=chs_info,
            n_times=n_times,
            input_window_seconds=input_window_seconds,
            sfreq=sfreq,
        )
        self.network = long_recording.LongRecordingNet(
            self.n_chans,
            self.n_outputs,
            self.sfreq,
            mixer=mixer,
            dim=dim,
            heads=heads,
            depth=depth,
            filters=filters,
            components=components,
            electrode_hops=electrode_hops,
            channels=None if chs_info is None else [each["ch_name"] for each in chs_info],
            drop_prob=drop_prob,
            drop_seconds=drop_seconds,
        )
        self.mapping = _mapping(self.network, "final_layer")
        self.final_layer = self.network.final_layer
        self.network.add_module("final_layer", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, n_outputs) of recordings (batch, n_chans, samples)."""
        logits: Tensor = self.final_layer(self.network(x))
        return logits


def _mapping(network: nn.Module, last: str) -> dict[str, str]:
    """Names of the network's own parameters -> names here, with the last layer beside the network."""
    return {
        name: name.replace(last, "final_layer", 1) if name.startswith(f"{last}.") else f"network.{name}"
        for name in network.state_dict()
        if not (last == "final_layer" and name.startswith("final_layer."))
    }


def _like(layer: nn.Linear, n_outputs: int) -> nn.Linear:
    """A new layer with the same inputs, on the same device."""
    return nn.Linear(layer.in_features, n_outputs, device=layer.weight.device, dtype=layer.weight.dtype)


models_dict.update({model.__name__: model for model in (ADHDeepNet, LongRecordingNet)})
