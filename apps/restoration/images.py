"""`voxelwave restoration images`: gather images to train on."""

from ...restoration.mr_images import write_mr_images
from ...restoration.open_images import OF_THE_CARD, commands_for_missing_images, write_open_images
from ...runs.files import outputs_together
from .options import Images


def images(options: Images) -> None:
    """Write the images and print their numbers."""
    with outputs_together(options.output, replaces=options.replaced()) as folder:
        if options.scans is None:
            counts = write_open_images(folder)
        else:
            counts = write_mr_images(
                options.scans,
                folder,
                labels=options.labels,
                validation=options.validation or (),
                least_side=options.least_side,
                seed=options.seed,
            )
    if options.scans is not None:
        print(f"wrote {options.output}/: {counts['train']} stacks in train, {counts['validation']} in validation")
        return
    listed = ", ".join(f"{count} images in {name}" for name, count in counts.items())
    print(f"wrote {options.output}/: {listed}")
    if counts["train"] < OF_THE_CARD:
        print(
            f"note: the card of denoise-grey names {OF_THE_CARD} training images; the others come from packages that"
            f" are not installed: {'; '.join(commands_for_missing_images())}"
        )
