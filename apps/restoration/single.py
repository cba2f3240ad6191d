"""`voxelwave restoration restore` for one image, volume or series."""

import base64
import io
import sys
from typing import Any

import numpy as np
from PIL import Image as Picture

from ...restoration.images import Image, IntensityRange
from ...restoration.inference import Refused
from ...restoration.suffixes import BITMAP_SUFFIXES
from ...runs.catalogue import list_weights
from ...runs.compute import use_threads
from ...runs.exit import DONE, REFUSED
from ...runs.files import outputs_beside
from ...runs.outcome import add_outcome
from ...runs.record import write_record
from ..batch.task import CaseRefused
from ..page.case_page import write_case_page
from .options import Restore, record_beside
from .work import Restoration, Restored, batch_work


def restore_single(options: Restore, arguments: dict[str, Any]) -> int:
    """Restore one input, and print and write its report; `arguments` are those of `batch_work` without the weights."""
    use_threads(options.threads)
    source, target = options.input, options.output

    def show(image: Image, intensity_range: IntensityRange) -> None:
        shape = " x ".join(map(str, image.stack.shape))
        print(f"{source}: {shape} {image.dtype}, 0 to 1 is {intensity_range}", flush=True)
        made_for = [entry.name for entry in list_weights("restoration") if image.modality in entry.for_modalities]
        if made_for and work.weights.stem not in made_for:
            print(f"note: this image is {image.modality}, for which the weights {', '.join(made_for)} are made")

    try:
        earlier = [f"{target.name}/{file.name}" for file in options.earlier() if file.parent == target]
        with outputs_beside(target, replaces=earlier) as together:
            work = batch_work(weights=str(options.weights), **arguments)
            to = together / target.absolute().name
            free = to if options.overwrite else target  # else a folder with files of an earlier series is refused
            done = work.restore(source, free, write_to=to, show=show, progress=_show_progress)
            _report(options, work, done)
    except (CaseRefused, Refused) as error:
        about = f"{source}: " if isinstance(error, Refused) else ""
        print(f"voxelwave: refused: {about}{error}", file=sys.stderr)
        return REFUSED
    add_outcome(intensity_range=str(done.intensity_range), change=done.change.as_dict())
    print(f"  wrote {target} in {done.seconds:.1f} s")
    return DONE


def _report(options: Restore, work: Restoration, done: Restored) -> None:
    """Print the difference to the input, and write the record."""
    for line in [*done.change.lines(), *(done.noise.lines() if done.noise else [])]:
        print(f"  {line}")
    record = record_beside(done.written)
    write_record(
        record,
        inputs={"input": options.input, "weights": work.weights},
        options={
            "tile": options.tile,
            "overlap": options.overlap,
            "self_ensemble": options.self_ensemble,
            "device": work.device,
            "range": str(done.intensity_range),
            "slice_axis": options.slice_axis,
            **({} if options.size == "full" else {"size": options.size}),
            **({} if options.sigma is None else {"sigma": options.sigma}),
        },
        change=done.change.as_dict(),
        **({} if done.noise is None else {"noise": done.noise.as_dict()}),
        seconds=done.seconds,
    )
    write_case_page(
        record.with_suffix(".html"),
        record,
        title="Restoration of an image",
        figures="change",
        picture=_picture(done.middle, upright=options.input.suffix.lower() in BITMAP_SUFFIXES),
        caption="The middle slice before and after, and the difference (four times the contrast, grey for none).",
        files={done.written.name: "the restored image"},
    )


def _picture(middle: np.ndarray, *, upright: bool) -> str:
    """Input, result and difference side by side, as a data URI.

    Args:
        middle: (2, C, H, W).
        upright: the rows run down the picture; else the axes point right and up, as in a volume.
    """
    before, after = (slice_.astype(float) for slice_ in middle)
    low, high = np.percentile(before, (0.5, 99.5))
    span = max(high - low, np.finfo(float).tiny)
    panels = [(before - low) / span, (after - low) / span, 0.5 + 4 * (after - before) / span]
    whole = np.concatenate([panel if upright else panel.swapaxes(1, 2)[:, ::-1] for panel in panels], axis=2)
    pixels = (255 * whole.clip(0, 1)).round().astype(np.uint8)
    image = Picture.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _show_progress(done: int, count: int) -> None:
    if sys.stderr.isatty() and count > 1:
        print(f"\r  slice {done} of {count}", end="\n" if done == count else "", file=sys.stderr, flush=True)
