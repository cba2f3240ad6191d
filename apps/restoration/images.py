"""`voxelwave restoration images`: gather openly licensed images to train on."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def images(*, output: Path) -> None:
    """Write the openly licensed images of installed packages as grey PNG files, into train/ and validation/.

    From scikit-image (public domain or CC0) and scikit-learn (CC BY), and slices of nilearn's MNI152 brain template
    where nilearn is installed. LICENCES.tsv beside them says whose each one is.

    Args:
        output: the folder to write into.
    """
    from ...restoration.open_images import write_open_images

    counts = write_open_images(output)
    print(f"wrote {output}/: " + ", ".join(f"{count} images in {name}" for name, count in counts.items()))
