"""`voxelwave restoration images`: gather openly licensed images to train on."""

from ...restoration.open_images import OF_THE_CARD, missing_packages, write_open_images
from .options import Images


def images(options: Images) -> None:
    """Write the images and print their numbers."""
    counts = write_open_images(options.output)
    listed = ", ".join(f"{count} images in {name}" for name, count in counts.items())
    print(f"wrote {options.output}/: {listed}")
    if counts["train"] < OF_THE_CARD:
        print(
            f"note: the card of denoise-grey names {OF_THE_CARD} training images; the others come from packages that"
            f" are not installed: pip install {' '.join(missing_packages())}"
        )
