"""Fixtures that every folder of tests shares."""

import os
from pathlib import Path

import pytest
import torch

_SHARED = Path(__file__).resolve().parents[2] / "shared"


def _folder(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"needs the folder of real recordings and scans: set {variable} (looked at {folder})")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real recordings and scans."""
    return _folder("VOXELWAVE_DATA", _SHARED / "data")


@pytest.fixture(scope="session")
def shared_fixtures() -> Path:
    """The folder of outputs of the published models on random weights."""
    return _folder("VOXELWAVE_FIXTURES", _SHARED / "fixtures")


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of randomness for one test."""
    return torch.Generator().manual_seed(0)
