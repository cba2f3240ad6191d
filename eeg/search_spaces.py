"""The models of nested cross-validation and the settings that are searched for each."""

from typing import Any

from .networks import LONG_RECORDING

_M, _S = ("1", "2", "3"), ("0.1", "0.01", "0.001")
_PAIRS = ((0, 1), (0, 2), (1, 2))
# The 19 published augmentations, as MAGNIFICATIONSxSIGMAS: none, each single pair, and two values of each combined.
AUGMENTATIONS = (
    "none",
    *(f"{m}x{s}" for m in _M for s in _S),
    *(f"{_M[a]},{_M[b]}x{_S[c]},{_S[d]}" for a, b in _PAIRS for c, d in _PAIRS),
)

# The published space with the augmentation, but without F2 and optimizer, which the published code never reads.
PUBLISHED_SPACE: dict[str, tuple[Any, ...]] = {
    "F1": (8, 16, 32, 64),
    "D": (2, 4, 8),
    "kernel_length": (32, 64, 128, 256, 512),
    "se_nodes": (8, 16, 32),
    "max_norm": (0.5, 1.0, 5.0, 10.0),
    "lr": (1e-4, 5e-4, 1e-3, 5e-3, 1e-2),
    "drop_prob": (0.3, 0.4, 0.5),
    "batch": (32, 64, 128),
    "augmentation": AUGMENTATIONS,
}
# For a search that must end in reasonable time on two cores.
REDUCED_SPACE: dict[str, tuple[Any, ...]] = {
    "F1": (8, 16),
    "D": (2, 4),
    "kernel_length": (16, 32, 64),
    "lr": (5e-4, 1e-3),
    "drop_prob": (0.3, 0.5),
    "augmentation": ("none", "1x0.1"),
}
SPACES = {"published": PUBLISHED_SPACE, "reduced": REDUCED_SPACE, "none": {}}
DEFAULT_SPACES: dict[str, dict[str, tuple[Any, ...]]] = {
    "adhdeepnet": PUBLISHED_SPACE,
    "eegnet": {"F1": (4, 8, 16), "D": (2, 4), "lr": (5e-4, 1e-3, 5e-3), "drop_prob": (0.25, 0.5), "batch": (32, 64)},
    "shallow": {"filters": (20, 40), "lr": (1e-4, 5e-4, 1e-3), "drop_prob": (0.5, 0.7), "batch": (32, 64)},
    LONG_RECORDING: {
        "mixer": ("recurrent", "associative", "duality", "softmax"),
        "dim": (16, 32),
        "heads": (4,),
        "depth": (1, 2),
        "filters": (8,),
        "components": (8, 16),
        "electrode_hops": (None, 1, 2),
        "drop_prob": (0.3, 0.5),
        "drop_seconds": (0.2, 0.5),
        "lr": (1e-3, 3e-3),
        "batch": (8,),
        "augmentation": ("none",),
    },
    "bandpower": {"C": (1e-4, 1e-3, 1e-2, 1e-1, 1.0)},
    "amplitude": {"C": (1e-3, 1e-2, 1e-1, 1.0, 10.0)},
    "riemann": {"C": (1e-3, 1e-2, 1e-1, 1.0, 10.0)},
    "minirocket": {"C": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)},
    "length": {},
    "majority": {},
}
NAMES = tuple(DEFAULT_SPACES)
DEFAULT_NAMES = tuple(name for name in NAMES if name != LONG_RECORDING)  # models of a run that does not name any
NETWORK_NAMES = ("adhdeepnet", "eegnet", "shallow", LONG_RECORDING)
