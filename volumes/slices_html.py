"""Three slices of an image as HTML, for notebooks."""

import base64
import html
import io

import numpy as np
from PIL import Image

_HEIGHT = 160  # of a picture, in pixels


def slices_html(array: np.ndarray, spacing: tuple[float, float, float], caption: str) -> str:
    """The middle slices across the three axes as PNG pictures in one line, with a caption.

    Args:
        array: (D, H, W), or (D, H, W, T), of which the first volume is shown.
        spacing: of the axes, for the proportions.
        caption: plain text.
    """
    volume = array[..., 0] if array.ndim == 4 else array
    parts = []
    for axis in range(3):
        plane = volume.take(volume.shape[axis] // 2, axis).astype(np.float64)
        plane = np.where(np.isfinite(plane), plane, 0.0)
        low, high = np.percentile(plane, (0.5, 99.5))
        grey = (255 * np.clip((plane - low) / max(high - low, 1e-12), 0, 1)).astype(np.uint8)
        across, up = (spacing[k] * volume.shape[k] for k in range(3) if k != axis)
        width = int(np.clip(round(_HEIGHT * across / up), 8, 4 * _HEIGHT))
        picture = Image.fromarray(np.ascontiguousarray(grey.T[::-1])).resize((width, _HEIGHT))
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        source = base64.b64encode(stream.getvalue()).decode()
        parts.append(f'<img alt="slice across axis {axis}" src="data:image/png;base64,{source}">')
    return f"<figure>{' '.join(parts)}<figcaption>{html.escape(caption)}</figcaption></figure>"
