"""Reading of recordings of any length piece by piece, for a network that keeps a state instead of the recording."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..runs.finite import check_finite
from .long_recording import LongRecordingNet, RecordingState
from .networks import LONG_RECORDING, ModelCard
from .note import Note
from .recording import Recording, seconds_of
from .whole_recordings import joined
from .windows import WindowOptions, cut, scaled

PIECE_S = 600.0  # takes about 12 MB per 19 channels at 128 Hz while it is read


@dataclass(frozen=True)
class Streamed:
    """The result for a streamed recording.

    Args:
        probability: probability of the positive class after the whole recording.
        seconds: seconds read, including bad spans.
        notes: notes of all pieces, without repetitions.
    """

    probability: float
    seconds: float
    notes: tuple[Note, ...]


def check_streams(network: nn.Module, card: ModelCard) -> None:
    """Check that recordings can be read piece by piece for this network.

    Raises:
        ValueError: the network or its weights need a whole recording at once.
    """
    if not isinstance(network, LongRecordingNet):
        raise ValueError(f"a stream needs weights of {LONG_RECORDING}, got those of {card.network}")
    if not network.streams:
        mixer = card.arguments.get("mixer")
        raise ValueError(f"mixer {mixer} keeps no state of constant size, so it reads no stream; leave --stream out")
    options = card.window_options
    if options.band is not None and any(edge is not None for edge in options.band):
        raise ValueError("the weights need recordings filtered as a whole, not a stream; leave --stream out")
    if options.scaling == "recording":
        raise ValueError("the weights need recordings scaled as a whole, not a stream; leave --stream out")
    if options.overlap:
        raise ValueError("the weights were trained on overlapping windows, not on a stream; leave --stream out")


def pieces(path: Path, options: WindowOptions, sfreq: float, piece_s: float = PIECE_S) -> Iterator[Recording]:
    """The recording in pieces of whole windows, each read from the file on demand.

    Args:
        path: the file.
        options: how the file is read and cut.
        sfreq: sampling rate of the file, Hz.
        piece_s: seconds of a piece, rounded down to whole windows.
    """
    window_s = round(options.seconds * sfreq) / sfreq
    step, total = max(1, int(piece_s / window_s)) * window_s, seconds_of(path, options.mat_order, options.mat_sfreq)
    for number in itertools.count():
        start = number * step
        if number and total - start < window_s - 0.5 / sfreq:  # no window is left
            return
        yield options.read(path, span=(start, min(total, start + step)))


def stream_recording(
    network: LongRecordingNet, card: ModelCard, path: Path, *, piece_s: float = PIECE_S
) -> Streamed | None:
    """Diagnose a recording while it is read; memory does not grow with its length.

    Args:
        network: a network whose mechanism can read a stream.
        card: the model card of its weights.
        path: the file.
        piece_s: number of seconds that are in memory at the same time.

    Returns:
        None if the recording has no whole second free of bad spans.

    Raises:
        ValueError: the recording does not fit the weights, or cannot be streamed.
    """
    check_streams(network, card)
    options, scaler = card.window_options, card.fitted_scaler
    state: RecordingState | None = None
    notes = dict[Note, None]()
    for piece in pieces(path, options, card.sfreq, piece_s):
        card.check_recording(piece)
        if abs(piece.file_sfreq - card.sfreq) > 1e-6:
            raise ValueError(f"a stream is not resampled: it must have {card.sfreq:g} Hz, got {piece.file_sfreq:g} Hz")
        notes.update(dict.fromkeys(piece.notes))
        x, start = cut(piece, options)
        if not len(x):
            continue
        x = scaled(x, piece, options.scaling)
        signal = torch.from_numpy(joined(x if scaler is None else scaler.apply(x), start)).unsqueeze(0)
        check_finite(signal, "samples of the recording, scaled,")
        state = network.stream(signal, state)
    if state is None or state.logits is None:
        return None
    probability = state.logits.double().softmax(1)[0, 1]
    check_finite(probability, "probabilities")
    seconds = seconds_of(path, options.mat_order, options.mat_sfreq)
    return Streamed(float(probability), seconds, tuple(notes))
