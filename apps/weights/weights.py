"""`voxelwave weights`: list the trained weights, or show one with its model card."""

from dataclasses import asdict

from ...runs.catalogue import VARIABLE, check_hash, list_weights
from ...runs.outcome import add_outcome
from .options import Weights


def weights(options: Weights) -> None:
    """Run the command."""
    entries = [e for e in list_weights(options.field) if options.name in (None, e.name)]
    if options.name is not None and not entries:
        raise FileNotFoundError(f"no weights are named {options.name}; voxelwave weights lists all")
    for entry in entries:
        check_hash(entry)
        print(f"{entry.name}  ({entry.field}, {entry.size / 2**20:.1f} MB)")
        for title in ("task", "data", "licence", "figures", "not_for"):
            print(f"  {title.replace('_', ' '):<9}{getattr(entry, title)}")
        if entry.sizes:
            print(f"  {'sizes':<9}{', '.join(entry.sizes)}")
        print(f"  {'file':<9}{entry.file}")
    add_outcome(weights=[{**asdict(entry), "sizes": entry.sizes} for entry in entries])
    if options.name is not None and entries[0].card.is_file():
        print("\n" + entries[0].card.read_text())
    if not entries:
        print(f"no weights are installed; set {VARIABLE} to folders that hold weights")
