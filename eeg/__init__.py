"""Diagnosis from raw EEG: reading of recordings, windows, features, networks, and an audit for leakage."""

from typing import TYPE_CHECKING

from ..runs.public import public_names

if TYPE_CHECKING:
    from .adhdeepnet import ADHDeepNet as ADHDeepNet
    from .diagnosis import diagnose as diagnose
    from .long_recording import LongRecordingNet as LongRecordingNet
    from .networks import load_network as load_network
    from .recording import Recording as Recording
    from .recording import read_recording as read_recording
    from .study import read_study as read_study

__all__ = public_names(
    __name__,
    {
        "ADHDeepNet": "adhdeepnet",
        "LongRecordingNet": "long_recording",
        "Recording": "recording",
        "diagnose": "diagnosis",
        "load_network": "networks",
        "read_recording": "recording",
        "read_study": "study",
    },
)
