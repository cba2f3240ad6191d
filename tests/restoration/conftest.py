"""A tiny network and its training."""

from typing import Any

import pytest


@pytest.fixture
def tiny_module() -> dict[str, Any]:
    """Settings of a module that trains in a second."""
    return {
        "network": "MaIR",
        "arguments": {
            "in_channels": 1,
            "scale": 1,
            "upsampler": None,
            "width": 8,
            "depths": [1],
            "states": 1,
            "expansion": 1.0,
            "stripe_width": 4,
            "drop_path_rate": 0.0,
        },
        "lr": 2e-3,
        "schedule": "cosine",
        "steps": 24,
    }
