"""`voxelwave restoration images`: gather openly licensed images to train on."""

from ...restoration.open_images import write_open_images
from .options import Images


def images(options: Images) -> None:
    """Write the images and print their numbers."""
    counts = write_open_images(options.output)
    listed = ", ".join(f"{count} images in {name}" for name, count in counts.items())
    print(f"wrote {options.output}/: {listed}")
